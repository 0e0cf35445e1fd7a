"""Figures of a search: which parameters mattered."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from reports.plots import INK, OKABE_ITO, wrapped


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
