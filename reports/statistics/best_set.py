"""The cells that may be the best, and what choosing one of them may cost.

Multiple comparisons with the best (Hsu 1984, Annals of Statistics 12:1136): a cell stays in the set unless
some other is better by more than the one-sided margin that Dunnett's test has with this cell as its control.
So the truly best cell is in the set with the probability of `level`, and the largest upper bound on the lead
of a cell of the set over another is the most that choosing the other can lose, whichever is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from birdnet_core.intervals import LEVEL
from reports.statistics.family import draws
from reports.statistics.linear_model import Fit

N_DRAWS = 10_000


@dataclass(frozen=True)
class BestSet:
    """Which cells may be the best.

    Args:
        is_in: whether no other cell is better for certain, [cells].
        regret: the most that the truly best cell may be ahead of each, in units of the metric, [cells].
    """

    is_in: np.ndarray
    regret: np.ndarray


def best_set(fitted: Fit, *, sign: int = 1, level: float = LEVEL, n_draws: int = N_DRAWS) -> BestSet:
    """Return the cells that may be the best by their means times `sign`: -1 where lower is better.

    Cells whose scores do not vary are told apart by their means alone.
    """
    n = len(fitted.means)
    means = sign * fitted.means
    lead = means[None, :] - means[:, None]  # of the column over the row
    margin = np.zeros((n, n))
    for cell in range(n):
        others = np.delete(np.arange(n), cell)
        weights = np.eye(n)[others] - np.eye(n)[cell]
        variance = fitted.variance(weights)
        known = variance > 1e-14 * max(float(np.abs(means).max()) ** 2, 1e-300)
        if not known.any():
            continue
        weights, others = weights[known], others[known]
        freedom = fitted.degrees(weights)
        covariance = weights @ fitted.covariance @ weights.T
        statistic = draws(covariance, freedom, n_draws)
        largest = np.ones(n_draws)
        for of in np.unique(freedom):
            np.minimum(largest, stats.t.sf(statistic[:, freedom == of].max(axis=1), of), out=largest)
        border = np.quantile(largest, 1 - level)
        margin[cell, others] = stats.t.isf(border, freedom) * np.sqrt(variance[known])
    upper = margin.copy()
    np.fill_diagonal(upper, 0.0)
    is_in = (lead - upper <= 0).all(axis=1)
    # The control of a bound is the cell that may be the best, not the one that is chosen.
    regret = np.maximum((lead + upper.T)[:, is_in].max(axis=1), 0.0)
    return BestSet(is_in, regret)
