"""Means of a metric at every level of a numeric factor, such as a focal loss's gamma."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

import pandas as pd

from reports.statistics.aggregate import by_repeat, labels
from reports.statistics.contrasts import numeric_factors, scale_of

RARE = "val/f1_rare"
STRATA = {RARE: "rare", "val/f1_medium": "medium", "val/f1_common": "common"}
LEVEL_COLUMNS = ("factor", "group", "scale", "metric", "level", "n", "mean", "low", "high", "cell")


def axis_title(factor: str, scale: str) -> str:
    """Return the factor, marked where its scale is logarithmic."""
    return f"{factor} (log)" if scale == "log" else factor


def level_means(cells: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return one row a numeric factor, combination of the others (`group`), metric and level.

    `mean`, `low` and `high` are those of the `cell`: its completed trials with their t interval, nan with one
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
                rows.append(
                    {**row, "n": len(values), "mean": cell[metric], **interval, "cell": cell["label"]}
                )
    return pd.DataFrame(rows, columns=list(LEVEL_COLUMNS))


def _groups(
    cells: pd.DataFrame, study: dict[str, Any]
) -> list[tuple[str, str, dict[str, Any], str, dict[float, dict[Hashable, Any]]]]:
    """Return factor, label and levels of the others, scale, and the cell at each level in order."""
    out = []
    rows = cells.to_dict("records")
    for factor, levels in numeric_factors(study).items():
        found: dict[str, tuple[dict[str, Any], dict[float, dict[Hashable, Any]]]] = {}
        for cell in rows:
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
