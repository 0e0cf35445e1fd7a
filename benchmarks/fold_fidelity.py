"""What one fold, all folds for all, and folds as a fidelity find with the same number of trainings.

    python benchmarks/fold_fidelity.py clips.csv --keep RUN [--configs 60] [--orders 400] [--seeds 60]

Trains random configs of `probe` whole on every fold, which RUN keeps, and replays searches over them, in
random orders of configs and of folds. A search sees the value of each training at its best epoch, and chooses
one config. Its regret is what that config has less than the best of all, by the pooled out-of-fold scores of
the reports. Workers train side by side, each training as long as the others.

Then TPE searches, in which a config is worth the mean pooled score of its five nearest neighbours in RUN, and
on each fold what that fold adds to all, and noise. What a search has found is the worth of the config that it
chooses.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import optuna
from scipy.stats import kendalltau
from warm_start import worth

from birdnet_core.config import TrainConfig
from birdnet_core.data.manifest import read_manifest
from birdnet_core.records.run_folder import RunFolder
from reports import load
from reports.statistics.analysis import results
from search_spaces.loading import load_study
from search_spaces.replay import parameters_of
from search_spaces.space import SpaceFunction
from search_spaces.study import Ablation, Search
from tuning.engine.folds import n_finalists
from tuning.engine.launch import sweep
from tuning.engine.preparation import Data
from tuning.engine.searcher import sampler_of

METRIC, N_FOLDS = "val/f1_macro", 5
Values = Sequence[float]
Rule = Callable[[Values], bool]
"""Whether a config goes on to its next fold, from its values by fold; a rule knows all that it has seen."""


def ablation(n_configs: int) -> Ablation:
    """Return random configs of `probe` as the cells of an ablation over all folds."""
    search = load_study("probe")
    assert isinstance(search, Search)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = {f"c{i:03d}": search.space(drawn.ask()) for i in range(n_configs)}
    return Ablation(
        name="folds", question="Which?", factors={"config": configs}, base=search.base, n_repeats=N_FOLDS
    )


def scores(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores [configs, folds] that a search sees, and the pooled ones [configs]."""
    runs = load([folder])
    _, cells, _ = results(runs, runs.studies[0])
    cells = cells.drop_duplicates("config_id")
    records = {(r.config_id, r.repeat): r.metrics[METRIC] for r in RunFolder(folder).records().values()}
    seen = [[records[config_id, fold] for fold in range(N_FOLDS)] for config_id in cells["config_id"]]
    return np.array(seen), cells[METRIC].to_numpy(dtype=float)


class AgainstIncumbent:
    """A config leaves that is behind the config with all folds whose mean is best: see `RULES`."""

    def __init__(self, bar: Callable[[Values, int], float]) -> None:
        self.bar = bar
        self.best: Values = ()

    def __call__(self, mine: Values) -> bool:
        n = len(mine)
        goes_on = n < N_FOLDS and (not self.best or fmean(mine) >= self.bar(self.best, n))
        if n == N_FOLDS and (not self.best or fmean(mine) > fmean(self.best)):
            self.best = tuple(mine)
        return goes_on


class BestThird:
    """A config leaves whose mean is not among the best third of those with as many folds before it."""

    def __init__(self) -> None:
        self.means: defaultdict[int, list[float]] = defaultdict(list)

    def __call__(self, mine: Values) -> bool:
        others, mean = self.means[len(mine)], fmean(mine)
        goes_on = not others or mean >= np.percentile(others, 100 * 2 / 3)
        others.append(mean)
        return bool(goes_on) and len(mine) < N_FOLDS


RULES: dict[str, Callable[[], Rule]] = {
    # Bergman, Purucker and Hutter 2024 (arXiv:2405.03389): "aggressive" and "forgiving".
    "leaves below the incumbent's mean": lambda: AgainstIncumbent(lambda best, n: fmean(best)),
    "leaves below the incumbent's worst fold": lambda: AgainstIncumbent(lambda best, n: min(best)),
    "leaves behind the incumbent on the same folds": lambda: AgainstIncumbent(
        lambda best, n: fmean(best[:n])
    ),
    "leaves when not among the best third": BestThird,
}


def most_configs(budget: int) -> int:
    """Return how many configs a search of `budget` trainings has if its finalists have all folds."""
    fitting = [n for n in range(1, budget) if n + (N_FOLDS - 1) * n_finalists(n) <= budget]
    return max(fitting)


def with_finalists(seen: np.ndarray, budget: int) -> tuple[int, int, int]:
    """Return the same as `raced` where the finalists of all that begin have all folds."""
    n = most_configs(budget)
    finalists = np.argsort(-seen[:n, 0], kind="stable")[: n_finalists(n)]
    return int(max(finalists, key=lambda config: seen[config].mean())), n, len(finalists)


def raced(seen: np.ndarray, budget: int, goes_on: Rule, workers: int) -> tuple[int, int, int]:
    """Return the config with the best mean over all folds, how many began, and how many had all.

    `seen` is [configs, folds] in the order of the search. Configs that go on come before new ones.
    """
    values: defaultdict[int, list[float]] = defaultdict(list)
    waiting, again, used = deque(range(len(seen))), deque[int](), 0
    while used < budget and (waiting or again):
        n = min(workers, budget - used, len(waiting) + len(again))
        used += n
        for config in [again.popleft() if again else waiting.popleft() for _ in range(n)]:
            mine = values[config]
            mine.append(float(seen[config, len(mine)]))
            if goes_on(mine):
                again.append(config)
    # Where none has all folds, those with the most compete.
    most = max(map(len, values.values()))
    whole = [config for config, mine in values.items() if len(mine) == most]
    return max(whole, key=lambda config: fmean(values[config])), len(values), len(whole) * (most == N_FOLDS)


class Surrogate:
    """What a config would score on each fold, by its nearest neighbours of a run."""

    def __init__(self, folder: Path, space: SpaceFunction, seen: np.ndarray, pooled: np.ndarray) -> None:
        runs = load([folder])
        _, cells, _ = results(runs, runs.studies[0])
        of_config = {record.config_id: record.config for record in RunFolder(folder).records().values()}
        configs = [of_config[name] for name in cells.drop_duplicates("config_id")["config_id"]]
        params = [parameters_of(space, TrainConfig.from_dict(config).flat())[0] for config in configs]
        self.space, self.rows = space, list(zip(params, map(float, pooled), strict=True))
        self.folds = seen.mean(axis=0) - seen.mean()
        rest = seen - seen.mean(axis=0) - seen.mean(axis=1, keepdims=True) + seen.mean()
        self.noise = math.sqrt((rest**2).sum() / ((len(seen) - 1) * (N_FOLDS - 1)))

    def searched(self, budget: int, how: str, seed: int) -> float:
        """Return the worth of the config that a TPE search of `budget` trainings chooses."""
        rng = np.random.default_rng(seed)
        folds, rule = rng.permutation(self.folds), BestThird()
        n = {"one fold": budget, "all folds": budget // N_FOLDS, "finalists": most_configs(budget)}.get(how)
        search = replace(load_study("probe"), n_trials=n or budget // 2, scheduler="fifo")
        study = optuna.create_study(direction="maximize", sampler=sampler_of(search, "tpe", seed))
        worths, values, used = list[float](), list[np.ndarray](), 0
        while used < budget and (n is None or len(worths) < n):
            trial = study.ask()
            worths.append(worth(self.space(trial), self.rows))
            scores = worths[-1] + folds + rng.normal(scale=self.noise, size=N_FOLDS)
            n_trained = N_FOLDS if how == "all folds" else 1
            while how.startswith("best third") and used + n_trained < budget and rule(scores[:n_trained]):
                n_trained += 1
            values.append(scores[:n_trained] if how != "finalists" else scores)
            used += n_trained
            study.tell(trial, float(scores[: 1 if how == "best third, first fold" else n_trained].mean()))
        if how == "finalists":
            chosen = with_finalists(np.array(values), budget)[0]
        else:
            most = max(map(len, values))
            whole = [i for i, scores in enumerate(values) if len(scores) == most]
            chosen = max(whole, key=lambda i: float(values[i].mean()))
        return worths[chosen]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--keep", type=Path, required=True, help="the run folder")
    parser.add_argument("--configs", type=int, default=60)
    parser.add_argument("--orders", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=60, help="of the TPE searches")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = Data(name=given.manifest.stem, manifest=read_manifest(given.manifest))
    sweep(ablation(given.configs), data, given.keep)
    seen, pooled = scores(given.keep)
    rest = seen - seen.mean(axis=0) - seen.mean(axis=1, keepdims=True) + seen.mean()
    correlations = [float(kendalltau(seen[:, fold], pooled).statistic) for fold in range(N_FOLDS)]
    print(
        f"std of the means of {len(seen)} configs {seen.mean(axis=1).std(ddof=1):.3f}, of the rest", end=" "
    )
    print(f"{rest.std():.3f}; means of the folds {np.round(seen.mean(axis=0), 3)}")
    print(f"Kendall's correlation of each fold with the pooled score {np.round(correlations, 2)}")
    print(f"pooled scores, the best first: {np.round(np.sort(pooled)[::-1][:8], 3)}\n")
    rng = np.random.default_rng(0)
    replays = [(rng.permutation(len(seen)), rng.permutation(N_FOLDS)) for _ in range(given.orders)]
    print("| trainings | side by side | a config | configs | with all folds | regret |")
    print("|---|---|---|---|---|---|")
    for budget in (20, 40, 60):
        searches: dict[tuple[int, str], list[tuple[int, int, int]]] = defaultdict(list)
        for configs, folds in replays:
            mine = seen[configs][:, folds]
            n = budget // N_FOLDS
            searches[1, "(all have one fold)"].append((configs[mine[:budget, 0].argmax()], budget, 0))
            searches[1, "(all have all folds)"].append((configs[mine[:n].mean(axis=1).argmax()], n, n))
            best, n_begun, n_whole = with_finalists(mine, budget)
            searches[1, "is a finalist"].append((configs[best], n_begun, n_whole))
            for workers in (1, 2, 8):
                for name, rule in RULES.items():
                    best, n_begun, n_whole = raced(mine, budget, rule(), workers)
                    searches[workers, name].append((configs[best], n_begun, n_whole))
        for (workers, name), found in searches.items():
            chosen, n_begun, n_whole = np.array(found).T
            regret = pooled.max() - pooled[chosen]
            error = regret.std(ddof=1) / math.sqrt(len(regret))
            print(
                f"| {budget} | {workers} | {name} | {n_begun.mean():.1f} | {n_whole.mean():.1f} | "
                f"{regret.mean():.4f} ({error:.4f}) |"
            )
    surrogate = Surrogate(given.keep, load_study("probe").space, seen, pooled)  # type: ignore[union-attr]
    print(f"\nTPE, with noise of std {surrogate.noise:.3f} a fold")
    print("\n| trainings | configs | found |\n|---|---|---|")
    for budget in (20, 40, 60):
        for how in ("one fold", "all folds", "best third", "best third, first fold", "finalists"):
            found = [surrogate.searched(budget, how, seed) for seed in range(given.seeds)]
            error = np.std(found, ddof=1) / math.sqrt(len(found))
            print(f"| {budget} | {how} | {np.mean(found):.4f} ({error:.4f}) |", flush=True)


if __name__ == "__main__":
    main()
