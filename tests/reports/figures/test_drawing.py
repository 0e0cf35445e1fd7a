from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from reports import load
from reports.figures import drawing as plots
from reports.statistics.aggregate import cells
from reports.statistics.compare import interaction, to_baseline

CE, FOCAL = {"loss.name": "cross_entropy"}, {"loss.name": "focal"}


@pytest.fixture
def ax():
    return Figure().add_subplot()


def frames(path):
    runs = load([path])
    study = runs.studies[0]
    trials = runs.trials_of(study)
    return trials, runs.epochs_of(study), cells(trials, study)


def test_curve_is_the_mean_of_completed_trials_with_their_range(make_run):
    _, epochs, table = frames(make_run([(CE, {0: 0.4, 1: 0.8, 2: "failed"})]))
    points = plots.curve_points(epochs, table, "val/f1_macro")
    # The fixture's curves rise as value * epoch / 4.
    assert points["mean"].tolist() == pytest.approx([0.15, 0.30, 0.45, 0.60])
    assert points[["low", "high"]].iloc[-1].tolist() == [0.4, 0.8]
    assert set(points["n"]) == {2}


def test_every_cell_has_a_line_and_only_several_seeds_a_band(make_run, ax):
    _, epochs, table = frames(make_run([(CE, {0: 0.4, 1: 0.8}), (FOCAL, {0: 0.5})]))
    plots.learning_curves(ax, plots.curve_points(epochs, table, "val/f1_macro"), "val/f1_macro")
    assert [line.get_label() for line in ax.lines] == ["cross_entropy", "focal"]
    assert len(ax.collections) == 1


def test_lines_differ_in_dash_as_well_as_in_colour():
    styles = [plots._line_style(i) for i in range(32)]
    assert len(set(styles)) == 32
    assert all(styles[i][1] != styles[i + 1][1] for i in range(31))


def test_one_seed_draws_no_interval(make_run, ax):
    _, _, table = frames(make_run([(CE, {0: 0.4, 1: 0.8}), (FOCAL, {0: 0.5})]))
    plots.cell_intervals(ax, table, "val/f1_macro")
    bars = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert [list(bar.get_xdata()) for bar in bars] == [
        [table["val/f1_macro:low"].iloc[0], table["val/f1_macro:high"].iloc[0]]
    ]


def test_cell_without_a_completed_trial_says_so(make_run, ax):
    _, _, table = frames(make_run([(CE, {0: 0.4}), (FOCAL, {0: "failed"})]))
    plots.cell_intervals(ax, table, "val/f1_macro")
    assert [text.get_text() for text in ax.texts] == ["no completed trial"]


def test_pruned_trials_have_another_mark(make_run, ax):
    pruned = {"status": "pruned", "epochs": 1, "best_epoch": 1, "metrics": {"val/f1_macro": 0.1}}
    run = make_run([({"optim.lr": 1e-4}, {0: 0.4}), ({"optim.lr": 1e-1}, {0: pruned})], kind="search")
    points = plots.parameter_points(frames(run)[0], "optim.lr", "val/f1_macro")
    plots.parameter_effect(ax, points, "optim.lr", "val/f1_macro")
    marks = {line.get_label(): (line.get_marker(), list(line.get_xdata())) for line in ax.lines}
    assert marks == {"completed": ("o", [1e-4]), "pruned": ("X", [1e-1])}
    assert ax.get_xscale() == "log"


def test_parameter_with_mixed_types_becomes_levels(make_run):
    run = make_run([({"loss.alpha": None}, {0: 0.4}), ({"loss.alpha": 0.25}, {0: 0.3})], kind="search")
    points = plots.parameter_points(frames(run)[0], "loss.alpha", "val/f1_macro")
    assert sorted(points["x"]) == ["0.25", "none"]


def test_each_trial_is_drawn_to_the_epoch_where_it_ended(make_run, ax):
    pruned = {"status": "pruned", "epochs": 1, "best_epoch": 1, "metrics": {"val/f1_macro": 0.1}}
    run = make_run([({"optim.lr": 1e-4}, {0: 0.4}), ({"optim.lr": 1e-1}, {0: pruned})], kind="search")
    plots.trial_lengths(ax, frames(run)[0])
    bars = [[x for x, _ in bar] for bars in ax.collections for bar in bars.get_segments()]
    assert bars == [[0, 4], [0, 1]]


def test_of_many_trials_the_best_half_is_drawn_and_as_many_others():
    study = {"metric": "val/f1_macro", "direction": "maximize"}
    few = pd.DataFrame({"val/f1_macro": np.linspace(0, 1, plots.N_LINES)})
    assert plots.some_trials(few, study)[1] == ""
    many = pd.DataFrame({"val/f1_macro": np.linspace(0, 1, 1000)})
    shown, sentence = plots.some_trials(many, study)
    assert len(shown) == plots.N_LINES and not shown.index.duplicated().any()
    assert set(range(900, 1000)) <= set(shown.index) and (shown.index < 900).sum() == 100
    assert sentence == " Of 1,000 trials, the best 100 and 100 others, drawn from a fixed seed."


def test_files_repeat_to_the_byte(tmp_path):
    def draw(folder):
        figure = plots.figure(lambda ax: ax.plot([1, 2], [3, 4], "o-"))
        plots.save(figure, tmp_path / folder / "x")
        return [(tmp_path / folder / f"x.{kind}").read_bytes() for kind in ("png", "svg")]

    assert draw("a") == draw("b")


def test_label_with_dollar_signs_or_foreign_script_is_drawn_as_it_is(tmp_path):
    svg = plots.save(plots.figure(lambda ax: ax.set_title(r"$\oops $ 鳥 <script>")), tmp_path / "x")
    assert svg.startswith("<svg") and "<script" not in svg


def test_drawing_leaves_no_global_state(tmp_path):
    before = dict(mpl.rcParams)
    plots.save(plots.figure(lambda ax: ax.plot([1, 2])), tmp_path / "x")
    assert dict(mpl.rcParams) == before


def test_colours_of_the_page_come_from_its_style(tmp_path):
    svg = plots.save(plots.figure(lambda ax: ax.plot([1, 2])), tmp_path / "x")
    assert "var(--ink)" in svg and plots.INK not in svg
    assert plots.INK in (tmp_path / "x.svg").read_text(), "the file on disk stands alone"


def test_panel_keeps_its_height_however_long_the_legend(tmp_path):
    def draw(n):
        figure = plots.figure(
            lambda ax: [ax.plot([1, 2], label="a long name of a cell " * 2) for _ in range(n)]
        )
        figure.draw_without_rendering()
        return figure.axes[0].get_window_extent().height

    assert draw(12) == pytest.approx(draw(2), rel=0.15)


def test_empty_curves_draw_an_empty_panel(ax):
    empty = pd.DataFrame(columns=["label", "epoch", "n", "mean", "low", "high"])
    plots.learning_curves(ax, empty, "val/f1_macro")
    assert not ax.lines


def test_a_long_label_breaks_where_its_value_begins():
    assert (
        plots.wrapped("small · class_balance=logit adjustment") == "small\nclass_balance=\nlogit adjustment"
    )
    assert plots.wrapped("gamma=2") == "gamma=2"
    assert plots.wrapped("x" * 40) == "x" * 27 + "…"


def test_differences_have_a_row_each_and_are_filled_where_they_hold(make_run, ax):
    base, sure, unsure = {0: 0.10, 1: 0.11, 2: 0.09}, {0: 0.30, 1: 0.31, 2: 0.291}, {0: 0.2, 1: 0.05, 2: 0.11}
    path = make_run([({"x": n}, ends) for n, ends in (("base", base), ("sure", sure), ("unsure", unsure))])
    table = to_baseline(frames(path)[2], load([path]).studies[0])
    plots.difference_intervals(ax, table, "val/f1_macro")
    marks = [line for line in ax.lines if line.get_marker() == "D"]
    assert [mark.get_markerfacecolor() for mark in marks] == [plots.OKABE_ITO[0], "white"]
    assert [mark.get_xdata()[0] for mark in marks] == pytest.approx(table["diff"].tolist())
    zero, *bars = [list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert zero == [0, 0]
    assert bars == [list(row) for row in table[["low", "high"]].to_numpy()]


def test_a_2x2_design_has_a_line_a_level_of_the_second_factor(make_run, ax):
    factors = {"model.name": ["small", "big"], "loss.name": ["ce", "focal"]}
    means = {("small", "ce"): 0.1, ("small", "focal"): 0.2, ("big", "ce"): 0.3, ("big", "focal"): 0.6}
    cells_of = [
        ({"model.name": m, "loss.name": loss}, {0: mean, 1: mean + 0.02}) for (m, loss), mean in means.items()
    ]
    path = make_run(cells_of, factors=factors)
    table, study = frames(path)[2], load([path]).studies[0]
    points = plots.interaction_points(table, interaction(table, study))
    assert points["mean"].tolist() == pytest.approx([0.11, 0.31, 0.21, 0.61])
    plots.interaction_lines(ax, points, "val/f1_macro", ("model.name", "loss.name"))
    assert [line.get_label() for line in ax.lines] == ["loss.name = ce", "loss.name = focal"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["small", "big"]
    assert len(ax.collections) == 2  # the intervals
