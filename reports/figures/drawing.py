"""What all figures share: colours, style, legend, and how a figure is saved.

Colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish; dash or mark changes as
well. Figures are made without pyplot, so nothing global changes and no display is needed.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from birdnet_core.records.files import write_text

INK, GRID, FAINT = "#2b2f33", "#d9dde1", "#9aa1a8"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A7A1F", "#767D84")
DASHES = ("-", "--", ":", "-.")
STYLE: Any = {
    "font.size": 9, "font.family": "DejaVu Sans", "text.parse_math": False, "text.color": INK,
    "axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "xtick.color": INK, "ytick.color": INK, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.6, "axes.unicode_minus": True,
    "axes.titlesize": 9, "axes.titlelocation": "left",
}  # fmt: skip


COLUMN_OF = 45  # species; more are drawn in several columns
N_ROWS = 24  # the most rows of a figure: more cannot be read. The tables have them all


@dataclass(frozen=True)
class Drawn:
    """A figure of the page before it is saved; `name` is the end of its file's name."""

    name: str
    caption: str
    figure: Figure


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


def height_of(labels: Iterable[str]) -> float:
    """Return the inches that a figure of one row a label needs."""
    names = [wrapped(label) for label in labels]
    return 0.9 + len(names) * max(0.36, 0.17 * max((name.count("\n") + 1 for name in names), default=1))


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


def line_style(i: int) -> tuple[str, str]:
    return OKABE_ITO[i % len(OKABE_ITO)], DASHES[(i // len(OKABE_ITO) + i) % len(DASHES)]


def epoch_axis(ax: Axes) -> None:
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
