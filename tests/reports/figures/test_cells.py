from __future__ import annotations

import pytest

from reports import load
from reports.figures.cells import cell_intervals, difference_intervals, interaction_lines, interaction_points
from reports.figures.drawing import OKABE_ITO
from reports.statistics.analysis import results

CE, FOCAL = {"loss.name": "cross_entropy"}, {"loss.name": "focal"}


def frames(path):
    runs = load([path])
    _, cells, analysis = results(runs, runs.studies[0])
    return cells, analysis.contrasts


def test_one_repeat_draws_no_interval(make_run, ax):
    table, _ = frames(make_run([(CE, {0: 0.4, 1: 0.8, 2: 0.6}), (FOCAL, {0: 0.5})]))
    cell_intervals(ax, table, "val/f1_macro")
    bars = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert [list(bar.get_xdata()) for bar in bars] == [
        [table["val/f1_macro:low"].iloc[0], table["val/f1_macro:high"].iloc[0]]
    ]


def test_cell_without_a_completed_trial_says_so(make_run, ax):
    table, _ = frames(make_run([(CE, {0: 0.4}), (FOCAL, {0: "failed"})]))
    cell_intervals(ax, table, "val/f1_macro")
    assert [text.get_text() for text in ax.texts] == ["no completed trial"]


def test_differences_have_a_row_each_and_are_filled_where_they_hold(make_run, ax):
    base, sure, unsure = {0: 0.10, 1: 0.11, 2: 0.09}, {0: 0.30, 1: 0.31, 2: 0.291}, {0: 0.2, 1: 0.05, 2: 0.11}
    path = make_run([({"x": n}, ends) for n, ends in (("base", base), ("sure", sure), ("unsure", unsure))])
    _, table = frames(path)
    difference_intervals(ax, table, "val/f1_macro")
    marks = [line for line in ax.lines if line.get_marker() == "D"]
    assert [mark.get_markerfacecolor() for mark in marks] == [OKABE_ITO[0], "white"]
    assert [mark.get_xdata()[0] for mark in marks] == pytest.approx(table["estimate"].tolist())
    zero, *bars = [list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert zero == [0, 0]
    assert bars == [list(row) for row in table[["low", "high"]].to_numpy()]


def test_a_2x2_design_has_a_line_a_level_of_the_second_factor(make_run, ax):
    factors = {"model.name": ["small", "big"], "loss.name": ["ce", "focal"]}
    means = {("small", "ce"): 0.1, ("small", "focal"): 0.2, ("big", "ce"): 0.3, ("big", "focal"): 0.6}
    cells_of = [
        ({"model.name": m, "loss.name": loss}, {0: mean, 1: mean + 0.02, 2: mean + 0.01})
        for (m, loss), mean in means.items()
    ]
    path = make_run(cells_of, factors=factors)
    table, _ = frames(path)
    points = interaction_points(table, "val/f1_macro", factors)
    assert points["mean"].tolist() == pytest.approx([0.11, 0.31, 0.21, 0.61])
    interaction_lines(ax, points, "val/f1_macro", ("model.name", "loss.name"))
    assert [line.get_label() for line in ax.lines] == ["loss.name = ce", "loss.name = focal"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["small", "big"]
    assert len(ax.collections) == 2  # the intervals
