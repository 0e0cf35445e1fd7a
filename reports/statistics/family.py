"""Contrasts of cells that are read together, with intervals and p values that hold for all of them at once.

A page that looks at thirty differences finds one by chance. Here the chance that any of them is found where
there is none is 5 %: the critical value is that of the largest of all (Hothorn, Bretz and Westfall 2008,
Biometrical Journal 50:346), by drawing from the joint distribution of the contrasts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import special

from birdnet_core.intervals import LEVEL
from reports.statistics.linear_model import Fit

N_DRAWS, LEAST_DRAWS = 20_000, 5_000  # with the least, the level is known to 0.3 %
MOST_VALUES = 5_000_000  # drawn for more contrasts than 250, unless these are the least draws
STEP = 0.1  # of the logarithm of degrees of freedom
GRID = np.linspace(-20.0, 20.0, 4001)  # of arsinh(t), where tails of Student's t are tabulated


@dataclass(frozen=True)
class Joint:
    """Estimates of contrasts with simultaneous intervals and adjusted p values, [contrasts] each.

    nan where the scores do not vary, so that nothing is known of the error.
    """

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    standard_error: np.ndarray


def joint(fitted: Fit, weights: np.ndarray, *, level: float = LEVEL, n_draws: int = N_DRAWS) -> Joint:
    """Return the contrasts `weights` [contrasts, cells], adjusted to each other at `level`."""
    estimate = weights @ fitted.means
    variance, freedom = fitted.variance(weights), rounded(fitted.degrees(weights))
    known = variance > 1e-14 * max(float(np.abs(fitted.means).max()) ** 2, 1e-300)
    error = np.sqrt(np.where(known, variance, np.nan))
    low, high, p = np.full((3, len(weights)), np.nan)
    if known.any():
        n_draws = min(n_draws, max(LEAST_DRAWS, MOST_VALUES // int(known.sum())))
        tails = Tails(weights[known] @ fitted.covariance @ weights[known].T, n_draws)
        # Two-sided p values of contrasts of which none differs from zero.
        rising = np.argsort(freedom[known])
        sizes = tails.errors[rising]
        np.abs(sizes, out=sizes)  # in place: there may be millions
        sizes /= error[known][rising, None]
        smallest = np.sort(2 * tails.smallest(sizes, freedom[known][rising]))
        border = np.quantile(smallest, 1 - level)
        half = -special.stdtrit(freedom[known], border / 2) * error[known]
        low[known], high[known] = estimate[known] - half, estimate[known] + half
        single = 2 * special.stdtr(freedom[known], -np.abs(estimate[known]) / error[known])
        p[known] = (np.searchsorted(smallest, single, "right") + 1) / (len(smallest) + 1)
    return Joint(estimate, low, high, p, error)


def rounded(freedom: np.ndarray) -> np.ndarray:
    """Return degrees of freedom, rounded down to one of a few: quantiles are slow to compute."""
    found: np.ndarray = np.exp(np.floor(np.log(freedom) / STEP) * STEP)
    return found


class Tails:
    """Tail probabilities of correlated estimates under Student's t, the same draws at every call.

    Args:
        covariance: of the estimates, [estimates, estimates].

    `errors` [estimates, draws] are normal. Estimates share the error of their spread: one draw of its
    quantile serves all degrees of freedom.
    """

    def __init__(self, covariance: np.ndarray, n_draws: int) -> None:
        values, vectors = np.linalg.eigh(covariance)
        # What rounding leaves of a zero differs from machine to machine, and its root is no longer small.
        kept = values > 1e-12 * values[-1]
        normal = np.random.default_rng(0).standard_normal((n_draws, len(values)))[:, kept]
        self.errors: np.ndarray = (vectors[:, kept] * np.sqrt(values[kept])) @ normal.T

    def smallest(self, statistics: np.ndarray, freedom: np.ndarray) -> np.ndarray:
        """Return the smallest one-sided tail probability of each draw of `statistics` [n, draws].

        `freedom` [n] rises, and has few values (`rounded`).
        """
        n_draws = statistics.shape[1]
        found = np.zeros(n_draws)
        values, first = np.unique(freedom, return_index=True)
        for of, some in zip(values.tolist(), np.split(statistics, first[1:]), strict=True):
            scaled = np.arcsinh(some.max(axis=0) / _scale(of, n_draws))
            np.minimum(found, _interpolated(scaled, _log_tail(of)), out=found)
        return np.exp(found)


def _interpolated(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return what `table` of `GRID` is at `x`, or at its nearer end; its even steps need no search."""
    place = (np.clip(x, GRID[0], GRID[-1]) - GRID[0]) / (GRID[1] - GRID[0])
    below = np.minimum(place.astype(int), len(GRID) - 2)
    found: np.ndarray = table[below] + (place - below) * (table[below + 1] - table[below])
    return found


# Both are functions of a few degrees of freedom, and slow: tables make a family of hundreds affordable.
@functools.lru_cache(maxsize=256)
def _scale(freedom: float, n_draws: int) -> np.ndarray:
    """Return draws of a spread's estimate over its true value; those of other degrees go with them."""
    share = np.random.default_rng(1).uniform(size=n_draws)
    found: np.ndarray = np.sqrt(2 * special.gammaincinv(freedom / 2, share) / freedom)
    return found


@functools.lru_cache(maxsize=256)
def _log_tail(freedom: float) -> np.ndarray:
    """Return the logarithm of the upper tail of Student's t on `GRID`."""
    found: np.ndarray = np.log(np.maximum(special.stdtr(freedom, -np.sinh(GRID)), 1e-300))
    return found
