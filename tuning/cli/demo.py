"""`birdtune demo`: the main job, on synthetic birds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuning.cli.inputs import prepared
from tuning.cli.output import out_console
from tuning.cli.results import best_command, report_command, train_command
from tuning.cli.sweeps import sweep_command


def demo_command(
    out: Annotated[Path, typer.Option(help="Where to put the run, the report and the model.")] = Path("demo"),
) -> None:
    """Synthetic birds -> sweep -> report -> best config -> trained model, in minutes on two CPU cores."""
    import time

    start = time.perf_counter()

    def step(text: str, command: str) -> None:
        out_console.print(f"\n{text}", style="bold")
        out_console.print(f"$ {command}")

    run, best = out / "run", out / "best.json"
    out_console.print("birdtune demo: is it the capacity, the loss, or both? Asked of synthetic birds.")
    windows = "data.windows_per_recording=3"
    step("1. Recordings: decode, clip, split", f"birdtune data prepare synthetic --set {windows}")
    _, facts, _ = prepared("synthetic", [windows], None)
    out_console.print(
        f"{facts['n_recordings']} recordings of {facts['n_species']} species: {facts['n_train']} train, "
        f"{facts['n_val']} val, {facts['n_test']} test, grouped by {' and '.join(facts['grouped_by'])}"
    )
    step(
        "2. Ablation: 2 networks x 2 losses x 2 seeds",
        f"birdtune sweep capacity --quick --seeds 2 --out {run}",
    )
    sweep_command("capacity", out=run, seeds=2, quick=True)
    step("3. Report", f"birdtune report {run} --out {out / 'report'}")
    report_command([run], out=out / "report")
    step("4. Best config", f"birdtune best {run} --out {best}")
    best_command(run, out=best)
    step("5. The chosen config, trained alone", f"birdtune train {best} --out {out / 'model'}")
    train_command(best, out=out / "model")
    out_console.print(
        f"\nbest config  {best}\nreport       {out / 'report' / 'report.html'}\n"
        f"model        {out / 'model'}\n"
        f"done in {time.perf_counter() - start:.0f} s"
    )
