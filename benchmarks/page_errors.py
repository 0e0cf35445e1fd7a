"""How often a report claims what is not so: simulated run folders, read by the code that reads real ones.

    python benchmarks/page_errors.py [--studies 200] [--only WORD] [--list]

A study has cells and repeats. Every recording has a difficulty of its own, every cell finds some recordings
harder than other cells do, and every training is better or worse, as a whole and for each species. Where
cells do not differ over all recordings, a claim is an error; the table counts studies with any. Coverage is
of the simultaneous intervals: studies in which all hold, and single ones. Scenarios of scores without
predictions show the model alone: normal, t with 3 degrees of freedom, skewed, spreads that differ 8-fold, a
cell that collapses in some repeats, ties.

`true` is the score of each cell over 20 fresh collections of recordings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from birdnet_core.records.predictions import Predictions
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord, Validation
from reports import load
from reports.statistics.analysis import results

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
    "12 cells": factorial(a=[f"l{i}" for i in range(12)]),
}


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Args:
        per_species: recordings of each species, of which a fifth is a fold; () for scores alone.
        of_recordings, of_training: spread of what a cell finds hard, and of trainings, in logits.
        shared: share of the recordings' part that cells with an equal first factor have in common.
        epoch_noise: of each epoch of scores alone; cells of odd number have five times as much.
        n_folds: 1 is a fixed validation split.
        noise: of scores alone; better: how much the last two cells are better, in its units.
        slope: how much a linear trend rises from the first cell to the last.
    """

    design: str
    repeats: int
    per_species: tuple[int, ...] = ()
    of_recordings: float = 0.6
    of_training: float = 0.2
    shared: float = 0.0
    epoch_noise: float = 0.0
    n_folds: int = N_FOLDS
    noise: str = "normal"
    better: float = 0.0
    slope: float = 0.0

    @property
    def cells(self) -> Cells:
        return DESIGNS[self.design]


def long_tail(n_species: int, largest: int) -> tuple[int, ...]:
    return tuple(max(3, int(largest * rank**-0.75)) for rank in range(1, n_species + 1))


BIRDS = long_tail(75, 60)  # about 400 recordings
SIZES = {
    "37 validated": (12,) * 15, "106 validated": long_tail(75, 90), "320 validated": long_tail(120, 220),
    "1,500 validated": long_tail(200, 900),
}  # fmt: skip


def scenarios() -> dict[str, Scenario]:
    found: dict[str, Scenario] = {}
    for design in ("2x2", "6x2", "7 levels", "20 cells"):
        for repeats in (3, 5, 10, 20):
            found[f"birds, {design}"[:40] + f", {repeats} repeats"] = Scenario(design, repeats, BIRDS)
    for name, per_species in SIZES.items():
        for repeats in (3, 10):
            found[f"{name}, 2x2, {repeats} repeats"] = Scenario("2x2", repeats, per_species)
    alike = Scenario("6x2", 5, BIRDS, shared=0.8)
    found["cells of a level alike, 6x2, 5 repeats"] = alike
    found["cells of a level alike, 6x2, 10 repeats"] = replace(alike, repeats=10)
    found["scores of noisy epochs, 4 cells, 5 repeats"] = Scenario("4 cells", 5, epoch_noise=0.3)
    found["scores of noisy epochs, 4 cells, 10 repeats"] = Scenario("4 cells", 10, epoch_noise=0.3)
    found["one fixed split, 2x2, 5 repeats"] = Scenario("2x2", 5, BIRDS, n_folds=1)
    for noise in ("normal", "t3", "skewed", "8-fold", "one 8-fold", "collapsing", "ties"):
        for design, repeats in (("2x2", 3), ("2x2", 5), ("20 cells", 3), ("20 cells", 10)):
            found[f"scores {noise}, {design}, {repeats} repeats"] = Scenario(design, repeats, noise=noise)
    for design, repeats in product(("4 cells", "12 cells"), (3, 5)):
        found[f"power, {design}, {repeats} repeats"] = Scenario(design, repeats, better=2.5 * 2**0.5)
    for slope in (2 * 2**0.5, 6.0):
        found[f"power, trend {slope:.1f}, 4 levels, 3 repeats"] = Scenario("4 levels", 3, slope=slope)
    found["power with recordings, 4 cells, 5 repeats"] = Scenario("4 cells", 5, BIRDS, better=0.5)
    return found


class World:
    """Recordings of one simulated collection, and what cells make of them."""

    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        self.scenario, self.rng = scenario, rng
        self.truth = np.repeat(np.arange(len(scenario.per_species)), scenario.per_species)
        n, n_cells = len(self.truth), len(scenario.cells)
        self.n_species = len(scenario.per_species)
        self.easy = 0.5 + rng.normal(0, 1.5, n) + rng.normal(0, 0.8, self.n_species)[self.truth]
        own = rng.normal(0, 1, (n_cells, n))
        first = next(iter(scenario.cells[0]))
        groups = {cell[first]: rng.normal(0, 1, n) for cell in scenario.cells}
        common = np.array([groups[cell[first]] for cell in scenario.cells])
        mixed = scenario.shared**0.5 * common + (1 - scenario.shared) ** 0.5 * own
        self.hard = scenario.of_recordings * mixed
        self.confused = rng.integers(0, self.n_species, (n, 3))

    def fold(self) -> np.ndarray:
        """Return a deal of the recordings, stratified by species."""
        n_folds = N_FOLDS
        return np.concatenate([
            self.rng.permutation(np.resize(self.rng.permutation(n_folds), n))
            for n in self.scenario.per_species
        ])  # fmt: skip

    def predicted(self, cell: int, rows: np.ndarray) -> np.ndarray:
        """Return what a new training of a cell predicts for recordings, [1, recordings]."""
        scenario, rng = self.scenario, self.rng
        score = self.easy[rows] + self.hard[cell, rows] + better_of(scenario)[cell]
        score = score + rng.normal(0, scenario.of_training / 2)
        score = score + rng.normal(0, scenario.of_training, self.n_species)[self.truth[rows]]
        right = score + rng.normal(0, 0.3, len(rows)) > 0
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


def true_scores(scenario: Scenario) -> np.ndarray:
    """Return the expected score of each cell; all are equal unless some are better."""
    if not scenario.per_species or not (scenario.better or scenario.slope):
        return better_of(scenario)
    rng = np.random.default_rng(1)
    worlds = [World(scenario, rng) for _ in range(20)]
    rows = np.arange(len(worlds[0].truth))
    found = np.mean(
        [
            [f1_macro(w.truth, w.predicted(c, rows)[0], w.n_species) for c in range(len(scenario.cells))]
            for w in worlds
        ],
        axis=0,
    )
    alike = better_of(scenario)
    return np.array([found[alike == better].mean() for better in alike])


def scores(scenario: Scenario, rng: np.random.Generator) -> np.ndarray:
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
    return values + better_of(scenario)[:, None] + 3 * rng.normal(size=shape[1])


def write(scenario: Scenario, folder: Path, rng: np.random.Generator) -> None:
    """Write the run folder of a simulated study."""
    run, cells = RunFolder(folder), scenario.cells
    names = [f"c{i:03}" for i in range(len(cells))]
    factors = {key: list(dict.fromkeys(cell[key] for cell in cells)) for key in cells[0]}
    n_epochs = 8 if scenario.epoch_noise else 1
    run.write_study({
        "name": "s", "question": "?", "kind": "ablation", "metric": "val/f1_macro", "direction": "maximize",
        "epochs": n_epochs, "repeats": list(range(scenario.repeats)), "seed": 0, "n_trials": None,
        "base": {}, "factors": factors, "baseline": cells[0], "scheduler": "fifo",
        "cells": [{"factors": f, "config_id": c} for f, c in zip(cells, names, strict=True)],
        "data": {"name": "simulated", "folds": {"n": scenario.n_folds}, "strata": {}, "notes": []},
        "design": {"kind": "full factorial"}, "provenance": {}, "created": "2026-01-01T00:00:00Z",
    })  # fmt: skip
    world = World(scenario, rng) if scenario.per_species else None
    alone = None if world else scores(scenario, rng)
    events: list[dict[str, Any]] = []
    fixed = world.fold() if world else np.zeros(0)
    for repeat in range(scenario.repeats):
        if world:
            if scenario.n_folds > 1 and repeat % N_FOLDS == 0:
                fixed = world.fold()
            rows = np.flatnonzero(fixed == (repeat % N_FOLDS if scenario.n_folds > 1 else 0))
            split_id = f"split{repeat if scenario.n_folds > 1 else 0}"
            run.write_validation(
                split_id,
                Validation(
                    species=[f"s{i}" for i in range(world.n_species)], truth=world.truth[rows].tolist(),
                    recording=rows.tolist(), group=rows.tolist(),
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
            events.append({"event": "trial", "study": "s", "trial_id": trial_id, "number": len(events),
                           "factors": cells[number], "reused": False})  # fmt: skip
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
    covered: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    in_set: int = 0
    size: list[int] = field(default_factory=list)
    bounded: int = 0
    bound: list[float] = field(default_factory=list)
    regret: list[float] = field(default_factory=list)


def study(scenario: Scenario, true: np.ndarray, rng: np.random.Generator, tally: Tally) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(scenario, Path(folder) / "run", rng)
        runs = load([Path(folder) / "run"])
        _, cells, analysis = results(runs, runs.studies[0])
    assert analysis is not None
    rows = analysis.contrasts
    from reports.statistics.contrasts import contrasts

    truth = np.array([c.weights @ true for c in contrasts(list(cells["factors"]), runs.studies[0])])
    collapsed = scenario.noise == "collapsing"
    counted = np.ones(len(rows), dtype=bool)
    if collapsed:  # contrasts with a cell that is truly worse are no errors
        counted = np.array([
            c.weights[-1] == 0 for c in contrasts(list(cells["factors"]), runs.studies[0])
        ])  # fmt: skip
    low, high = rows["low"].to_numpy()[counted], rows["high"].to_numpy()[counted]
    truth = truth[counted]
    holds = ~((low > truth) | (high < truth))
    claimed = rows["verdict"].to_numpy()[counted]
    sign = np.where(claimed == "higher", 1, np.where(claimed == "lower", -1, 0))
    tally.n += 1
    tally.wrong += bool(((sign != 0) & (sign * truth <= 1e-9)).any())
    tally.jointly += bool(holds.all())
    tally.covered.append(float(holds.mean()))
    if (np.abs(truth) > 1e-9).any():
        wanted = rows["kind"].to_numpy()[counted] == ("trend" if scenario.slope else "baseline")
        linear = np.array(["curved" not in label for label in rows["label"].to_numpy()[counted]])
        real = wanted & (np.abs(truth) > 1e-9) & linear
        tally.found.append(float((sign[real] != 0).mean()))
    best = analysis.best
    chosen = int(best["mean"].to_numpy().argmax())
    lost = float(true.max() - true[chosen])
    tally.in_set += bool(best["may_be_best"].to_numpy()[int(np.argmax(true))])
    tally.size.append(int(best["may_be_best"].sum()))
    tally.bounded += lost <= float(best["regret"].iloc[chosen]) + 1e-9
    tally.bound.append(float(best["regret"].iloc[chosen]))
    tally.regret.append(lost)


HEAD = (
    "| scenario | studies | a false claim | all intervals hold | true ones found | best in set | set | "
    "bound holds | bound | lost |\n|---|---|---|---|---|---|---|---|---|---|"
)


def row(name: str, t: Tally) -> str:
    def share(k: float) -> str:
        return f"{k / t.n:.1%}"

    found = f"{np.mean(t.found):.0%}" if t.found else "–"
    return (
        f"| {name} | {t.n} | {share(t.wrong)} | {share(t.jointly)} | {found} | {share(t.in_set)} | "
        f"{np.mean(t.size):.1f} | {share(t.bounded)} | {np.mean(t.bound):.3f} | {np.mean(t.regret):.3f} |"
    )


def main(progress: Callable[[str], None] = lambda text: print(text, flush=True)) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--only", default="", help="scenarios that have this word in their name")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the tallies here")
    given = parser.parse_args()
    chosen = {name: s for name, s in scenarios().items() if given.only in name}
    if given.list:
        return progress("\n".join(chosen))
    progress(HEAD)
    kept = {}
    for name, scenario in chosen.items():
        rng, tally, true = np.random.default_rng(0), Tally(), true_scores(scenario)
        started = time.time()
        for _ in range(given.studies):
            study(scenario, true, rng, tally)
        progress(row(name, tally))
        kept[name] = {**vars(tally), "seconds": time.time() - started}
        if given.json:
            given.json.write_text(json.dumps(kept))
    return None


if __name__ == "__main__":
    main()
