"""A driver to kill, in a process of its own: python -m tests.tuning.engine.driver RUN BIRDS [EPOCHS].

With ``search`` and a number of trials side by side instead of the epochs, it drives a search; with ``folds``
one whose promising configs get further folds.
"""

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import BaseTrial

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.data.manifest import read_manifest
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from birdnet_core.training.run import train
from search_spaces.study import Ablation, Overrides, Search
from tests.settings import SMALL
from tuning.engine.launch import Resources, sweep
from tuning.engine.preparation import Data

TWELVE = Ablation(
    name="twelve",
    question="Which of twelve?",
    factors={
        "optim.lr": (1e-3, 3e-3, 1e-2),
        "loss.name": ("cross_entropy", "focal"),
        "model.dropout": (0.0, 0.5),
    },
)
EPOCHS = 3


def space(trial: BaseTrial) -> Overrides:
    return {
        "optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-1, log=True),
        "model.dropout": trial.suggest_float("model.dropout", 0.0, 0.6),
    }


SEARCH = Search(
    name="rates", question="Which rate?", space=space, n_trials=12, grace_epochs=2, reduction_factor=2
)


def print_note(event: dict[str, Any]) -> None:
    if event["event"] == "note":
        print(event["text"], flush=True)


def run(out: Path, birds: Path, epochs: int = EPOCHS, **options: Any) -> None:
    options = {"observer": print_note} | options
    data = Data(name="few", manifest=read_manifest(birds), workers=1)
    settings = {**SMALL, "training.epochs": epochs}
    summary = sweep(TWELVE, data, out, settings=settings, n_repeats=1, resources=Resources(), **options)
    print(summary.counts, summary.halted)


def search(out: Path, birds: Path, concurrent: int = 1, **options: Any) -> None:
    """Drive twelve trials of six epochs under ASHA, drawn at random; one at a time, always alike."""
    options = {"observer": print_note} | options
    data = Data(name="few", manifest=read_manifest(birds), workers=1)
    summary = sweep(
        SEARCH,
        data,
        out,
        settings={**SMALL, "training.epochs": 6},
        resources=Resources(concurrent=concurrent),
        sampler="random",
        **options,
    )
    print(summary.counts, summary.halted)


def folds(out: Path, birds: Path, **options: Any) -> None:
    """Drive five trials of two epochs under ASHA, the best on three folds, drawn at random; always alike."""
    data = Data(name="few", manifest=read_manifest(birds), workers=1)
    sweep(
        replace(SEARCH, n_trials=5, grace_epochs=1, folds=True),
        data,
        out,
        settings={**SMALL, "data.folds": 3},
        resources=Resources(concurrent=1),
        sampler="random",
        **options,
    )


def train_alone(records: Iterable[TrialRecord], data: Data, out: Path) -> RunFolder:
    """Train the configs of `records` again, without Ray; return the folder of their new records."""
    alone = RunFolder(out)
    for record in records:
        config = TrainConfig.from_dict(record.config)
        alone.write_record(train(config, Dataset.open(data.folder(config))).record("completed"))
    return alone


def descendants(ancestor: int) -> set[int]:
    """Return the processes started by `ancestor`, at any depth."""
    parent = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            parent[int(fields["Pid"])] = int(fields["PPid"])
    found = {ancestor}
    while more := {pid for pid, of in parent.items() if of in found} - found:
        found |= more
    return found - {ancestor}


if __name__ == "__main__":
    if sys.argv[3:4] == ["search"]:
        search(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[4:]))
    elif sys.argv[3:] == ["folds"]:
        folds(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        run(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
