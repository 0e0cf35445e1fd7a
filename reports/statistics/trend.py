"""Linear and quadratic trends of a metric over the levels of a numeric factor, such as a focal loss's gamma.

Comparisons with the baseline look at one level at a time, a trend at all of them. Each repeat is fitted by
itself, and the spread of the fits over repeats is the uncertainty: the effect of one on all levels drops
out, and levels need not be equally noisy. (Summary measures: Matthews et al. 1990, BMJ 300:230-235.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.statistics.aggregate import is_screen, labels, show
from reports.statistics.compare import by_repeat, holm, statistics_of

RARE = "val/f1_rare"
STRATA = {RARE: "rare", "val/f1_medium": "medium", "val/f1_common": "common"}
LEVEL_COLUMNS = ("factor", "group", "scale", "metric", "level", "n", "mean", "low", "high")
TREND_COLUMNS = (
    "metric", "factor", "group", "others", "scale", "levels", "term", "n_shared", "diff", "low", "high", "p",
    "p_holm", "note",
)  # fmt: skip


def numeric_factors(study: dict[str, Any]) -> dict[str, list[float]]:
    """Return the factors of an ablation whose three or more levels are all numbers, with these in order."""
    if study.get("kind") != "ablation" or is_screen(study):
        return {}
    out = {}
    for name, given in (study.get("factors") or {}).items():
        is_numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in given)
        if is_numeric and len(set(given)) >= 3:
            out[name] = sorted(set(given))
    return out


def scale_of(levels: Sequence[float]) -> str:
    """Return ``log`` if the logarithms of the levels are spaced more evenly than the levels, else ``linear``.

    `levels` are in order. How uneven a spacing is: its largest step over its smallest. Levels of which one is
    zero or less are linear.
    """
    if levels[0] <= 0:
        return "linear"
    return "log" if _unevenness([math.log(v) for v in levels]) < _unevenness(levels) else "linear"


def axis_title(factor: str, scale: str) -> str:
    """Return the factor, marked where its scale is logarithmic."""
    return f"{factor} (log)" if scale == "log" else factor


def _unevenness(values: Sequence[float]) -> float:
    steps = [after - before for before, after in pairwise(values)]
    return max(steps) / min(steps)


def contrasts(x: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weights of the linear and the quadratic trend over three or more places `x`, [levels] each.

    These are the orthogonal polynomial contrasts for places at any distance (Robson 1959, Biometrics
    15:187-191), scaled to the unit of the metric. With u the places mapped onto -1 to 1 and c = u - mean(u):

    - linear: 2 c / sum(c^2), the change along the least-squares line from the first place to the last;
    - quadratic: -q / sum(q^2), where q is c^2 less its regression on 1 and c: how far the least-squares
      parabola lies, in the middle between first and last place, above the straight line between its own ends.

    Both sum to zero, so that a repeat that is better at every level changes neither.
    """
    places = np.asarray(x, dtype=float)
    u = 2 * (places - places.min()) / (places.max() - places.min()) - 1
    c = u - u.mean()
    q = c**2 - (c**2).mean() - c * (c**3).sum() / (c**2).sum()
    return 2 * c / (c**2).sum(), -q / (q**2).sum()


def level_means(cells: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return one row a numeric factor, combination of the others (`group`), metric and level.

    `mean`, `low` and `high` are those of the cell: its completed trials with their t interval, nan with one
    repeat. Metrics are the study's, and F1 of the rare, medium and common species where they were scored.
    Cells trained unequal epochs are left out, and so are combinations that the design crosses with fewer
    than three levels, as a design of one factor at a time does.
    """
    metrics = [m for m in dict.fromkeys([study["metric"], *STRATA]) if m in cells]
    rows = []
    for factor, group, _, scale, mine in _groups(cells, study):
        for metric in metrics:
            for level, cell in mine.items():
                values = by_repeat(cell, metric)
                if not values or cell["unequal_epochs"]:
                    continue
                interval = {part: cell[f"{metric}:{part}"] for part in ("low", "high")}
                row = {"factor": factor, "group": group, "scale": scale, "metric": metric, "level": level}
                rows.append({**row, "n": len(values), "mean": cell[metric], **interval})
    return pd.DataFrame(rows, columns=list(LEVEL_COLUMNS))


def trends(cells: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return the linear and the quadratic trend of the study's metric and of rare F1, a row each.

    A row each for every numeric factor and combination of the others (`others`, in short `group`). `diff` is
    the mean over repeats of the contrast (`contrasts`) of each one's values, with its t interval and the `p`
    of a one-sample t-test; `p_holm` is corrected over all rows. Places are the levels or their logarithms,
    `scale_of` the levels of the factor. `levels` are those that entered: cells without a completed trial or
    trained unequal epochs are left out, and named in `note`, which also has the reason for a nan. Repeats are
    those that completed at each of these levels.
    """
    metrics = [m for m in dict.fromkeys([study["metric"], RARE]) if m in cells]
    rows = []
    for factor, group, others, scale, mine in _groups(cells, study):
        for metric in metrics:
            used = {
                level: by_repeat(cell, metric) for level, cell in mine.items() if not cell["unequal_epochs"]
            }
            used = {level: values for level, values in used.items() if values}
            repeats = sorted(set.intersection(*map(set, used.values()))) if len(used) >= 3 else []
            row = {"metric": metric, "factor": factor, "group": group, "others": others, "scale": scale}
            row |= {"levels": list(used), "n_shared": len(repeats)}
            values = np.array([[of_level[r] for of_level in used.values()] for r in repeats], dtype=float)
            left_out = _left_out(mine, used, len(repeats))
            for term, weights in _terms(list(used), scale).items():
                found = statistics_of(
                    [float(d) for d in values @ weights] if repeats else [], _largest(values)
                )
                why = found["note"] if len(used) >= 3 else "fewer than three levels are left"
                note = "; ".join(filter(None, [why, *left_out]))
                rows.append({**row, **found, "term": term, "note": note})
    frame = pd.DataFrame(rows, columns=list(TREND_COLUMNS))
    frame["p_holm"] = holm([float(p) for p in frame["p"]])
    return frame


def _groups(
    cells: pd.DataFrame, study: dict[str, Any]
) -> list[tuple[str, str, dict[str, Any], str, dict[float, pd.Series[Any]]]]:
    """Return factor, label and levels of the others, scale, and the cell at each level in order."""
    out = []
    for factor, levels in numeric_factors(study).items():
        found: dict[str, tuple[dict[str, Any], dict[float, pd.Series[Any]]]] = {}
        for _, cell in cells.iterrows():
            if cell["factors"].get(factor) not in levels:
                continue
            others = {key: value for key, value in cell["factors"].items() if key != factor}
            of_group = found.setdefault(json.dumps(others, sort_keys=True), (others, {}))[1]
            of_group[cell["factors"][factor]] = cell
        crossed = [(others, mine) for others, mine in found.values() if len(mine) >= 3]
        names = labels([others for others, _ in crossed], study)
        out += [
            (factor, name if others else "", others, scale_of(levels), dict(sorted(mine.items())))
            for name, (others, mine) in zip(names, crossed, strict=True)
        ]
    return out


def _terms(levels: list[float], scale: str) -> dict[str, NDArray[np.float64]]:
    if len(levels) < 3:
        return dict.fromkeys(("linear", "quadratic"), np.zeros(len(levels)))
    linear, quadratic = contrasts([math.log(v) for v in levels] if scale == "log" else levels)
    return {"linear": linear, "quadratic": quadratic}


def _left_out(
    mine: dict[float, pd.Series[Any]], used: dict[float, dict[int, float]], n_shared: int
) -> list[str]:
    """Return which levels and how many repeats do not enter a trend, and why."""
    unequal = [show(level) for level, cell in mine.items() if cell["unequal_epochs"]]
    empty = [show(v) for v, cell in mine.items() if v not in used and not cell["unequal_epochs"]]
    out = []
    if unequal:
        out.append(f"without {', '.join(unequal)}: trained unequal epochs")
    if empty:
        out.append(f"without {', '.join(empty)}: no completed trial")
    repeats = {repeat for values in used.values() for repeat in values}
    if len(used) >= 3 and len(repeats) > n_shared:
        out.append(f"repeats that lack a level: {len(repeats) - n_shared} of {len(repeats)}")
    return out


def _largest(values: NDArray[np.float64]) -> float:
    return float(np.abs(values).max(initial=0.0))
