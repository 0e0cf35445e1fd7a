"""What figures drawn by matplotlib share: those of a collection, and of the test of a model.

Figures are made without pyplot, so nothing global changes and no display is needed.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from birdnet_core.records.files import write_text
from reports.figures.colours import FAINT, GRID, INK

STYLE: Any = {
    "font.size": 9, "font.family": "DejaVu Sans", "text.parse_math": False, "text.color": INK,
    "axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "xtick.color": INK, "ytick.color": INK, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.6, "axes.unicode_minus": True,
    "axes.titlesize": 9, "axes.titlelocation": "left",
}  # fmt: skip


COLUMN_OF = 45  # species; more are drawn in several columns


def species_panels(n: int, width: float, **shared: Any) -> tuple[Figure, list[tuple[Axes, slice]], int]:
    """Return a figure for a row each of `n` species, its panels with their rows, and the rows of a panel.

    A panel is `width` inches wide and has at most `COLUMN_OF` rows; `shared` is of `Figure.subplots`.
    """
    n_columns = math.ceil(n / COLUMN_OF)
    rows = math.ceil(n / n_columns)
    # A line of text of 7 points needs a tenth of an inch, and a little air.
    out = Figure(figsize=(max(5.6, width * n_columns), 0.9 + 0.145 * rows), layout="constrained")
    axes = out.subplots(1, n_columns, squeeze=False, **shared)[0]
    return out, [(ax, slice(i * rows, (i + 1) * rows)) for i, ax in enumerate(axes)], rows


def species_axis(ax: Axes, names: Sequence[str], rows: int) -> None:
    """Name the rows of a panel of `species_panels`, from the top."""
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.set_ylim(rows - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


def save(drawn: Figure, stem: Path) -> None:
    """Write `stem`.png and `stem`.svg.

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
