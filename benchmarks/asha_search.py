"""What early stopping saves and what it finds: TPE under ASHA against random search with the same epochs.

    python benchmarks/asha_search.py [--trials 40] [--epochs 50] [--seeds 0 1 2]

On the synthetic birds of `--data synthetic`, seed by seed: a search of 40 trials under ASHA; then random
search without early stopping, with as many whole trials as the epochs of the first pay for. Epochs are those
trained, from the journal; the best F1-macro is that of the best validation epoch of any trial.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import optuna

from birdnet_core.data.building import default_cache
from birdnet_core.data.manifest import read_manifest
from birdnet_core.demo.synthetic import cached_synthetic_birds
from birdnet_core.records.run_folder import RunFolder
from search_spaces.loading import load_study
from search_spaces.study import Search
from tuning.engine.launch import sweep
from tuning.engine.preparation import Data
from tuning.engine.searcher import open_storage

# No patience, so that only the scheduler stops trials; a narrow network and one window a recording make for
# short epochs.
SETTINGS = {"training.patience": 0, "data.windows_per_recording": 1, "model.width": 16}


def outcome(run: RunFolder) -> tuple[int, float]:
    """Return the epochs that were trained, and the best validation F1-macro of any."""
    scores = [e["metrics"]["val/f1_macro"] for e in run.events() if e["event"] == "epoch"]
    return len(scores), max(scores)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--grace-epochs", type=int, default=3)
    parser.add_argument("--reduction-factor", type=int, default=3)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = load_study("learning-rate", quick=True)
    assert isinstance(study, Search)
    study = replace(study, grace_epochs=given.grace_epochs, reduction_factor=given.reduction_factor)
    data = Data(name="synthetic", manifest=read_manifest(cached_synthetic_birds(default_cache())))
    full = given.trials * given.epochs
    best: dict[str, list[float]] = {"asha": [], "random": []}
    columns = (
        "seed", "ASHA: trials", "states in Optuna", "epochs", "times fewer", "best F1-macro",
        "random: trials", "epochs", "best F1-macro",
    )  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            settings: dict[str, Any] = {"training.epochs": given.epochs, **SETTINGS, "seed": seed}
            counts = sweep(study, data, folder / "asha", settings=settings, n_trials=given.trials).counts
            n_epochs, found = outcome(RunFolder(folder / "asha"))
            storage = open_storage("journal", RunFolder(folder / "asha"))
            states = Counter(
                t.state.name for t in optuna.load_study(study_name=study.name, storage=storage).trials
            )
            n_random = max(1, round(n_epochs / given.epochs))
            unstopped = replace(study, scheduler="fifo")
            sweep(unstopped, data, folder / "random", settings=settings, n_trials=n_random, sampler="random")
            n_random_epochs, found_random = outcome(RunFolder(folder / "random"))
        best["asha"].append(found)
        best["random"].append(found_random)
        told = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        in_optuna = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
        cells = (
            seed, told, in_optuna, n_epochs, f"{full / n_epochs:.2f}", f"{found:.4f}",
            n_random, n_random_epochs, f"{found_random:.4f}",
        )  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"mean of the best: ASHA {mean(best['asha']):.4f}, random {mean(best['random']):.4f}")


if __name__ == "__main__":
    main()
