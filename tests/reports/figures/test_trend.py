"""The figure of a numeric factor's levels, alone and on the page."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from reports import write_report
from reports.figures.trend import spread, trend_figure
from tests.reports.gammas import FACTORS, METRIC, NETWORKS, means_of, of_gamma, scored


def test_names_are_spread_no_more_than_they_must_be():
    assert spread([1.0, 5.0], [1.0, 1.0]) == [1.0, 5.0]
    assert spread([2.1, 1.9], [1.0, 1.0]) == pytest.approx([2.5, 1.5]), "order is kept"
    placed = spread([0.0, 0.1, 0.2, 0.9, 5.0], [1.0, 1.0, 2.0, 1.0, 1.0])
    gaps = np.diff(placed)
    assert (gaps >= np.array([1.0, 1.5, 1.5, 1.0]) - 1e-9).all() and placed[4] == 5.0


def test_figure_has_a_line_a_network_and_a_panel_a_network_with_its_strata(make_run):
    means = means_of(make_run(of_gamma(), factors=FACTORS))
    figure = trend_figure(means, METRIC)
    upper, *lower = figure.axes
    lines = {line.get_label(): line for line in upper.lines}
    assert set(lines) == set(NETWORKS) and [ax.get_title(loc="left") for ax in lower] == NETWORKS
    mine = means[(means["group"] == "big") & (means["metric"] == METRIC)]
    assert lines["big"].get_xydata().tolist() == mine[["level", "mean"]].values.tolist()
    named = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert named == [NETWORKS, ["rare", "common"], ["rare", "common"]]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in upper.lines}) == 2


def test_figure_of_the_only_factor_has_a_line_without_a_name(make_run):
    cells = [({"model.width": w}, {s: 0.1 + 0.001 * w + 0.01 * s for s in (0, 1)}) for w in (32, 64, 128)]
    means = means_of(make_run(cells, factors={"model.width": [32, 64, 128]}))
    (ax,) = trend_figure(means, METRIC).axes
    assert [list(line.get_xdata()) for line in ax.lines] == [[32, 64, 128]] and not ax.texts
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "model.width (log)"


def test_levels_too_near_for_their_numbers_keep_their_mark(make_run):
    levels = [0, 1, 2, 100]
    cells = [({"g": g}, {0: 0.1, 1: 0.2}) for g in levels]
    means = means_of(make_run(cells, factors={"g": levels}))
    (ax,) = trend_figure(means, METRIC).axes
    assert list(ax.get_xticks()) == levels
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "", "", "100"]


def test_numbers_of_levels_do_not_touch(make_run):
    rates = [float(rate) for rate in np.geomspace(1e-5, 1e-1, 20)]  # as many digits as 0.0001129
    of_seeds = {seed: scored(f1_macro=0.1 + seed / 10, f1_rare=0.1) for seed in (0, 1)}
    cells = [({"optim.lr": rate, "model.name": name}, of_seeds) for rate in rates for name in NETWORKS]
    means = means_of(make_run(cells, factors={"optim.lr": rates, "model.name": NETWORKS}))
    figure = trend_figure(means, METRIC)
    figure.draw_without_rendering()
    assert len(figure.axes) == 3
    for ax in figure.axes:
        shown = [tick.get_window_extent() for tick in ax.get_xticklabels() if tick.get_text()]
        assert len(shown) > 2
        assert all(left.x1 < right.x0 for left, right in pairwise(shown))


def test_figure_of_one_repeat_has_no_band(make_run):
    means = means_of(make_run(of_gamma(n_repeats=1), factors=FACTORS))
    drawn = [path for c in trend_figure(means, METRIC).axes[0].collections for path in c.get_paths()]
    assert not any(len(path.vertices) for path in drawn)


def test_a_study_of_gamma_has_its_trends_in_table_figure_answer_and_json(make_run, tmp_path):
    run = make_run(of_gamma(slope=-0.02), factors=FACTORS, name="gamma")
    content = write_report([run], tmp_path / "out")
    page, text = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert all((tmp_path / "out" / "figures" / f"gamma-trend.{kind}").is_file() for kind in ("png", "svg"))
    for name in ("contrasts", "levels"):
        assert all((tmp_path / "out" / "tables" / f"{name}-gamma.{kind}").is_file()
                   for kind in ("csv", "md", "tex"))  # fmt: skip
    assert "loss.gamma, linear from 0 to 5" in page and "loss.gamma, curved from 0 to 5" in page
    assert "figures/gamma-trend.png" in text
    linear, curved = (row for row in content["studies"][0]["contrasts"] if row["kind"] == "trend")
    assert linear["estimate"] == pytest.approx(-0.1, abs=0.01) and linear["verdict"] == "lower"
    assert linear["low"] < linear["estimate"] < linear["high"] < 0
    assert curved["low"] < 0 < curved["high"] and curved["verdict"] is None
    assert (linear["factors"], linear["cell"]) == (["loss.gamma"], None)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == content


def test_hostile_names_stay_text_in_a_trend(make_run, tmp_path):
    evil = '<script>alert("x")</script>'
    cells = [
        ({evil: g, "model.name": evil}, {s: 0.1 * g + 0.01 * s * s for s in (0, 1, 2)}) for g in (0, 1, 2)
    ]
    write_report([make_run(cells, factors={evil: [0, 1, 2], "model.name": [evil]})], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<script") == 1 and page.count("&lt;script&gt;") > 5  # its own
    assert "<script" not in (tmp_path / "out" / "report.md").read_text().split("```json")[0]
    (svg,) = (tmp_path / "out" / "figures").glob("*-trend.svg")
    assert "<script" not in svg.read_text()
