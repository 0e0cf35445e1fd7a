"""The interval of a score over recordings: would other recordings give the same?

numpy alone, since reports read it where torch is not installed.
"""

from __future__ import annotations

import numpy as np

LEVEL = 0.95


def bootstrap_interval(
    value: float, resamples: np.ndarray, *, lowest: float = -np.inf, highest: float = np.inf
) -> tuple[float, float]:
    """Return low and high around `value` from its bootstrap `resamples`; nan where none of them has a value.

    The middle 95 % of the resamples (Efron and Tibshirani 1993, An Introduction to the Bootstrap, section
    13.3), moved by the bootstrap's estimate of bias, the mean of the resamples less the value (section 10.2).
    A resample draws some recordings twice and others not at all: it loses species from the averages over
    species and is surer than it should be, so that its scores lie beside those of a sample without repeats.

    Args:
        lowest, highest: what the score can be; the ends do not go beyond.
    """
    finite = resamples[np.isfinite(resamples)]
    if not len(finite):
        return np.nan, np.nan
    tails = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = np.clip(tails - (finite.mean() - value), lowest, highest)
    return float(low), float(high)
