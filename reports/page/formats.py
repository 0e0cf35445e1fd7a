"""Numbers and text cells as a reader sees them; frames as CSV, Markdown and LaTeX booktabs.

A CSV has every column at full precision; the other two are for reading and have a dash for what is absent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from pandas.api.types import is_object_dtype

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "[": "{[}",  # at the start of a row it would be an option of the \\ before
    "<": r"\textless{}", ">": r"\textgreater{}", "·": r"$\cdot$", "−": r"$-$", "–": "--", "→": r"$\to$",
})  # fmt: skip
_MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {c: f"\\{c}" for c in r"\|*`[]"})


def templates() -> jinja2.Environment:
    """Return the templates of this package; only those of HTML escape what they are given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports.page"),
        autoescape=lambda name: name is not None and ".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"md": escape_markdown, "md_table": to_markdown}
    return environment


def to_csv(frame: pd.DataFrame) -> str:
    """Return numbers at full precision, an absent one as an empty field."""
    return frame.to_csv(index=False, lineterminator="\n")


def to_markdown(frame: pd.DataFrame) -> str:
    """Return a pipe table of text cells."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "".join(
        f"| {' | '.join(c if c == '---' else escape_markdown(c) for c in line)} |\n" for line in lines
    )


def to_latex(frame: pd.DataFrame, caption: str, *, is_paper: bool = False) -> str:
    """Return a booktabs table of text cells; the document needs \\usepackage{booktabs}.

    With `is_paper` it spans both columns of a page, and its first column wraps.
    """
    if is_paper:
        return _for_paper(frame, caption)
    lines = [" & ".join(escape_latex(str(c)) for c in row) + r" \\" for row in frame.astype(str).to_numpy()]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(frame.columns) - 1)}}}",
            r"\toprule",
            " & ".join(escape_latex(str(c)) for c in frame.columns) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _for_paper(frame: pd.DataFrame, caption: str) -> str:
    rows = [[escape_latex(str(c)) for c in row] for row in (frame.columns, *frame.astype(str).to_numpy())]
    for row in rows:
        # A name is broken where its parts end.
        row[0] = r"\raggedright " + re.sub(r"(\\_|=|/|\.)(?=.)", r"\1\\allowbreak{}", row[0])
    head, *lines = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{escape_latex(caption)}}}",
            rf"\begin{{tabular}}{{p{{0.2\textwidth}}{'r' * (len(frame.columns) - 1)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it is; a line break becomes a space."""
    return " ".join(text.split()).translate(_LATEX)


def escape_markdown(text: str) -> str:
    """Return text that Markdown prints as it is, inside a table too; a line break becomes a space."""
    return " ".join(str(text).split()).translate(_MARKDOWN)


def with_lists_as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame for a CSV: lists and dicts as JSON."""
    frame = frame.copy(deep=False)
    for column in frame.columns[[is_object_dtype(dtype) for dtype in frame.dtypes]]:
        frame[column] = [
            json.dumps(plain(v), ensure_ascii=False) if isinstance(v, (list, dict)) else v
            for v in frame[column]
        ]
    return frame


def plain(value: Any) -> Any:
    """Return a value of JSON types only; what is not finite becomes None."""
    if type(value) is float:  # most are, and there are hundreds of thousands
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float, form: str = "{:.4f}") -> str:
    """Return a number with a true minus, a dash where it is not finite.

    Zero has a sign only if `form` has one.
    """
    text = form.format(value) if math.isfinite(value) else "–"
    if "+" not in form and not text.strip("-0."):
        text = text.removeprefix("-")
    return f"−{text[1:]}" if text.startswith("-") else text


def signed(value: float, form: str = "{:+.4f}") -> str:
    return number(value, form)


def interval(row: Any, form: str = "{:.4f}") -> str:
    """Return ``low to high`` of a row that has both, ``none`` where they are nan."""
    if not math.isfinite(row["low"]):
        return "none"
    return f"{number(row['low'], form)} to {number(row['high'], form)}"


def signed_interval(row: Any, form: str = "{:+.4f}") -> str:
    return interval(row, form)


def percent(share: float) -> str:
    return number(share * 100, "{:.2f} %")


def points(share: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return number(share * 100, "{:+.1f}")


def p_value(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def objective(value: float, name: str) -> str:
    """Return a value of an objective of a search: a metric, hours, or a number of parameters."""
    return count(value) if name == "n_params" else number(value, "{:.3g}" if name == "hours" else "{:.3f}")


def count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def span(low: float, high: float) -> str:
    return count(low) if low == high or not math.isfinite(low) else f"{count(low)}–{count(high)}"


def n_of(n: int, noun: str) -> str:
    """Return ``1 repeat``, ``3 repeats``."""
    return f"{n} {noun}{'s' * (n != 1)}"


def file_name(text: str, taken: Collection[str] = ()) -> str:
    """Return a name for a file from any text, with a number where `taken` holds it already."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "study"
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}-{number}", number + 1
    return unique


def time_unit(hours: float) -> tuple[str, float]:
    """Return the unit in which so many hours can be read, and how many of it an hour has."""
    if hours >= 0.5:
        return "hours", 1.0
    return ("minutes", 60.0) if hours * 60 >= 0.5 else ("seconds", 3600.0)


def form_of(lows: Iterable[float], highs: Iterable[float]) -> str:
    """Return the format of scores whose intervals are from `lows` to `highs`: two digits of the uncertainty.

    The uncertainty is the median half-width; where there is none, three digits.
    """
    halves = [(high - low) / 2 for low, high in zip(lows, highs, strict=True) if high > low]
    if not halves:
        return "{:.3f}"
    return f"{{:.{min(4, max(2, 1 - math.floor(math.log10(float(np.median(halves))))))}f}}"


def with_sign(form: str) -> str:
    """Return a format of numbers that prints their sign."""
    return form.replace("{:", "{:+")
