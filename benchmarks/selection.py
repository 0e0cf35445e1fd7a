"""How often is the truly best of 20 configs chosen, and what is gained by `birdtune best --confirm`?

    python benchmarks/selection.py [--figure FILE.png]

By simulation. True scores of configs are normal with a standard deviation of `SPREADS`, seeds add normal
noise of `NOISE`, both in points of F1-macro as measured on real recordings (docs/findings.md): over three
ablations of 4 to 12 configs and 3 seeds, residuals after the seed's own effect were 1.1 to 1.5 points, the
spread of the true means 1.1 to 3.1. What a seed does to all configs alike does not matter here.

Each method has its cost in trainings: the argmax of one repeat each; the argmax of the mean of k repeats
each; one repeat each and then the race of `reports.selection.confirmation.racing_rounds` on fresh repeats;
and, for as many trainings, one repeat of more configs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from reports.figures.drawing import OKABE_ITO, figure, save
from reports.selection.confirmation import racing_rounds

NOISE, SPREADS = 1.3, (1.1, 2.1, 3.1)
N_CONFIGS, N_STUDIES = 20, 20_000
RACES = ((4, 2), (4, 3), (8, 3), (8, 5), (8, 10), (10, 10))
Found = tuple[float, float]
"""How often the truly best was chosen, and its true score above the mean config's, in points."""


def argmax(rng: np.random.Generator, spread: float, n_repeats: int, n_configs: int = N_CONFIGS) -> Found:
    """Choose by the mean of `n_repeats` each."""
    truth = spread * rng.standard_normal((N_STUDIES, n_configs))
    seen = truth + NOISE / np.sqrt(n_repeats) * rng.standard_normal(truth.shape)
    return _found(truth, seen.argmax(axis=1))


def race(rng: np.random.Generator, spread: float, n_short: int, n_repeats: int) -> Found:
    """Choose by one repeat each, and a race of the best `n_short` on fresh repeats."""
    truth = spread * rng.standard_normal((N_STUDIES, N_CONFIGS))
    first = truth + NOISE * rng.standard_normal(truth.shape)
    kept = first.argsort(axis=1)[:, -n_short:]
    total: np.ndarray = np.zeros(kept.shape)
    n_drawn = 0
    for each in racing_rounds(n_short, n_repeats):
        leaders = total.argsort(axis=1)[:, -each.n_configs :]
        kept, total = (np.take_along_axis(values, leaders, axis=1) for values in (kept, total))
        n_more = each.n_repeats - n_drawn
        total = total + n_more * np.take_along_axis(truth, kept, axis=1)
        total += np.sqrt(n_more) * NOISE * rng.standard_normal(total.shape)
        n_drawn = each.n_repeats
    return _found(truth, np.take_along_axis(kept, total.argmax(axis=1)[:, None], axis=1)[:, 0])


def cost_of_race(n_short: int, n_repeats: int) -> int:
    """Return the trainings of the search and of the race."""
    n_drawn, cost = 0, N_CONFIGS
    for each in racing_rounds(n_short, n_repeats):
        cost += each.n_configs * (each.n_repeats - n_drawn)
        n_drawn = each.n_repeats
    return cost


def _found(truth: np.ndarray, chosen: np.ndarray) -> Found:
    of_chosen = np.take_along_axis(truth, chosen[:, None], axis=1)[:, 0]
    return float((of_chosen == truth.max(axis=1)).mean()), float(of_chosen.mean())


def draw(ax: Axes, points: dict[str, list[tuple[int, float]]]) -> None:
    """Draw how often the best is found over the number of trainings, a line a kind of method."""
    for i, (name, line) in enumerate(points.items()):
        cost, share = zip(*line, strict=True)
        ax.plot(cost, share, ("o-", "s:")[i], color=OKABE_ITO[i], label=name)
    ax.set_ylim(0, 1)
    ax.set_xlabel("trainings, search included")
    ax.set_ylabel("truly best of 20 chosen")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    same, raced, more = "the same repeats for all 20", "one repeat, then best --confirm", "more configs"
    methods: list[tuple[int, str, str, Callable[[float], Found]]] = []
    for k in (1, 2, 3, 5):
        name = "one repeat" if k == 1 else f"{k} repeats each"
        methods.append((k * N_CONFIGS, same, name, partial(argmax, rng, n_repeats=k)))
    for n_short, n_repeats in RACES:
        name = f"best --confirm {n_repeats} --shortlist {n_short}"
        cost = cost_of_race(n_short, n_repeats)
        methods.append((cost, raced, name, partial(race, rng, n_short=n_short, n_repeats=n_repeats)))
    for cost in (40, 60, 100):
        name = f"one repeat of {cost} configs"
        methods.append((cost, more, name, partial(argmax, rng, n_repeats=1, n_configs=cost)))
    heads = " | ".join(f"spread {s}: best found | above the mean" for s in SPREADS)
    print(f"| method | trainings | {heads} |\n|{'---|' * (2 + 2 * len(SPREADS))}")
    points: dict[str, list[tuple[int, float]]] = {same: [], raced: []}
    for cost, kind, name, method in sorted(methods, key=lambda each: each[0]):
        found = [method(spread) for spread in SPREADS]
        cells = " | ".join(f"{'–' if kind == more else f'{p:.0%}'} | {score:+.2f}" for p, score in found)
        print(f"| {name} | {cost} | {cells} |")
        if kind != more:
            points[kind].append((cost, found[1][0]))
    if given.figure:
        save(figure(partial(draw, points=points)), given.figure.with_suffix(""))
        given.figure.with_suffix(".svg").unlink()


if __name__ == "__main__":
    main()
