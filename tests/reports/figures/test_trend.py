"""The figure of a numeric factor's levels, alone and on the page."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import vl_convert

from reports import load, write_report
from reports.figures.charts import VEGA_LITE, theme
from reports.figures.trend import strata_figures, trend_figures
from reports.study_report import study_report
from tests.reports.gammas import FACTORS, METRIC, NETWORKS, of_gamma


def figures_of(path):
    runs = load([path])
    report = study_report(runs, runs.studies[0])
    return [*trend_figures(report), *strata_figures(report)], report


def layers_of(drawn):
    return [layer["mark"]["type"] for layer in drawn.spec["layer"]]


def test_figure_has_a_line_a_network_and_a_second_one_has_its_strata(make_run):
    (trend, strata), report = figures_of(make_run(of_gamma(), factors=FACTORS))
    lines = trend.spec["datasets"]["levels"]
    means = report.level_means
    mine = means[(means["group"] == "big") & (means["metric"] == METRIC)]
    found = [[row["level"], row["mean"]] for row in lines if row["name"] == "big"]
    assert found == mine[["level", "mean"]].to_numpy().tolist()
    encoding = trend.spec["layer"][2]["encoding"]
    assert encoding["color"]["scale"]["domain"] == encoding["strokeDash"]["scale"]["domain"] == NETWORKS
    assert len(set(map(str, encoding["strokeDash"]["scale"]["range"]))) == 2
    named = {(row["group"], row["name"]) for row in strata.spec["datasets"]["levels"]}
    assert named == {(network, name) for network in NETWORKS for name in ("rare", "common")}


def test_a_mark_of_a_level_names_its_cell(make_run):
    (trend, _), report = figures_of(make_run(of_gamma(), factors=FACTORS))
    assert {row["cell"] for row in trend.spec["datasets"]["levels"]} == set(report.cells["label"])


def test_figure_of_the_only_factor_has_a_line_without_a_legend(make_run):
    cells = [({"model.width": w}, {s: 0.1 + 0.001 * w + 0.01 * s for s in (0, 1)}) for w in (32, 64, 128)]
    (drawn,), _ = figures_of(make_run(cells, factors={"model.width": [32, 64, 128]}))
    assert [row["level"] for row in drawn.spec["datasets"]["levels"]] == [32, 64, 128]
    encoding = drawn.spec["layer"][-1]["encoding"]
    assert encoding["color"]["legend"] is None
    assert (encoding["x"]["scale"]["type"], encoding["x"]["title"]) == ("log", "model.width (log)")


def test_levels_are_the_numbers_of_the_axis_where_they_do_not_touch(make_run):
    rates = [float(rate) for rate in np.geomspace(1e-5, 1e-1, 20)]  # as many digits as 0.0001129
    for levels in ([0.0, 0.5, 1.0, 2.0, 3.0, 5.0], rates):
        cells = [({"optim.lr": level}, {0: 0.1, 1: 0.2}) for level in levels]
        folder = str(len(levels))
        (drawn,), _ = figures_of(make_run(cells, factors={"optim.lr": levels}, folder=folder))
        spec = json.dumps(drawn.spec | {"width": 326, "config": theme()})
        svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
        x = re.findall(
            r'<text text-anchor="middle" transform="translate\(([\d.]+),[^>]* opacity="1">([\d.e−]+)<', svg
        )
        places, numbers = [float(at) for at, _ in x], [text for _, text in x]
        assert len(numbers) == 6 if len(levels) == 6 else 2 <= len(numbers) < 20
        widths = [6 * len(number) for number in numbers]
        gaps = np.diff(places) - np.convolve(widths, [0.5, 0.5], mode="valid")
        assert (gaps > -2).all()


def test_of_many_groups_the_best_have_a_line_and_no_band(make_run):
    networks = [f"net{i}" for i in range(8)]
    cells = of_gamma(networks=networks)
    (trend, strata), _ = figures_of(make_run(cells, factors={**FACTORS, "model.name": networks}))
    assert len({row["group"] for row in trend.spec["datasets"]["levels"]}) == 6
    assert "Of 8 combinations of the other factors, the 6 with the best means." in trend.caption
    assert "area" not in layers_of(trend)
    assert len({row["group"] for row in strata.spec["datasets"]["levels"]}) == 2


def test_lines_lie_apart_around_their_levels_and_the_legend_has_the_points_symbols(make_run):
    rates = [1e-4, 1e-3, 1e-2]
    for factor, levels in (("loss.gamma", [0.0, 1.0, 5.0]), ("optim.lr", rates)):
        cells = [
            ({factor: level, "model.name": name}, {0: 0.1, 1: 0.2, 2: 0.15})
            for level in levels
            for name in ("a", "b", "c")
        ]
        factors = {factor: levels, "model.name": ["a", "b", "c"]}
        (drawn,), report = figures_of(make_run(cells, factors=factors, folder=factor))
        is_log = report.level_means["scale"].iloc[0] == "log"
        assert is_log == (factor == "optim.lr")
        shift = {}
        for row in drawn.spec["datasets"]["levels"]:
            level, place = (np.log(row[key]) if is_log else row[key] for key in ("level", "position"))
            shift.setdefault(row["name"], []).append(float(place - level))
        width = float(np.log(100)) if is_log else 5.0
        for name, steps in (("a", -1), ("b", 0), ("c", 1)):
            assert shift[name] == pytest.approx([0.01 * steps * width] * 3, abs=1e-12)
        symbols = drawn.spec["layer"][-1]["encoding"]["color"]["legend"]
        assert (symbols["symbolOpacity"], symbols["symbolStrokeWidth"]) == (1, 0)


def test_figure_of_one_repeat_has_no_interval(make_run):
    (trend, _), _ = figures_of(make_run(of_gamma(n_repeats=1), factors=FACTORS))
    assert all(row["low"] is None for row in trend.spec["datasets"]["levels"])


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
    assert "<script>alert" not in page and page.count("&lt;script&gt;") > 5
    assert "<script" not in (tmp_path / "out" / "report.md").read_text().split("```json")[0]
    for svg in (tmp_path / "out" / "figures").glob("*.svg"):
        assert "<script" not in svg.read_text()
