"""The figure of a trend: a metric against a numeric factor, and F1 of rare and common species."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from reports.figures.drawing import DASHES, OKABE_ITO, STYLE, Drawn
from reports.page.formats import file_name
from reports.page.sentences import OVER_REPEATS
from reports.statistics.aggregate import show
from reports.statistics.levels import STRATA, axis_title
from reports.study_report import StudyReport

Style = tuple[str, str, str]  # colour, dash and mark of a line

MARKS = ("o", "s", "^", "D", "v", "P", "X", "<")
# In other colours than the first groups, so that a stratum is not confused with one of them.
STRATUM_STYLES: dict[str, Style] = {
    "rare": (OKABE_ITO[3], "-", "o"),
    "medium": (OKABE_ITO[7], ":", "s"),
    "common": (OKABE_ITO[2], "--", "^"),
}
WIDTH, LOWER = 5.6, 2.0  # inches: of the figure; height of a panel of strata
LINE_OF_TEXT = 0.15  # inches
DIGIT, SPACE = 0.071, 0.1  # inches: the width of a digit on an axis, and the least between two numbers
N_GROUPS = 6  # panels of one figure


def trend_figures(report: StudyReport) -> Iterator[Drawn]:
    metric, means = report.metric, report.level_means
    factors = list(means["factor"].drop_duplicates())
    for factor in factors:
        mine = means[means["factor"] == factor]
        of_metric = mine[mine["metric"] == metric]
        if of_metric["level"].nunique() < 2:
            continue
        strata = ", and F1 of the rare, medium and common species" if mine["metric"].nunique() > 1 else ""
        caption = (
            f"{metric} against {factor}{strata}. Mark: mean over completed trials; band: {OVER_REPEATS}. "
            "Cells trained unequal epochs are left out."
        )
        if (n_groups := mine["group"].nunique()) > N_GROUPS:
            ranked = of_metric.groupby("group")["mean"].mean()
            leaders = ranked.sort_values(ascending=report.study["direction"] == "minimize").index[:N_GROUPS]
            mine = mine[mine["group"].isin(leaders)]
            caption += (
                f" Of {n_groups} combinations of the other factors, the {N_GROUPS} with the best means."
            )
        name = "trend" if len(factors) == 1 else f"trend-{file_name(factor)}"
        yield Drawn(name, caption, trend_figure(mine, metric))


def trend_figure(means: pd.DataFrame, metric: str) -> Figure:
    """Return a panel of `metric` with a line a group, and below it a panel a group with F1 of each stratum.

    `means` are the rows of `levels.level_means` of one factor. A line is named at its end. Its band is the
    interval at each level, which a level of one repeat does not have.
    """
    groups = [str(group) for group in means["group"].drop_duplicates()]
    has_strata = bool(means["metric"].isin(STRATA).any())
    n_columns = min(2, len(groups))
    n_rows = math.ceil(len(groups) / n_columns) if has_strata else 0
    upper = max(2.4, 0.8 + LINE_OF_TEXT * sum(_short(group).count("\n") + 1 for group in groups))
    heights = [upper, *[LOWER] * n_rows]
    with mpl.rc_context(STYLE):
        out = Figure(figsize=(WIDTH, sum(heights) + 0.3), layout="constrained")
        grid = out.add_gridspec(1 + n_rows, n_columns, height_ratios=heights)
        ax = out.add_subplot(grid[0, :])
        of_metric = means[means["metric"] == metric]
        styles = {group: _style(i) for i, group in enumerate(groups)}
        lines = {g: of_metric[of_metric["group"] == g] for g in groups}
        draw_lines(ax, lines, styles)
        level_axis(ax, means, WIDTH)
        ax.set_ylabel(metric)
        name_lines(ax, lines, styles, upper)
        lower: list[tuple[Axes, dict[str, pd.DataFrame]]] = []
        for i, group in enumerate(groups if has_strata else []):
            place = grid[1 + i // n_columns, i % n_columns]
            ax = out.add_subplot(place, sharey=lower[0][0] if lower else None)
            mine = means[means["group"] == group]
            lines = {name: mine[mine["metric"] == m] for m, name in STRATA.items()}
            lower.append((ax, lines))
            draw_lines(ax, lines, STRATUM_STYLES)
            level_axis(ax, means, WIDTH / n_columns)
            ax.set_xlim(out.axes[0].get_xlim())
            ax.set_title(_short(group))
            if i % n_columns == 0:
                ax.set_ylabel("F1 by frequency")
            else:
                ax.tick_params(labelleft=False)
            if i + n_columns < len(groups):  # another panel with the same levels is below
                ax.tick_params(labelbottom=False)
                ax.set_xlabel("")
        for ax, lines in lower:  # once all of them have set the axis that they share
            name_lines(ax, lines, STRATUM_STYLES, LOWER)
    return out


def draw_lines(ax: Axes, lines: Mapping[str, pd.DataFrame], styles: Mapping[str, Style]) -> None:
    """Draw rows of `levels.level_means` as one line with its band for each name."""
    for name, line in lines.items():
        colour, dash, mark = styles[name]
        ax.plot(line["level"], line["mean"], dash, color=colour, marker=mark, markersize=5, label=name)
        ax.fill_between(line["level"], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0)
        # A level between two of one repeat has an interval and no band.
        known = line[line["low"].notna()]
        ax.vlines(known["level"], known["low"], known["high"], color=colour, alpha=0.4, linewidth=0.8)


def level_axis(ax: Axes, means: pd.DataFrame, width: float) -> None:
    """Number the levels of `means` on the x axis of a panel as wide as `width`, in inches."""
    levels, scale = sorted(set(means["level"])), str(means["scale"].iloc[0])
    ax.set_xscale(scale)
    # The axis keeps about half the width for a name at the line's end. A level whose number would touch the
    # one before it has its mark but no number.
    places = [math.log(v) for v in levels] if scale == "log" else levels
    inches = 0.5 * width / (places[-1] - places[0] or 1.0)
    numbered, right = [], -math.inf
    for place, level in zip(places, levels, strict=True):
        number = show(level)
        half = (len(number) * DIGIT + SPACE) / 2
        is_apart = place * inches - half >= right
        numbered.append(number if is_apart else "")
        right = place * inches + half if is_apart else right
    ax.set_xticks(levels, numbered)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(axis_title(str(means["factor"].iloc[0]), scale))


def name_lines(
    ax: Axes, lines: Mapping[str, pd.DataFrame], styles: Mapping[str, Style], height: float
) -> None:
    """Write each line's name, if it has one, at its end, moved up or down where two would touch.

    `height` is that of the panel in inches.
    """
    ends = {
        name: (float(line["level"].iloc[-1]), float(line["mean"].iloc[-1]))
        for name, line in lines.items()
        if name and len(line)
    }
    low, high = ax.get_ylim()
    # About 0.6 inches of the panel are its title and the numbers of its axis.
    unit = LINE_OF_TEXT * (high - low) / (height - 0.6)
    heights = [unit * (_short(name).count("\n") + 1) for name in ends]
    at = spread([y for _, y in ends.values()], heights)
    for (name, (x, y)), y_text in zip(ends.items(), at, strict=True):
        ax.annotate(
            _short(name),
            (x, y),
            (1.04, y_text),
            textcoords=ax.get_yaxis_transform(),
            va="center",
            fontsize=8,
            arrowprops={
                "arrowstyle": "-",
                "color": styles[name][0],
                "linewidth": 0.8,
                "shrinkA": 0,  # matplotlib bisects for the ends of a line that is shortened
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )
    ax.set_ylim(low, high)


def spread(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Return `places` moved as little as needed for things of these heights, centred there, not to overlap.

    They keep their order. Neighbours that touch move as one block, around the mean of where they would be.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[tuple[list[int], float]] = []  # members from low to high, and the centre of the block
    for i in order:
        block = ([i], places[i])
        while blocks and block[1] - sum(heights[j] for j in block[0]) / 2 < _top(blocks[-1], heights):
            members = blocks.pop()[0] + block[0]
            block = (members, sum(places[j] for j in members) / len(members))
        blocks.append(block)
    out = list(places)
    for members, centre in blocks:
        at = centre - sum(heights[j] for j in members) / 2
        for j in members:
            out[j] = at + heights[j] / 2
            at += heights[j]
    return out


def _top(block: tuple[list[int], float], heights: Sequence[float]) -> float:
    return block[1] + sum(heights[j] for j in block[0]) / 2


def _style(i: int) -> Style:
    of_next_round = i // len(OKABE_ITO) + i
    dash, mark = DASHES[of_next_round % len(DASHES)], MARKS[of_next_round % len(MARKS)]
    return OKABE_ITO[i % len(OKABE_ITO)], dash, mark


def _short(group: str) -> str:
    """Return a label with a line for each of its parts, and parts too long for the margin cut."""
    return "\n".join(part if len(part) <= 24 else f"{part[:23]}…" for part in group.split(" · "))
