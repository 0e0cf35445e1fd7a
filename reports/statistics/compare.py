"""Differences between cells of an ablation, on the repeats that they share.

Two cells have the same split, initial draw and order of batches in one repeat, so their difference is taken
repeat by repeat. Cells that were not trained equally long are marked and not compared.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from reports.statistics.aggregate import label, t_interval

COLUMNS = (
    "metric", "baseline", "cell", "label", "n_shared", "diff", "low", "high", "p", "p_sign_flip", "p_holm",
    "g", "note",
)  # fmt: skip
_STATISTICS = ("diff", "low", "high", "p", "p_sign_flip", "g")
EXACT_UP_TO = 16  # differences: 65,536 patterns of signs
N_DRAWN = 9_999  # patterns of signs where there are more


def to_baseline(cells: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return one row a cell other than the baseline: cell minus baseline, on their shared repeats.

    `diff` is the mean of the paired differences d, `low` and `high` its t interval, `p` the two-sided paired
    t-test, `p_sign_flip` that of `sign_flip`, which assumes no normal distribution, `p_holm` is `p` corrected
    over the rows, `g` as in `hedges_g`. What cannot be computed is nan, and `note` is the reason: fewer than
    two shared repeats, differences that do not vary, cells trained unequally long. The frame is empty for a
    search and for a design without a baseline.
    """
    metric = study["metric"]
    baseline = baseline_of(cells, study)
    if baseline is None or metric not in cells:
        return pd.DataFrame(columns=list(COLUMNS))
    rows = []
    for index, cell in cells.iterrows():
        if index == baseline.name:
            continue
        row = {"metric": metric, "baseline": baseline["factors"], "cell": cell["factors"]}
        rows.append({**row, "label": cell["label"], **paired(baseline, cell, metric)})
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["p_holm"] = holm([float(p) for p in frame["p"]])
    return frame


def baseline_of(cells: pd.DataFrame, study: dict[str, Any]) -> pd.Series[Any] | None:
    """Return the row of the cell that the study names as its baseline, or None."""
    baseline = study.get("baseline")
    if study.get("kind") != "ablation" or not baseline:
        return None
    for _, cell in cells.iterrows():
        if all(key in cell["factors"] and cell["factors"][key] == v for key, v in baseline.items()):
            return cell
    return None


def paired(baseline: pd.Series[Any], cell: pd.Series[Any], metric: str) -> dict[str, Any]:
    """Return the paired statistics of two rows of a cell table; see `to_baseline`."""
    out: dict[str, Any] = dict.fromkeys(_STATISTICS, math.nan)
    out |= {"n_shared": 0, "note": ""}
    if baseline["unequal_epochs"] or cell["unequal_epochs"]:
        return out | {"note": "not compared: trained unequal epochs"}
    before, after = by_repeat(baseline, metric), by_repeat(cell, metric)
    d = [after[repeat] - before[repeat] for repeat in before if repeat in after]
    scale = max((abs(v) for v in (*before.values(), *after.values())), default=0.0)
    out |= {"n_shared": len(d)} | statistics_of(d, scale)
    if baseline["is_leaky"] != cell["is_leaky"]:
        out["note"] = "; ".join(filter(None, ["one leaks, and is scored by clip", out["note"]]))
    return out


def sign_flip(differences: Sequence[float]) -> float:
    """Return the two-sided p of the sign-flip permutation test of paired differences d.

    If only chance sets two cells apart, each difference might as well have had the other sign: p is the share
    of all patterns of signs for which abs(sum(d)) is at least that observed (Fisher 1935, The Design of
    Experiments, section 21; Pitman 1937, Supplement to the Journal of the Royal Statistical Society
    4:119-130; Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses). It needs no normal
    distribution, and pays in power: with n differences the smallest possible p is 2 / 2^n, that is 0.5, 0.25,
    0.125, 0.0625 and 0.03125 for n from 2 to 6.

    All 2^n patterns count up to n = 16. Beyond, `N_DRAWN` are drawn from a fixed seed, and p is (1 + as
    extreme) / (1 + drawn), since the observed pattern is one of them (Phipson and Smyth 2010, Statistical
    Applications in Genetics and Molecular Biology 9:39). nan without a difference.
    """
    d = np.asarray(differences, dtype=float)
    if d.size == 0:
        return math.nan
    # A pattern whose sum equals the observed one up to rounding is as extreme.
    observed = abs(d.sum()) - 1e-9 * np.abs(d).sum()
    if d.size > EXACT_UP_TO:
        return float((1 + (np.abs(_drawn_signs(d.size) @ d) >= observed).sum()) / (1 + N_DRAWN))
    sums = d[:1]  # the first sign stays: the patterns with it turned have the same sums but for their sign
    for one in d[1:]:
        sums = np.concatenate([sums + one, sums - one])
    return float((np.abs(sums) >= observed).mean())


@functools.lru_cache(maxsize=4)
def _drawn_signs(n: int) -> np.ndarray:
    return np.random.default_rng(0).choice((-1.0, 1.0), size=(N_DRAWN, n))


def paired_t(differences: Sequence[float]) -> float:
    """Return the two-sided p of Student's t test that the mean of two or more differences is zero.

    t = mean(d) / (s_d / sqrt(n)) with n - 1 degrees of freedom (Student 1908, Biometrika 6:1-25). The same as
    `scipy.stats.ttest_1samp`, whose checks of its arguments would be a second of a report of a large design.
    """
    d = np.asarray(differences, dtype=float)
    t = d.mean() / (d.std(ddof=1) / math.sqrt(d.size))
    return float(2 * special.stdtr(d.size - 1, -abs(t)))


def hedges_g(differences: Sequence[float]) -> float:
    """Return the paired standardised difference with the small-sample correction, J(n - 1) * mean(d) / s_d.

    mean(d) / s_d is Cohen's d_z (Lakens 2013, Frontiers in Psychology 4:863), s_d the sample standard
    std of the n differences. J(m) = gamma(m / 2) / (sqrt(m / 2) gamma((m - 1) / 2)) is the exact
    correction of Hedges (1981, Journal of Educational Statistics 6:107-128). J(1) is zero, so two
    differences have no g: nan.
    """
    d = np.asarray(differences, dtype=float)
    m = d.size - 1
    if m < 2:
        return math.nan
    correction = math.exp(special.gammaln(m / 2) - special.gammaln((m - 1) / 2)) / math.sqrt(m / 2)
    return float(correction * d.mean() / d.std(ddof=1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected by Holm (1979, Scandinavian Journal of Statistics 6:65-70).

    The i-th smallest of m is multiplied by m - i + 1, made not smaller than the one before it, and capped at
    1. nan stays nan and does not count.
    """
    order = sorted((i for i, p in enumerate(p_values) if math.isfinite(p)), key=lambda i: p_values[i])
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def interaction(cells: pd.DataFrame, study: dict[str, Any]) -> dict[str, Any] | None:
    """Return the interaction and the simple effects of a 2x2 ablation, or None for another design.

    With levels 0 (the baseline's, or the first named) and 1 of factors a and b, the interaction in a repeat
    is (y11 - y01) - (y10 - y00), y_ab: how much more a changes the metric when b is at level 1. `diff`,
    `low`, `high` and `p` are over the repeats that all four cells share, without correction. A simple effect
    is one factor's paired difference at one level of the other.
    """
    factors = study.get("factors") or {}
    metric = study["metric"]
    is_2x2 = study.get("kind") == "ablation" and [len(levels) for levels in factors.values()] == [2, 2]
    if not is_2x2 or metric not in cells:
        return None
    (a, levels_a), (b, levels_b) = (
        (key, _baseline_first(levels, (study.get("baseline") or {}).get(key, levels[0])))
        for key, levels in factors.items()
    )
    corners: dict[tuple[int, int], pd.Series[Any]] = {}
    for _, cell in cells.iterrows():
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            if cell["factors"] == {a: levels_a[i], b: levels_b[j]}:
                corners[i, j] = cell
    if len(corners) < 4:
        return None
    values = {at: by_repeat(cell, metric) for at, cell in corners.items()}
    repeats = sorted(set.intersection(*(set(of_cell) for of_cell in values.values())))
    is_unequal = any(bool(cell["unequal_epochs"]) for cell in corners.values())
    per_repeat = [values[1, 1][r] - values[0, 1][r] - (values[1, 0][r] - values[0, 0][r]) for r in repeats]
    scale = max((abs(v) for of_cell in values.values() for v in of_cell.values()), default=0.0)
    statistics = statistics_of([] if is_unequal else per_repeat, scale)
    if is_unequal:
        statistics["note"] = "not computed: trained unequal epochs"
    pairs = [(a, (0, j), (1, j)) for j in (0, 1)] + [(b, (i, 0), (i, 1)) for i in (0, 1)]
    return {
        "metric": metric,
        "factors": [a, b],
        "levels": [list(levels_a), list(levels_b)],
        "repeats": [] if is_unequal else repeats,
        "values": [] if is_unequal else per_repeat,
        **{key: statistics[key] for key in ("diff", "low", "high", "p", "p_sign_flip", "note")},
        "simple_effects": [
            {"factor": factor, "from": corners[start]["factors"], "to": corners[end]["factors"]}
            | {"label": f"{label(corners[start]['factors'])} → {label(corners[end]['factors'])}"}
            | {
                k: v
                for k, v in paired(corners[start], corners[end], metric).items()
                if k not in ("p", "p_sign_flip", "g")
            }
            for factor, start, end in pairs
        ],
    }


def statistics_of(d: Sequence[float], scale: float) -> dict[str, Any]:
    """Return diff, low, high, p, p_sign_flip, g and note of paired differences of values of about `scale`."""
    out: dict[str, Any] = dict.fromkeys(_STATISTICS, math.nan)
    if len(d) < 2:
        out["diff"] = d[0] if d else math.nan
        return out | {"note": "one shared repeat: no interval" if d else "no shared repeat"}
    mean, low, high = t_interval(d)
    out |= {"diff": mean, "p_sign_flip": sign_flip(d)}
    # Differences equal up to rounding would give t = infinity and p = 0.
    if max(d) - min(d) <= 1e-12 * scale:
        return out | {"note": "the differences do not vary: no interval"}
    return out | {"low": low, "high": high, "p": paired_t(d), "g": hedges_g(d), "note": ""}


def by_repeat(cell: pd.Series[Any] | Mapping[Hashable, Any], metric: str) -> dict[int, float]:
    """Return the finite values of a row of a cell table."""
    pairs = zip(cell["repeats"], cell[f"{metric}:values"], strict=True)
    return {repeat: value for repeat, value in pairs if math.isfinite(value)}


def _baseline_first(levels: Sequence[Any], first: Any) -> list[Any]:
    return sorted(levels, key=lambda level: level != first)
