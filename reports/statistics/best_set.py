"""The cells that may be the best, and what choosing one of them may cost.

Multiple comparisons with the best (Hsu 1984, Annals of Statistics 12:1136): a cell stays in the set unless
some other is better by more than the one-sided margin that Dunnett's test has with this cell as its control.
So the truly best cell is in the set with the probability of `level`, and the largest upper bound on the lead
of a cell of the set over another is the most that choosing the other can lose, whichever is chosen.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy import special

from birdnet_core.intervals import LEVEL
from reports.statistics.family import Tails, rounded
from reports.statistics.linear_model import Fit

N_DRAWS, LEAST_DRAWS = 10_000, 2_000
MOST_VALUES = 1_000_000  # drawn for one control
N_THREADS = 2


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

    def margins(controls: np.ndarray) -> np.ndarray:
        """Return the margin of each cell (column) over each control (row)."""
        found, room = np.zeros((len(controls), n)), np.empty_like(tails.errors)
        for margin, control in zip(found, controls, strict=True):
            variance, freedom = fitted.pairs(control)
            known = np.flatnonzero(variance > least)
            known = known[known != control]
            if not len(known):
                continue
            known = known[np.argsort(freedom[known])]
            freedom, error = rounded(freedom[known]), np.sqrt(variance[known])
            # In place: these arrays are large, and there is one a cell.
            ahead = np.take(tails.errors, known, axis=0, out=room[: len(known)], mode="clip")
            ahead -= tails.errors[control]
            ahead /= error[:, None]
            smallest = tails.smallest(ahead, freedom)
            margin[known] = -special.stdtrit(freedom, np.quantile(smallest, 1 - level)) * error
        return found

    # numpy does not hold Python's lock in any of these steps.
    with ThreadPoolExecutor(N_THREADS) as pool:
        margin = np.vstack(list(pool.map(margins, np.array_split(np.arange(n), N_THREADS))))
    lead = means[None, :] - means[:, None]
    is_in = (lead <= margin).all(axis=1)
    # The control of a bound is the cell that may be the best, not the one that is chosen.
    regret = np.maximum((lead + margin.T)[:, is_in].max(axis=1), 0.0)
    return BestSet(is_in, regret)
