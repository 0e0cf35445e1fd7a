"""What the charts of the page share: a Vega-Lite specification, its theme, and its files.

A chart is drawn once, by altair, as a specification without a width. The page shows it with its script, and
vl-convert writes it as SVG, PDF and PNG, as wide as a page (7 inches) and a column (3.4 inches) of a paper.
A mark of a cell has the field `cell`; where the signal `marked` names a cell, the marks of others fade.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from birdnet_core.errors import MachineError
from birdnet_core.processes import end_with_parent, without_main
from birdnet_core.records.files import write_text
from reports.figures.colours import FAINT, GRID, INK, OKABE_ITO, PAPER
from reports.page.formats import plain

VEGA_LITE = "6.4"  # of altair's schema
WIDTHS = {"": 7.0, "-column": 3.4}  # inches, by the end of a file's name
PX_PER_INCH = 96
PNG_SCALE = 2
VALIDATES = False  # in the tests alone: it takes as long as to draw
N_ROWS = 24  # the most rows of a figure: more cannot be read. The tables have them all
ROW = 34  # pixels of a row with its label above its mark
N_BANDS = 3  # of more lines bands hide each other
FEW_TICKS = alt.Axis(tickCount=5)
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")


@dataclass(frozen=True)
class Drawn:
    """A chart before it is saved: `name` ends its file's name, `spec` has no width and no theme."""

    name: str
    caption: str
    spec: dict[str, Any]


def rows(name: str) -> Any:
    """Return a chart without marks, of the frame that `draw` is given under this name."""
    return alt.Chart(alt.NamedData(name=name))


def draw(name: str, caption: str, height: int, *layers: alt.Chart, **frames: pd.DataFrame) -> Drawn:
    """Return layers as one chart, `height` pixels high within its axes; each of `frames` by its name."""
    spec: dict[str, Any] = alt.layer(*layers).properties(height=height).to_dict(validate=VALIDATES)
    del spec["config"]  # altair's own theme
    spec["datasets"] = {key: plain(frame.to_dict("records")) for key, frame in frames.items()}
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec["params"] = [*spec.get("params", []), {"name": "marked", "value": None}]
    return Drawn(name, caption, spec | {"description": caption})


def fading(opacity: float = 1.0) -> Any:
    """Return the opacity of a mark, which is less where another cell is marked."""
    return alt.condition(
        "marked === null || datum.cell === marked", alt.value(opacity), alt.value(opacity / 10)
    )


def labels_above(name: str, field: str = "label") -> Any:
    """Return the label of each row, above its mark: there a long one has the whole width."""
    return (
        rows(name)
        .mark_text(align="left", baseline="bottom", dy=-6, limit=alt.ExprRef("width"))
        .encode(x=alt.value(0), y=row_of(field), text=f"{field}:N", opacity=fading())
    )


def row_of(field: str = "label") -> alt.Y:
    """Return the rows of a figure, in the order of their frame, without an axis."""
    return alt.Y(f"{field}:N", sort=None, axis=None)


def colours(names: Sequence[str], title: str | None = None, **more: Any) -> alt.Color:
    """Return a colour for each name, with a legend of as many columns as the names fit in."""
    return alt.Color(
        "name:N",
        scale=alt.Scale(domain=list(names), range=cycled(OKABE_ITO, len(names))),
        **{"legend": legend(names, title) if len(names) > 1 else None, **more},
    )


def legend(names: Sequence[str], title: str | None = None, **more: Any) -> alt.Legend:
    columns = max(1, min(len(names), 4, 44 // (max(map(len, names)) + 5)))
    return alt.Legend(title=title, columns=columns, symbolLimit=0, **more)


def cycled(values: Sequence[Any], n: int) -> list[Any]:
    return [values[i % len(values)] for i in range(n)]


def tips(*fields: str, **titles: str) -> list[alt.Tooltip]:
    """Return what hovering shows: fields as they are, and of `titles` numbers with four digits."""
    return [
        *(alt.Tooltip(f"{field}:N") for field in fields),
        *(alt.Tooltip(f"{field}:Q", title=title, format=".4~f") for field, title in titles.items()),
    ]


def theme(size: float = 11) -> dict[str, Any]:
    """Return Vega-Lite's config of all charts; `size` is that of their text in pixels.

    A screen reader finds the caption and the axes, and the numbers in tables: not hundreds of marks.
    """
    text = {"labelFontSize": size, "titleFontSize": size, "titleFontWeight": "normal"}
    return {
        # vl-convert brings this font, and maps any other from its file for every label. Arial is as wide.
        "font": "Liberation Sans, Arial, sans-serif",
        "background": PAPER,
        "view": {"stroke": None},
        "mark": {"aria": False},
        "axis": {
            **text,
            "labelColor": INK,
            "titleColor": INK,
            "gridColor": GRID,
            "domainColor": FAINT,
            "tickColor": FAINT,
            "labelLimit": 220,
        },
        "legend": {
            **text,
            "labelColor": INK,
            "titleColor": INK,
            "orient": "bottom",
            "labelLimit": 320,
            "symbolOpacity": 1,
            "symbolStrokeWidth": 2,
        },
        "text": {"fontSize": size, "color": INK},
    }


def save(drawn: Drawn, stem: Path) -> None:
    """Write `stem`.svg, .pdf and .png, as wide as a page, and `stem`-column of each, as wide as a column."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for ending, inches in WIDTHS.items():
        spec = drawn.spec | {"width": round(inches * PX_PER_INCH), "config": theme()}
        svg = vl_convert.vegalite_to_svg(json.dumps(spec), vl_version=VEGA_LITE)
        file = stem.with_name(f"{stem.name}{ending}")
        write_text(file.with_name(f"{file.name}.svg"), svg)
        write_bytes(file.with_name(f"{file.name}.png"), vl_convert.svg_to_png(svg, scale=PNG_SCALE))
        write_bytes(file.with_name(f"{file.name}.pdf"), vl_convert.svg_to_pdf(svg))


def begin() -> None:
    """Load what the first chart of a process would wait for, which takes half a second."""
    vl_convert.vegalite_to_png({"data": {"values": []}, "mark": "point"}, vl_version=VEGA_LITE)


class Saving:
    """Writes the files of a report next to the rest of it, in a thread or, `apart`, in two processes.

    The processes take a second to start, and pay for large reports, since Vega holds Python's lock. The end
    of the block waits for the files, and raises what writing one of them raised.
    """

    def __init__(self, *, apart: bool) -> None:
        self._pool: Executor = ThreadPoolExecutor(1)  # Vega runs in one thread at a time
        if apart:
            self._pool = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), end_with_parent)
        self._begun: list[Future[Any]] = []

    def run(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        with without_main():
            self._begun.append(self._pool.submit(function, *arguments))
        return self._begun[-1]

    def __enter__(self) -> Saving:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        try:
            for each in self._begun if kind in (None, BrokenProcessPool) else ():
                each.result()
        except BrokenProcessPool:
            raise MachineError(
                "a process that helps with the report was ended from outside, as when memory runs out; write "
                "the report again"
            ) from None


def write_bytes(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def for_page(drawn: Drawn) -> str:
    """Return the specification as JSON for a script element, its ink and ground those of the page."""
    text = json.dumps(drawn.spec, ensure_ascii=False, separators=(",", ":"))
    return in_page_colours(text).replace("<", "\\u003c")


def page_theme() -> str:
    """Return the theme of charts in the page as JSON: its font and colours, text of 12.5 pixels."""
    return in_page_colours(json.dumps(theme(12.5) | {"font": "system-ui, sans-serif", "background": None}))


def in_page_colours(text: str) -> str:
    for colour, name in ((INK, "ink"), (GRID, "rule"), (FAINT, "dim"), (PAPER, "paper")):
        text = text.replace(f'"{colour}"', f'"var(--{name})"')
    return text


@functools.cache
def script() -> str:
    """Return the script of Vega, Vega-Lite and Vega-Embed, for pages without a network."""
    begin()  # reports draw next, and in a process that is idle until then
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return bundle.replace("</script", "<\\/script")


def largest(frame: pd.DataFrame, by: pd.Series[Any], n: int) -> pd.DataFrame:
    """Return the `n` rows in which `by` is largest, in their order."""
    return frame.loc[sorted(by.sort_values(ascending=False, kind="stable").index[:n])]


def in_order(names: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(map(str, names)))
