"""Figures of an ablation's cells: scores, the contrasts, and the four cells of a 2x2 design."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from reports.figures.charts import (
    FEW_TICKS,
    N_ROWS,
    ROW,
    SHAPES,
    Drawn,
    colours,
    cycled,
    draw,
    fading,
    in_order,
    labels_above,
    largest,
    row_of,
    rows,
    tips,
)
from reports.figures.colours import FAINT, INK, OKABE_ITO, PAPER
from reports.page.sentences import OVER_REPEATS
from reports.statistics import aggregate
from reports.statistics.aggregate import show
from reports.statistics.pooled_scores import statistics
from reports.study_report import StudyReport

STANDING = {"may be the best": OKABE_ITO[0], "behind the best": FAINT, "not known": OKABE_ITO[0]}
LEAST_SPAN = 0.05  # of an axis of scores
VERDICTS = {"higher": OKABE_ITO[0], "lower": OKABE_ITO[1], "no difference claimed": FAINT}


def mean_figures(report: StudyReport, n: int = N_ROWS, name: str = "cells") -> Iterator[Drawn]:
    cells, left_out = some_cells(report, n)
    frame, repeats = score_rows(report, cells)
    factors = list(report.study.get("factors") or {}) if report.kind == "comparison" else []
    by = factors[0] if len(factors) == 1 else "cell"
    unequal = "; open: trained unequal epochs" if cells["unequal_epochs"].any() else ""
    caption = (
        f"{report.metric} by {by}. Diamond: {_what_a_score_is(report)}; line: {OVER_REPEATS}; small dots: "
        f"repeats, each on its own fold{unequal}.{left_out}"
    )
    if not (frame["standing"] == "not known").any():
        caption += " Blue: may be the best; grey: behind the best."
    spread = pd.concat([frame["value"], frame["low"], frame["high"], repeats["value"]])
    x = alt.X("value:Q", title=report.metric, scale=wide_enough(spread), axis=FEW_TICKS)
    scale = alt.Scale(domain=list(STANDING), range=list(STANDING.values()))
    colour = alt.Color("standing:N", legend=None, scale=scale)
    fill = alt.condition("datum.is_open", alt.value(PAPER), colour)
    tip = tips("cell", value=report.metric, low="95 % from", high="to", n="repeats")
    each = rows("repeats").mark_circle(size=18, color=FAINT, opacity=1)
    yield draw(
        name,
        caption,
        ROW * len(frame),
        each.encode(
            x=x,
            y=row_of(),
            yOffset=alt.value(ROW * 0.74),
            opacity=fading(0.8),
            tooltip=tips("cell", "repeat", value=report.metric),
        ),
        rows("cells")
        .mark_rule(strokeWidth=2.5)
        .encode(
            x=alt.X("low:Q", title=report.metric),
            x2="high:Q",
            y=row_of(),
            color=colour,
            opacity=fading(),
            tooltip=tip,
        ),
        rows("cells")
        .mark_point(shape="diamond", size=80, filled=True, opacity=1)
        .encode(x=x, y=row_of(), stroke=colour, fill=fill, opacity=fading(), tooltip=tip),
        labels_above("cells"),
        cells=frame,
        repeats=repeats,
    )


def _what_a_score_is(report: StudyReport) -> str:
    """Return ``score``, of pooled folds with words that say why it is no mean of the dots."""
    repeats = report.analysis.repeats if report.analysis is not None else None
    if repeats is None or repeats.deals is None or repeats.n_folds == 1:
        return "score"
    is_pooled = report.metric in statistics(repeats.strata, repeats.n_classes)
    return "score of all folds' recordings together" if is_pooled else "score"


def wide_enough(values: pd.Series[Any]) -> alt.Scale:
    """Return a scale over `values` that spans `LEAST_SPAN` at least: what is nearly equal looks so."""
    low, high = float(values.min()), float(values.max())
    if not high - low < LEAST_SPAN:  # nor where there is no value
        return alt.Scale(zero=False)
    middle = (low + high) / 2
    return alt.Scale(zero=False, domain=[middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2])


def has_words_alone(report: StudyReport) -> bool:
    """Return whether the levels of a single factor name the cells; a number needs the factor's name."""
    factors = report.study.get("factors") or {}
    levels = next(iter(factors.values()), ())
    return report.kind == "comparison" and len(factors) == 1 and all(isinstance(v, str) for v in levels)


def score_rows(report: StudyReport, cells: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row a cell, with its score, interval and standing, and a row a (cell, repeat).

    `standing` is whether the cell may be the best. A cell without a score has
    the reason in its label.
    """
    metric, best = report.metric, report.best or {}
    in_set = may_be_best(report)
    # The components, then the settings, the most important first.
    important = sorted(report.importance["parameter"], key=lambda name: not name.endswith(".name"))
    baseline = aggregate.baseline_of(report.cells, report.study)
    out, repeats = [], []
    for index, cell in zip(cells.index, cells.to_dict("records"), strict=True):
        label = str(cell["label"])
        if has_words_alone(report):
            label = show(next(iter(cell["factors"].values())))
        marks = ["chosen"] * (cell["config_id"] == best.get("config_id"))
        marks += ["baseline"] * (baseline is not None and index == baseline.name)
        marks += ["no completed trial"] * (not math.isfinite(cell[metric]))
        label += f" ({', '.join(marks)})" if marks else ""
        if report.kind != "comparison" and cell["factors"]:  # else it is a number alone
            found = {key: cell["factors"][key] for key in important if key in cell["factors"]}
            label += f": {aggregate.label(found | cell['factors'])}"
        bounds = {key: cell[f"{metric}:{key}"] for key in ("low", "high")}
        row = {"cell": cell["label"], "label": label, "value": cell[metric], **bounds, "n": cell["n"]}
        standing = "not known"
        if in_set is not None:
            standing = list(STANDING)[cell["config_id"] not in in_set]
        out.append(row | {"standing": standing, "is_open": bool(cell["unequal_epochs"])})
        values = aggregate.by_repeat(cell, metric)
        for repeat, value in values.items() if len(values) > 1 else ():
            repeats.append({"cell": cell["label"], "label": label, "repeat": repeat, "value": value})
    return pd.DataFrame(out), pd.DataFrame(repeats, columns=["cell", "label", "repeat", "value"])


def may_be_best(report: StudyReport) -> set[str] | None:
    """Return the configs of the best set; None where it is not known."""
    best = report.analysis.best if report.analysis is not None else pd.DataFrame()
    return set(best.loc[best["may_be_best"].astype(bool), "config_id"]) if len(best) else None


def difference_figures(report: StudyReport, n: int = N_ROWS, name: str = "differences") -> Iterator[Drawn]:
    if report.analysis is None or not report.analysis.contrasts["estimate"].notna().any():
        return
    found = report.analysis.contrasts
    caption = (
        f"Differences in {report.metric} with intervals that hold together. Blue and filled: higher; orange "
        "and filled: lower; open: the interval holds 0, no difference is claimed."
    )
    if len(found) > n:
        caption += f" Of {len(found)} differences, the {n} largest."
        found = largest(found, found["estimate"].abs(), n)
    frame = difference_rows(report, found)
    if frame["label"].str.endswith("★").any():
        caption += " ★: may be the best."
    scale = alt.Scale(domain=list(VERDICTS), range=list(VERDICTS.values()))
    colour = alt.Color("verdict:N", scale=scale, legend=None)
    title = f"difference in {report.metric}"
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=True), axis=FEW_TICKS)
    is_open = "datum.verdict === 'no difference claimed'"
    tip = tips("label", "verdict", value="difference", low="from", high="to", p="p (adjusted)")
    yield draw(
        name,
        caption,
        ROW * len(frame),
        rows("zero").mark_rule(color=INK).encode(x=x),
        rows("differences")
        .mark_rule(strokeWidth=2.5)
        .encode(
            x=alt.X("low:Q", title=title),
            x2="high:Q",
            y=row_of(),
            color=colour,
            opacity=fading(),
            tooltip=tip,
        ),
        rows("differences")
        .mark_point(shape="diamond", size=80, filled=True, opacity=1)
        .encode(
            x=x,
            y=row_of(),
            stroke=colour,
            fill=alt.condition(is_open, alt.value(PAPER), colour),
            opacity=fading(),
            tooltip=tip,
        ),
        labels_above("differences"),
        differences=frame,
        zero=pd.DataFrame({"value": [0]}),
    )


def difference_rows(report: StudyReport, contrasts: pd.DataFrame) -> pd.DataFrame:
    """Return a row a contrast: `label`, `cell`, `value`, `low`, `high`, `p` and `verdict`.

    A contrast of a cell of the best set with the baseline ends with a star, where that sets few apart.
    """
    in_set = may_be_best(report) or set()
    has_stars = 2 * len(in_set) <= len(report.cells)
    out = []
    for row in contrasts.to_dict("records"):
        cell = None if row["cell"] is None else report.cells.iloc[row["cell"]]
        label = row["label"]
        if has_words_alone(report):  # the factor's name on every row is noise
            (factor,) = report.study["factors"]
            label = label.replace(f"{factor.rpartition('.')[2]}=", "")
        label += f": {row['note']}" if not math.isfinite(row["estimate"]) else ""
        if has_stars and cell is not None and cell["config_id"] in in_set:
            label += " ★"
        out.append(
            {
                "label": label,
                "cell": None if cell is None else cell["label"],
                "value": row["estimate"],
                "low": row["low"],
                "high": row["high"],
                "p": row["p"],
                "verdict": row["verdict"] or "no difference claimed",
            }
        )
    return pd.DataFrame(out)


def interaction_figures(report: StudyReport) -> Iterator[Drawn]:
    factors = report.study.get("factors") or {}
    if report.kind != "comparison" or [len(levels) for levels in factors.values()] != [2, 2]:
        return
    points = interaction_points(report.cells, report.metric, factors)
    if len(points) < 4 or not points["value"].notna().all():
        return
    a, b = factors
    caption = (
        f"{report.metric} over {a}, a line a level of {b}; parallel: no interaction. Bar: {OVER_REPEATS}."
    )
    names = in_order(points["name"])
    levels = in_order(points["level"])
    # Lines of one level next to each other, so that intervals do not hide each other.
    points["x"] = points["level"].map(levels.index) + points["name"].map({names[0]: -0.02, names[1]: 0.02})
    axis = alt.Axis(values=[0, 1], labelExpr=f"{json.dumps(levels)}[datum.value]", grid=False)
    x = alt.X("x:Q", title=a, axis=axis, scale=alt.Scale(domain=[-0.5, 1.5], nice=False))
    y = alt.Y("value:Q", title=report.metric, scale=alt.Scale(zero=False))
    colour, tip = colours(names, b), tips("cell", value=report.metric, low="95 % from", high="to")
    shape = alt.Shape("name:N", scale=alt.Scale(domain=names, range=cycled(SHAPES, 2)), legend=None)
    yield draw(
        "interaction",
        caption,
        220,
        rows("corners").mark_line().encode(x=x, y=y, color=colour),
        rows("corners")
        .mark_rule(strokeWidth=1.5)
        .encode(
            x=x,
            y=alt.Y("low:Q", title=report.metric),
            y2="high:Q",
            color=colour,
            opacity=fading(),
        ),
        rows("corners")
        .mark_point(filled=True, size=60, opacity=1)
        .encode(x=x, y=y, color=colour, shape=shape, opacity=fading(), tooltip=tip),
        corners=points,
    )


def some_cells(report: StudyReport, n: int) -> tuple[pd.DataFrame, str]:
    """Return the cells that a figure of at most `n` shows, and a sentence on the others.

    The baseline and those with the best means, in the order of the study; of a search those with a score.
    """
    cells = report.cells
    if report.kind == "search":
        cells = cells[cells[report.metric].notna()]
    if len(cells) <= n:
        return cells, ""
    is_up = report.study["direction"] == "minimize"
    ranked = cells[report.metric].sort_values(ascending=is_up, kind="stable")
    baseline = aggregate.baseline_of(cells, report.study)
    first = [] if baseline is None else [baseline.name]
    kept = list(dict.fromkeys([*first, *ranked.index]))[:n]
    also = "" if baseline is None else "the baseline and "
    return cells.loc[sorted(kept)], f" Of {len(cells)} cells, {also}the best."


def interaction_points(
    cells: pd.DataFrame, metric: str, factors: Mapping[str, Sequence[Any]]
) -> pd.DataFrame:
    """Return the corners of a 2x2 design: `level` of the first factor, `name` of the second, `value`,
    `low`, `high` and `cell`."""
    (a, levels_a), (b, levels_b) = factors.items()
    out = []
    for name in levels_b:
        for level in levels_a:
            for _, cell in cells.iterrows():
                if cell["factors"] == {a: level, b: name}:
                    bounds = {part: cell[f"{metric}:{part}"] for part in ("low", "high")}
                    corner = {"cell": cell["label"], "level": show(level), "name": show(name)}
                    out.append({**corner, "value": cell[metric], **bounds})
    return pd.DataFrame(out)
