"""Rank correlations of simulated results, whose truth is known and whose statistics scipy gives again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reports import load
from reports.statistics.aggregate import cells
from reports.statistics.screening import rank_correlations
from search_spaces.designs import LatinHypercube, Range


def correlations_of(path):
    runs = load([path])
    study = runs.studies[0]
    return rank_correlations(cells(runs.trials_of(study), study), study)


RANGES = {
    "optim.lr": Range(1e-4, 1e-2, log=True),
    "dropout": Range(0.0, 0.8),
    "width": Range(1, 9, integer=True),
}


def screened(n=20, noise=0.01, **more):
    """Return cells of a Latin hypercube whose metric rises with the learning rate alone."""
    rng = np.random.default_rng(6)
    found = []
    for cell in LatinHypercube(n).cells({**RANGES, **more}, {}):
        mean = 0.3 + 0.1 * (math.log10(cell["optim.lr"]) + 4)
        found.append((cell, {seed: float(mean + noise * rng.normal()) for seed in range(2)}))
    return found


def test_rank_correlations_are_spearmans_over_the_means_of_cells(make_run):
    found = screened()
    frame = correlations_of(make_run(found, factors={}, baseline=None))
    assert frame.empty, "a study file that names no factor has none"
    frame = correlations_of(make_run(found, folder="b", factors=dict.fromkeys(RANGES), baseline=None))
    means = [np.mean(list(endings.values())) for _, endings in found]
    for row in frame.itertuples():
        expected = stats.spearmanr([cell[row.factor] for cell, _ in found], means)
        assert row.rho == pytest.approx(expected.statistic)
        assert row.n_cells == 20
    assert [row.low > 0 or row.high < 0 for row in frame.itertuples()] == [True, False, False]


def test_the_interval_of_a_rank_correlation_is_the_published_one(make_run):
    """The example of ci.spear in the R package statpsych, which has Bonett and Wright's interval."""
    y = [21, 4, 9, 12, 35, 18, 10, 22, 24, 1, 6, 8, 13, 16, 19]
    x = [67, 28, 30, 28, 52, 40, 25, 37, 44, 10, 14, 20, 28, 40, 51]
    # A cell a point: the second factor keeps those of equal x apart.
    found = [({"x": a, "i": i}, {0: float(b)}) for i, (a, b) in enumerate(zip(x, y, strict=True))]
    frame = correlations_of(make_run(found, factors={"x": None}, baseline=None))
    row = frame.iloc[0]
    assert (row["rho"], row["low"], row["high"]) == pytest.approx((0.8699639, 0.5840951, 0.9638297), abs=1e-6)


def test_cells_in_perfect_order_have_no_interval(make_run):
    found = [({"x": i}, {0: i / 10}) for i in range(1, 5)]
    frame = correlations_of(make_run(found, factors={"x": None}, baseline=None))
    assert frame["rho"].iloc[0] == pytest.approx(1) and math.isnan(frame["low"].iloc[0])
    assert frame["note"].iloc[0] == "in perfect order: no interval"


@pytest.mark.parametrize(
    ("found", "note"),
    [
        ([({"x": i}, {0: i / 10}) for i in range(3)], "fewer than four cells"),
        ([({"x": "abcde"[i]}, {0: i / 10}) for i in range(5)], "its levels are no numbers"),
        ([({"x": i % 2 == 0, "i": i}, {0: i / 10}) for i in range(5)], "its levels are no numbers"),
        ([({"x": i}, {0: 0.5}) for i in range(5)], "the factor or the metric does not vary"),
    ],
)
def test_a_rank_correlation_that_cannot_be_says_why(make_run, found, note):
    frame = correlations_of(make_run(found, factors={"x": None}, baseline=None))
    assert frame["note"].tolist() == [note]
    assert frame[["rho", "low", "high"]].isna().all(axis=None)


def test_cells_that_failed_are_no_part_of_a_rank_correlation(make_run):
    found = [({"x": i}, {0: "failed" if i == 2 else i / 10}) for i in range(6)]
    frame = correlations_of(make_run(found, factors={"x": None}, baseline=None))
    assert frame["n_cells"].iloc[0] == 5


def test_rank_correlations_are_not_computed_over_cells_trained_unequally_long(make_run):
    short = {"status": "completed", "epochs": 2, "best_epoch": 2, "metrics": {"val/f1_macro": 0.9}}
    found = [({"x": i}, {0: short if i == 2 else i / 10}) for i in range(6)]
    frame = correlations_of(make_run(found, factors={"x": None}, baseline=None))
    assert frame["note"].tolist() == ["not computed: trained unequal epochs"]


def test_studies_with_a_baseline_and_searches_have_no_rank_correlations(make_run):
    found = [({"x": i}, {0: i / 10}) for i in range(6)]
    assert correlations_of(make_run(found, factors={"x": [0, 1]})).empty
    assert correlations_of(make_run(found, factors={"x": [0, 1]}, kind="search", folder="search")).empty
