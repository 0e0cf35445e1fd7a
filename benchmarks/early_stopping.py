"""Whether early epochs predict late ones, and what each rule of early stopping saves and finds.

    python benchmarks/early_stopping.py [--data synthetic] [--seeds 0 1 2] [--keep DIR] [--run RUN]

Trains configs of the learning-rate study whole, drawn at random, on the synthetic birds of the demo (`--data`
takes a manifest, too, or `balanced`: ten species with 40 recordings each). Then replays them under every
rule, in `N_ORDERS` orders on two workers: a rule sees what it would have seen. What random search finds with
the same epochs is the mean over draws of as many whole trials. `--keep` keeps the runs in DIR, and continues
those that are there. `--run` takes the whole trials of RUN instead, a search with
`--sampler random --scheduler fifo`, `--trials` of them for each seed.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
from asha_search import SETTINGS
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from scipy.stats import spearmanr

from birdnet_core.data.building import default_cache
from birdnet_core.data.manifest import read_manifest
from birdnet_core.demo.synthetic import SyntheticBirds, cached_synthetic_birds
from birdnet_core.records.run_folder import RunFolder
from search_spaces.loading import load_study
from tuning.engine.launch import sweep
from tuning.engine.preparation import Data
from tuning.engine.schedulers import Rule, make_rule

N_ORDERS, N_WORKERS, N_DRAWS = 100, 2, 5000
METRIC, LOSS = "val/f1_macro", "val/loss"
Judge = Callable[[str, int, float, float], bool]  # trial, epoch, value and loss: is it stopped?


def manifest_of(data: str) -> pd.DataFrame:
    """Return the recordings to train on: `synthetic`, `balanced`, or those of a manifest's path."""
    if data == "synthetic":
        return read_manifest(cached_synthetic_birds(default_cache()))
    if data == "balanced":
        some = SyntheticBirds(n_species=10, n_recordings=900)
        return read_manifest(cached_synthetic_birds(default_cache(), some)).groupby("species").head(40)
    return read_manifest(data)


def whole_trials(
    data_name: str, folder: Path, seed: int, n_trials: int, epochs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return F1-macro and loss [trials, epochs] of configs that were trained whole."""
    study = replace(load_study("learning-rate", quick=True), scheduler="fifo")
    data = Data(name=data_name, manifest=manifest_of(data_name))
    settings = {"training.epochs": epochs, **SETTINGS, "seed": seed}
    sweep(study, data, folder, settings=settings, n_trials=n_trials, sampler="random")
    return curves_of(folder)


def curves_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return F1-macro and loss [trials, epochs] of the trials of a run that were trained whole."""
    curves: defaultdict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    for event in RunFolder(folder).events():
        if event["event"] == "epoch":
            curves[event["trial_id"]][event["epoch"]] = (event["metrics"][METRIC], event["metrics"][LOSS])
    longest = max(map(len, curves.values()))
    whole = [curve for curve in curves.values() if len(curve) == longest]
    values = np.array([[curve[epoch] for epoch in sorted(curve)] for curve in whole])
    return values[:, :, 0], values[:, :, 1]


def as_ray(epochs: int) -> Judge:
    """Return Ray's ASHA, with the settings of the study."""
    ray = AsyncHyperBandScheduler(
        time_attr="epoch", metric=METRIC, mode="max", max_t=epochs, grace_period=3, reduction_factor=3
    )
    trials: dict[str, SimpleNamespace] = {}

    def is_stopped(name: str, epoch: int, value: float, loss: float) -> bool:
        if name not in trials:
            trials[name] = SimpleNamespace(trial_id=name)
            ray.on_trial_add(None, trials[name])
        return bool(
            ray.on_trial_result(None, trials[name], {"epoch": epoch, METRIC: value}) == TrialScheduler.STOP
        )

    return is_stopped


class ByRule:
    """A rule of birdtune, which hears of whole trials."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def __call__(self, name: str, epoch: int, value: float, loss: float) -> bool:
        is_stopped = self.rule.is_stopped(name, None, epoch, value, loss)
        if epoch == self.rule.max_epochs:
            self.rule.finish(name, None)
        return is_stopped


def replayed(f1: np.ndarray, loss: np.ndarray, judge: Judge, seed: int) -> tuple[int, int, int, float]:
    """Return the epochs trained, the trials that were trained whole, and spared, and the best F1 found."""
    rng = random.Random(seed)
    waiting = list(range(len(f1)))
    rng.shuffle(waiting)
    running: list[list[int]] = []
    n_epochs, n_whole, found = 0, 0, 0.0
    while waiting or running:
        while waiting and len(running) < N_WORKERS:
            running.append([waiting.pop(), 0])
        at = rng.randrange(len(running))
        trial, epoch = running[at]
        found = max(found, f1[trial, epoch])
        is_stopped = judge(f"{seed} {trial}", epoch + 1, f1[trial, epoch], loss[trial, epoch])
        running[at][1] += 1
        n_epochs += 1
        is_whole = running[at][1] == f1.shape[1]
        n_whole += is_whole
        if is_whole or is_stopped:
            running.pop(at)
    n_spared = len(judge.rule.spared) if isinstance(judge, ByRule) else 0
    return n_epochs, n_whole, n_spared, found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", default="synthetic", help="synthetic, balanced, or a manifest")
    parser.add_argument("--keep", type=Path, help="a folder for the runs")
    parser.add_argument("--run", type=Path, help="a run folder with whole trials, to take instead")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def ours(name: str, grace: int = 3, audit: float = 0.0) -> Callable[[], Judge]:
        return lambda: ByRule(
            make_rule(
                name,
                direction="maximize",
                max_epochs=given.epochs,
                grace_epochs=grace,
                reduction_factor=3,
                audit=audit,
            )
        )

    judges: dict[str, Callable[[], Judge]] = {
        "ASHA as in Ray": lambda: as_ray(given.epochs),
        "ASHA": ours("asha"),
        "ASHA, a tenth audited": ours("asha", audit=0.1),
        "HyperBand, a tenth audited": ours("hyperband", audit=0.1),
        "ASHA, `grace_epochs` 6": ours("asha", 6),
        "HyperBand": ours("hyperband"),
        "median": ours("median"),
    }
    correlations: defaultdict[int, list[tuple[float, ...]]] = defaultdict(list)
    rows: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seeds:
            if given.run:
                f1, loss = (each[seed * given.trials :][: given.trials] for each in curves_of(given.run))
            else:
                folder = (given.keep or Path(scratch)) / str(seed)
                f1, loss = whole_trials(given.data, folder, seed, given.trials, given.epochs)
            so_far = np.maximum.accumulate(f1, axis=1)
            best = so_far[:, -1]
            for rung in (3, 9, 27):
                statistics = (
                    f1[:, rung - 1], so_far[:, rung - 1], f1[:, max(0, rung - 3) : rung].mean(axis=1),
                    -loss[:, rung - 1], -loss[:, :rung].min(axis=1),
                )  # fmt: skip
                correlations[rung].append(
                    tuple(float(spearmanr(each, best).statistic) for each in statistics)
                )
            rng = np.random.default_rng(0)
            for name, judge in judges.items():
                runs = [replayed(f1, loss, judge(), order) for order in range(N_ORDERS)]
                n_epochs, n_whole, n_spared, found = np.array(runs).mean(axis=0)
                n_random = max(1, round(n_epochs / given.epochs))
                by_chance = np.mean([rng.choice(best, n_random, replace=False).max() for _ in range(N_DRAWS)])
                rows[name].append((f1.size / n_epochs, n_whole, n_spared, found, by_chance))
    print("Rank correlation with the trial's best F1:\n")
    print("| epoch | its F1 | best F1 so far | mean F1 of 3 epochs | its loss | lowest loss so far |")
    print("|---|---|---|---|---|---|")
    for rung, by_seed in correlations.items():
        of_rung = (", ".join(f"{v:+.2f}" for v in column) for column in zip(*by_seed, strict=True))
        print(f"| {rung} | {' | '.join(of_rung)} |")
    print(
        "\n| rule | times fewer epochs | whole trials | spared | best F1 | random, same epochs | mean gain |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, by_seed in rows.items():
        *_, found, by_chance = zip(*by_seed, strict=True)
        cells = [
            ", ".join(f"{v:.{d}f}" for v in column)
            for column, d in zip(zip(*by_seed, strict=True), (2, 1, 1, 3, 3), strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} | {np.mean(found) - np.mean(by_chance):+.3f} |")


if __name__ == "__main__":
    main()
