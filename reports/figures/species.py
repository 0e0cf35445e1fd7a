"""Figures of species: F1 against their training recordings, and the most frequent confusions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from reports.figures.drawing import OKABE_ITO, Drawn, figure, wrapped
from reports.statistics.predictions import Predictions, confusion_matrix, confusions
from reports.study_report import StudyReport

N_PAIRS = 8
ON_DARK, ON_LIGHT = "#fdfdfd", "#2b2f32"  # on cells that keep their colour where the page is dark
SPREAD = 0.055  # decades to either side, over which species of one count are spread


def long_tail_figures(report: StudyReport) -> Iterator[Drawn]:
    if not report.predictions:
        return
    counts, scored = (report.study.get("data") or {}).get("train_counts") or {}, report.scored
    points = [
        long_tail_points(mine, counts, str(cell))
        for cell, mine in report.by_recording.groupby("cell", sort=False)
    ]
    caption = (
        f"F1 of every validation species against its training {scored}, mean over repeats on the "
        f"same ones. Line: 95 % bootstrap interval over {scored}, none with one of them."
    )
    draw = partial(long_tail, points=pd.concat(points, ignore_index=True), scored=scored)
    yield Drawn("long-tail", caption, figure(draw, 3.4))


def confusion_figures(report: StudyReport) -> Iterator[Drawn]:
    """Yield the confusion matrix of the species that the first cell with predictions confuses most."""
    for cell, predictions in list(report.predictions.items())[:1]:
        if n := len(worst_species(predictions)):
            caption = (
                f"Species of the most frequent confusions of {cell}: a row a true species, with the share of "
                f"its validation {report.scored} that were predicted as each column."
            )
            yield Drawn(
                "confusions", caption, figure(partial(confusion, predictions=predictions), 1.6 + 0.3 * n)
            )


def long_tail_points(intervals: pd.DataFrame, train_counts: dict[str, int], cell: str) -> pd.DataFrame:
    """Return the rows of species of `predictions.f1_intervals`, with `n_train` and `cell`."""
    mine = intervals[intervals["kind"] == "species"]
    mine = mine.assign(cell=cell, n_train=[train_counts.get(name, 0) for name in mine["name"]])
    return mine[mine["n_train"] > 0]


def long_tail(ax: Axes, points: pd.DataFrame, scored: str) -> None:
    """Draw F1 with its interval against the training recordings of each species; a colour and mark a cell."""
    place = points.groupby("n_train").cumcount() + 0.5
    size = points.groupby("n_train")["n_train"].transform("size")
    x = points["n_train"] * 10 ** (SPREAD * (2 * place / size - 1) * (size > 1))
    for i, (cell, mine) in enumerate(points.groupby("cell", sort=False)):
        at = x[mine.index]
        ax.vlines(at, mine["low"], mine["high"], color=OKABE_ITO[i], linewidth=0.9, alpha=0.45)
        ax.plot(at, mine["f1"], "oD"[i % 2], color=OKABE_ITO[i], markersize=4.5, alpha=0.9, label=str(cell),
                markerfacecolor=OKABE_ITO[i] if i == 0 else "white")  # fmt: skip
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel(f"training {scored} of the species")
    ax.set_ylabel("validation F1 of the species")


def worst_species(predictions: Predictions) -> list[int]:
    """Return the classes of the most frequent confusions, the most frequent first."""
    pairs = confusions(predictions, N_PAIRS)
    names = dict.fromkeys(
        name for pair in zip(pairs["truth"], pairs["predicted"], strict=True) for name in pair
    )
    return [predictions.species.index(name) for name in names]


def confusion(ax: Axes, predictions: Predictions) -> None:
    """Draw the confusion matrix of `worst_species`, a row a true species, in shares of its recordings.

    The shares of a row add up to less than 1 where recordings were predicted as other species.
    """
    classes = worst_species(predictions)
    n_val = np.bincount(predictions.truth, minlength=len(predictions.species))[classes]
    counts = confusion_matrix(predictions)[np.ix_(classes, classes)]
    shares = counts / np.maximum(n_val, 1)[:, None]
    # A cell without any is the page's ground, which may be dark.
    ax.imshow(np.ma.masked_equal(shares, 0), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if counts[row, column]:
            ax.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=min(7, 80 / len(classes)),
                    color=ON_DARK if share > 0.55 else ON_LIGHT)  # fmt: skip
    names = [wrapped(predictions.species[c]) for c in classes]
    ax.set_xticks(range(len(classes)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(classes)), [f"{name} ({n})" for name, n in zip(names, n_val, strict=True)])
    ax.grid(visible=False)
    ax.set_xlabel("predicted as")
    ax.set_ylabel("truth (validation recordings)")
