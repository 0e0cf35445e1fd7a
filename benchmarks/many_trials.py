"""What a sweep of many trials leaves behind: memory of the driver, the run folder, Ray's temporary files.

    python benchmarks/many_trials.py [N_TRIALS]
    python benchmarks/many_trials.py suggest

A search of N trials of one epoch over a few small synthetic birds. The driver's resident memory is read
from /proc at every end of a trial. Linux only. `suggest` is how long a suggestion takes beside 1,000 running
trials, in each kind of file that Optuna's study may be kept in.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import BaseTrial

from birdnet_core.data.manifest import read_manifest
from birdnet_core.demo.synthetic import SyntheticBirds, write_synthetic_birds
from birdnet_core.records.run_folder import RunFolder
from search_spaces.study import Overrides, Search
from tuning.engine.launch import sweep
from tuning.engine.preparation import Data
from tuning.engine.searcher import open_study, sampler_of

TINY = {
    "data.window_s": 1.0,
    "features.n_mfcc": 16,
    "features.n_frames": 24,
    "training.epochs": 1,
    "training.batch_size": 16,
    "optim.warmup_epochs": 0,
}


def space(trial: BaseTrial) -> Overrides:
    return {
        "optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True),
        "optim.weight_decay": trial.suggest_float("optim.weight_decay", 1e-4, 1e-1, log=True),
    }


def resident_mb() -> float:
    """Return the resident memory of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def seconds_to_suggest(storage: str, n_running: int = 1000, n: int = 9) -> float:
    """Return the median of the seconds that asking Optuna for a trial takes beside `n_running` others."""
    study = Search(name="many", question="How long?", space=space, n_trials=2 * n_running)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        opened = open_study(run, study, seed=0, sampler="random", storage=storage)
        for _ in range(n_running):
            space(opened.ask())
        opened.sampler = sampler_of(study, "tpe", 0)
        seconds = []
        for _ in range(n):
            start = time.perf_counter()
            space(opened.ask())
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    if sys.argv[1:] == ["suggest"]:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal, sqlite = (seconds_to_suggest(storage) for storage in ("journal", "sqlite"))
        print(f"journal {1000 * journal:.1f} ms, sqlite {1000 * sqlite:.1f} ms: {sqlite / journal:.0f} times")
        return
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    memory: list[float] = []

    def watch(event: dict[str, Any]) -> None:
        if event["event"] == "end":
            memory.append(resident_mb())

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        before = set(Path(tempfile.gettempdir()).glob("bt-*")) | set(Path(tempfile.gettempdir()).glob("ray*"))
        birds = write_synthetic_birds(
            folder / "birds", SyntheticBirds(n_species=4, n_recordings=40, n_recordists=12)
        )
        data = Data(name="few", manifest=read_manifest(birds), cache=folder / "cache")
        study = Search(name="many", question="What is left?", space=space, n_trials=n, scheduler="fifo")
        start = time.perf_counter()
        summary = sweep(study, data, folder / "run", settings=TINY, observer=watch)
        seconds = time.perf_counter() - start
        run = RunFolder(folder / "run")
        size = sum(f.stat().st_size for f in run.path.rglob("*") if f.is_file())
        kept = sum(f.stat().st_size for f in run.checkpoints_path.rglob("*") if f.is_file())
        after = set(Path(tempfile.gettempdir()).glob("bt-*")) | set(Path(tempfile.gettempdir()).glob("ray*"))
    print(f"{summary.counts}, {seconds:.0f} s, {seconds / n:.2f} s a trial")
    for i in sorted({min(n, k) for k in (1, 100, 200, 500, n)}):
        print(f"driver after trial {i:5}: {memory[i - 1]:.0f} MB resident")
    print(
        f"run folder without checkpoints: {(size - kept) / 2**20:.1f} MB; checkpoints: {kept / 2**20:.1f} MB"
    )
    print(f"temporary files of Ray left: {sorted(map(str, after - before)) or 'none'}")


if __name__ == "__main__":
    main()
