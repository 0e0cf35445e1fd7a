"""Figures of a search: its trials over epochs, the importance of parameters, and the configs it sampled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from reports.figures.drawing import (
    FAINT,
    INK,
    OKABE_ITO,
    STYLE,
    Drawn,
    epoch_axis,
    figure,
    height_of,
    legend_below,
    wrapped,
)
from reports.page.formats import file_name
from reports.runs import FAILED, OTHER_TRAINING
from reports.statistics.aggregate import show
from reports.study_report import StudyReport

STATUS = {
    "completed": (OKABE_ITO[0], "o"),
    "pruned": (OKABE_ITO[4], "X"),
    "failed": (OKABE_ITO[1], "v"),
    "diverged": (OKABE_ITO[3], "^"),
    "killed": (OKABE_ITO[7], "s"),
    "running": (OKABE_ITO[2], "P"),
    OTHER_TRAINING: (OKABE_ITO[5], "D"),
}
N_AXES = 8
N_NUMBERED = 8  # rungs with their numbers written at them
N_LINES = 200  # of single trials: more cannot be followed
N_MARKS = 2000  # more are drawn as pixels: as shapes they would make pages of megabytes
ABSENT = -0.12  # where an axis shows trials without the parameter
ABSENT_VALUE: Any = object()
# From worst to best: colour-blind readers can distinguish both ends, on white and on black.
SCALE = LinearSegmentedColormap.from_list("value", [OKABE_ITO[0], "#8C8C8C", OKABE_ITO[4]])


def trial_figures(report: StudyReport) -> Iterator[Drawn]:
    """Yield the curves of the trials, with rungs if any were pruned, and the length of each trial."""
    metric, trials, epochs = report.metric, report.trials, report.epochs
    best = report.best["trial_ids"][0] if report.best else None
    drawn, left_out = some_trials(trials, report.study)
    if metric in epochs and epochs[metric].notna().any():
        caption = f"{metric} over epochs, one line a trial; the mark is where it ended.{left_out}"
        if (trials["status"] == "pruned").any():
            caption += (
                " Dotted: rungs, the epochs after which trials were stopped. Below: how many trials reached "
                "each rung, and what became of them; the numbers are of those that continued."
            )
            yield Drawn("rungs", caption, rungs_figure(trials, drawn, epochs, metric, best))
        else:
            draw = partial(trial_curves, epochs=epochs, trials=drawn, metric=metric, best=best)
            yield Drawn("curves", caption, figure(draw))
    lengths = figure(partial(trial_lengths, trials=trials), min(6.0, 1.2 + 0.13 * len(trials)))
    yield Drawn("lengths", "Epochs of each trial, in the order of the search.", lengths)


def importance_figures(report: StudyReport) -> Iterator[Drawn]:
    known = report.importance[report.importance["importance"].notna()]
    if known.empty:
        return
    caption = (
        f"Importance of parameters for {known['metric'].iloc[0]} at epoch {known['epoch'].iloc[0]:.0f} "
        "(PED-ANOVA), shares of 1. Line: the middle 95 % of bootstrap resamples of trials; with few trials "
        "the importance itself may lie outside."
    )
    draw = partial(importance_intervals, importances=known)
    yield Drawn("importance", caption, figure(draw, height_of(known["parameter"])))


def parallel_figures(report: StudyReport) -> Iterator[Drawn]:
    metric, n_all = report.metric, len(report.importance)
    names = list(report.importance["parameter"][:N_AXES])
    scored = report.trials[report.trials[metric].notna()]
    if len(names) < 2 or scored.empty:
        return
    drawn, left_out = some_trials(scored, report.study)
    places, ticks = parallel_axes(drawn, names, report.study.get("space"), metric)
    caption = (
        f"Configs of the search, one line a trial, coloured by {metric} at its best epoch, the last axis: "
        f"from blue (worst) to orange (best). Grey: trials that did not complete.{left_out}"
    )
    if n_all > len(names):
        caption += f" {len(names)} of {n_all} parameters: the most important."
    draw = partial(
        parallel_coordinates,
        places=places,
        ticks=ticks,
        status=drawn["status"],
        direction=report.study["direction"],
    )
    yield Drawn("parallel", caption, figure(draw, 3.4))


def parameter_figures(report: StudyReport) -> Iterator[Drawn]:
    for parameter in dict.fromkeys(key for factors in report.trials["factors"] for key in factors):
        points = parameter_points(report.trials, parameter, report.metric)
        if len(points) and points["x"].nunique() > 1:
            caption = (
                f"{report.metric} at the best epoch against {parameter}. Trials that did not complete: their "
                "best epoch so far."
            )
            draw = partial(parameter_effect, points=points, parameter=parameter, metric=report.metric)
            yield Drawn(f"by-{file_name(parameter)}", caption, figure(draw, 2.7))


def rungs(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row an epoch after which a trial was stopped: what became of those that reached it.

    Columns: `epoch`; `n_reached`, which are `n_stopped` (pruned there), `n_ended` (completed, failed or not
    ended there) and `n_on`, which trained on.
    """
    stopped = trials["status"] == "pruned"
    epochs = trials["epochs"].to_numpy()
    at = np.unique(epochs[stopped])
    frame = pd.DataFrame({"epoch": at})
    frame["n_reached"] = [int((epochs >= rung).sum()) for rung in at]
    frame["n_stopped"] = [int((epochs[stopped] == rung).sum()) for rung in at]
    frame["n_on"] = [int((epochs > rung).sum()) for rung in at]
    frame["n_ended"] = frame["n_reached"] - frame["n_stopped"] - frame["n_on"]
    return frame


def rungs_figure(
    trials: pd.DataFrame, drawn: pd.DataFrame, epochs: pd.DataFrame, metric: str, best: str | None
) -> Figure:
    """Return the curves of the trials `drawn` with the rungs marked, above how many of all reached each."""
    at = rungs(trials)
    with mpl.rc_context(STYLE):
        out = Figure(figsize=(5.6, 4.6), layout="constrained")
        upper, lower = out.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        trial_curves(upper, epochs, drawn, metric, best)
        upper.set_xlabel("")
        rung_bars(lower, at, len(trials))
        for ax in (upper, lower):
            for rung in at["epoch"]:
                ax.axvline(rung, color=FAINT, linestyle=":", linewidth=0.8, zorder=1)
        legend_below(out, upper, lower)
    return out


def rung_bars(ax: Axes, at: pd.DataFrame, n_trials: int) -> None:
    """Draw a bar a rung: trials that trained on, ended and were stopped there. `at` is of `rungs`."""
    width = 0.7 if len(at) < 2 else min(0.7, 0.7 * float(np.diff(at["epoch"]).min()))
    bottom = np.zeros(len(at))
    for column, name, colour, hatch in (
        ("n_on", "trained on", OKABE_ITO[5], ""),
        ("n_ended", "ended there otherwise", OKABE_ITO[7], ""),
        ("n_stopped", "stopped there", STATUS["pruned"][0], "////"),
    ):
        if at[column].any():
            ax.bar(at["epoch"], at[column], width, bottom, color=colour, hatch=hatch, edgecolor="white",
                   linewidth=0, label=name)  # fmt: skip
        bottom += at[column].to_numpy()
    if len(at) <= N_NUMBERED:
        for _, rung in at.iterrows():
            ax.annotate(
                f"{rung['n_on']} of {rung['n_reached']}",
                (rung["epoch"], rung["n_reached"]),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
    ax.set_ylim(0, 1.18 * n_trials)
    ax.set_ylabel("trials that\nreach it")
    ax.set_xlabel("epoch")


def importance_intervals(ax: Axes, importances: pd.DataFrame) -> None:
    """Draw one row a parameter: its importance, and the interval over resamples."""
    y = range(len(importances) - 1, -1, -1)
    ax.hlines(y, importances["low"], importances["high"], color=OKABE_ITO[0], linewidth=1.6)
    ax.plot(importances["importance"], y, "D", color=OKABE_ITO[0], markersize=6)
    ax.axvline(0, color=INK, linewidth=0.8, zorder=1)
    ax.set_yticks(y, [wrapped(name) for name in importances["parameter"]])
    ax.set_ylim(-0.6, len(importances) - 0.4)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("importance: share of 1, and 95 % of resamples")


def parallel_axes(
    trials: pd.DataFrame, names: Sequence[str], space: dict[str, Any] | None, metric: str
) -> tuple[pd.DataFrame, dict[str, list[tuple[float, str]]]]:
    """Return where each trial crosses the axis of each name and of the metric, and the ticks of each axis.

    Places are from 0 to 1 over the values that were taken, by their logarithm where the space is sampled so;
    a choice has places at equal distances. A parameter that a trial does not have is at `ABSENT`. Trials
    without a value of the metric have no row.
    """
    scored = trials[np.isfinite(trials[metric])]
    places: dict[str, pd.Series[Any]] = {}
    ticks: dict[str, list[tuple[float, str]]] = {}
    for name in names:
        taken = pd.Series([f.get(name, ABSENT_VALUE) for f in scored["factors"]], scored.index, dtype=object)
        places[name], ticks[name] = _axis(taken, _is_log((space or {}).get(name)))
    places[metric], ticks[metric] = _axis(scored[metric].astype(object), False)
    return pd.DataFrame(places), ticks


def _is_log(form: Any) -> bool:
    """Return whether a parameter of the study's file is sampled by its logarithm."""
    forms = form["distributions"] if isinstance(form, dict) and "distributions" in form else [form]
    return any(isinstance(each, dict) and each.get("log", False) for each in forms)


def _axis(taken: pd.Series[Any], is_log: bool) -> tuple[pd.Series[Any], list[tuple[float, str]]]:
    is_there = taken.map(lambda value: value is not ABSENT_VALUE)
    there = taken[is_there]
    absent = [] if is_there.all() else [(ABSENT, "not set")]
    out = pd.Series(ABSENT, taken.index, dtype="float64")
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in there):
        texts = there.map(show)
        levels = sorted(set(texts))
        at = {text: i / max(1, len(levels) - 1) for i, text in enumerate(levels)}
        out[is_there] = texts.map(at)
        return out, [*absent, *((at[text], text) for text in levels)]
    numbers = there.astype("float64")
    low, high = float(numbers.min()), float(numbers.max())
    scaled, ends = (np.log(numbers), (math.log(low), math.log(high))) if is_log else (numbers, (low, high))
    width = ends[1] - ends[0]
    out[is_there] = (scaled - ends[0]) / width if width else 0.5
    if not width:
        return out, [*absent, (0.5, show(low))]
    values = [ends[0] + share * width for share in (0, 0.5, 1)]
    labels = [f"{math.exp(value) if is_log else value:.2g}" for value in values]
    return out, [*absent, *zip((0.0, 0.5, 1.0), labels, strict=True)]


def parallel_coordinates(
    ax: Axes,
    places: pd.DataFrame,
    ticks: dict[str, list[tuple[float, str]]],
    status: pd.Series[Any],
    direction: str,
) -> None:
    """Draw a line a trial across an axis a column, the best on top; in grey those that did not complete."""
    names = list(places.columns)
    is_completed = (status == "completed").to_numpy()
    worth = places.iloc[:, -1] if direction == "maximize" else 1 - places.iloc[:, -1]
    x = np.arange(len(names), dtype=float)
    order = np.argsort(worth.to_numpy(), kind="stable")
    lines = np.stack([np.broadcast_to(x, places.shape), places.to_numpy()], axis=-1)
    others, completed = (order[is_completed[order] == wanted] for wanted in (False, True))
    ax.add_collection(LineCollection(list(lines[others]), colors=FAINT, linewidths=0.5, alpha=0.5))
    ax.add_collection(
        LineCollection(
            list(lines[completed]),
            array=worth.to_numpy()[completed],
            cmap=SCALE,
            linewidths=1.1,
            alpha=0.85,
        )
    )
    for i, name in enumerate(names):
        ax.axvline(i, color=INK, linewidth=0.8, zorder=3)
        for place, label in ticks[name]:
            ax.annotate(
                label[:14],
                (i, place),
                (2, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
                zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
            )
    ax.set_xticks(x, [name.replace(".", ".\n") for name in names], fontsize=6.5)
    ax.set_xlim(-0.1, len(names) - 0.5)
    ax.set_ylim(min(0.0, float(places.to_numpy().min())) - 0.06, 1.06)
    ax.yaxis.set_visible(False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.grid(visible=False)


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
    epoch_axis(ax)
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


def _scatter_by_status(ax: Axes, x: pd.Series[Any], y: pd.Series[Any], status: pd.Series[Any]) -> None:
    is_crowded = len(x) > N_MARKS
    for name, (colour, mark) in STATUS.items():
        mine = status == name
        if mine.any():
            ax.plot(x[mine], y[mine], mark, color=colour, markersize=3 if is_crowded else 6, label=name,
                    alpha=0.85, markerfacecolor=colour if name not in FAILED else "none",
                    rasterized=is_crowded)  # fmt: skip
