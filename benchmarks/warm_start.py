"""After how many trials a search that begins with another has found what a cold one finds.

    python benchmarks/warm_start.py --run RUN [--halves] [--trials 40] [--seeds 120] [--noise 0.01]

RUN is a random search of `probe` with whole trials. A config is worth the mean of its five nearest neighbours
there, and noise, as another seed of training gives. With `--halves` the earlier search has half of RUN's
trials as neighbours, and the later ones the others: tasks that are alike and not the same. What a search has
found is the worth, without noise, of the config that is best with it. RUN may be of an older version.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from search_spaces.loading import load_study
from search_spaces.study import Search
from tuning.engine.searcher import sampler_of

METRIC, N_NEAREST = "val/f1_macro", 5
Params = dict[str, Any]
# What a search begins with: nothing; the observations of the earlier one, for the sampler alone, as long as
# it has fewer trials of its own; or the best configs of the earlier one, which it trains first.
COLD = "cold"
OBSERVATIONS = {"observations": math.inf, "observations for 10 trials": 10}
BEST = {"the best 1": 1, "the best 3": 3, "the best 5": 5}


def table(run: Path) -> list[tuple[Params, float]]:
    """Return the parameters and the value of every completed trial."""
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    sampled = {event["trial_id"]: event["factors"] for event in events if event["event"] == "trial"}
    records = [json.loads(path.read_text()) for path in sorted((run / "trials").glob("*.json"))]
    return [(sampled[r["trial_id"]], r["metrics"][METRIC]) for r in records if r["status"] == "completed"]


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


class Replay:
    """A search of `n_trials` whose configs are worth what `rows` say."""

    def __init__(self, search: Search, rows: Sequence[tuple[Params, float]], noise: float, seed: int) -> None:
        self.search, self.rows, self.noise, self.seed = search, rows, noise, seed
        self.own = self._fresh()
        self.warm = self._fresh()  # with the observations, too

    def _fresh(self) -> optuna.Study:
        sampler = sampler_of(self.search, "tpe", self.seed)
        return optuna.create_study(direction="maximize", sampler=sampler)

    def run(self, earlier: Sequence[FrozenTrial] = (), n_observed: float = 0, n_best: int = 0) -> np.ndarray:
        """Return what the search has found after each trial.

        The sampler has `earlier` as observations for `n_observed` trials; the `n_best` best are trained
        first.
        """
        for trial in earlier:
            self.warm.add_trial(trial)
        for trial in sorted(earlier, key=lambda trial: -trial.value)[:n_best]:
            self.own.enqueue_trial(trial.params)
        rng = np.random.default_rng(self.seed)
        noisy, true = [], []
        for n in range(self.search.n_trials):
            study, other = (self.warm, self.own) if n < n_observed else (self.own, self.warm)
            trial = study.ask()
            true.append(worth(self.search.space(trial), self.rows))
            noisy.append(true[-1] + rng.normal(scale=self.noise))
            study.tell(trial, noisy[-1])
            other.add_trial(study.get_trials(deepcopy=False)[-1])
        return np.array([true[int(np.argmax(noisy[: n + 1]))] for n in range(len(true))])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--halves", action="store_true")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=120)
    parser.add_argument("--noise", type=float, default=0.01, help="std of the noise of one training")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = replace(load_study("probe"), n_trials=given.trials, scheduler="fifo")
    rows = table(given.run)
    curves: dict[str, list[np.ndarray]] = {name: [] for name in (COLD, *OBSERVATIONS, *BEST)}
    for seed in range(given.seeds):
        order = np.random.default_rng(seed).permutation(len(rows))
        halves = [[rows[i] for i in half] for half in np.array_split(order, 2)]
        there, here = halves if given.halves else (rows, rows)
        first = Replay(search, there, given.noise, seed + 1000)
        first.run()
        earlier = first.own.get_trials()
        for name, found in curves.items():
            later = Replay(search, here, given.noise, seed)
            found.append(later.run(earlier, OBSERVATIONS.get(name, 0), BEST.get(name, 0)))
    half = given.trials // 2
    cold = np.array(curves[COLD])[:, -1]
    less = f"{half}, less cold after {given.trials}"
    print(f"| begins with | after 1 | 5 | 10 | {half} | {given.trials} | {less} |")
    print("|---|---|---|---|---|---|---|")
    for name, found in curves.items():
        after = np.array(found)
        means = " | ".join(f"{after[:, n - 1].mean():.4f}" for n in (1, 5, 10, half, given.trials))
        difference = after[:, half - 1] - cold
        error = difference.std(ddof=1) / math.sqrt(len(difference))
        print(f"| {name} | {means} | {difference.mean():+.4f} ({error:.4f}) |")


if __name__ == "__main__":
    main()
