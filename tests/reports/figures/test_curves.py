from __future__ import annotations

import pandas as pd
import pytest

from reports import load
from reports.figures.curves import curve_points, learning_curves
from reports.statistics.aggregate import cells

CE, FOCAL = {"loss.name": "cross_entropy"}, {"loss.name": "focal"}


def frames(path):
    runs = load([path])
    study = runs.studies[0]
    return runs.epochs_of(study), cells(runs.trials_of(study), study)


def test_curve_is_the_mean_of_completed_trials_with_their_range(make_run):
    epochs, table = frames(make_run([(CE, {0: 0.4, 1: 0.8, 2: "failed"})]))
    points = curve_points(epochs, table, "val/f1_macro")
    # The fixture's curves fall by a tenth an epoch away from the best one, the third.
    assert points["mean"].tolist() == pytest.approx([0.48, 0.54, 0.60, 0.54])
    assert points[["low", "high"]].iloc[2].tolist() == [0.4, 0.8]
    assert set(points["n"]) == {2}


def test_every_cell_has_a_line_and_only_several_repeats_a_band(make_run, ax):
    epochs, table = frames(make_run([(CE, {0: 0.4, 1: 0.8}), (FOCAL, {0: 0.5})]))
    learning_curves(ax, curve_points(epochs, table, "val/f1_macro"), "val/f1_macro")
    assert [line.get_label() for line in ax.lines] == ["cross_entropy", "focal"]
    assert len(ax.collections) == 1


def test_empty_curves_draw_an_empty_panel(ax):
    empty = pd.DataFrame(columns=["label", "epoch", "n", "mean", "low", "high"])
    learning_curves(ax, empty, "val/f1_macro")
    assert not ax.lines
