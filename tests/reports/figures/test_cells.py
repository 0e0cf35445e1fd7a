from __future__ import annotations

import math

import pandas as pd
import pytest

from reports import load
from reports.figures.cells import (
    VERDICTS,
    difference_figures,
    interaction_figures,
    interaction_points,
    mean_figures,
    some_cells,
    wide_enough,
)
from reports.study_report import study_report

CE, FOCAL = {"loss.name": "cross_entropy"}, {"loss.name": "focal"}
FACTORS = {"model.name": ["small", "big"], "loss.name": ["ce", "focal"]}
BASE, SURE, UNSURE = {0: 0.10, 1: 0.11, 2: 0.09}, {0: 0.30, 1: 0.31, 2: 0.291}, {0: 0.2, 1: 0.05, 2: 0.11}


def report_of(path):
    runs = load([path])
    return study_report(runs, runs.studies[0])


def test_one_repeat_has_no_interval(make_run):
    report = report_of(make_run([(CE, {0: 0.4, 1: 0.8, 2: 0.6}), (FOCAL, {0: 0.5})]))
    (drawn,) = mean_figures(report)
    several, single = drawn.spec["datasets"]["cells"]
    assert several["low"] == pytest.approx(report.cells["val/f1_macro:low"].iloc[0])
    assert single["low"] is None and single["value"] == 0.5
    repeats = [(row["cell"], row["value"]) for row in drawn.spec["datasets"]["repeats"]]
    assert repeats == [("cross_entropy", value) for value in (0.4, 0.8, 0.6)]


def test_cell_without_a_completed_trial_says_so(make_run):
    (drawn,) = mean_figures(report_of(make_run([(CE, {0: 0.4}), (FOCAL, {0: "failed"})])))
    labels = [row["label"] for row in drawn.spec["datasets"]["cells"]]
    assert labels == ["cross_entropy (chosen, baseline)", "focal (no completed trial)"]


def test_cells_of_one_factor_are_named_by_its_levels_with_its_name_if_these_are_numbers(make_run):
    path = make_run([({"loss.gamma": g}, {0: 0.1 * g}) for g in (1, 2)], factors={"loss.gamma": [1, 2]})
    (drawn,) = mean_figures(report_of(path))
    assert [row["label"] for row in drawn.spec["datasets"]["cells"]] == [
        "gamma=1 (baseline)", "gamma=2 (chosen)"
    ]  # fmt: skip
    assert "by loss.gamma" in drawn.caption


@pytest.mark.parametrize(("n_behind", "stars"), [(1, []), (2, ["x=sure", "x=twin"])])
def test_cells_that_may_be_the_best_are_marked_and_starred_where_that_sets_few_apart(
    make_run, n_behind, stars
):
    behind = {f"base{i}": BASE for i in range(n_behind)}
    path = make_run([({"x": name}, ends) for name, ends in (behind | {"sure": SURE, "twin": SURE}).items()])
    (drawn,) = mean_figures(report_of(path))
    standing = [row["standing"] for row in drawn.spec["datasets"]["cells"]]
    assert standing == ["behind the best"] * n_behind + ["may be the best"] * 2
    (drawn,) = difference_figures(report_of(path))
    labels = [row["label"] for row in drawn.spec["datasets"]["differences"]]
    assert [label.split()[0] for label in labels if label.endswith("★")] == stars


def test_differences_have_a_row_each_and_their_verdict(make_run):
    path = make_run([({"x": n}, ends) for n, ends in (("base", BASE), ("sure", SURE), ("unsure", UNSURE))])
    report = report_of(path)
    (drawn,) = difference_figures(report)
    rows, contrasts = drawn.spec["datasets"]["differences"], report.analysis.contrasts
    assert [row["verdict"] for row in rows] == ["higher", "no difference claimed"]
    assert set(VERDICTS) >= {row["verdict"] for row in rows}
    for column, source in (("value", "estimate"), ("low", "low"), ("high", "high")):
        assert [row[column] for row in rows] == pytest.approx(contrasts[source].tolist())
    assert [row["cell"] for row in rows] == ["x=sure", "x=unsure"]
    assert drawn.spec["datasets"]["zero"] == [{"value": 0}]


def test_of_many_differences_the_largest_are_drawn_in_their_order(make_run):
    cells = [({"x": f"c{n}"}, {r: 0.1 * n + 0.01 * (r + n) % 3 for r in range(3)}) for n in range(6)]
    report = report_of(make_run(cells))
    (drawn,) = difference_figures(report, 2)
    assert [row["cell"] for row in drawn.spec["datasets"]["differences"]] == ["x=c4", "x=c5"]
    assert "Of 5 differences, the 2 largest." in drawn.caption
    kept, sentence = some_cells(report, 3)
    assert list(kept["label"]) == ["x=c0", "x=c4", "x=c5"]
    assert sentence == " Of 6 cells, the baseline and the best."


def test_a_2x2_design_has_a_line_a_level_of_the_second_factor(make_run):
    means = {("small", "ce"): 0.1, ("small", "focal"): 0.2, ("big", "ce"): 0.3, ("big", "focal"): 0.6}
    cells_of = [
        ({"model.name": m, "loss.name": loss}, {0: mean, 1: mean + 0.02, 2: mean + 0.01})
        for (m, loss), mean in means.items()
    ]
    report = report_of(make_run(cells_of, factors=FACTORS))
    points = interaction_points(report.cells, "val/f1_macro", FACTORS)
    assert points["value"].tolist() == pytest.approx([0.11, 0.31, 0.21, 0.61])
    (drawn,) = interaction_figures(report)
    corners = drawn.spec["datasets"]["corners"]
    assert [(row["level"], row["name"]) for row in corners] == [
        ("small", "ce"), ("big", "ce"), ("small", "focal"), ("big", "focal"),
    ]  # fmt: skip
    assert all(math.isfinite(row["low"]) for row in corners)


@pytest.mark.parametrize(
    ("values", "domain"), [([0.8493, 0.8497], [0.8245, 0.8745]), ([0.3, 0.7], None), ([math.nan], None)]
)
def test_scores_that_are_nearly_equal_look_so(values, domain):
    scale = wide_enough(pd.Series([*values, math.nan])).to_dict()
    assert scale.get("domain") == (domain and pytest.approx(domain)) and scale["zero"] is False
