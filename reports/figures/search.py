"""Figures of a search: what was stopped when, which parameters mattered, and the configs that it tried."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from reports.figures.drawing import FAINT, INK, OKABE_ITO, STATUS, STYLE, legend_below, trial_curves, wrapped
from reports.statistics.aggregate import show

N_AXES = 8
N_NUMBERED = 8  # rungs with their numbers written at them
ABSENT = -0.12  # where an axis shows trials without the parameter
ABSENT_VALUE: Any = object()
# From worst to best: both ends are told apart by colour-blind readers, on white and on black.
SCALE = LinearSegmentedColormap.from_list("value", [OKABE_ITO[0], "#8C8C8C", OKABE_ITO[4]])


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
    """Return the curves of the trials `drawn` with the rungs marked, above how many of all went on."""
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
    ax.set_ylabel("trials that\nreach it, go on")
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
    shown = trials[np.isfinite(trials[metric])]
    places: dict[str, pd.Series[Any]] = {}
    ticks: dict[str, list[tuple[float, str]]] = {}
    for name in names:
        taken = pd.Series([f.get(name, ABSENT_VALUE) for f in shown["factors"]], shown.index, dtype=object)
        places[name], ticks[name] = _axis(taken, _is_log((space or {}).get(name)))
    places[metric], ticks[metric] = _axis(shown[metric].astype(object), False)
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
