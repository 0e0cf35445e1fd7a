"""Main effects and rank correlations of factors, for designs that vary several factors at once.

In a design that varies one factor at a time, the differences from the baseline are the effects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from birdnet_core.intervals import LEVEL
from reports.statistics.aggregate import is_screen
from reports.statistics.compare import by_repeat, holm, statistics_of

EFFECT_COLUMNS = (
    "metric", "factor", "letter", "minus", "plus", "aliases", "n_shared", "diff", "low", "high", "p",
    "p_holm", "g", "note",
)  # fmt: skip
CORRELATION_COLUMNS = ("metric", "factor", "n_cells", "rho", "low", "high", "p", "p_holm", "note")


def main_effects(cells: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return one row a factor of a full or fractional two-level design of two factors or more.

    The effect in a repeat is the mean of the cells at level `plus` minus the mean of those at `minus`, the
    baseline's; `diff` is its mean over the repeats that completed in every cell, with the statistics of
    `compare.to_baseline` and `p_holm` over the factors. In a fractional design `letter` names the factor, and
    `aliases` are the two-factor interactions whose effects `diff` contains, with their signs. The frame is
    empty for other designs: those whose factors are not balanced over each other's levels.
    """
    metric = study["metric"]
    pairs = _two_levels(study)
    signs = _signs(cells, pairs)
    if len(pairs) < 2 or cells.empty or metric not in cells or not _is_orthogonal(signs):
        return pd.DataFrame(columns=list(EFFECT_COLUMNS))
    design = study.get("design") or {}
    letters = {name: letter for letter, name in design.get("letters", {}).items()}
    of_cell = [by_repeat(cell, metric) for _, cell in cells.iterrows()]
    repeats = sorted(set.intersection(*map(set, of_cell)))
    is_unequal = bool(cells["unequal_epochs"].any())
    values = np.array([[one[repeat] for repeat in repeats] for one in of_cell], dtype=float)
    rows = []
    for (name, (minus, plus)), sign in zip(pairs.items(), signs.T, strict=True):
        effect = values[sign > 0].mean(axis=0) - values[sign < 0].mean(axis=0)
        scale = float(np.abs(values).max(initial=0.0))
        found = statistics_of([] if is_unequal else [float(d) for d in effect], scale)
        if is_unequal:
            found["note"] = "not computed: trained unequal epochs"
        letter = letters.get(name)
        row = {"metric": metric, "factor": name, "letter": letter, "minus": minus, "plus": plus}
        row |= {
            "aliases": design.get("aliases", {}).get(letter, []),
            "n_shared": 0 if is_unequal else len(repeats),
        }
        rows.append(row | found)
    frame = pd.DataFrame(rows, columns=list(EFFECT_COLUMNS))
    frame["p_holm"] = holm([float(p) for p in frame["p"]])
    return frame


def _two_levels(study: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the baseline's level and the other one of each factor; nothing unless all have two."""
    baseline = study.get("baseline")
    factors = study.get("factors") or {}
    if (
        study.get("kind") != "ablation"
        or not baseline
        or any(len(levels) != 2 for levels in factors.values())
    ):
        return {}
    return {name: (a, b) if a == baseline.get(name, a) else (b, a) for name, (a, b) in factors.items()}


def _signs(cells: pd.DataFrame, pairs: dict[str, tuple[Any, Any]]) -> NDArray[np.int64]:
    """Return -1 or +1 for the level of each factor in each cell, [cells, factors]."""
    rows = [
        [1 if factors.get(name) == plus else -1 for name, (_, plus) in pairs.items()]
        for factors in cells["factors"]
    ]
    return np.array(rows, dtype=np.int64).reshape(len(cells), len(pairs))


def _is_orthogonal(signs: NDArray[np.int64]) -> bool:
    """Return whether each factor is balanced, alone and over the levels of every other."""
    with_mean = np.column_stack([np.ones(len(signs), dtype=np.int64), signs])
    product = with_mean.T @ with_mean
    return bool((product == np.diag(np.diag(product))).all())


def rank_correlations(cells: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return one row a factor of a design without a baseline: Spearman's correlation with the metric.

    Over the cells with a completed trial, of the factor's value with the cell's mean. `low` and `high` are
    the interval of Bonett and Wright (2000, Psychometrika 65:23-28), Fisher's z with variance (1 + rho^2 / 2)
    / (n - 3); `p` is of a two-sided permutation test, exact where there are fewer than 10,000 permutations;
    `p_holm` is corrected over the factors. What cannot be computed is nan, and `note` is the reason.
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
    frame = pd.DataFrame(rows, columns=list(CORRELATION_COLUMNS))
    frame["p_holm"] = holm([float(p) for p in frame["p"]])
    return frame


def _spearman(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    n = len(x)
    if n < 4:
        return _no_correlation("fewer than four cells")
    if min(x) == max(x) or min(y) == max(y):
        return _no_correlation("the factor or the metric does not vary")
    ranks = stats.zscore(stats.rankdata(x)), stats.zscore(stats.rankdata(y))
    rho = float(np.mean(ranks[0] * ranks[1]))
    tested = stats.permutation_test(
        (ranks[0],),
        partial(_mean_product, ranks[1]),
        permutation_type="pairings",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    out = {"rho": rho, "low": math.nan, "high": math.nan, "p": float(tested.pvalue), "note": ""}
    if abs(rho) > 1 - 1e-12:
        return out | {"note": "in perfect order: no interval"}
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return out | {"low": math.tanh(math.atanh(rho) - half), "high": math.tanh(math.atanh(rho) + half)}


def _mean_product(y: NDArray[np.float64], x: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = (x * y).mean(axis=axis)
    return mean


def _no_correlation(note: str) -> dict[str, Any]:
    return {**dict.fromkeys(("rho", "low", "high", "p"), math.nan), "note": note}
