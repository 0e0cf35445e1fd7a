"""Figures of the long tail: F1 of species against their training recordings, and what is taken for what."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from reports.figures.drawing import OKABE_ITO, wrapped
from reports.statistics.predictions import Told, confusion_matrix, confusions

N_PAIRS = 8
ON_DARK, ON_LIGHT = "#fdfdfd", "#2b2f32"  # on cells that keep their colour where the page is dark
SPREAD = 0.055  # decades to either side, over which species of one count are spread


def long_tail_points(intervals: pd.DataFrame, train_counts: dict[str, int], cell: str) -> pd.DataFrame:
    """Return the species of `predictions.f1_intervals` with `n_train` and the `cell` they are of."""
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


def worst_species(told: Told) -> list[int]:
    """Return the classes of the pairs that are confused most, worst pair first."""
    pairs = confusions(told, N_PAIRS)
    names = dict.fromkeys(
        name for pair in zip(pairs["truth"], pairs["predicted"], strict=True) for name in pair
    )
    return [told.species.index(name) for name in names]


def confusion(ax: Axes, told: Told) -> None:
    """Draw the confusion matrix of the species of the worst pairs, a row a species in truth, in shares of it.

    A row's shares add up to less than one by what was told as species that are not shown.
    """
    shown = worst_species(told)
    n_val = np.bincount(told.truth, minlength=len(told.species))[shown]
    counts = confusion_matrix(told)[np.ix_(shown, shown)]
    shares = counts / np.maximum(n_val, 1)[:, None]
    # A cell without any is the page's ground, which may be dark.
    ax.imshow(np.ma.masked_equal(shares, 0), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if counts[row, column]:
            ax.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=min(7, 80 / len(shown)),
                    color=ON_DARK if share > 0.55 else ON_LIGHT)  # fmt: skip
    names = [wrapped(told.species[c]) for c in shown]
    ax.set_xticks(range(len(shown)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(shown)), [f"{name} ({n})" for name, n in zip(names, n_val, strict=True)])
    ax.grid(visible=False)
    ax.set_xlabel("told as")
    ax.set_ylabel("truth (validation recordings)")
