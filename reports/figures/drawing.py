"""Figures, each drawn from a frame into an `ax` that the caller gives.

Colours are those of Okabe and Ito (2008), told apart by colour-blind readers; the dash or the mark changes
as well. Figures are made without pyplot, so nothing global changes and no display is needed.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from birdnet_core.intervals import LEVEL
from birdnet_core.records.files import write_text
from reports.runs import FAILED, OTHER_TRAINING
from reports.statistics.aggregate import show

INK, GRID, FAINT = "#2b2f33", "#d9dde1", "#9aa1a8"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A7A1F", "#767D84")
DASHES = ("-", "--", ":", "-.")
STATUS = {
    "completed": (OKABE_ITO[0], "o"),
    "pruned": (OKABE_ITO[4], "X"),
    "failed": (OKABE_ITO[1], "v"),
    "diverged": (OKABE_ITO[3], "^"),
    "killed": (OKABE_ITO[7], "s"),
    "running": (OKABE_ITO[2], "P"),
    OTHER_TRAINING: (OKABE_ITO[5], "D"),
}
N_LINES = 200  # of single trials: of more, none can be followed
N_MARKS = 2000  # more are drawn as pixels: as shapes they would make pages of megabytes
STYLE: Any = {
    "font.size": 9, "font.family": "DejaVu Sans", "text.parse_math": False, "text.color": INK,
    "axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "xtick.color": INK, "ytick.color": INK, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.6, "axes.unicode_minus": True,
    "axes.titlesize": 9, "axes.titlelocation": "left",
}  # fmt: skip


def curve_points(epochs: pd.DataFrame, cells: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one row a (cell, epoch): `mean`, `low` and `high` (min and max) over its completed trials.

    `n` is the number of trials that reached the epoch. Columns: `label`, `epoch`, `n`, `mean`, `low`, `high`.
    """
    cell_of = {
        trial: label for label, ids in zip(cells["label"], cells["trial_ids"], strict=True) for trial in ids
    }
    mine = epochs[epochs["trial_id"].isin(cell_of) & epochs[metric].notna()]
    grouped = mine.groupby([mine["trial_id"].map(cell_of).rename("label"), "epoch"], sort=True)[metric]
    points = grouped.agg(n="size", mean="mean", low="min", high="max").reset_index()
    order = {label: i for i, label in enumerate(cells["label"])}
    return points.sort_values(["label", "epoch"], key=lambda c: c.map(order) if c.name == "label" else c)


def learning_curves(ax: Axes, points: pd.DataFrame, metric: str) -> None:
    """Draw one line a cell over epochs, with a band from the lowest to the highest seed."""
    for i, (name, line) in enumerate(points.groupby("label", sort=False)):
        colour, dash = _line_style(i)
        ax.plot(line["epoch"], line["mean"], dash, color=colour, label=str(name))
        if (line["n"] > 1).any():
            ax.fill_between(line["epoch"], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0)
    _epoch_axis(ax)
    ax.set_ylabel(metric)


def loss_curves(ax: Axes, train: pd.DataFrame, val: pd.DataFrame) -> None:
    """Draw validation loss as a line and training loss as a dotted line of the same colour, a pair a cell."""
    for i, name in enumerate(val["label"].drop_duplicates()):
        colour, _ = _line_style(i)
        for points, dash, width in ((val, "-", 1.6), (train, ":", 1.2)):
            line = points[points["label"] == name]
            ax.plot(line["epoch"], line["mean"], dash, color=colour, linewidth=width,
                    label=str(name) if dash == "-" else "_")  # fmt: skip
    ax.plot([], [], "-", color=FAINT, label="validation")
    ax.plot([], [], ":", color=FAINT, label="training")
    _epoch_axis(ax)
    ax.set_ylabel("loss")


def cell_intervals(ax: Axes, cells: pd.DataFrame, metric: str) -> None:
    """Draw one row a cell: the mean with its interval, and a small dot a seed. No bar where n is 1."""
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
    ax.set_xlabel(f"{metric}: mean and 95 % interval; grey: single seeds")


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
    ax.set_xlabel(f"{metric}: difference to the baseline")


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
        colour, dash = _line_style(i)
        x = line["x"] + (i - 0.5) * 0.04  # side by side, so that intervals do not hide each other
        ax.plot(x, line["mean"], dash, marker="os"[i], color=colour, label=f"{factors[1]} = {name}")
        ax.vlines(x, line["low"], line["high"], color=colour, linewidth=1.2)
    levels = points.drop_duplicates("x")
    ax.set_xticks(levels["x"], [wrapped(level) for level in levels["level"]])
    ax.set_xlim(-0.35, 1.35)
    ax.set_xlabel(factors[0])
    ax.set_ylabel(f"{metric}, 95 % interval")


def parameter_points(trials: pd.DataFrame, parameter: str, metric: str) -> pd.DataFrame:
    """Return `x`, `value` and `status` of the trials that sampled a parameter and have a value.

    `x` is numeric if every value is a number, else text.
    """
    rows = [
        {"x": trial["factors"][parameter], "value": trial[metric], "status": trial["status"]}
        for trial in trials[["factors", metric, "status"]].to_dict("records")
        if parameter in trial["factors"] and math.isfinite(trial[metric])
    ]
    frame = pd.DataFrame(rows, columns=["x", "value", "status"])
    if any(isinstance(row["x"], bool) or not isinstance(row["x"], (int, float)) for row in rows):
        frame["x"] = pd.Series([show(row["x"]) for row in rows], dtype=object)
    return frame


def parameter_effect(ax: Axes, points: pd.DataFrame, parameter: str, metric: str) -> None:
    """Draw the value of each trial of a search against one sampled parameter.

    `points` has `x`, `value` and `status`. A number that spans a factor of 30 or more gets a logarithmic
    axis; a choice gets one place a level. Trials that did not complete show their best epoch so far.
    """
    is_number = pd.api.types.is_numeric_dtype(points["x"])
    x = points["x"]
    if not is_number:
        levels = sorted(set(x))
        x = x.map({level: i for i, level in enumerate(levels)})
        # Trials of one level would hide each other: spread them by their order, which repeats.
        x = x + x.groupby(x).cumcount() % 5 * 0.06 - 0.12
        ax.set_xticks(range(len(levels)), [wrapped(str(level)) for level in levels])
        ax.set_xlim(-0.6, len(levels) - 0.4)
    elif x.min() > 0 and x.max() / x.min() >= 30:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if x.max() / x.min() < 1000 else (1.0,)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(6))
    _scatter_by_status(ax, x, points["value"], points["status"])
    ax.set_xlabel(parameter)
    ax.set_ylabel(metric)


def trial_lengths(ax: Axes, trials: pd.DataFrame) -> None:
    """Draw which trial ended when: a bar of its epochs a trial, in the search's order, marked by status."""
    for status, mine in trials.groupby("status", sort=False):
        ax.hlines(mine["number"], 0, mine["epochs"], color=STATUS[str(status)][0], alpha=0.45, linewidth=2,
                  rasterized=len(trials) > N_MARKS)  # fmt: skip
    _scatter_by_status(ax, trials["epochs"], trials["number"], trials["status"])
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.invert_yaxis()
    ax.set_xlabel("epochs trained")
    ax.set_ylabel("trial")


def some_trials(trials: pd.DataFrame, study: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    """Return the trials that are drawn as lines, and a sentence on the others.

    All up to `N_LINES`; of more the best half by the study's metric, and as many others.
    """
    if len(trials) <= N_LINES:
        return trials, ""
    half = N_LINES // 2
    is_up = study["direction"] == "minimize"
    ranked = trials.sort_values(study["metric"], ascending=is_up, kind="stable", na_position="last")
    chosen = pd.concat([ranked[:half], ranked[half:].sample(half, random_state=0)])
    return chosen, f" Of {len(trials):,} trials, the best {half} and {half} others, drawn from a fixed seed."


def trial_curves(ax: Axes, epochs: pd.DataFrame, trials: pd.DataFrame, metric: str, best: str | None) -> None:
    """Draw one thin line a trial of a search, coloured by status, the trial `best` in ink."""
    seen: set[str] = set()
    wanted = epochs[epochs["trial_id"].isin(trials["trial_id"]) & epochs[metric].notna()]
    lines = {str(name): line for name, line in wanted.groupby("trial_id", sort=False)}
    for _, trial in trials.iterrows():
        line = lines.get(trial["trial_id"])
        colour, mark = STATUS[trial["status"]]
        if line is None:
            continue
        name = "_" if trial["status"] in seen else trial["status"]
        seen.add(trial["status"])
        ax.plot(line["epoch"], line[metric], "-", color=colour, alpha=0.6, linewidth=1)
        ax.plot(line["epoch"].iloc[-1:], line[metric].iloc[-1:], mark, color=colour, markersize=5, label=name)
        if trial["trial_id"] == best:
            ax.plot(line["epoch"], line[metric], "-", color=INK, linewidth=2, label="best", zorder=4)
    _epoch_axis(ax)
    ax.set_ylabel(metric)


def figure(draw: Callable[[Axes], None], height: float = 3.1) -> Figure:
    """Return a figure of one panel that `draw` fills, with its legend below; 5.6 inches wide.

    `height` is in inches and does not count the legend.
    """
    with mpl.rc_context(STYLE):
        out = Figure(figsize=(5.6, height), layout="constrained")
        ax = out.add_subplot()
        draw(ax)
        legend_below(out, ax)
    return out


def save(drawn: Figure, stem: Path) -> str:
    """Write `stem`.png and `stem`.svg; return the SVG for a page, in the page's ink.

    The files repeat to the byte: no date is written, and ids follow from the file's name.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = io.BytesIO(), io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": stem.name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a species in another script
        # By the canvas: `savefig` draws each file twice. The layout of the first stays for the second.
        drawn.set_dpi(160)
        FigureCanvasAgg(drawn).print_png(png, metadata={"Software": None})
        drawn.set_layout_engine("none")
        FigureCanvasSVG(drawn).print_svg(svg, metadata={"Date": None, "Creator": None})
    temporary = stem.with_name(f".{stem.name}.png")
    temporary.write_bytes(png.getvalue())
    os.replace(temporary, stem.with_name(f"{stem.name}.png"))
    write_text(stem.with_name(f"{stem.name}.svg"), svg.getvalue())
    return for_page(svg.getvalue())


def for_page(svg: str) -> str:
    """Return an SVG document as an element that takes background and ink from CSS: --ink, --rule, --dim.

    Group ids are dropped, since several figures stand on one page.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("fill: #ffffff", "fill: var(--paper)")
    for colour, name in ((INK, "ink"), (GRID, "rule"), (FAINT, "dim")):
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _scatter_by_status(ax: Axes, x: pd.Series[Any], y: pd.Series[Any], status: pd.Series[Any]) -> None:
    is_crowded = len(x) > N_MARKS
    for name, (colour, mark) in STATUS.items():
        mine = status == name
        if mine.any():
            ax.plot(x[mine], y[mine], mark, color=colour, markersize=3 if is_crowded else 6, label=name,
                    alpha=0.85, markerfacecolor=colour if name not in FAILED else "none",
                    rasterized=is_crowded)  # fmt: skip


def _line_style(i: int) -> tuple[str, str]:
    return OKABE_ITO[i % len(OKABE_ITO)], DASHES[(i // len(OKABE_ITO) + i) % len(DASHES)]


def _epoch_axis(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")


def legend_below(out: Figure, *axes: Axes) -> None:
    """Put the legend of `axes` under the panels, in as many columns as fit; the figure grows by its rows."""
    found = [ax.get_legend_handles_labels() for ax in axes]
    handles, labels = (list(chain.from_iterable(part)) for part in zip(*found, strict=True))
    if not handles:
        return
    columns = max(1, min(len(labels), 4, 68 // (max(map(len, labels)) + 6)))
    out.legend(handles, labels, loc="outside lower left", ncols=columns)
    out.set_figheight(out.get_figheight() + 0.18 * math.ceil(len(labels) / columns))


def wrapped(text: str) -> str:
    """Return a label with a line break after each part, and within one that is too long for the margin.

    That breaks after its `=`; what is too long still is cut.
    """
    lines = []
    for part in text.split(" · "):
        name, equals, value = part.partition("=")
        lines += [part] if len(part) <= 28 or not equals else [f"{name}=", value]
    return "\n".join(line if len(line) <= 28 else line[:27] + "…" for line in lines)
