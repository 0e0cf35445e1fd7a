"""Bootstrap intervals of a score over recordings. Needs numpy alone: reports run without torch."""

from __future__ import annotations

import numpy as np

LEVEL = 0.95


def bootstrap_interval(
    value: float, resamples: np.ndarray, *, lowest: float = -np.inf, highest: float = np.inf
) -> tuple[float, float]:
    """Return low and high around `value` from its bootstrap `resamples`; nan where none of them has a value.

    The middle 95 % of the resamples (Efron and Tibshirani 1993, An Introduction to the Bootstrap, section
    13.3), moved by the bootstrap's estimate of bias, the mean of the resamples less the value (section 10.2).
    The move is needed because a resample repeats some recordings and lacks others: it loses species from the
    averages over species, so that its scores are biased.

    Args:
        lowest, highest: range of the score, to which the interval is clipped.
    """
    finite = resamples[np.isfinite(resamples)]
    if not len(finite):
        return np.nan, np.nan
    tails = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = np.clip(tails - (finite.mean() - value), lowest, highest)
    return float(low), float(high)
