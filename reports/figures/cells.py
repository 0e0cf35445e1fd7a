"""Figures of an ablation's cells: means, differences from the baseline, and a 2x2 interaction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from birdnet_core.intervals import LEVEL
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
from reports.statistics import compare
from reports.statistics.aggregate import show
from reports.study_report import StudyReport


def mean_figures(report: StudyReport) -> Iterator[Drawn]:
    cells, left_out = some_cells(report, N_ROWS)
    caption = (
        f"{report.metric} by cell. Diamond: mean; line: {OVER_REPEATS}; open diamond: trained unequal epochs."
        f"{left_out}"
    )
    draw = partial(cell_intervals, cells=cells, metric=report.metric)
    yield Drawn("cells", caption, figure(draw, height_of(cells["label"])))


def difference_figures(report: StudyReport) -> Iterator[Drawn]:
    rows = report.comparisons
    if not rows["diff"].notna().any():
        return
    caption = (
        f"Difference in {report.metric} from the baseline, paired by repeat; {OVER_REPEATS}. Filled: p below "
        "0.05 after Holm."
    )
    if len(rows) > N_ROWS:
        caption += f" Of {len(rows)} differences, the {N_ROWS} largest."
        largest = rows["diff"].abs().sort_values(ascending=False, kind="stable").index[:N_ROWS]
        rows = rows.loc[sorted(largest)]
    draw = partial(difference_intervals, comparisons=rows, metric=report.metric)
    yield Drawn("differences", caption, figure(draw, height_of(rows["label"])))


def interaction_figures(report: StudyReport) -> Iterator[Drawn]:
    if report.interaction is None:
        return
    points = interaction_points(report.cells, report.interaction)
    if not points["mean"].notna().all():
        return
    a, b = report.interaction["factors"]
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
    baseline = compare.baseline_of(cells, report.study)
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
    ax.set_xlabel(f"{metric}: mean and 95 % interval; grey: single repeats")


def difference_intervals(ax: Axes, comparisons: pd.DataFrame, metric: str) -> None:
    """Draw one row a comparison with the baseline: the difference with its interval, against a line at zero.

    Filled where p after Holm is below 0.05, open elsewhere; a row without an interval has its mark alone.
    """
    height = len(comparisons)
    ax.axvline(0, color=INK, linewidth=0.8, zorder=1)
    for row, (_, pair) in enumerate(comparisons.iterrows()):
        y = height - 1 - row
        holds = pair["p_holm"] < 1 - LEVEL
        colour = OKABE_ITO[0] if pair["diff"] >= 0 else OKABE_ITO[1]
        if math.isfinite(pair["low"]):
            ax.plot([pair["low"], pair["high"]], [y, y], "-", color=colour, zorder=3)
        if math.isfinite(pair["diff"]):
            ax.plot([pair["diff"]], [y], "D", color=colour, markerfacecolor=colour if holds else "white",
                    markersize=6, zorder=4)  # fmt: skip
        else:
            ax.text(0.02, y, str(pair["note"]), transform=ax.get_yaxis_transform(), va="center", color=INK)
    ax.set_yticks(range(height - 1, -1, -1), [wrapped(label) for label in comparisons["label"]])
    ax.set_ylim(-0.6, height - 0.4)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"{metric}: difference from the baseline")


def interaction_points(cells: pd.DataFrame, interaction: dict[str, Any]) -> pd.DataFrame:
    """Return the corners of a 2x2 design: `x` (0, 1), `line`, `level`, `mean`, `low` and `high`.

    Places are the levels of the first factor, lines those of the second.
    """
    metric, (a, b), (levels_a, levels_b) = (interaction[k] for k in ("metric", "factors", "levels"))
    rows = []
    for line in levels_b:
        for x, level in enumerate(levels_a):
            at = [cell == {a: level, b: line} for cell in cells["factors"]]
            cell = cells.loc[at].iloc[0]
            interval = {part: cell[f"{metric}:{part}"] for part in ("low", "high")}
            rows.append({"x": x, "level": show(level), "line": show(line), "mean": cell[metric], **interval})
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
