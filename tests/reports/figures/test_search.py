from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from reports import load
from reports.figures.search import (
    ABSENT,
    N_LINES,
    parallel_axes,
    parallel_coordinates,
    parameter_effect,
    parameter_points,
    rung_bars,
    rungs,
    some_trials,
    trial_lengths,
)


def ended(*pairs):
    return pd.DataFrame(pairs, columns=["status", "epochs"])


def test_a_rung_counts_who_reached_it_and_what_became_of_them():
    trials = ended(
        *[("pruned", 1)] * 4, *[("pruned", 3)] * 2, ("completed", 3), ("failed", 2), ("completed", 9)
    )
    table = rungs(trials).set_index("epoch")
    assert table.loc[1].to_dict() == {"n_reached": 9, "n_stopped": 4, "n_on": 5, "n_ended": 0}
    assert table.loc[3].to_dict() == {"n_reached": 4, "n_stopped": 2, "n_on": 1, "n_ended": 1}
    assert list(table.index) == [1, 3], "nobody was stopped after epoch 2 or 9"


def test_bars_of_a_rung_add_up_to_those_that_reached_it():
    ax = Figure().add_subplot()
    at = rungs(ended(*[("pruned", 1)] * 4, *[("completed", 4)] * 5, ("failed", 1)))
    rung_bars(ax, at, 10)
    assert sum(bar.get_height() for bar in ax.patches) == 10
    assert [text.get_text() for text in ax.texts] == ["5 of 10"]
    assert ax.get_legend_handles_labels()[1] == ["trained on", "ended there otherwise", "stopped there"]


def trials_of(make_run):
    ends = {"status": "completed", "metrics": {"val/f1_macro": 0.4}}
    pruned = {"status": "pruned", "epochs": 1, "best_epoch": 1, "metrics": {"val/f1_macro": 0.1}}
    cells = [
        ({"optim.lr": 1e-4, "loss.name": "ce"}, {0: ends | {"metrics": {"val/f1_macro": 0.2}}}),
        ({"optim.lr": 1e-3, "loss.name": "focal", "loss.gamma": 2.0}, {0: ends}),
        ({"optim.lr": 1e-2, "loss.name": "ce"}, {0: pruned}),
        ({"optim.lr": 1e-2, "loss.name": "focal", "loss.gamma": 4.0}, {0: "failed"}),
    ]
    return load([make_run(cells, kind="search")]).trials


def test_axes_are_logarithmic_where_the_space_is_and_choices_are_ticks(make_run):
    space = {"optim.lr": {"low": 1e-5, "high": 1e-1, "log": True}, "loss.name": ["ce", "focal"]}
    names = ["optim.lr", "loss.name", "loss.gamma"]
    places, ticks = parallel_axes(trials_of(make_run), names, space, "val/f1_macro")
    assert len(places) == 3, "the failed trial has no value"
    assert places["optim.lr"].tolist() == pytest.approx([0, 0.5, 1])
    assert places["loss.name"].tolist() == [0, 1, 0]
    assert places["loss.gamma"].tolist() == [ABSENT, 0.5, ABSENT]
    assert places["val/f1_macro"].tolist() == pytest.approx([1 / 3, 1, 0])
    assert ticks["loss.name"] == [(0.0, "ce"), (1.0, "focal")]
    assert [label for _, label in ticks["optim.lr"]] == ["0.0001", "0.001", "0.01"]
    assert ticks["loss.gamma"] == [(ABSENT, "not set"), (0.5, "2")]
    linear, _ = parallel_axes(trials_of(make_run), names, None, "val/f1_macro")
    assert linear["optim.lr"].iloc[1] == pytest.approx(0.0009 / 0.0099)


@pytest.mark.parametrize(("direction", "worth"), [("maximize", [1 / 3, 1]), ("minimize", [0, 2 / 3])])
def test_the_best_lie_on_top_and_trials_that_did_not_complete_are_grey(make_run, direction, worth):
    trials = trials_of(make_run)
    shown = trials[trials["val/f1_macro"].notna()]
    places, ticks = parallel_axes(shown, ["optim.lr", "loss.name"], None, "val/f1_macro")
    ax = Figure().add_subplot()
    parallel_coordinates(ax, places, ticks, shown["status"], direction)
    grey, coloured = (c for c in ax.collections if isinstance(c, LineCollection))
    assert len(grey.get_segments()) == 1
    assert list(coloured.get_array()) == pytest.approx(sorted(worth))


def test_pruned_trials_have_another_mark(make_run, ax):
    pruned = {"status": "pruned", "epochs": 1, "best_epoch": 1, "metrics": {"val/f1_macro": 0.1}}
    run = make_run([({"optim.lr": 1e-4}, {0: 0.4}), ({"optim.lr": 1e-1}, {0: pruned})], kind="search")
    points = parameter_points(load([run]).trials, "optim.lr", "val/f1_macro")
    parameter_effect(ax, points, "optim.lr", "val/f1_macro")
    marks = {line.get_label(): (line.get_marker(), list(line.get_xdata())) for line in ax.lines}
    assert marks == {"completed": ("o", [1e-4]), "pruned": ("X", [1e-1])}
    assert ax.get_xscale() == "log"


def test_parameter_with_mixed_types_becomes_levels(make_run):
    run = make_run([({"loss.alpha": None}, {0: 0.4}), ({"loss.alpha": 0.25}, {0: 0.3})], kind="search")
    points = parameter_points(load([run]).trials, "loss.alpha", "val/f1_macro")
    assert sorted(points["x"]) == ["0.25", "none"]


def test_each_trial_is_drawn_to_the_epoch_where_it_ended(make_run, ax):
    pruned = {"status": "pruned", "epochs": 1, "best_epoch": 1, "metrics": {"val/f1_macro": 0.1}}
    run = make_run([({"optim.lr": 1e-4}, {0: 0.4}), ({"optim.lr": 1e-1}, {0: pruned})], kind="search")
    trial_lengths(ax, load([run]).trials)
    bars = [[x for x, _ in bar] for bars in ax.collections for bar in bars.get_segments()]
    assert bars == [[0, 4], [0, 1]]


def test_of_many_trials_the_best_half_is_drawn_and_as_many_others():
    study = {"metric": "val/f1_macro", "direction": "maximize"}
    few = pd.DataFrame({"val/f1_macro": np.linspace(0, 1, N_LINES)})
    assert some_trials(few, study)[1] == ""
    many = pd.DataFrame({"val/f1_macro": np.linspace(0, 1, 1000)})
    shown, sentence = some_trials(many, study)
    assert len(shown) == N_LINES and not shown.index.duplicated().any()
    assert set(range(900, 1000)) <= set(shown.index) and (shown.index < 900).sum() == 100
    assert sentence == " Of 1,000 trials, the best 100 and 100 others, drawn from a fixed seed."
