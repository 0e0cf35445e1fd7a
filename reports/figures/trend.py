"""Figures of a trend: a metric against a numeric factor, and F1 of rare and common species."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt
import pandas as pd

from reports.figures.charts import (
    DASHES,
    N_BANDS,
    SHAPES,
    Drawn,
    colours,
    cycled,
    draw,
    fading,
    in_order,
    legend,
    rows,
    tips,
)
from reports.figures.colours import OKABE_ITO
from reports.page.formats import file_name
from reports.page.sentences import OVER_REPEATS
from reports.statistics.levels import STRATA, axis_title
from reports.study_report import StudyReport

# In other colours than the first groups, so that a stratum is not confused with one of them.
STRATUM_COLOURS = {"rare": OKABE_ITO[3], "medium": OKABE_ITO[7], "common": OKABE_ITO[2]}
N_GROUPS, N_STRATA_GROUPS = 6, 2  # lines that can be followed
APART = 0.01  # of the axis


def trend_figures(report: StudyReport) -> Iterator[Drawn]:
    """Yield a figure a factor of the metric at its levels."""
    for name, factor, mine, left_out in _factors(report, N_GROUPS):
        of_metric = mine[mine["metric"] == report.metric].assign(name=mine["group"])
        caption = (
            f"{report.metric} against {factor}. Mark: mean of completed trials; band or bar: {OVER_REPEATS}. "
            f"Cells trained unequal epochs are left out.{left_out}"
        )
        yield level_lines(f"trend{name}", caption, of_metric, report.metric)


def strata_figures(report: StudyReport) -> Iterator[Drawn]:
    """Yield a figure a factor of F1 of the rare, medium and common species at its levels."""
    for name, factor, mine, left_out in _factors(report, N_STRATA_GROUPS):
        of_strata = mine[mine["metric"].isin(STRATA)]
        if len(of_strata):
            caption = (
                f"F1 of the rare, medium and common species against {factor}; band or bar: {OVER_REPEATS}."
            )
            frame = of_strata.assign(name=of_strata["metric"].map(STRATA))
            yield level_lines(f"strata{name}", caption + left_out, frame, "F1")


def _factors(report: StudyReport, n: int) -> Iterator[tuple[str, str, pd.DataFrame, str]]:
    """Yield the end of a file's name, the factor, its means in at most `n` groups, and what is left out."""
    means = report.level_means
    factors = in_order(means["factor"])
    for factor in factors:
        mine = means[means["factor"] == factor]
        of_metric = mine[mine["metric"] == report.metric]
        if of_metric["level"].nunique() < 2:
            continue
        left_out = ""
        if (n_groups := mine["group"].nunique()) > n:
            ranked = of_metric.groupby("group")["mean"].mean()
            leaders = ranked.sort_values(ascending=report.study["direction"] == "minimize").index[:n]
            mine = mine[mine["group"].isin(leaders)]
            left_out = f" Of {n_groups} combinations of the other factors, the {n} with the best means."
        yield "" if len(factors) == 1 else f"-{file_name(factor)}", factor, mine, left_out


def level_lines(name: str, caption: str, means: pd.DataFrame, metric: str) -> Drawn:
    """Return a line a `name` and `group` over the levels, with its band; no band where n is 1.

    The lines lie a little apart, so that none hides the interval of another.
    """
    names, groups = in_order(means["name"]), in_order(means["group"])
    is_strata = set(names) <= set(STRATUM_COLOURS)
    title = axis_title(str(means["factor"].iloc[0]), scale := str(means["scale"].iloc[0]))
    levels = sorted(set(means["level"]))
    x = alt.X(
        "position:Q",
        title=title,
        scale=alt.Scale(type=scale, zero=False, nice=False, padding=12),  # type: ignore[arg-type]
        axis=alt.Axis(
            values=levels,
            format=".4~g",
            grid=False,
            labelOverlap="greedy",
        ),
    )
    y = alt.Y("mean:Q", title=metric, scale=alt.Scale(zero=False))
    low = alt.Y("low:Q", title=metric)
    by, of = ("group", groups) if is_strata and len(groups) > 1 else ("name", names)
    # The symbols of the names are those of the points, without the band's opacity and the line's dashes.
    solid = legend(names, symbolOpacity=1, symbolStrokeWidth=0) if len(names) > 1 else None
    key = solid if by == "name" else legend(of)
    dash = alt.StrokeDash(f"{by}:N", scale=alt.Scale(domain=of, range=cycled(DASHES, len(of))), legend=key)
    colour = colours(names, legend=solid)
    if is_strata:
        of_strata = alt.Scale(domain=names, range=[STRATUM_COLOURS[n] for n in names])
        colour = alt.Color("name:N", legend=solid, scale=of_strata)
    shape = alt.Shape("name:N", scale=alt.Scale(domain=names, range=cycled(SHAPES, len(names))), legend=None)
    tip = tips("cell", "name", mean=metric, low="95 % from", high="to", n="repeats")
    band = (
        rows("levels").mark_area(opacity=0.14).encode(x=x, y=low, y2="high:Q", color=colour, detail="group:N")
    )
    return draw(
        name,
        caption,
        220,
        *[band] * (len(means[["name", "group"]].drop_duplicates()) <= N_BANDS),
        rows("levels")
        .mark_rule(strokeWidth=1)
        .encode(x=x, y=low, y2="high:Q", color=colour, opacity=fading(0.5)),
        rows("levels")
        .mark_line(strokeWidth=1.8)
        .encode(x=x, y=y, color=colour, strokeDash=dash, detail="group:N"),
        rows("levels")
        .mark_point(filled=True, size=55, opacity=1)
        .encode(x=x, y=y, color=colour, shape=shape, opacity=fading(), tooltip=tip),
        levels=means.assign(position=positions(means, scale == "log")),
    )


def positions(means: pd.DataFrame, is_log: bool) -> pd.Series[float]:
    """Return where each of `means` is drawn: its level, moved by the place of its line among the others."""
    line = means.groupby(["name", "group"], sort=False).ngroup()
    steps, level = APART * (line - line.max() / 2), means["level"].astype(float)
    lowest, highest = float(level.min()), float(level.max())
    return level * (highest / lowest) ** steps if is_log else level + steps * (highest - lowest)
