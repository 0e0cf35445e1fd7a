"""One linear model of a study: a score of every cell in every repeat, and the variance of any contrast.

    score[c, r] = mean[c] + repeat[r] + error[c, r]

Cells share their repeats, so that easy recordings or a lucky seed of a repeat are no difference between
cells: a randomised block design. An error has two sources, which recordings were validated and the training.
The first is known contrast by contrast from the recordings, of which there are many; what the residuals hold
beyond it is the training's, of which a few repeats must say enough. Recordings that several repeats validated
do not become more by that: what they do to a cell every time does not shrink with further repeats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

MOST_FREEDOM = 1e4
LEAST_REPEATS = 3  # below these, the spread is not estimated
EQUAL_ABOVE = 0.7
"""Cells share one spread if Bartlett's test of equal variances has a p value above this; otherwise each has
its own. A high border: a test of a few repeats rarely finds what makes pooled intervals too short."""
LEAST_SHARE = 0.5
"""Of the common spread, which a cell's own does not go below: the smallest of several is small by chance."""

FULL_EXCESS = 0.5
"""From this share on by which the residuals' spread exceeds what recordings add to it, all of the spread
counts as estimated from the repeats; below, in proportion."""
MARGIN = 0.25
"""Standard errors of that share that are added to it: few repeats may miss what training adds. Without them,
too many studies of three repeats claim something false; with more, intervals are wider than they need be."""


@dataclass(frozen=True)
class RepeatedScores:
    """The scores that a model is fitted to.

    Args:
        values: [cells, repeats], nan where a trial is missing.
        influence: [cells, repeats, groups]: by how much the value was moved by each group of validation
            recordings (`pooled_scores.Pooled`), 0 where the repeat did not validate it; None where it is not
            known.
        n_distinct: repeats that validated different recordings; where `influence` is not known, more
            repeats than these make no mean more certain.
    """

    values: np.ndarray
    influence: np.ndarray | None
    n_distinct: int

    def cells(self, chosen: np.ndarray) -> RepeatedScores:
        """Return the scores of the `chosen` cells, without repeats that none of them has."""
        values = self.values[chosen]
        repeats = np.isfinite(values).any(axis=0)
        if chosen.all() and repeats.all():
            return self  # without a copy: influences of large studies are large
        influence = None if self.influence is None else self.influence[chosen][:, repeats]
        return RepeatedScores(values[:, repeats], influence, min(self.n_distinct, int(repeats.sum())))


@dataclass(frozen=True)
class Fit:
    """A fitted model. Covariances are of `means`, [cells, cells], and mean something for contrasts alone.

    Args:
        means: least-squares mean of each cell, [cells].
        covariance: of the means, by training and recordings together.
        spread: of the residuals of each cell, a variance, [cells].
        freedom: degrees of freedom of each spread.
        has_equal_spread: whether one spread, from all residuals, serves every cell.
        of_spread: the covariance by what of `spread` has to be estimated from the repeats.
        of_recordings: the covariance by recordings alone; 0 where influences are not known.
        n_groups: of recordings; 0 where influences are not known.
    """

    means: np.ndarray
    covariance: np.ndarray
    spread: np.ndarray
    freedom: np.ndarray
    has_equal_spread: bool
    of_spread: np.ndarray
    of_recordings: np.ndarray
    n_groups: int

    def variance(self, weights: np.ndarray) -> np.ndarray:
        """Return the variance of each contrast, `weights` [contrasts, cells]."""
        found: np.ndarray = ((weights @ self.covariance) * weights).sum(axis=1)
        return found

    def degrees(self, weights: np.ndarray) -> np.ndarray:
        """Return the degrees of freedom of each variance, by Satterthwaite (1946, Biometrics 2:110-114).

        The parts are the spreads of the cells, or the one that they share, and that of all groups of
        recordings. In how few of these two cells differ is left out: each of their terms might as well have
        the opposite sign, so that the sum of squares is the variance of the sum.
        """
        of_cells = (weights @ self.of_spread) * weights
        if self.has_equal_spread:
            uncertain = of_cells.sum(axis=1) ** 2 / self.freedom[0]
        else:
            uncertain = (of_cells**2 / self.freedom).sum(axis=1)
        of_recordings = ((weights @ self.of_recordings) * weights).sum(axis=1)
        return self._degrees(self.variance(weights), uncertain, of_recordings)

    def pairs(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        """Return variance and degrees of freedom of every cell less `cell`, [cells] each; 0 for itself."""

        def of_differences(matrix: np.ndarray) -> np.ndarray:
            found: np.ndarray = np.diag(matrix) + matrix[cell, cell] - 2 * matrix[cell]
            return found

        variance = of_differences(self.covariance)
        if self.has_equal_spread:
            uncertain = of_differences(self.of_spread) ** 2 / self.freedom[0]
        else:
            own = (np.diag(self.of_spread) - self.of_spread[cell]) ** 2 / self.freedom
            uncertain = own + (self.of_spread[cell, cell] - self.of_spread[cell]) ** 2 / self.freedom[cell]
        return variance, self._degrees(variance, uncertain, of_differences(self.of_recordings))

    def _degrees(self, variance: np.ndarray, uncertain: np.ndarray, of_recordings: np.ndarray) -> np.ndarray:
        below = uncertain + of_recordings**2 / max(self.n_groups - 1, 1)
        found = np.divide(variance**2, below, out=np.full(len(below), MOST_FREEDOM), where=below > 0)
        bounded: np.ndarray = np.clip(found, min(1.0, float(self.freedom.min())), MOST_FREEDOM)
        return bounded


def fit(scores: RepeatedScores, least: int = LEAST_REPEATS) -> Fit | None:
    """Return the model of `scores`; None for fewer than `least` repeats or two cells."""
    observed = np.isfinite(scores.values)
    shared = observed[:, observed.sum(axis=0) > 1]
    if len(scores.values) < 2 or not observed.any(axis=1).all() or shared.shape[1] < least:
        return None
    n_cells, n_repeats = observed.shape
    by_repeat = None  # of complete tables every value has the same weight
    if observed.all():
        means = scores.values.mean(axis=1)
        residuals = scores.values - means[:, None] - scores.values.mean(axis=0) + means.mean()
        rank = n_cells + n_repeats - 1
    else:
        means, residuals, by_repeat, rank = _unbalanced(scores.values, observed)
    freedom = int(observed.sum()) - rank
    if freedom < 1:
        return None
    common = float(np.nansum(residuals**2) / freedom)
    spread, each = np.full(n_cells, common), np.full(n_cells, float(freedom))
    own, own_freedom = _own_spreads(residuals, observed)
    is_equal = own is None or _bartlett(residuals, observed) > EQUAL_ABOVE
    if own is not None and not is_equal:
        spread, each = np.maximum(own, LEAST_SHARE * common), own_freedom
    if scores.influence is None:
        of_spread = _sandwich(by_repeat, spread, n_repeats) * max(1.0, n_repeats / scores.n_distinct)
        return Fit(means, of_spread, spread, each, is_equal, of_spread, np.zeros((n_cells, n_cells)), 0)
    influence = scores.influence
    if not observed.all():
        influence = np.where(observed[:, :, None], influence, 0.0)
    influence = influence.transpose(1, 0, 2)
    within, total = _within(influence), influence.sum(axis=0)
    if by_repeat is None:
        of_means = within / n_repeats**2, total / n_repeats
    else:
        moved = by_repeat @ influence
        of_means = _within(moved), moved.sum(axis=0)
    n_groups = int(influence.any(axis=(0, 1)).sum())
    # Influences sum to 0, which takes one of their number from the sum of their squares.
    centring = n_groups / max(n_groups - 1, 1)
    of_recordings = centring * _of_recordings(*of_means)
    # The residuals' spread holds that of the recordings within a repeat; the rest is the training's.
    in_residuals = centring * _in_residuals(within, total, n_repeats)
    explained = float(np.trace(in_residuals)) / (n_cells - 1)
    excess = common / explained - 1 if explained > 0 else np.inf
    # Where the residuals hold clearly less than the recordings' part, the variance is this part alone, which
    # is known better than a spread of few repeats.
    share = float(np.clip((excess + MARGIN * math.sqrt(2 / freedom)) / FULL_EXCESS, 0, 1))
    own_recordings = None if is_equal else _own(np.diag(in_residuals))
    left = spread - (explained if own_recordings is None else own_recordings)
    together = _lowered(left, n_cells * max(common - explained, 0.0))
    of_training = share * np.maximum(left, 0.0) + (1 - share) * together
    covariance = of_recordings + _sandwich(by_repeat, of_training, n_repeats)
    of_spread = _sandwich(by_repeat, share * spread + (1 - share) * of_training, n_repeats)
    return Fit(means, covariance, spread, each, is_equal, of_spread, of_recordings, n_groups)


def _sandwich(by_repeat: np.ndarray | None, spread: np.ndarray, n_repeats: int) -> np.ndarray:
    """Return the covariance of the means under independent errors of variance `spread` [cells]."""
    if by_repeat is None:
        return np.diag(spread) / n_repeats
    found: np.ndarray = ((by_repeat * spread) @ by_repeat.transpose(0, 2, 1)).sum(axis=0)
    return found


def _unbalanced(values: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return means, residuals, weights of the values in the means [repeats, cells, cells], and the rank."""
    n_cells, n_repeats = observed.shape
    cell, repeat = np.nonzero(observed)
    design = np.zeros((len(cell), n_cells + n_repeats - 1))
    design[np.arange(len(cell)), cell] = 1
    # Effects of repeats sum to zero, so that a cell's mean is over all repeats, its missing ones included.
    coded = np.vstack([np.eye(n_repeats - 1), -np.ones(n_repeats - 1)])
    design[:, n_cells:] = coded[repeat]
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ values[observed]
    residuals = np.full(observed.shape, np.nan)
    residuals[observed] = values[observed] - design @ coefficients
    by_repeat = np.zeros((n_repeats, n_cells, n_cells))
    by_repeat[repeat, :, cell] = inverse[:n_cells].T
    return coefficients[:n_cells], residuals, by_repeat, int(np.linalg.matrix_rank(design))


def _own(squares: np.ndarray) -> np.ndarray | None:
    """Return the variance of each cell from its mean squared residual (Grubbs 1948, JASA 43:243).

    The residuals of a cell hold a share of all cells' errors, since the repeats' effects are estimated.
    """
    n = len(squares)
    if n < 3:
        return None
    found: np.ndarray = (n * squares - squares.sum() / (n - 1)) / (n - 2)
    return found


def _own_spreads(residuals: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    counts = np.maximum(observed.sum(axis=1) - 1, 1).astype(float)
    mean_squares = np.nansum(residuals**2, axis=1) / counts
    return _own(mean_squares), counts


def _bartlett(residuals: np.ndarray, observed: np.ndarray) -> float:
    """Return the p value of Bartlett's test that the residuals of all cells have one variance."""
    counts = np.maximum(observed.sum(axis=1) - 1, 1).astype(float)
    variances = np.nansum(residuals**2, axis=1) / counts
    if (variances <= 0).any():
        return 1.0 if (variances <= 0).all() else 0.0
    total, n = counts.sum(), len(counts)
    pooled = (counts * variances).sum() / total
    statistic = total * np.log(pooled) - (counts * np.log(variances)).sum()
    correction = 1 + ((1 / counts).sum() - 1 / total) / (3 * (n - 1))
    return float(special.chdtrc(n - 1, statistic / correction))


def _of_recordings(within: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the covariance of the means by recordings, of contrasts alone, [cells, cells].

    By how much each group moved the means: `within` [cells, cells] is the sum over repeats of the products of
    cells, `total` [cells, groups] the sum over repeats.
    """
    # What the same recordings did in other repeats: of contrasts alone, so that what all cells share does not
    # hide what is negative by chance.
    again = _centred(total @ total.T - within)
    values, vectors = np.linalg.eigh((again + again.T) / 2)
    # Half of what 0 in place of negative values adds is taken back: of all, a cell that finds the same
    # recordings hard every time would pay for the noise of the others.
    left = (float(values.sum()) + float(np.maximum(values, 0.0).sum())) / 2
    found: np.ndarray = within + (vectors * _lowered(values, left)) @ vectors.T
    return found


def _lowered(values: np.ndarray, total: float) -> np.ndarray:
    """Return variances with the sum `total`: `values` less one number, and 0 where that is negative.

    Estimates of variances without bias are negative for some by chance. Set to 0 alone, they would leave the
    others' sum too large. 0 for a `total` that is not positive; not more than the positive `values`.
    """
    positive: np.ndarray = np.maximum(values, 0.0)
    if total <= 0:
        return np.zeros_like(positive)
    if total >= positive.sum():
        return positive
    # The projection onto values of this sum (Held, Wolfe and Crowder 1974, Mathematical Programming 6:62).
    falling = np.sort(positive)[::-1]
    by = (falling.cumsum() - total) / np.arange(1, len(falling) + 1)
    found: np.ndarray = np.maximum(positive - by[falling >= by][-1], 0.0)
    return found


def _in_residuals(within: np.ndarray, total: np.ndarray, n_repeats: int) -> np.ndarray:
    """Return what recordings add to the covariance of a repeat's residuals, [cells, cells].

    `within` and `total` are as in `_of_recordings`, of what each group moved the value of a repeat by.
    """
    between = (total @ total.T - within) / (n_repeats * (n_repeats - 1))
    return _centred(within / n_repeats - between)


def _within(influence: np.ndarray) -> np.ndarray:
    """Return the sum over repeats of the products of cells, [cells, cells].

    `influence` is [repeats, cells, groups].
    """
    found = np.zeros((influence.shape[1],) * 2)
    for of_repeat in influence:
        found += of_repeat @ of_repeat.T
    return found


def _centred(matrix: np.ndarray) -> np.ndarray:
    """Return the part of a covariance of cells that is not the same for all."""
    found: np.ndarray = matrix - matrix.mean(axis=0) - matrix.mean(axis=1)[:, None] + matrix.mean()
    return found
