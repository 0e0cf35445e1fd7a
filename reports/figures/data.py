"""Figures of a collection before training: recordings of each species, and spectrograms."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from reports.figures.colours import OKABE_ITO
from reports.figures.drawing import STYLE, species_axis, species_panels

SPLIT_COLOURS = {"train": OKABE_ITO[0], "val": OKABE_ITO[4], "test": OKABE_ITO[2], "unused": OKABE_ITO[7]}
LONG_TAIL = 30  # from this ratio of the commonest to the rarest species on, the axis is logarithmic


def species_counts(scored: pd.DataFrame) -> pd.DataFrame:
    """Return recordings or clips per species, commonest first: index species, columns the splits that occur.

    `scored` has a row each, with `species` and `split`, of train, val, test and unused.
    """
    counts = pd.crosstab(scored["species"], scored["split"])
    counts = counts[[split for split in SPLIT_COLOURS if split in counts]]
    order = (
        counts.sum(axis=1).rename("n").reset_index().sort_values(["n", "species"], ascending=[False, True])
    )
    return counts.loc[order["species"]]


def counts_figure(counts: pd.DataFrame, *, of: str = "recordings") -> Figure:
    """Return bars of `species_counts`, the splits stacked, in columns of at most `COLUMN_OF` species.

    `of` is the name of what was counted. All columns share one axis, logarithmic for a long tail. There only
    the end of a stacked part can be read: the sum of it and those before it.
    """
    totals = counts.sum(axis=1)
    is_log = bool(totals.max() >= LONG_TAIL * totals.min())
    with mpl.rc_context(STYLE):
        figure, panels, rows = species_panels(len(counts), 4.0, sharex=True)
        for ax, mine in panels:
            _count_bars(ax, counts.iloc[mine], rows, is_log)
            ax.set_xlabel(f"{of} (log scale, stacked)" if is_log else of)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=len(labels))
    return figure


def _count_bars(ax: Axes, counts: pd.DataFrame, rows: int, is_log: bool) -> None:
    y = np.arange(len(counts))
    drawn = np.zeros(len(counts))
    for split in map(str, counts):
        n = counts[split].to_numpy()
        ax.barh(y, n, left=drawn, height=0.72, color=SPLIT_COLOURS[split], label=split)
        drawn = drawn + n
    if is_log:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0,)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(left=0.8)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    species_axis(ax, [_short(str(species)) for species in counts.index], rows)


def spectrograms_figure(
    examples: list[tuple[str, np.ndarray]], *, seconds: float, sample_rate: int
) -> Figure:
    """Return one panel for each (title, spectrogram), next to each other on one scale.

    A spectrogram is [frequencies, frames] in dB, 0 for its loudest point, from 0 Hz to half the sample rate.
    """
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(max(5.6, 3.1 * len(examples)), 2.7), layout="constrained")
        axes = figure.subplots(1, len(examples), squeeze=False, sharey=True)[0]
        for ax, (title, spectrogram) in zip(axes, examples, strict=True):
            image = ax.imshow(
                spectrogram,
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=-80,
                vmax=0,
                extent=(0, seconds, 0, sample_rate / 2000),
                interpolation="nearest",
            )
            ax.set_title(title)
            ax.set_xlabel("seconds")
        axes[0].set_ylabel("kHz")
        figure.colorbar(image, ax=axes, label="dB", pad=0.01)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 34 else name[:33] + "…"
