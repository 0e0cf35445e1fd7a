"""Contrasts of cells that are read together, with intervals and p values that hold for all of them at once.

A page that looks at thirty differences finds one by chance. Here the chance that any of them is found where
there is none is 5 %: the critical value is that of the largest of all (Hothorn, Bretz and Westfall 2008,
Biometrical Journal 50:346), by drawing from the joint distribution of the contrasts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from birdnet_core.intervals import LEVEL
from reports.statistics.linear_model import Fit

N_DRAWS = 20_000
STEP = 0.1  # of the logarithm of degrees of freedom


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
        covariance = weights[known] @ fitted.covariance @ weights[known].T
        smallest = np.sort(_smallest_p(covariance, freedom[known], n_draws))
        border = np.quantile(smallest, 1 - level)
        half = stats.t.isf(border / 2, freedom[known]) * error[known]
        low[known], high[known] = estimate[known] - half, estimate[known] + half
        single = 2 * stats.t.sf(np.abs(estimate[known]) / error[known], freedom[known])
        p[known] = (np.searchsorted(smallest, single, "right") + 1) / (len(smallest) + 1)
    return Joint(estimate, low, high, p, error)


def rounded(freedom: np.ndarray) -> np.ndarray:
    """Return degrees of freedom, rounded down to one of a few: quantiles are slow to compute."""
    found: np.ndarray = np.exp(np.floor(np.log(freedom) / STEP) * STEP)
    return found


def _smallest_p(covariance: np.ndarray, freedom: np.ndarray, n_draws: int) -> np.ndarray:
    """Return draws of the smallest two-sided p value of all contrasts where none differs from zero."""
    statistic = np.abs(draws(covariance, freedom, n_draws))
    smallest = np.ones(n_draws)
    for of in np.unique(freedom):
        largest = statistic[:, freedom == of].max(axis=1)
        np.minimum(smallest, 2 * stats.t.sf(largest, of), out=smallest)
    return smallest


def draws(covariance: np.ndarray, freedom: np.ndarray, n_draws: int) -> np.ndarray:
    """Return draws of Student's t of correlated estimates, [draws, estimates], the same at every call.

    Estimates share the error of their spread: one draw of its quantile serves all degrees of freedom.
    """
    rng = np.random.default_rng(0)
    deviation = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(deviation, deviation))
    normal = (rng.standard_normal((n_draws, len(values))) * np.sqrt(np.maximum(values, 0))) @ vectors.T
    share = rng.uniform(size=n_draws)
    for of in np.unique(freedom):
        normal[:, freedom == of] /= np.sqrt(stats.chi2.ppf(share, of) / of)[:, None]
    found: np.ndarray = normal
    return found
