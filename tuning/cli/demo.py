"""`birdtune demo`: the whole story, on synthetic birds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tuning.cli.data import data_describe, data_index
from tuning.cli.options import local
from tuning.cli.output import out_console
from tuning.cli.plans import plan_command
from tuning.cli.predict import predict_command
from tuning.cli.results import best_command, report_command
from tuning.cli.sweeps import sweep_command
from tuning.cli.train import evaluate_command, train_command

N_NEW = 4


def demo_command(
    out: Annotated[
        Path, typer.Option(callback=local, help="Where to put the run, the report and the model.")
    ] = Path("demo"),
) -> None:
    """Synthetic birds -> sweep -> report -> best config -> model in use, in minutes on two CPU cores."""
    from birdnet_core.data.building import default_cache
    from birdnet_core.demo.synthetic import cached_synthetic_birds, write_new_recordings

    start = time.perf_counter()
    clips, run, best, model = out / "clips.csv", out / "run", out / "best.json", out / "model"
    # One size for all steps, so that features are computed once.
    size = ["data.windows_per_recording=2"]
    data, two = {"data": str(clips), "settings": size}, f"--set {size[0]}"
    out_console.print("birdtune demo: is it the capacity, the loss, or both? Asked of synthetic birds.")
    birds = cached_synthetic_birds(default_cache())
    steps: list[tuple[str, str, Callable[..., None], dict[str, Any]]] = [
        ("Recordings: list them", f"data index {birds} --out {clips}", data_index,
         {"source": birds, "out": clips}),
        ("Look at them: counts, the long tail, the split and its proof", f"data describe {clips} {two}",
         data_describe, {"source": str(clips), "settings": size}),
        ("What a sweep will take, from measured steps",
         f"plan capacity --data {clips} --quick --seeds 2 {two}", plan_command,
         {"study": "capacity", "quick": True, "seeds": 2, "out": run, **data}),
        ("Ablation: 2 networks x 2 losses x 2 seeds",
         f"sweep capacity --data {clips} --quick --seeds 2 {two} --out {run}", sweep_command,
         {"study": "capacity", "quick": True, "seeds": 2, "out": run, **data}),
        ("Search: learning rate, schedule and loss, a few trials into the same run",
         f"sweep learning-rate --data {clips} --quick --trials 4 {two} --out {run}", sweep_command,
         {"study": "learning-rate", "quick": True, "trials": 4, "out": run, **data}),
        ("Report: tables, figures, the answer in a sentence", f"report {run} --out {out / 'report'}",
         report_command, {"runs": [run], "out": out / "report"}),
        ("Best config of the ablation, by a stated rule", f"best {run} --study capacity --out {best}",
         best_command, {"run": run, "study": "capacity", "out": best}),
        ("Final training: two seeds, on training and validation recordings, become one model",
         f"train {best} --data {clips} --seeds 2 --out {model}", train_command,
         {"config": best, "seeds": 2, "out": model, "data": str(clips)}),
        ("The honest test, opened once", f"evaluate {model} --data {clips}", evaluate_command,
         {"model": model, "data": str(clips)}),
        (f"{N_NEW} new recordings, which nobody has seen", f"predict {model} {out / 'new'} --top-k 1 "
         f"--out {out / 'species.csv'}", predict_command,
         {"model": model, "audio": [out / "new"], "top_k": 1, "out": out / "species.csv"}),
    ]  # fmt: skip
    write_new_recordings(out / "new", n=N_NEW)
    for number, (text, command, call, arguments) in enumerate(steps, start=1):
        out_console.print(f"\n{number}. {text}", style="bold")
        out_console.print(f"$ birdtune {command}")
        call(**arguments)
    out_console.print((out / "species.csv").read_text(encoding="utf-8").rstrip())
    out_console.print(
        f"\nbest config  {best}\nreport       {out / 'report' / 'report.html'}\n"
        f"model        {model}, with its MODEL_CARD.md\n"
        f"done in {time.perf_counter() - start:.0f} s"
    )
