"""Figures of an ablation's cells: means, the contrasts, and the four cells of a 2x2 design."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.figures.drawing import (
    FAINT,
    INK,
    N_ROWS,
    OKABE_ITO,
    Drawn,
    figure,
    height_of,
    line_style,
    wrapped,
)
from reports.page.sentences import OVER_REPEATS
from reports.statistics import aggregate
from reports.statistics.aggregate import show
from reports.study_report import StudyReport


def mean_figures(report: StudyReport) -> Iterator[Drawn]:
    cells, left_out = some_cells(report, N_ROWS)
    caption = (
        f"{report.metric} by cell. Diamond: score; line: {OVER_REPEATS}; grey: a repeat on its own fold; "
        "open diamond: trained unequal epochs."
        f"{left_out}"
    )
    draw = partial(cell_intervals, cells=cells, metric=report.metric)
    yield Drawn("cells", caption, figure(draw, height_of(cells["label"])))


def difference_figures(report: StudyReport) -> Iterator[Drawn]:
    if report.analysis is None or not report.analysis.contrasts["estimate"].notna().any():
        return
    rows = report.analysis.contrasts
    caption = f"Differences in {report.metric} with simultaneous intervals. Filled: the interval excludes 0."
    if len(rows) > N_ROWS:
        caption += f" Of {len(rows)} differences, the {N_ROWS} largest."
        largest = rows["estimate"].abs().sort_values(ascending=False, kind="stable").index[:N_ROWS]
        rows = rows.loc[sorted(largest)]
    draw = partial(difference_intervals, contrasts=rows, metric=report.metric)
    yield Drawn("differences", caption, figure(draw, height_of(rows["label"])))


def interaction_figures(report: StudyReport) -> Iterator[Drawn]:
    factors = report.study.get("factors") or {}
    if report.kind != "comparison" or [len(levels) for levels in factors.values()] != [2, 2]:
        return
    points = interaction_points(report.cells, report.metric, factors)
    if len(points) < 4 or not points["mean"].notna().all():
        return
    a, b = factors
    caption = (
        f"{report.metric} over {a}, a line a level of {b}; parallel: no interaction. Bar: {OVER_REPEATS}."
    )
    draw = partial(interaction_lines, points=points, metric=report.metric, factors=(a, b))
    yield Drawn("interaction", caption, figure(draw))


def some_cells(report: StudyReport, n: int) -> tuple[pd.DataFrame, str]:
    """Return the cells that a figure of at most `n` shows, and a sentence on the others.

    The baseline and those with the best means, in the order of the study.
    """
    cells = report.cells
    if len(cells) <= n:
        return cells, ""
    is_up = report.study["direction"] == "minimize"
    ranked = cells[report.metric].sort_values(ascending=is_up, kind="stable")
    baseline = aggregate.baseline_of(cells, report.study)
    first = [] if baseline is None else [baseline.name]
    kept = list(dict.fromkeys([*first, *ranked.index]))[:n]
    also = "" if baseline is None else "the baseline and "
    return cells.loc[sorted(kept)], f" Of {len(cells)} cells, {also}the best."


def cell_intervals(ax: Axes, cells: pd.DataFrame, metric: str) -> None:
    """Draw one row a cell: the mean with its interval, and a small dot a repeat. No bar where n is 1."""
    height = len(cells)
    for row, (_, cell) in enumerate(cells.iterrows()):
        y = height - 1 - row
        values = [v for v in cell[f"{metric}:values"] if math.isfinite(v)]
        offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        if values:
            ax.plot(values, y - 0.22 + np.asarray(offsets), "o", color=FAINT, markersize=3.5, zorder=2)
        if math.isfinite(cell[f"{metric}:low"]):
            ax.plot(
                [cell[f"{metric}:low"], cell[f"{metric}:high"]], [y, y], "-", color=OKABE_ITO[0], zorder=3
            )
        if math.isfinite(cell[metric]):
            fill = "white" if cell["unequal_epochs"] else OKABE_ITO[0]
            ax.plot(
                [cell[metric]], [y], "D", color=OKABE_ITO[0], markersize=6, markerfacecolor=fill, zorder=4
            )
        else:
            ax.text(0.02, y, "no completed trial", transform=ax.get_yaxis_transform(), va="center", color=INK)
    ax.set_yticks(range(height - 1, -1, -1), [wrapped(label) for label in cells["label"]])
    ax.set_ylim(-0.6, height - 0.4)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"{metric}: score, 95 % interval; grey: repeats")


def difference_intervals(ax: Axes, contrasts: pd.DataFrame, metric: str) -> None:
    """Draw one row a contrast: the estimate with its interval, against a line at zero.

    Filled where the interval excludes zero, open elsewhere; a row without an interval has its mark alone.
    """
    height = len(contrasts)
    ax.axvline(0, color=INK, linewidth=0.8, zorder=1)
    for row, (_, each) in enumerate(contrasts.iterrows()):
        y = height - 1 - row
        colour = OKABE_ITO[0] if each["estimate"] >= 0 else OKABE_ITO[1]
        if math.isfinite(each["low"]):
            ax.plot([each["low"], each["high"]], [y, y], "-", color=colour, zorder=3)
        if math.isfinite(each["estimate"]):
            fill = colour if each["verdict"] else "white"
            ax.plot([each["estimate"]], [y], "D", color=colour, markerfacecolor=fill, markersize=6, zorder=4)
        else:
            ax.text(0.02, y, str(each["note"]), transform=ax.get_yaxis_transform(), va="center", color=INK)
    ax.set_yticks(range(height - 1, -1, -1), [wrapped(label) for label in contrasts["label"]])
    ax.set_ylim(-0.6, height - 0.4)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"{metric}: difference")


def interaction_points(
    cells: pd.DataFrame, metric: str, factors: Mapping[str, Sequence[Any]]
) -> pd.DataFrame:
    """Return the corners of a 2x2 design: `x` (0, 1), `line`, `level`, `mean`, `low` and `high`.

    Places are the levels of the first factor, lines those of the second.
    """
    (a, levels_a), (b, levels_b) = factors.items()
    rows = []
    for line in levels_b:
        for x, level in enumerate(levels_a):
            for _, cell in cells.iterrows():
                if cell["factors"] == {a: level, b: line}:
                    interval = {part: cell[f"{metric}:{part}"] for part in ("low", "high")}
                    corner = {"x": x, "level": show(level), "line": show(line), "mean": cell[metric]}
                    rows.append({**corner, **interval})
    return pd.DataFrame(rows)


def interaction_lines(ax: Axes, points: pd.DataFrame, metric: str, factors: tuple[str, str]) -> None:
    """Draw a line a level of the second factor over the first: parallel lines are no interaction."""
    for i, (name, line) in enumerate(points.groupby("line", sort=False)):
        colour, dash = line_style(i)
        x = line["x"] + (i - 0.5) * 0.04  # side by side, so that intervals do not hide each other
        ax.plot(x, line["mean"], dash, marker="os"[i], color=colour, label=f"{factors[1]} = {name}")
        ax.vlines(x, line["low"], line["high"], color=colour, linewidth=1.2)
    levels = points.drop_duplicates("x")
    ax.set_xticks(levels["x"], [wrapped(level) for level in levels["level"]])
    ax.set_xlim(-0.35, 1.35)
    ax.set_xlabel(factors[0])
    ax.set_ylabel(f"{metric}, 95 % interval")
