"""How often a report claims what is not so: simulated run folders, read by the code that reads real ones.

    python benchmarks/page_errors.py [--studies 200] [--only WORD] [--in-memory] [--list] [--curve]

A study has cells and repeats. Every recording has a difficulty of its own, every cell finds some recordings
harder than other cells do, and every training is better or worse, as a whole and for each species. Where
cells do not differ over all recordings, a claim is an error; the table counts studies with any. Coverage is
of the simultaneous intervals, studies in which all hold, and of those of single contrasts. Scenarios of
scores without predictions show the model alone: normal, t with 3 degrees of freedom, skewed, spreads that
differ 8-fold, a cell that collapses in some repeats, ties. Races are those of `birdtune best --confirm`: the
code that drops configs and chooses reads a run folder after each block. `--curve` compares ways to choose
one of many configs with equally many trainings. `--in-memory` hands what was predicted to the same statistics
without a run folder between, for many studies in little time.

`true` is the score of each cell in as many folds, over 200 fresh collections. `std single / true` is the
root of the mean estimated variance of the contrasts over their mean squared error: above 1, intervals are
too wide.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from birdnet_core.records.predictions import Predictions
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord, Validation
from reports import load
from reports.selection.confirmation import confirmed, level_of, looks, survivors
from reports.statistics.analysis import results
from reports.statistics.best_set import best_set
from reports.statistics.contrasts import contrasts
from reports.statistics.family import joint
from reports.statistics.linear_model import Fit, RepeatedScores, fit
from reports.statistics.repeats import Deal, Repeats

Cells = list[dict[str, Any]]
N_FOLDS = 5


def factorial(**levels: list[Any]) -> Cells:
    return [dict(zip(levels, values, strict=True)) for values in product(*levels.values())]


DESIGNS: dict[str, Cells] = {
    "2x2": factorial(a=["x", "y"], b=["x", "y"]),
    "6x2": factorial(a=list("uvwxyz"), b=["x", "y"]),
    "7 levels": factorial(gamma=[0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0]),
    "4 levels": factorial(gamma=[0.0, 1.0, 2.0, 3.0]),
    "20 cells": factorial(a=[f"l{i}" for i in range(20)]),
    "4 cells": factorial(a=list("wxyz")),
    "8 cells": factorial(a=list("stuvwxyz")),
    "12 cells": factorial(a=[f"l{i}" for i in range(12)]),
}


@dataclass(frozen=True)
class Spread:
    """Standard deviations of what adds up to a recording's score, which is right above 0; `mean` is theirs.

    `recording` and `species`: how easy each is. `cell`: what a cell finds hard, whatever it was trained on.
    `fold`: what the training recordings of a repeat change, for all cells alike. `chance`: what is left, of a
    recording in one training. `training`: of a whole training and of each of its species.
    """

    mean: float
    recording: float
    species: float
    cell: float
    fold: float
    chance: float
    training: float


NETWORKS = Spread(mean=0.5, recording=1.5, species=0.8, cell=0.6, fold=0, chance=0.3, training=0.2)
"""Plausible of networks from scratch: two cells disagree on about a fifth of the recordings."""
HEADS = Spread(mean=0.87, recording=1.0, species=0, cell=0.055, fold=0.2, chance=0.042, training=0)
"""Fitted to gamma-sensitivity and class-weights of linear heads on BirdNET's embeddings, 10 repeats each of
305 recordings, by four moments of being right: its mean (0.80; 0.79 and 0.81 there), how often two cells of a
repeat disagree (0.021; 0.023 and 0.018), how often a cell disagrees with itself in another repeat (0.063;
0.078 and 0.047), and the covariance of what two cells differ by in two repeats (0.0022; 0.0035 and 0.0017).
What cells differ by has no covariance there between recordings of a group, species or fold (0.0003 at most).
"""


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Args:
        per_species: recordings of each species, of which a fifth is a fold; () for scores alone.
        spread: of recordings. groups: sizes of groups that are never in two folds; () for single recordings.
        shared: share of the recordings' part that cells with an equal first factor have in common.
        epoch_noise: of each epoch of scores alone; cells of odd number have five times as much.
        n_folds: 1 is a fixed validation split.
        noise: of scores alone; better: how much the last two cells are better, in its units.
        slope: how much a linear trend rises from the first cell to the last.
        race: whether the cells race, up to `repeats`; their true scores are drawn with the std `better`.
    """

    design: str
    repeats: int
    per_species: tuple[int, ...] = ()
    spread: Spread = NETWORKS
    groups: tuple[int, ...] = ()
    shared: float = 0.0
    epoch_noise: float = 0.0
    n_folds: int = N_FOLDS
    noise: str = "normal"
    better: float = 0.0
    slope: float = 0.0
    race: bool = False

    @property
    def cells(self) -> Cells:
        return DESIGNS[self.design]


def long_tail(n_species: int, largest: int) -> tuple[int, ...]:
    return tuple(max(3, int(largest * rank**-0.75)) for rank in range(1, n_species + 1))


BIRDS = long_tail(75, 60)  # about 400 recordings
# The 305 recordings that HEADS was fitted to: recordings of each species, and of each group.
REAL = (2,) * 26 + (3,) * 24 + (5, 5, 6, 7, 8, 8) + (9,) * 4 + (10,) * 5 + (11,) * 4 + (12,)
REAL_GROUPS = (
    (1,) * 34 + (2,) * 12 + (3,) * 5 + (4, 4, 5, 5, 5) + (6,) * 5
    + (7, 8, 9, 10, 10, 11, 11, 13, 15, 19, 20, 22, 24)
)  # fmt: skip
SIZES = {
    "37 validated": (12,) * 15, "106 validated": long_tail(75, 90), "320 validated": long_tail(120, 220),
    "1,500 validated": long_tail(200, 900),
}  # fmt: skip


def scenarios() -> dict[str, Scenario]:
    found: dict[str, Scenario] = {}
    designs = ("2x2", "6x2", "7 levels", "20 cells")
    for design, repeats in product(designs, (3, 5, 10, 20)):
        found[f"heads, {design}, {repeats} repeats"] = Scenario(
            design, repeats, REAL, spread=HEADS, groups=REAL_GROUPS
        )
    for design, repeats in product(designs, (3, 5, 10, 20)):
        found[f"networks, {design}, {repeats} repeats"] = Scenario(design, repeats, BIRDS)
    for name, per_species in SIZES.items():
        for repeats in (3, 10):
            found[f"{name}, 2x2, {repeats} repeats"] = Scenario("2x2", repeats, per_species)
    alike = Scenario("6x2", 5, BIRDS, shared=0.8)
    found["cells of a level alike, 6x2, 5 repeats"] = alike
    found["cells of a level alike, 6x2, 10 repeats"] = replace(alike, repeats=10)
    for repeats in (3, 5, 10):
        noisy = Scenario("4 cells", repeats, epoch_noise=0.3)
        found[f"scores of noisy epochs, 4 cells, {repeats} repeats"] = noisy
    found["one fixed split, 2x2, 5 repeats"] = Scenario("2x2", 5, BIRDS, n_folds=1)
    for noise in ("normal", "t3", "skewed", "8-fold", "one 8-fold", "collapsing", "ties"):
        for design, repeats in (("2x2", 3), ("2x2", 5), ("20 cells", 3), ("20 cells", 10)):
            found[f"scores {noise}, {design}, {repeats} repeats"] = Scenario(design, repeats, noise=noise)
    for design, repeats in product(("4 cells", "12 cells"), (3, 5)):
        found[f"power, {design}, {repeats} repeats"] = Scenario(design, repeats, better=2.5 * 2**0.5)
    for slope in (2 * 2**0.5, 6.0):
        found[f"power, trend {slope:.1f}, 4 levels, 3 repeats"] = Scenario("4 levels", 3, slope=slope)
    # Half of the cells are clearly worse, on groups of one recording and of two dozen.
    for (kind, spread), n in product((("heads", HEADS), ("networks", NETWORKS)), (3, 5, 10)):
        found[f"{kind} clearly different, 2x2, {n} repeats"] = Scenario(
            "2x2", n, REAL, spread=spread, groups=REAL_GROUPS, better=-2.0
        )
    found["power with recordings, 4 cells, 5 repeats"] = Scenario("4 cells", 5, BIRDS, better=0.5)
    found["power of heads, 4 cells, 5 repeats"] = Scenario(
        "4 cells", 5, REAL, spread=HEADS, groups=REAL_GROUPS, better=0.2
    )
    for std in (0.0, 1.0):
        found[f"race of scores, true std {std:g}"] = Scenario("8 cells", 10, better=std, race=True)
    for std in (0.0, 0.1):
        found[f"race of heads, true std {std:g}"] = Scenario(
            "8 cells", 10, REAL, spread=HEADS, groups=REAL_GROUPS, better=std, race=True
        )
    return found


class World:
    """Recordings of one simulated collection, and what cells make of them."""

    def __init__(self, scenario: Scenario, rng: np.random.Generator, better: np.ndarray) -> None:
        self.scenario, self.rng, self.better = scenario, rng, better
        self.truth = np.repeat(np.arange(len(scenario.per_species)), scenario.per_species)
        n, n_cells, spread = len(self.truth), len(scenario.cells), scenario.spread
        self.n_species = len(scenario.per_species)
        of_species = rng.normal(0, spread.species, self.n_species)[self.truth]
        self.easy = spread.mean + rng.normal(0, spread.recording, n) + of_species
        own = rng.normal(0, 1, (n_cells, n))
        first = next(iter(scenario.cells[0]))
        groups = {cell[first]: rng.normal(0, 1, n) for cell in scenario.cells}
        common = np.array([groups[cell[first]] for cell in scenario.cells])
        mixed = scenario.shared**0.5 * common + (1 - scenario.shared) ** 0.5 * own
        self.hard = spread.cell * mixed
        self.confused = rng.integers(0, self.n_species, (n, 3))
        sizes = scenario.groups or (1,) * n
        self.group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        self.of_fold = np.zeros(n)

    def fold(self) -> np.ndarray:
        """Return a deal of the recordings, stratified by species; of groups, largest first, by size alone."""
        if self.scenario.groups:
            filled, place = np.zeros(N_FOLDS), np.zeros(len(self.scenario.groups), dtype=int)
            sizes = np.array(self.scenario.groups)
            for group in np.argsort(-sizes + self.rng.uniform(size=len(sizes)), kind="stable"):
                place[group] = int(np.argmin(filled + self.rng.uniform(size=N_FOLDS)))
                filled[place[group]] += sizes[group]
            return place[self.group]
        return np.concatenate([
            self.rng.permutation(np.resize(self.rng.permutation(N_FOLDS), n))
            for n in self.scenario.per_species
        ])  # fmt: skip

    def train(self) -> None:
        """Draw what the training recordings of another repeat change."""
        self.of_fold = self.rng.normal(0, self.scenario.spread.fold, len(self.truth))

    def predicted(self, cell: int, rows: np.ndarray) -> np.ndarray:
        """Return what a new training of a cell predicts for recordings, [1, recordings]."""
        spread, rng = self.scenario.spread, self.rng
        score = self.easy[rows] + self.hard[cell, rows] + self.of_fold[rows] + self.better[cell]
        score = score + rng.normal(0, spread.training / 2)
        score = score + rng.normal(0, spread.training, self.n_species)[self.truth[rows]]
        right = score + rng.normal(0, spread.chance, len(rows)) > 0
        wrong = self.confused[rows, rng.integers(0, 3, len(rows))]
        return np.where(right, self.truth[rows], wrong)[None]


def better_of(scenario: Scenario) -> np.ndarray:
    n = len(scenario.cells)
    out = np.linspace(0, scenario.slope, n)
    out[n - 2 :] += scenario.better
    return out


def f1_macro(truth: np.ndarray, predicted: np.ndarray, n: int) -> float:
    hits = np.bincount(truth[truth == predicted], minlength=n)
    total = np.bincount(truth, minlength=n) + np.bincount(predicted, minlength=n)
    return float((2 * hits[total > 0] / total[total > 0]).mean())


def true_scores(scenario: Scenario, better: np.ndarray) -> np.ndarray:
    """Return the expected score of each cell on what its repeats validate; equal unless some are better."""
    if not scenario.per_species or not better.any():
        return better
    rng = np.random.default_rng(1)
    levels, place = np.unique(better, return_inverse=True)
    found = np.zeros(len(levels))
    n_worlds = 200
    for _ in range(n_worlds):
        world = World(scenario, rng, better)
        world.train()
        rows = np.flatnonzero(world.fold() < scenario.repeats)  # F1 of fewer recordings is another
        # All cells of a level are alike over all recordings: their mean is known better than that of one.
        each = [
            f1_macro(world.truth[rows], world.predicted(c, rows)[0], world.n_species)
            for c in range(len(better))
        ]
        found += np.bincount(place, each) / np.bincount(place) / n_worlds
    return found[place]


def scores(scenario: Scenario, rng: np.random.Generator, better: np.ndarray) -> np.ndarray:
    """Return scores of cells in repeats without recordings behind them."""
    shape = (len(scenario.cells), scenario.repeats)
    if scenario.noise == "t3":
        values = rng.standard_t(3, shape) / 3**0.5
    elif scenario.noise == "skewed":
        values = rng.exponential(size=shape) - 1
    else:
        values = rng.normal(size=shape)
    if scenario.noise == "8-fold":
        values = values * rng.permutation(np.geomspace(1, 8, shape[0]))[:, None]
    if scenario.noise == "one 8-fold":
        values[rng.integers(shape[0])] *= 8
    if scenario.noise == "ties":
        values = np.round(values)
    if scenario.noise == "collapsing":
        values[-1] -= 10 * (rng.uniform(size=shape[1]) < 0.4)
    return values + better[:, None] + 3 * rng.normal(size=shape[1])


def ablation(
    scenario: Scenario, name: str, kept: list[int], n_repeats: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the study of the cells `kept`, and the events of its trials."""
    cells = scenario.cells
    factors = {key: list(dict.fromkeys(cells[i][key] for i in kept)) for key in cells[0]}
    study = {
        "name": name, "question": "?", "kind": "ablation", "metric": "val/f1_macro", "direction": "maximize",
        "epochs": 8 if scenario.epoch_noise else 1, "repeats": list(range(n_repeats)), "seed": 0,
        "n_trials": None, "base": {}, "factors": factors, "baseline": cells[kept[0]], "scheduler": "fifo",
        "cells": [{"factors": cells[i], "config_id": f"c{i:03}"} for i in kept],
        "data": {"name": "simulated", "folds": {"n": scenario.n_folds}, "strata": {}, "notes": []},
        "design": {"kind": "full factorial"}, "provenance": {}, "created": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    trials: list[dict[str, Any]] = [
        {"event": "trial", "study": name, "trial_id": f"c{i:03}-r{repeat}", "number": number,
         "factors": cells[i], "reused": False}
        for number, (repeat, i) in enumerate(product(range(n_repeats), kept))
    ]  # fmt: skip
    return study, trials


def write(scenario: Scenario, folder: Path, rng: np.random.Generator, better: np.ndarray) -> None:
    """Write the trials of a simulated run folder, without a study that they belong to."""
    run, cells = RunFolder(folder), scenario.cells
    names = [f"c{i:03}" for i in range(len(cells))]
    n_epochs = 8 if scenario.epoch_noise else 1
    world = World(scenario, rng, better) if scenario.per_species else None
    alone = None if world else scores(scenario, rng, better)
    events: list[dict[str, Any]] = []
    fixed = world.fold() if world else np.zeros(0)
    for repeat in range(scenario.repeats):
        if world:
            world.train()
            if scenario.n_folds > 1 and repeat % N_FOLDS == 0:
                fixed = world.fold()
            rows = np.flatnonzero(fixed == (repeat % N_FOLDS if scenario.n_folds > 1 else 0))
            split_id = f"split{repeat if scenario.n_folds > 1 else 0}"
            run.write_validation(
                split_id,
                Validation(
                    species=[f"s{i}" for i in range(world.n_species)], truth=world.truth[rows].tolist(),
                    recording=rows.tolist(), group=world.group[rows].tolist(),
                ),
            )  # fmt: skip
        for number, name in enumerate(names):
            trial_id = f"{name}-r{repeat}"
            if world:
                classes = world.predicted(number, rows)
                values = [f1_macro(world.truth[rows], of_epoch, world.n_species) for of_epoch in classes]
                top = classes[-1:].T.astype("uint16")
                run.write_predictions(
                    trial_id, Predictions(classes.astype("uint16"), top, np.ones(top.shape, "float16"))
                )
            else:
                assert alone is not None
                noise = rng.normal(0, scenario.epoch_noise * (5 if number % 2 else 1), n_epochs)
                values, split_id = (alone[number, repeat] + noise).tolist(), "none"
            best = int(np.argmax(values))
            events += [
                {"event": "epoch", "trial_id": trial_id, "epoch": i + 1, "epoch_s": 1.0,
                 "metrics": {"val/f1_macro": value}} for i, value in enumerate(values)
            ]  # fmt: skip
            events.append({"event": "end", "trial_id": trial_id, "status": "completed"})
            run.write_record(
                TrialRecord(
                    trial_id=trial_id, config_id=name, repeat=repeat, seed=repeat, status="completed",
                    config={"training": {"epochs": n_epochs}}, epochs=n_epochs, best_epoch=best + 1,
                    metrics={"val/f1_macro": values[best]}, provenance={"split_id": split_id}, n_params=1,
                    seconds=1.0,
                )
            )  # fmt: skip
    run.append(*events)


@dataclass
class Tally:
    """What the studies of a scenario came to; see `row`."""

    n: int = 0
    wrong: int = 0
    jointly: int = 0
    single: list[float] = field(default_factory=list)
    variance: list[float] = field(default_factory=list)
    squared_error: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    in_set: int = 0
    size: list[int] = field(default_factory=list)
    bounded: int = 0
    bound: list[float] = field(default_factory=list)
    regret: list[float] = field(default_factory=list)
    trainings: list[int] = field(default_factory=list)
    too_high: list[float] = field(default_factory=list)

    def choice(self, is_in: bool, size: int, bound: float, lost: float) -> None:
        """Count a choice: whether the truly best was in the set, its size, the bound and what was lost."""
        self.n += 1
        self.in_set += is_in
        self.size.append(size)
        self.bounded += lost <= bound + 1e-9
        self.bound.append(bound)
        self.regret.append(lost)


@dataclass(frozen=True)
class Page:
    """What a report says of a study: its contrasts, the model behind them, and the best set.

    Args:
        weights: [contrasts, cells]. low, high: simultaneous intervals, nan where there is none.
        is_linear: whether a contrast is a baseline's or, of a slope, a linear trend's.
    """

    weights: np.ndarray
    low: np.ndarray
    high: np.ndarray
    is_linear: np.ndarray
    fitted: Fit
    is_in: np.ndarray
    regret: np.ndarray


def page(scenario: Scenario, rng: np.random.Generator) -> Page:
    """Return what a report of a run folder says, which is written and read."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        write(scenario, folder, rng, better_of(scenario))
        content, trials = ablation(scenario, "s", list(range(len(scenario.cells))), scenario.repeats)
        RunFolder(folder).write_study(content)
        RunFolder(folder).append(*trials)
        runs = load([folder])
        _, cells, analysis = results(runs, runs.studies[0])
    assert analysis is not None and analysis.fitted is not None
    weights = np.array([c.weights for c in contrasts(list(cells["factors"]), runs.studies[0])])
    rows, best = analysis.contrasts, analysis.best
    wanted = rows["kind"].to_numpy() == ("trend" if scenario.slope else "baseline")
    is_linear = wanted & np.array(["curved" not in label for label in rows["label"]])
    return Page(
        weights, rows["low"].to_numpy(), rows["high"].to_numpy(), is_linear, analysis.fitted,
        best["may_be_best"].to_numpy(), best["regret"].to_numpy(),
    )  # fmt: skip


@functools.lru_cache(maxsize=8)
def _contrasts(scenario: Scenario) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the contrasts of a scenario, and which are linear."""
    alone = replace(scenario, repeats=3, per_species=())
    found = page(alone, np.random.default_rng(0))
    return found.weights, found.is_linear


def page_in_memory(scenario: Scenario, rng: np.random.Generator) -> Page:
    """Return what `page` does, of the same draws, without a run folder; of scenarios with recordings."""
    weights, is_linear = _contrasts(scenario)
    world = World(scenario, rng, better_of(scenario))
    n_cells, n_folds = len(scenario.cells), scenario.n_folds
    species = [f"s{i}" for i in range(world.n_species)]
    splits: dict[tuple[int, int], Validation] = {}
    predicted: dict[tuple[int, int], np.ndarray] = {}
    fixed = world.fold()
    for repeat in range(scenario.repeats):
        world.train()
        if n_folds > 1 and repeat % N_FOLDS == 0:
            fixed = world.fold()
        rows = np.flatnonzero(fixed == (repeat % N_FOLDS if n_folds > 1 else 0))
        split = Validation(
            species=species, truth=world.truth[rows].tolist(), recording=rows.tolist(),
            group=world.group[rows].tolist(),
        )  # fmt: skip
        for cell in range(n_cells):
            splits[cell, repeat], predicted[cell, repeat] = split, world.predicted(cell, rows)[0]
    numbers = list(range(scenario.repeats))
    deals = [
        Deal([r for r in numbers if r // n_folds == deal], splits, predicted)
        for deal in range((scenario.repeats - 1) // n_folds + 1)
    ]
    names = [f"c{i:03}" for i in range(n_cells)]
    metrics = {"val/f1_macro": np.zeros((n_cells, scenario.repeats))}
    repeats = Repeats(
        names, numbers, n_folds, False, metrics, deals, {}, world.n_species, int(world.group.max()) + 1
    )
    ((_, _, found),) = repeats.scores(influential="val/f1_macro")
    fitted = fit(found)
    assert fitted is not None
    together, best = joint(fitted, weights), best_set(fitted)
    return Page(weights, together.low, together.high, is_linear, fitted, best.is_in, best.regret)


def study(
    scenario: Scenario, true: np.ndarray, rng: np.random.Generator, tally: Tally, in_memory: bool
) -> None:
    found = (page_in_memory if in_memory else page)(scenario, rng)
    # Contrasts with a cell that collapses, and is truly worse, are no errors.
    is_kept = found.weights[:, -1] == 0 if scenario.noise == "collapsing" else np.array(True)
    counted = np.broadcast_to(is_kept, len(found.weights))
    weights, fitted = found.weights[counted], found.fitted
    low, high = found.low[counted], found.high[counted]
    truth = weights @ true
    variance, error = fitted.variance(weights), weights @ fitted.means - truth
    half = stats.t.ppf(0.975, fitted.degrees(weights)) * np.sqrt(variance)
    tally.single.append(float((np.abs(error) <= half).mean()))
    tally.variance.append(float(variance.mean()))
    tally.squared_error.append(float((error**2).mean()))
    sign = (low > 0).astype(int) - (high < 0)
    tally.wrong += bool(((sign != 0) & (sign * truth <= 1e-9)).any())
    tally.jointly += bool((~((low > truth) | (high < truth))).all())
    if (np.abs(truth) > 1e-9).any():
        real = found.is_linear[counted] & (np.abs(truth) > 1e-9)
        tally.found.append(float((sign[real] != 0).mean()))
    chosen = int(fitted.means.argmax())
    lost = float(true.max() - true[chosen])
    is_in = found.is_in
    tally.choice(bool(is_in[int(np.argmax(true))]), int(is_in.sum()), float(found.regret[chosen]), lost)


def race(scenario: Scenario, rng: np.random.Generator, tally: Tally) -> None:
    """Race the cells as `birdtune best --confirm` does, with a study a round, and choose by `mean`."""
    better = scenario.better * rng.standard_normal(len(scenario.cells))
    true = better
    if scenario.per_species:  # over recordings, by a parabola through a few points
        grid = np.linspace(-4, 4, 5) * (scenario.better or 1e-9)
        at_grid = _curve(scenario, tuple(grid.tolist()))
        true = np.polyval(np.polyfit(grid, at_grid, 2), better)
        if not scenario.better:
            true = np.full(len(better), at_grid.mean())
    left, after = list(range(len(better))), looks(scenario.repeats)
    names: list[str] = []
    n_trained = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        write(scenario, folder, rng, better)
        for number, n_each in enumerate(after):
            n_trained += len(left) * (n_each - (after[number - 1] if number else 0))
            names.append(f"round-{number}")
            content, trials = ablation(scenario, names[-1], left, n_each)
            RunFolder(folder).write_study(content)
            RunFolder(folder).append(*trials)
            ids, is_decided = survivors(load([folder]), names[-1], len(after), 0.0)
            if is_decided:
                break
            left = sorted(int(name[1:]) for name in ids)
        runs = load([folder])
        shortlisted = [
            {"config_id": f"c{i:03}", "factors": cell, "config": {}, "mean": 0.0, "low": None, "high": None,
             "n": 1} for i, cell in enumerate(scenario.cells)
        ]  # fmt: skip
        best = confirmed(runs, names, runs.studies[0], shortlisted, len(after))
    chosen, ids = int(best["config_id"][1:]), best["not_worse"]
    lost = float(true.max() - true[chosen])
    tally.choice(f"c{int(np.argmax(true)):03}" in ids, len(ids), best["regret"], lost)
    tally.trainings.append(n_trained)
    tally.too_high.append(best["mean"] - float(true[chosen]))


@functools.lru_cache(maxsize=8)
def _curve(scenario: Scenario, grid: tuple[float, ...]) -> np.ndarray:
    """Return the expected score of cells that are better by the values of `grid`."""
    levels = np.resize(np.array(grid), len(scenario.cells))
    return true_scores(scenario, levels)[: len(grid)]


HEAD = (
    "| scenario | studies | a false claim | all intervals hold | single intervals hold | true ones found | "
    "best in set | set | bound holds | bound | lost | trainings | score too high by | std single / true |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(name: str, t: Tally) -> str:
    def share(k: float) -> str:
        return f"{k / t.n:.1%}"

    def mean(values: Sequence[float], form: str) -> str:
        return form.format(np.mean(values)) if values else "–"

    spread = f"{math.sqrt(np.mean(t.variance) / np.mean(t.squared_error)):.2f}" if t.variance else "–"
    claims = ("–", "–") if t.trainings else (share(t.wrong), share(t.jointly))
    shown = [
        name, str(t.n), *claims, mean(t.single, "{:.1%}"), mean(t.found, "{:.0%}"), share(t.in_set),
        mean(t.size, "{:.1f}"), share(t.bounded), mean(t.bound, "{:.3f}"), mean(t.regret, "{:.3f}"),
        mean(t.trainings, "{:.0f}"), mean(t.too_high, "{:+.3f}"), spread,
    ]  # fmt: skip
    return f"| {' | '.join(shown)} |"


def selection_curve(progress: Callable[[str], None], n_studies: int) -> None:
    """Print what the choice of one of many configs loses, by the trainings that it may cost.

    True scores have a std of 1, and each training an error of `noise` that is its own; what a fold does to
    all configs alike cancels. `argmax`: every training is another config, of one fold, and the highest score
    is chosen. `three repeats`: the highest mean of a third as many configs. `race`: of 80 trainings fewer
    configs the best 8 race as `birdtune best --confirm 10` does, which costs 80 trainings at most.
    """
    progress(
        "| noise | trainings | argmax | three repeats | race | trainings used |\n|---|---|---|---|---|---|"
    )
    for noise, budget in product((0.5, 1.0, 2.0), (100, 200, 400)):
        rng, costs = np.random.default_rng(0), list[int]()
        lost: dict[str, list[float]] = {"argmax": [], "repeats": [], "race": []}
        for _ in range(n_studies):
            true = rng.standard_normal(budget)
            values = true[:, None] + noise * rng.standard_normal((budget, 11))
            n_search, n_few = budget - 80, budget // 3
            shortlist = np.argsort(-values[:n_search, 0])[:8]
            chosen, cost = _raced(values[:, 1:], shortlist)
            costs.append(n_search + cost)
            # All are measured against the best of as many configs as there are trainings.
            lost["argmax"].append(true.max() - true[values[:, 0].argmax()])
            lost["repeats"].append(true.max() - true[values[:n_few, :3].mean(axis=1).argmax()])
            lost["race"].append(true.max() - true[chosen])
        cells = [f"{np.mean(v):.2f} ± {np.std(v) / math.sqrt(len(v)):.2f}" for v in lost.values()]
        progress(f"| {noise:g} | {budget} | {' | '.join(cells)} | {np.mean(costs):.0f} |")


def _raced(values: np.ndarray, left: np.ndarray) -> tuple[int, int]:
    """Return the config that a race of `left` chooses by `values` [configs, repeats], and its trainings."""
    cost = before = 0
    after = looks(values.shape[1])
    for n in after:
        cost += len(left) * (n - before)
        before = n
        fitted = fit(RepeatedScores(values[left, :n], None, n))
        assert fitted is not None
        chosen, found = int(left[fitted.means.argmax()]), best_set(fitted, level=level_of(len(after)))
        left = left[found.is_in]
        if len(left) < 2:
            break
    return chosen, cost


def main(progress: Callable[[str], None] = lambda text: print(text, flush=True)) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="scenarios that have this word in their name")
    parser.add_argument(
        "--in-memory", action="store_true", help="without files; of scenarios with recordings"
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--curve", action="store_true", help="choices with equally many trainings, instead")
    parser.add_argument("--json", type=Path, help="also write the tallies here")
    given = parser.parse_args()
    chosen = {name: s for name, s in scenarios().items() if given.only in name}
    if given.in_memory:
        chosen = {name: s for name, s in chosen.items() if s.per_species and not s.race}
    if given.list:
        return progress("\n".join(chosen))
    if given.curve:
        return selection_curve(progress, given.studies)
    progress(HEAD)
    kept = {}
    for name, scenario in chosen.items():
        rng, tally, started = np.random.default_rng(given.seed), Tally(), time.time()
        true = np.zeros(0) if scenario.race else true_scores(scenario, better_of(scenario))
        for _ in range(given.studies):
            if scenario.race:
                race(scenario, rng, tally)
            else:
                study(scenario, true, rng, tally, given.in_memory)
        progress(row(name, tally))
        kept[name] = {**vars(tally), "seconds": time.time() - started}
        if given.json:
            given.json.write_text(json.dumps(kept))
    return None


if __name__ == "__main__":
    main()
