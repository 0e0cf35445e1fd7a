"""Means at the levels of a numeric factor."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.statistics.levels import RARE
from tests.reports.gammas import FACTORS, GAMMAS, METRIC, means_of, of_gamma, scored


def values_of(cells, network, metric=METRIC):
    """Return the values of one network, [seeds, levels]."""
    mine = [endings for factors, endings in cells if factors["model.name"] == network]
    return np.array([[e["metrics"][metric] for e in of_level.values()] for of_level in mine]).T


def test_level_means_are_those_of_the_cells_with_their_t_intervals(make_run):
    cells = of_gamma(n_repeats=3)
    means = means_of(make_run(cells, factors=FACTORS))
    values = values_of(cells, "big", RARE)[:, 3]
    row = means[(means["group"] == "big") & (means["metric"] == RARE) & (means["level"] == 2.0)].iloc[0]
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (row["n"], row["mean"]) == (3, pytest.approx(values.mean()))
    assert (row["low"], row["high"]) == pytest.approx(tuple(interval))
    assert set(means["metric"]) == {METRIC, RARE, "val/f1_common"}


def test_two_repeats_have_means_without_an_interval(make_run):
    means = means_of(make_run(of_gamma(n_repeats=2), factors=FACTORS))
    assert means["mean"].notna().all() and means[["low", "high"]].isna().all(axis=None)


def test_levels_trained_unequally_long_or_never_are_left_out(make_run):
    cells = of_gamma()
    short = {**scored(f1_macro=0.99, f1_rare=0.99), "epochs": 2, "best_epoch": 2}
    for factors, endings in cells:
        if factors == {"loss.gamma": 5.0, "model.name": "small"}:
            endings.update(dict.fromkeys(endings, short))
        if factors == {"loss.gamma": 0.0, "model.name": "small"}:
            endings.update(dict.fromkeys(endings, "failed"))
    means = means_of(make_run(cells, factors=FACTORS))
    assert means.loc[means["group"] == "small", "level"].unique().tolist() == [0.5, 1.0, 2.0, 3.0]
    assert means.loc[means["group"] == "big", "level"].unique().tolist() == GAMMAS


def test_a_design_of_one_factor_at_a_time_has_means_where_the_levels_are(make_run):
    cells = [(f, e) for f, e in of_gamma() if f["model.name"] == "small" or f["loss.gamma"] == 0.0]
    assert set(means_of(make_run(cells, factors=FACTORS))["group"]) == {"small"}


def test_every_numeric_factor_has_its_means_in_each_combination_of_the_others(make_run):
    cells = [
        ({"gamma": g, "width": w}, {s: 0.1 * g + 0.001 * w + 0.01 * s for s in (0, 1)})
        for g in (0, 1, 2)
        for w in (32, 64, 128)
    ]
    means = means_of(make_run(cells, factors={"gamma": [0, 1, 2], "width": [32, 64, 128]}))
    assert means[["factor", "group", "scale"]].drop_duplicates().values.tolist() == [
        ["gamma", "width=32", "linear"], ["gamma", "width=64", "linear"], ["gamma", "width=128", "linear"],
        ["width", "gamma=0", "log"], ["width", "gamma=1", "log"], ["width", "gamma=2", "log"],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["ablation", "search"])
def test_studies_without_a_numeric_factor_have_no_means(make_run, kind):
    cells = [({"loss.name": name}, {0: 0.1, 1: 0.2}) for name in ("ce", "focal", "logit_adjusted")]
    path = make_run(cells, kind=kind, factors={"loss.name": ["ce", "focal", "logit_adjusted"]})
    assert means_of(path).empty
