"""After how many trials a search that begins with observations of another has found what a cold one finds.

    python benchmarks/warm_start.py --run RUN [--halves] [--trials 40] [--seeds 20]

RUN is a random search of `probe` with whole trials. A config is worth the mean of its five nearest neighbours
there, and noise with the std `NOISE`, as another seed of training gives. With `--halves` the
earlier search has half of RUN's trials as neighbours, and the cold and the warm one the others: tasks
that are alike and not the same. What a search has found is the worth, without noise, of the config that is
best with it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from birdnet_core.records.run_folder import RunFolder
from search_spaces.loading import load_study
from search_spaces.replay import replayed
from search_spaces.study import Search
from tuning.engine.searcher import sampler_of

METRIC, N_NEAREST, NOISE = "val/f1_macro", 5, 0.01
Params = dict[str, Any]


def table(run: Path) -> list[tuple[Params, float]]:
    """Return the parameters and the value of every completed trial."""
    folder = RunFolder(run)
    records = folder.records()
    sampled = {e["trial_id"]: e["factors"] for e in folder.events() if e["event"] == "trial"}
    return [(sampled[i], r.metrics[METRIC]) for i, r in records.items() if r.status == "completed"]


def distance(one: Params, other: Params) -> float:
    """Return the sum over parameters: 1 for other choices or a parameter that one lacks, else at most 1."""
    out = 0.0
    for name in one.keys() | other.keys():
        a, b = one.get(name), other.get(name)
        if not isinstance(a, float) or not isinstance(b, float):
            out += a != b
        elif name in ("optim.lr", "optim.weight_decay"):
            out += abs(math.log10(a / b)) / 2.5
        else:
            out += abs(a - b) / (5 if name in ("loss.gamma", "loss.tau") else 1)
    return out


def worth(params: Params, rows: Sequence[tuple[Params, float]]) -> float:
    nearest = sorted(rows, key=lambda row: distance(params, row[0]))[:N_NEAREST]
    return float(np.mean([f1 for _, f1 in nearest]))


def searched(
    study: optuna.Study, search: Search, rows: Sequence[tuple[Params, float]], n_trials: int, seed: int
) -> tuple[list[optuna.trial.FrozenTrial], np.ndarray]:
    """Return the trials of a search, and what it has found after each of its own."""
    rng = np.random.default_rng(seed)
    noisy, true = [], []
    for _ in range(n_trials):
        trial = study.ask()
        true.append(worth(search.space(trial), rows))
        noisy.append(true[-1] + rng.normal(scale=NOISE))
        study.tell(trial, noisy[-1])
    found = np.array([true[int(np.argmax(noisy[: n + 1]))] for n in range(n_trials)])
    return study.get_trials()[-n_trials:], found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--halves", action="store_true")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=20)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = replace(load_study("probe"), n_trials=given.trials, scheduler="fifo")
    rows = table(given.run)
    curves: dict[str, list[np.ndarray]] = {"cold": [], "warm": []}
    for seed in range(given.seeds):
        order = np.random.default_rng(seed).permutation(len(rows))
        halves = [[rows[i] for i in half] for half in np.array_split(order, 2)]
        there, here = halves if given.halves else (rows, rows)

        def fresh(number: int, seed: int = seed) -> optuna.Study:
            return optuna.create_study(direction="maximize", sampler=sampler_of(search, "tpe", seed + number))

        earlier, _ = searched(fresh(1000), search, there, given.trials, seed + 1000)
        _, cold = searched(fresh(0), search, here, given.trials, seed)
        warm_study = fresh(0)
        for trial in earlier:
            part = replayed(search.space, trial.params)
            warm_study.add_trial(
                optuna.create_trial(
                    params=part.parameters, distributions=part.distributions, value=trial.value
                )
            )
        _, warm = searched(warm_study, search, here, given.trials, seed)
        curves["cold"].append(cold)
        curves["warm"].append(warm)
        print(f"seed {seed}: cold {cold[-1]:.4f}, warm {warm[-1]:.4f}", flush=True)
    cold, warm = (np.array(curves[name]) for name in ("cold", "warm"))
    for n in (1, 5, 10, 20, 30, given.trials):
        difference = warm[:, n - 1] - cold[:, -1]
        error = difference.std(ddof=1) / math.sqrt(len(difference))
        print(
            f"after {n}: cold {cold[:, n - 1].mean():.4f}, warm {warm[:, n - 1].mean():.4f}, warm minus cold "
            f"after {given.trials}: {difference.mean():+.4f} (standard error {error:.4f})"
        )


if __name__ == "__main__":
    main()
