"""The cells that may be the best, and what choosing one of them may cost.

Multiple comparisons with the best (Hsu 1984, Annals of Statistics 12:1136): a cell stays in the set unless
some other is better by more than the one-sided margin that Dunnett's test has with this cell as its control.
So the truly best cell is in the set with the probability of `level`, and the largest upper bound on the lead
of a cell of the set over another is the most that choosing the other can lose, whichever is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from birdnet_core.intervals import LEVEL
from reports.statistics.family import Tails, rounded
from reports.statistics.linear_model import Fit

N_DRAWS, LEAST_DRAWS = 10_000, 2_000
MOST_VALUES = 1_000_000  # drawn for one control


@dataclass(frozen=True)
class BestSet:
    """Which cells may be the best.

    Args:
        is_in: whether no other cell is better for certain, [cells].
        regret: the most that the truly best cell may be ahead of each, in units of the metric, [cells].
    """

    is_in: np.ndarray
    regret: np.ndarray


def best_set(fitted: Fit, *, sign: int = 1, level: float = LEVEL) -> BestSet:
    """Return the cells that may be the best by their means times `sign`: -1 where lower is better.

    Cells whose scores do not vary are compared by their means alone.
    """
    n = len(fitted.means)
    means = sign * fitted.means
    least = 1e-14 * max(float(np.abs(means).max()) ** 2, 1e-300)
    n_draws = int(np.clip(MOST_VALUES // n, LEAST_DRAWS, N_DRAWS))
    tails = Tails(fitted.covariance, n_draws)
    room = np.empty_like(tails.errors)
    margin = np.zeros((n, n))  # of the column over the row, which is the control
    for cell in range(n):
        variance, freedom = fitted.pairs(cell)
        known = np.flatnonzero(variance > least)
        known = known[known != cell]
        if not len(known):
            continue
        known = known[np.argsort(freedom[known])]
        freedom, error = rounded(freedom[known]), np.sqrt(variance[known])
        # In place: these arrays are large, and there is one a cell.
        ahead = np.take(tails.errors, known, axis=0, out=room[: len(known)], mode="clip")
        ahead -= tails.errors[cell]
        ahead /= error[:, None]
        smallest = tails.smallest(ahead, freedom)
        margin[cell, known] = -special.stdtrit(freedom, np.quantile(smallest, 1 - level)) * error
    lead = means[None, :] - means[:, None]
    is_in = (lead <= margin).all(axis=1)
    # The control of a bound is the cell that may be the best, not the one that is chosen.
    regret = np.maximum((lead + margin.T)[:, is_in].max(axis=1), 0.0)
    return BestSet(is_in, regret)
