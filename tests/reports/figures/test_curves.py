from __future__ import annotations

import pytest

from reports import load
from reports.figures.curves import curve_points, learning_curves, loss_figures
from reports.statistics.aggregate import cells
from reports.study_report import study_report

CE, FOCAL = {"loss.name": "cross_entropy"}, {"loss.name": "focal"}


def frames(path):
    runs = load([path])
    study = runs.studies[0]
    return runs.epochs_of(study), cells(runs.trials_of(study), study)


def test_curve_is_the_mean_of_completed_trials_with_their_range(make_run):
    epochs, table = frames(make_run([(CE, {0: 0.4, 1: 0.8, 2: "failed"})]))
    points = curve_points(epochs, table, "val/f1_macro")
    # The fixture's curves fall by a tenth an epoch away from the best one, the third.
    assert points["value"].tolist() == pytest.approx([0.48, 0.54, 0.60, 0.54])
    assert points[["low", "high"]].iloc[2].tolist() == [0.4, 0.8]
    assert set(points["n"]) == {2}


def test_only_several_repeats_have_a_band(make_run):
    epochs, table = frames(make_run([(CE, {0: 0.4, 1: 0.8}), (FOCAL, {0: 0.5})]))
    points = curve_points(epochs, table, "val/f1_macro")
    assert list(points["name"].drop_duplicates()) == ["cross_entropy", "focal"]
    kinds = [
        [layer["mark"]["type"] for layer in learning_curves("x", "", mine, "val/f1_macro").spec["layer"]]
        for mine in (points, points[points["name"] == "focal"])
    ]
    assert kinds == [["area", "line"], ["line"]]


def test_losses_are_a_pair_of_lines_a_cell(make_run):
    runs = load([make_run([(CE, {0: 0.4, 1: 0.8}), (FOCAL, {0: 0.5})])])
    (drawn,) = loss_figures(study_report(runs, runs.studies[0]))
    lines = {(row["cell"], row["split"]) for row in drawn.spec["datasets"]["curves"]}
    assert lines == {
        (cell, split) for cell in ("cross_entropy", "focal") for split in ("training", "validation")
    }
