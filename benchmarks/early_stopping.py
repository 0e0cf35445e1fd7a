"""Whether early epochs predict late ones, and what each rule of early stopping saves and finds.

    python benchmarks/early_stopping.py [--data synthetic] [--seeds 0 1 2] [--keep DIR] [--run RUN ...]

Trains configs of the learning-rate study whole, drawn at random, on the synthetic birds of the demo (`--data`
takes a manifest, too, or `balanced`: ten species with 40 recordings each). Then replays them under every
rule, in `N_ORDERS` orders on two workers: a rule sees what it would have seen. What random search finds with
the same epochs is the expected best of as many whole trials. `--keep` keeps the runs in DIR, and continues
those that are there. `--run` takes the whole trials of run folders instead, `--trials` of them for each seed:
searches with `--sampler random --scheduler fifo`.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import comb
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
from search_spaces.study import Search
from tuning.engine.launch import sweep
from tuning.engine.preparation import Data
from tuning.engine.schedulers import rule_of

N_ORDERS, N_WORKERS = 100, 2
N_HALVES, N_ORDERS_OF_HALF = 20, 10
F1, MAP, LOSS = "val/f1_macro", "val/map", "val/loss"
MEAN_3 = "val/f1_weighted"  # a rule compares metrics that it knows: the mean takes the name of another
RUNGS = (3, 5, 9, 15, 27)
Curves = Mapping[str, np.ndarray]  # of each metric, [trials, epochs]
Judge = Callable[[str, int, Mapping[str, float]], bool]  # trial, epoch and its metrics: is it stopped?


def manifest_of(data: str) -> pd.DataFrame:
    """Return the recordings to train on: `synthetic`, `balanced`, or those of a manifest's path."""
    if data == "synthetic":
        return read_manifest(cached_synthetic_birds(default_cache()))
    if data == "balanced":
        some = SyntheticBirds(n_species=10, n_recordings=900)
        return read_manifest(cached_synthetic_birds(default_cache(), some)).groupby("species").head(40)
    return read_manifest(data)


def train_whole(data_name: str, folder: Path, seed: int, n_trials: int, epochs: int) -> None:
    """Train configs whole, into the run folder `folder`."""
    study = replace(load_study("learning-rate", quick=True), scheduler="fifo")
    data = Data(name=data_name, manifest=manifest_of(data_name))
    settings = {"training.epochs": epochs, **SETTINGS, "seed": seed}
    sweep(study, data, folder, settings=settings, n_trials=n_trials, sampler="random")


def curves_of(*folders: Path) -> Curves:
    """Return the metrics of the trials of runs that were trained whole, in the order of their numbers."""
    trials: list[dict[int, dict[str, float]]] = []
    for folder in folders:
        numbers: dict[str, int] = {}
        epochs: defaultdict[str, dict[int, dict[str, float]]] = defaultdict(dict)
        for event in RunFolder(folder).events():
            if event["event"] == "trial":
                numbers[event["trial_id"]] = event["number"]
            elif event["event"] == "epoch":
                epochs[event["trial_id"]][event["epoch"]] = event["metrics"]
        trials += [epochs[trial] for trial in sorted(epochs, key=numbers.__getitem__)]
    longest = max(map(len, trials))
    whole = [trial for trial in trials if len(trial) == longest]
    curves = {
        metric: np.array([[trial[epoch][metric] for epoch in sorted(trial)] for trial in whole], dtype=float)
        for metric in (F1, MAP, LOSS)
    }
    means = [curves[F1][:, max(0, epoch - 2) : epoch + 1].mean(axis=1) for epoch in range(longest)]
    return {**curves, MEAN_3: np.stack(means, axis=1)}


def as_ray(epochs: int) -> Judge:
    """Return Ray's ASHA, with the settings of the study."""
    ray = AsyncHyperBandScheduler(
        time_attr="epoch", metric=F1, mode="max", max_t=epochs, grace_period=3, reduction_factor=3
    )
    trials: dict[str, SimpleNamespace] = {}

    def is_stopped(name: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        if name not in trials:
            trials[name] = SimpleNamespace(trial_id=name)
            ray.on_trial_add(None, trials[name])
        decision = ray.on_trial_result(None, trials[name], {"epoch": epoch, F1: metrics[F1]})
        return bool(decision == TrialScheduler.STOP)

    return is_stopped


class ByRule:
    """A rule of birdtune, which hears of whole trials."""

    def __init__(
        self, name: str, epochs: int, *, grace: int | None = None, audit: float = 0.0, by: str = F1
    ) -> None:
        study = Search(
            name="replay", question="", space=lambda _: {}, scheduler=name, metric=F1, rung_metric=by,
            grace_epochs=grace, audit=audit,
        )  # fmt: skip
        self.rule = rule_of(study, epochs)

    def __call__(self, name: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        is_stopped = self.rule.is_stopped(name, None, epoch, metrics)
        if epoch == self.rule.max_epochs:
            self.rule.finish(name, None)
        return is_stopped


def judges_of(epochs: int) -> dict[str, Callable[[], Judge]]:
    """Return the rules that are replayed, by their names in the table."""
    return {
        "ASHA as in Ray": lambda: as_ray(epochs),
        "ASHA": lambda: ByRule("asha", epochs),
        "ASHA, a tenth audited": lambda: ByRule("asha", epochs, audit=0.1),
        "the same by mean F1 of 3": lambda: ByRule("asha", epochs, audit=0.1, by=MEAN_3),
        "the same by mAP": lambda: ByRule("asha", epochs, audit=0.1, by=MAP),
        "the same by loss": lambda: ByRule("asha", epochs, audit=0.1, by=LOSS),
        "ASHA, `grace_epochs` 3": lambda: ByRule("asha", epochs, grace=3),
        "ASHA, `grace_epochs` 3, a tenth audited": lambda: ByRule("asha", epochs, grace=3, audit=0.1),
        "HyperBand": lambda: ByRule("hyperband", epochs),
        "HyperBand, a tenth audited": lambda: ByRule("hyperband", epochs, audit=0.1),
        "median": lambda: ByRule("median", epochs),
    }


def replayed(curves: Curves, judge: Judge, seed: int) -> tuple[float, ...]:
    """Return epochs trained, trials whole, those spared, if the first rung is not predictive, the best F1."""
    rng = random.Random(seed)
    n_trials, epochs = curves[F1].shape
    waiting = list(range(n_trials))
    rng.shuffle(waiting)
    running: list[list[int]] = []
    n_epochs, n_whole, found = 0, 0, 0.0
    while waiting or running:
        while waiting and len(running) < N_WORKERS:
            running.append([waiting.pop(), 0])
        at = rng.randrange(len(running))
        trial, epoch = running[at]
        metrics = {metric: float(values[trial, epoch]) for metric, values in curves.items()}
        found = max(found, metrics[F1])
        is_stopped = judge(f"{seed} {trial}", epoch + 1, metrics)
        running[at][1] += 1
        n_epochs += 1
        is_whole = running[at][1] == epochs
        n_whole += is_whole
        if is_whole or is_stopped:
            running.pop(at)
    rule = judge.rule if isinstance(judge, ByRule) else None
    is_noticed = rule is not None and rule.audit > 0 and not rule.is_predictive(rule.grace_epochs)
    return n_epochs, n_whole, len(rule.spared) if rule else 0, is_noticed, found


def best_of_draws(best: np.ndarray) -> np.ndarray:
    """Return the expected best of 1, 2, ... n trials drawn from `best` [n] without replacement."""
    n, ranked = len(best), np.sort(best)
    return np.array(
        [
            sum(comb(i, drawn - 1) * value for i, value in enumerate(ranked)) / comb(n, drawn)
            for drawn in range(1, n + 1)
        ]
    )


def random_search(curves: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs of 1, 2, ... n whole trials, and the F1 that random search finds with them."""
    n_trials, epochs = curves[F1].shape
    return epochs * np.arange(1, n_trials + 1), best_of_draws(curves[F1].max(axis=1))


def error_of_gain(curves: Curves, judge: Callable[[], Judge]) -> float:
    """Return the standard error of a rule's gain over draws of the configs, by random halves of them.

    The variance of a mean over halves, drawn without replacement, is that of the mean over all.
    """
    rng = np.random.default_rng(0)
    gains = np.empty((N_HALVES, N_ORDERS_OF_HALF))
    for half in gains:
        chosen = rng.permutation(len(curves[F1]))[: len(curves[F1]) // 2]
        some = {metric: values[chosen] for metric, values in curves.items()}
        runs = np.array([replayed(some, judge(), order) for order in range(N_ORDERS_OF_HALF)])
        half[:] = runs[:, -1] - np.interp(runs[:, 0], *random_search(some))
    of_orders = gains.var(axis=1, ddof=1).mean() / N_ORDERS_OF_HALF
    return float(max(0.0, gains.mean(axis=1).var(ddof=1) - of_orders) ** 0.5)


def rank_correlations(curves: Curves, rung: int) -> dict[str, float]:
    """Return the rank correlations of statistics at epoch `rung` with the trial's best F1."""
    end = curves[F1].max(axis=1)
    f1, mean, ap, loss = (curves[metric][:, :rung] for metric in (F1, MEAN_3, MAP, LOSS))
    early = {
        "its F1": f1[:, -1], "best F1 so far": f1.max(axis=1), "mean F1 of 3 epochs": mean[:, -1],
        "its mAP": ap[:, -1], "best mAP so far": ap.max(axis=1),
        "its loss": -loss[:, -1], "lowest loss so far": -loss.min(axis=1),
    }  # fmt: skip
    return {name: float(spearmanr(values, end).statistic) for name, values in early.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", default="synthetic", help="synthetic, balanced, or a manifest")
    parser.add_argument("--keep", type=Path, help="a folder for the runs")
    parser.add_argument("--run", type=Path, nargs="+", help="run folders with whole trials, to take instead")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    correlations: defaultdict[int, list[dict[str, float]]] = defaultdict(list)
    rows: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seeds:
            if given.run:
                found_there = curves_of(*given.run)
                of_seed = slice(seed * given.trials, (seed + 1) * given.trials)
                curves = {metric: values[of_seed] for metric, values in found_there.items()}
            else:
                folder = (given.keep or Path(scratch)) / str(seed)
                train_whole(given.data, folder, seed, given.trials, given.epochs)
                curves = curves_of(folder)
            n_trials, epochs = curves[F1].shape
            print(f"seed {seed}: {n_trials} trials of {epochs} epochs", flush=True)
            for rung in (rung for rung in RUNGS if rung < epochs):
                correlations[rung].append(rank_correlations(curves, rung))
            paid, by_chance = random_search(curves)
            for name, judge in judges_of(epochs).items():
                runs = np.array([replayed(curves, judge(), order) for order in range(N_ORDERS)])
                n_epochs, n_whole, n_spared, is_noticed, found = runs.mean(axis=0)
                random_found = np.interp(n_epochs, paid, by_chance)
                needed = np.interp(found, by_chance, paid)  # epochs in which random search finds the same
                error = error_of_gain(curves, judge)
                rows[name].append(
                    (
                        n_trials * epochs / n_epochs, n_whole, n_spared, 100 * is_noticed,
                        found, random_found, found - random_found, error, needed / n_epochs,
                    )
                )  # fmt: skip
    print("\nRank correlation with the trial's best F1:\n")
    print(f"| epoch | {' | '.join(correlations[RUNGS[0]][0])} |")
    print(f"|{'---|' * (1 + len(correlations[RUNGS[0]][0]))}")
    for rung, by_seed in correlations.items():
        of_rung = (", ".join(f"{each[name]:+.2f}" for each in by_seed) for name in by_seed[0])
        print(f"| {rung} | {' | '.join(of_rung)} |")
    columns = (
        "rule", "times fewer epochs", "whole", "spared", "first rung not predictive, %", "best F1",
        "random, same epochs", "gain", "its standard error", "times fewer than random for this F1",
    )  # fmt: skip
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    digits = (2, 1, 1, 0, 3, 3, 3, 3, 2)
    for name, by_seed in rows.items():
        pairs = zip(zip(*by_seed, strict=True), digits, strict=True)
        cells = (", ".join(f"{value:.{d}f}" for value in column) for column, d in pairs)
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
