"""Rank correlations of factors with a metric, for designs that spread cells over a whole space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from birdnet_core.intervals import LEVEL
from reports.statistics.aggregate import is_screen

CORRELATION_COLUMNS = ("metric", "factor", "n_cells", "rho", "low", "high", "note")


def rank_correlations(cells: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return one row a factor of a design without a baseline: Spearman's correlation with the metric.

    Over the cells with a completed trial, of the factor's value with the cell's mean. `low` and `high` are
    the interval of Bonett and Wright (2000, Psychometrika 65:23-28), Fisher's z with variance (1 + rho^2 / 2)
    / (n - 3), for one factor alone: a screening describes, a design of its own tests what it finds.
    What cannot be computed is nan, and `note` is the reason.
    """
    metric = study["metric"]
    if not is_screen(study) or metric not in cells:
        return pd.DataFrame(columns=list(CORRELATION_COLUMNS))
    used = cells[cells[metric].notna()]
    rows = []
    for name in study.get("factors") or {}:
        values = [factors[name] for factors in used["factors"]]
        row = {"metric": metric, "factor": name, "n_cells": len(used)}
        if used["unequal_epochs"].any():
            found = _no_correlation("not computed: trained unequal epochs")
        elif any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
            found = _no_correlation("its levels are no numbers")
        else:
            found = _spearman(values, [float(v) for v in used[metric]])
        rows.append(row | found)
    return pd.DataFrame(rows, columns=list(CORRELATION_COLUMNS))


def _spearman(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    n = len(x)
    if n < 4:
        return _no_correlation("fewer than four cells")
    if min(x) == max(x) or min(y) == max(y):
        return _no_correlation("the factor or the metric does not vary")
    rho = float(np.corrcoef(pd.Series(x).rank(), pd.Series(y).rank())[0, 1])
    out = {"rho": rho, "low": math.nan, "high": math.nan, "note": ""}
    if abs(rho) > 1 - 1e-12:
        return out | {"note": "in perfect order: no interval"}
    half = float(special.ndtri((1 + LEVEL) / 2)) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return out | {"low": math.tanh(math.atanh(rho) - half), "high": math.tanh(math.atanh(rho) + half)}


def _no_correlation(note: str) -> dict[str, Any]:
    return {**dict.fromkeys(("rho", "low", "high"), math.nan), "note": note}
