"""Trends of simulated results, whose truth is known and whose statistics numpy and scipy give again."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports import load, write_report
from reports.figures.trend import spread, trend_figure
from reports.page.sentences import trends as sentence
from reports.statistics.aggregate import cells as cells_of
from reports.statistics.compare import holm
from reports.statistics.trend import RARE, contrasts, level_means, numeric_factors, scale_of, trends

GAMMAS = [0.0, 0.5, 1.0, 2.0, 3.0, 5.0]
NETWORKS = ["small", "big"]
METRIC = "val/f1_macro"


def scored(**metrics):
    return {"status": "completed", "metrics": {f"val/{name}": float(v) for name, v in metrics.items()}}


def of_gamma(slope=0.0, bend=0.0, *, rare=0.0, n_repeats=4, networks=NETWORKS, noise=0.004, seed=1):
    """Return cells of gamma x network: a parabola in gamma, and a level of its own for each seed."""
    rng = np.random.default_rng(seed)
    of_seed = rng.normal(0, 0.05, n_repeats)
    out = []
    for gamma in GAMMAS:
        for name in networks:
            endings = {}
            for i in range(n_repeats):
                e = noise * rng.normal(size=3)
                macro = 0.4 + slope * gamma + bend * gamma**2 + of_seed[i] + e[0]
                endings[i] = scored(
                    f1_macro=macro, f1_rare=0.2 + rare * gamma + of_seed[i] + e[1], f1_common=0.6 + e[2]
                )
            out.append(({"loss.gamma": gamma, "model.name": name}, endings))
    return out


FACTORS = {"loss.gamma": GAMMAS, "model.name": NETWORKS}


def analysed(path):
    """Return the level means and the trends of a run's one study."""
    runs = load([path])
    study = runs.studies[0]
    table = cells_of(runs.trials_of(study), study)
    return level_means(table, study), trends(table, study)


def values_of(cells, network, metric=METRIC):
    """Return the values of one network, [seeds, levels]."""
    mine = [endings for factors, endings in cells if factors["model.name"] == network]
    return np.array([[e["metrics"][metric] for e in of_level.values()] for of_level in mine]).T


def row_of(frame, term, group="small", metric=METRIC):
    mine = frame[(frame["term"] == term) & (frame["group"] == group) & (frame["metric"] == metric)]
    assert len(mine) == 1
    return mine.iloc[0]


# Contrasts


def test_contrasts_of_even_levels_are_those_of_the_textbooks():
    # Tables have (-2, -1, 0, 1, 2) and (2, -1, -2, -1, 2) for five levels, with sums of squares 10 and 14.
    linear, quadratic = contrasts([10, 20, 30, 40, 50])
    assert list(linear) == pytest.approx([4 * w / 10 for w in (-2, -1, 0, 1, 2)])
    assert list(quadratic) == pytest.approx([-4 * w / 14 for w in (2, -1, -2, -1, 2)])


@pytest.mark.parametrize("x", [GAMMAS, [1.0, 2.0, 10.0], [-3.0, -1.0, 4.0, 5.0, 9.0]])
def test_contrasts_are_the_coefficients_of_least_squares(x):
    y = np.random.default_rng(0).normal(size=len(x))
    linear, quadratic = contrasts(x)
    low, high = min(x), max(x)
    slope = np.polyfit(x, y, 1)[0]
    parabola = np.polyfit(x, y, 2)
    middle = np.polyval(parabola, (low + high) / 2)
    assert linear @ y == pytest.approx(slope * (high - low))
    assert quadratic @ y == pytest.approx(
        middle - (np.polyval(parabola, low) + np.polyval(parabola, high)) / 2
    )
    assert [linear.sum(), quadratic.sum(), linear @ quadratic] == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_logarithm_is_taken_where_it_spaces_the_levels_more_evenly():
    assert [scale_of(x) for x in ([1e-4, 3e-4, 1e-3], [32, 64, 128])] == ["log", "log"]
    assert [scale_of(x) for x in (GAMMAS, [1, 2, 3], [0.1, 0.2, 0.3], [-1, 1, 10])] == ["linear"] * 4


def test_numeric_factors_have_three_numbers_or_more():
    factors = {"gamma": [2, 0, 1.5], "lr": [0.1, 0.2], "loss": ["a", "b", "c"], "flag": [True, False, 1],
               "alpha": [None, 0.25, 0.5, 1.0]}  # fmt: skip
    study = {"kind": "ablation", "baseline": {"gamma": 0}, "factors": factors}
    assert numeric_factors(study) == {"gamma": [0, 1.5, 2]}
    assert numeric_factors({**study, "kind": "search"}) == {}
    screen = {**study, "baseline": None, "factors": {"gamma": {"low": 0, "high": 1}}}
    assert numeric_factors(screen) == {}
    assert numeric_factors({**study, "factors": None}) == {}


# Trends


def test_trend_is_the_least_squares_fit_of_each_seed_with_its_t_interval(make_run):
    cells = of_gamma(slope=-0.01, bend=0.001)
    _, frame = analysed(make_run(cells, factors=FACTORS))
    assert list(frame["term"]) == ["linear", "quadratic"] * 4
    for group in NETWORKS:
        values = values_of(cells, group)
        lines = 5 * np.polyfit(GAMMAS, values.T, 1)[0]
        bends = -(2.5**2) * np.polyfit(GAMMAS, values.T, 2)[0]
        for term, by_seed in (("linear", lines), ("quadratic", bends)):
            row, expected = row_of(frame, term, group), stats.ttest_1samp(by_seed, 0.0)
            assert row["diff"] == pytest.approx(by_seed.mean())
            assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
            assert row["p"] == pytest.approx(expected.pvalue)
            assert row["n_shared"] == 4 and row["levels"] == GAMMAS and row["scale"] == "linear"
    assert list(frame["p_holm"]) == pytest.approx(holm(list(frame["p"])))


def test_what_a_seed_adds_at_every_level_drops_out(make_run):
    calm = of_gamma(slope=-0.01)
    moved = [
        (f, {s: scored(f1_macro=e["metrics"][METRIC] + s, f1_rare=0.1 * s) for s, e in endings.items()})
        for f, endings in calm
    ]
    rows = [
        row_of(analysed(make_run(c, factors=FACTORS, folder=name))[1], "linear")
        for c, name in ((calm, "calm"), (moved, "moved"))
    ]
    assert rows[1][["diff", "low", "high", "p"]].tolist() == pytest.approx(
        rows[0][["diff", "low", "high", "p"]].tolist()
    )


def test_trend_over_a_logarithm_is_linear_in_it(make_run):
    levels = [1e-4, 1e-3, 1e-2, 1e-1]
    cells = [({"optim.lr": lr}, {s: 0.5 + 0.1 * math.log10(lr) + 0.01 * s for s in (0, 1)}) for lr in levels]
    _, frame = analysed(make_run(cells, factors={"optim.lr": levels}))
    assert frame["diff"].tolist() == pytest.approx([0.3, 0.0], abs=1e-12)
    assert set(frame["scale"]) == {"log"} and set(frame["group"]) == {""}


def test_one_repeat_has_a_trend_without_an_interval_and_says_why(make_run):
    means, frame = analysed(make_run(of_gamma(slope=-0.01, n_repeats=1), factors=FACTORS))
    assert frame["diff"].notna().all() and frame[["low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert set(frame["note"]) == {"one shared repeat: no interval"}
    assert means["mean"].notna().all() and means[["low", "high"]].isna().all(axis=None)
    assert "(one shared repeat: no interval)" in sentence(frame) and "rises" not in sentence(frame)


def test_levels_trained_unequally_long_or_never_are_left_out_and_named(make_run):
    cells = of_gamma(slope=-0.01)
    short = {**scored(f1_macro=0.99, f1_rare=0.99), "epochs": 2, "best_epoch": 2}
    for factors, endings in cells:
        if factors == {"loss.gamma": 5.0, "model.name": "small"}:
            endings.update(dict.fromkeys(endings, short))
        if factors == {"loss.gamma": 0.0, "model.name": "small"}:
            endings.update(dict.fromkeys(endings, "failed"))
        if factors == {"loss.gamma": 1.0, "model.name": "big"}:
            endings[2] = "failed"
    means, frame = analysed(make_run(cells, factors=FACTORS))
    row = row_of(frame, "linear")
    by_seed = 2.5 * np.polyfit(
        [0.5, 1.0, 2.0, 3.0], [[e[s]["metrics"][METRIC] for s in range(4)]
                               for f, e in cells if f["model.name"] == "small"
                               and f["loss.gamma"] not in (0.0, 5.0)], 1)[0]  # fmt: skip
    assert row["levels"] == [0.5, 1.0, 2.0, 3.0] and row["diff"] == pytest.approx(by_seed.mean())
    assert row["note"] == "without 5: trained unequal epochs; without 0: no completed trial"
    assert means.loc[means["group"] == "small", "level"].unique().tolist() == [0.5, 1.0, 2.0, 3.0]
    other = row_of(frame, "linear", "big")
    assert other["n_shared"] == 3 and other["note"] == "repeats that lack a level: 1 of 4"
    assert "from 0.5 to 3" in sentence(frame) and "from 0 to 5" in sentence(frame)


def test_two_levels_that_are_left_make_no_trend(make_run):
    cells = of_gamma(n_repeats=2, networks=["small"])
    cells = [(f, e if f["loss.gamma"] < 1 else dict.fromkeys(e, "failed")) for f, e in cells]
    means, frame = analysed(make_run(cells, factors=FACTORS))
    assert frame["diff"].isna().all() and sentence(frame) == ""
    assert all(note.startswith("fewer than three levels are left") for note in frame["note"])
    assert sorted(set(means["level"])) == [0.0, 0.5]


def test_seeds_that_share_no_level_make_no_trend(make_run):
    cells = [({"g": g}, {seed: 0.1 if seed == g else "failed" for seed in (1, 2, 3)}) for g in (1, 2, 3)]
    _, frame = analysed(make_run(cells, factors={"g": [1, 2, 3]}))
    assert set(frame["note"]) == {"no shared repeat; repeats that lack a level: 3 of 3"}


def test_a_design_of_one_factor_at_a_time_has_a_trend_where_the_levels_are(make_run):
    cells = [(f, e) for f, e in of_gamma() if f["model.name"] == "small" or f["loss.gamma"] == 0.0]
    means, frame = analysed(make_run(cells, factors=FACTORS))
    assert set(frame["group"]) == set(means["group"]) == {"small"}
    assert frame["others"].iloc[0] == {"model.name": "small"}


def test_every_numeric_factor_has_its_trends(make_run):
    cells = [
        ({"gamma": g, "width": w}, {s: 0.1 * g + 0.001 * w + 0.01 * s for s in (0, 1)})
        for g in (0, 1, 2)
        for w in (32, 64, 128)
    ]
    _, frame = analysed(make_run(cells, factors={"gamma": [0, 1, 2], "width": [32, 64, 128]}))
    lines = frame[frame["term"] == "linear"]
    assert lines[["factor", "group", "scale"]].values.tolist() == [
        ["gamma", "width=32", "linear"], ["gamma", "width=64", "linear"], ["gamma", "width=128", "linear"],
        ["width", "gamma=0", "log"], ["width", "gamma=1", "log"], ["width", "gamma=2", "log"],
    ]  # fmt: skip
    assert lines["diff"].iloc[:3].tolist() == pytest.approx([0.2] * 3)


def simulated(rng, n_repeats=5):
    """Return a cell table without any trend: two networks, levels of unequal noise, seeds that differ."""
    rows = []
    for network in NETWORKS:
        of_seed = rng.normal(0, 0.05, n_repeats)
        for i, gamma in enumerate(GAMMAS):
            row = {"factors": {"loss.gamma": gamma, "model.name": network}, "unequal_epochs": False}
            for metric in (METRIC, RARE):
                values = list(0.4 + of_seed + 0.01 * (1 + i) * rng.normal(size=n_repeats))
                row |= {metric: np.mean(values), f"{metric}:values": values}
            rows.append({**row, "repeats": list(range(n_repeats))})
    return pd.DataFrame(rows)


def test_without_a_trend_at_most_five_percent_of_studies_claim_one():
    rng = np.random.default_rng(8)
    study = {"kind": "ablation", "metric": METRIC, "factors": FACTORS,
             "baseline": {"loss.gamma": 0.0, "model.name": "small"}}  # fmt: skip
    n = 200
    frames = [trends(simulated(rng), study) for _ in range(n)]
    p = np.array([frame["p"] for frame in frames])
    assert p.shape == (n, 8)
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / p.size))
    claims = np.mean([frame["p_holm"].min() < 0.05 for frame in frames])
    assert claims < 0.05 + 2 * math.sqrt(0.05 * 0.95 / n)


# Means, sentence, figure and report


def test_level_means_are_those_of_the_cells_with_their_t_intervals(make_run):
    cells = of_gamma(n_repeats=3)
    means, _ = analysed(make_run(cells, factors=FACTORS))
    values = values_of(cells, "big", RARE)[:, 3]
    row = means[(means["group"] == "big") & (means["metric"] == RARE) & (means["level"] == 2.0)].iloc[0]
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (row["n"], row["mean"]) == (3, pytest.approx(values.mean()))
    assert (row["low"], row["high"]) == pytest.approx(tuple(interval))
    assert set(means["metric"]) == {METRIC, RARE, "val/f1_common"}


def test_sentence_has_a_fall_only_where_it_is_significant(make_run):
    _, frame = analysed(make_run(of_gamma(slope=-0.02, networks=["small"]), factors=FACTORS))
    assert (frame["p_holm"] < 0.05).tolist() == [True, False, False, False], "the case that is meant"
    fall, flat = row_of(frame, "linear"), row_of(frame, "linear", metric=RARE)
    text = sentence(frame)
    assert text.startswith("Linear trend over loss.gamma from 0 to 5: ")
    assert f"{METRIC} with small falls by {abs(fall['diff']):.4f} (95 % interval −0.1" in text
    assert flat["low"] < 0 < flat["high"]
    assert "not significant: val/f1_rare with small " in text
    assert "In the middle" not in text


def test_sentence_has_a_significant_bend(make_run):
    _, frame = analysed(make_run(of_gamma(bend=-0.02, networks=["small"]), factors=FACTORS))
    assert "In the middle of that range the curve departs from the straight line" in sentence(frame)
    assert f"{METRIC} with small by +0.1" in sentence(frame)


def test_of_many_trends_that_are_not_significant_only_the_number_is_given(make_run):
    networks = [f"n{i}" for i in range(5)]
    _, frame = analysed(
        make_run(of_gamma(networks=networks), factors={"loss.gamma": GAMMAS, "model.name": networks})
    )
    assert sentence(frame).endswith("not significant: 10 of 10 trends.")


def test_names_are_spread_no_more_than_they_must_be():
    assert spread([1.0, 5.0], [1.0, 1.0]) == [1.0, 5.0]
    assert spread([2.1, 1.9], [1.0, 1.0]) == pytest.approx([2.5, 1.5]), "order is kept"
    placed = spread([0.0, 0.1, 0.2, 0.9, 5.0], [1.0, 1.0, 2.0, 1.0, 1.0])
    gaps = np.diff(placed)
    assert (gaps >= np.array([1.0, 1.5, 1.5, 1.0]) - 1e-9).all() and placed[4] == 5.0


def test_figure_has_a_line_a_network_and_a_panel_a_network_with_its_strata(make_run):
    means, _ = analysed(make_run(of_gamma(), factors=FACTORS))
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
    means, _ = analysed(make_run(cells, factors={"model.width": [32, 64, 128]}))
    (ax,) = trend_figure(means, METRIC).axes
    assert [list(line.get_xdata()) for line in ax.lines] == [[32, 64, 128]] and not ax.texts
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "model.width (log)"


def test_levels_too_near_for_their_numbers_keep_their_mark(make_run):
    levels = [0, 1, 2, 100]
    cells = [({"g": g}, {0: 0.1, 1: 0.2}) for g in levels]
    means, _ = analysed(make_run(cells, factors={"g": levels}))
    (ax,) = trend_figure(means, METRIC).axes
    assert list(ax.get_xticks()) == levels
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "", "", "100"]


def test_numbers_of_levels_do_not_touch(make_run):
    rates = [float(rate) for rate in np.geomspace(1e-5, 1e-1, 20)]  # as many digits as 0.0001129
    of_seeds = {seed: scored(f1_macro=0.1 + seed / 10, f1_rare=0.1) for seed in (0, 1)}
    cells = [({"optim.lr": rate, "model.name": name}, of_seeds) for rate in rates for name in NETWORKS]
    means, _ = analysed(make_run(cells, factors={"optim.lr": rates, "model.name": NETWORKS}))
    figure = trend_figure(means, METRIC)
    figure.draw_without_rendering()
    assert len(figure.axes) == 3
    for ax in figure.axes:
        shown = [tick.get_window_extent() for tick in ax.get_xticklabels() if tick.get_text()]
        assert len(shown) > 2
        assert all(left.x1 < right.x0 for left, right in pairwise(shown))


def test_figure_of_one_repeat_has_no_band(make_run):
    means, _ = analysed(make_run(of_gamma(n_repeats=1), factors=FACTORS))
    drawn = [path for c in trend_figure(means, METRIC).axes[0].collections for path in c.get_paths()]
    assert not any(len(path.vertices) for path in drawn)


def test_gamma_like_study_has_trends_in_table_figure_sentence_and_json(make_run, tmp_path):
    run = make_run(of_gamma(slope=-0.02), factors=FACTORS, name="gamma")
    study = write_report([run], tmp_path / "out")["studies"][0]
    page, text = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert all((tmp_path / "out" / "figures" / f"gamma-trend.{kind}").is_file() for kind in ("png", "svg"))
    for name in ("trends", "levels"):
        assert all((tmp_path / "out" / "tables" / f"{name}-gamma.{kind}").is_file()
                   for kind in ("csv", "md", "tex"))  # fmt: skip
    for content in (page, text):
        assert "Linear trend over loss.gamma from 0 to 5" in content and "Trends</h3>" in page
        assert "p (sign flip)" in content and "0.25 with 3" in content
    assert "figures/gamma-trend.png" in text
    _, frame = analysed(run)
    assert [row["diff"] for row in study["trends"]] == frame["diff"].tolist()
    assert set(study["trends"][0]) == {
        "metric", "factor", "others", "scale", "levels", "term", "n_shared", "diff", "low", "high", "p",
        "p_holm", "note",
    }  # fmt: skip
    assert study["comparisons"][0]["p_sign_flip"] >= 2 / 2**4
    assert json.loads((tmp_path / "out" / "report.json").read_text())["studies"] == [study]


@pytest.mark.parametrize("kind", ["ablation", "search"])
def test_other_studies_have_no_trend(make_run, tmp_path, kind):
    cells = [({"loss.name": name}, {0: 0.1, 1: 0.2}) for name in ("ce", "focal", "logit_adjusted")]
    run = make_run(cells, kind=kind, factors={"loss.name": ["ce", "focal", "logit_adjusted"]})
    study = write_report([run], tmp_path / "out")["studies"][0]
    assert study["trends"] == []
    assert not list((tmp_path / "out").rglob("*trend*"))
    assert "Trends" not in (tmp_path / "out" / "report.html").read_text()


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
