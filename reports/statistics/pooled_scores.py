"""Scores of recordings that were validated in different folds, put together, and what each recording adds.

A fold of a long-tailed collection holds one recording of a rare species or none, so that F1 of that species
in one fold means nothing. The predictions of all folds of a deal are scored together instead (Forman and
Scholz 2010, ACM SIGKDD Explorations 12:49). How certain such a score is follows from how it moves with the
weight of each group of recordings, as in the infinitesimal jackknife (Efron and Tibshirani 1993, chapter 21);
how certain a difference of cells is, from exchanging their predictions group by group (`Cells`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""What classes add above and below the line of a score. From right predictions, recordings in truth,
recordings predicted, and the number of the class, which is the last axis. Counts of a mean over cells have
fractions.
"""


STEP = 0.25
"""Of the weight of a group of recordings, by which it is lowered to see what it adds to the score of the mean
cell. A small step gives two thirds of the variance of F1 of species with two recordings, a step of 1 several
times as much. Differences between cells do not depend on it."""
N_EXCHANGED, MOST_EXCHANGED = 1_000, 20
"""Cells whose scores are computed after random exchanges, in all and in one exchange. Of 1,000, what
influences are multiplied by is known to 1 %."""
ALIKE = 0.05
"""Std of the weight, by the share of recordings that each gets right, with which cells count as alike."""
LEVEL = 0.02  # shares that round to the same multiple of this have the same cells alike
LEAST_VARIANCE = 1e-20  # between scores; less is what rounding leaves of cells that predict the same
AT_ONCE = 2**18  # predictions that are scored together: with more, memory takes longer
MOST_KEYS = 2**24  # marked in a table; of more, sorting takes less memory


@dataclass(frozen=True)
class Pooled:
    """A score of some cells, of all recordings of a deal's folds together.

    Args:
        value: [cells], the score.
        influence: [cells, parts], by how much each part moved it; those of a cell sum to 0.
    """

    value: np.ndarray
    influence: np.ndarray

    def pseudo(self, fold: np.ndarray, n_folds: int) -> np.ndarray:
        """Return values of each fold whose mean is `value`, as the parts of the fold moved it.

        [cells, folds]; `fold` [parts] is of each part.
        """
        by_fold = self.influence @ (fold[:, None] == np.arange(n_folds)).astype(float)
        found: np.ndarray = self.value[..., None] + n_folds * by_fold
        return found


class Cells:
    """What cells predicted for the same recordings: their scores, and what each part adds to them.

    Args:
        truth: [recordings], classes.
        predicted: [cells, recordings], classes; -1 where a cell did not predict, each recording by one at
            least.
        part: [recordings], a number of the group of recordings within a fold.

    The influence of a part on a cell is the sum of what all cells have in common, which is how the score of a
    mean cell moves with the weight of the part, and of what the cell has of its own. Where cells differ by
    chance, any of them might have made the predictions of any other in each part. Own influences are the
    first-order terms of what such exchanges change (Hajek 1968, Annals of Mathematical Statistics 39:325), in
    two steps: the cell's predictions take the place of those of the mean over the cells alike (`ALIKE`), in
    this part alone; and these take the place of the mean over all. Where all cells are alike, the second step
    is none; where some are far better, the first is of what is left to change among these. Influences are
    scaled for the terms of higher order (`scale`). The sum of squared differences of two cells estimates the
    variance of their difference.

    A part changes the counts of a few classes only, so that the influence of all parts costs as much as a
    sort of the recordings.
    """

    def __init__(self, truth: np.ndarray, predicted: np.ndarray, part: np.ndarray, n_classes: int) -> None:
        self.truth, self.predicted, self.n_classes = truth, predicted, n_classes
        self.n_parts = int(part.max()) + 1
        self.are_alone, self.part_of = len(part) == self.n_parts, part
        is_there = predicted >= 0
        is_right = predicted == truth
        keys = np.concatenate([part * n_classes + truth, (part * n_classes + predicted)[is_there]])
        pairs, place = _unique(keys, self.n_parts * n_classes)
        self.place = np.full(predicted.shape, -1, dtype=np.int32)
        self.place[is_there] = place[len(truth) :]
        self.part, self.classes = pairs // n_classes, pairs % n_classes
        n = len(pairs)
        share = is_right.sum(axis=1) / np.maximum(is_there.sum(axis=1), 1)
        levels, level = np.unique(np.round(share / LEVEL), return_inverse=True)
        alike = np.exp(-(((levels[:, None] * LEVEL - share) / ALIKE) ** 2) / 2)
        # Mean cells: the first is over all cells, each other over those alike at a level.
        self.mean_of, weights = level + 1, np.vstack([np.ones(len(share)), alike])
        cell, recording = np.nonzero(is_there)
        of_part = np.zeros((len(share), self.n_parts))
        of_part[cell, part[recording]] = 1
        total = (weights @ of_part)[:, self.part]
        at = (cell, self.place[is_there])

        def mean(counted: np.ndarray) -> np.ndarray:
            found: np.ndarray = weights @ sparse.csr_array((counted, at), (len(share), n)) / total
            return found

        # Right predictions and recordings predicted of the mean cells, [mean cells, pairs]; those in truth.
        self.hits, self.called = mean(is_right[is_there].astype(float)), mean(np.ones(len(cell)))
        self.true = np.bincount(place[: len(truth)], minlength=n)
        self.whole = (
            self._by_class(self.hits), np.bincount(truth, minlength=n_classes), self._by_class(self.called),
        )  # fmt: skip
        # Of the mean cells without a part, of each pair of part and class.
        hits, true, called = (counts[..., self.classes] for counts in self.whole)
        self.other = hits - self.hits, true, called - self.called
        self._means: dict[Statistic, _MeanCells] = {}
        self._scales: dict[Statistic, float] = {}
        self._weights: dict[Statistic, np.ndarray] = {}

    def _by_class(self, counts: np.ndarray) -> np.ndarray:
        """Return the sums of `counts` [mean cells, pairs] over parts, [mean cells, classes]."""
        return _sums(self.classes, counts, self.n_classes)

    def some(self, rows: np.ndarray, mean_of: np.ndarray | None = None) -> SomeCells:
        """Return the scores of a few cells, each of all recordings that it predicted.

        `mean_of` [rows] are other mean cells than those alike, from which own influences start.
        """
        mean_of = self.mean_of[rows] if mean_of is None else mean_of
        is_there = self.predicted[rows] >= 0
        row, recording = np.nonzero(is_there)
        n, n_rows, n_pairs = self.n_classes, len(rows), len(self.classes)
        predicted, truth = self.predicted[rows][is_there], self.truth[recording]
        is_right = predicted == truth
        touched, hits, called = self.place[rows][is_there], is_right.astype(float), np.ones(len(truth))
        whole = tuple(
            np.bincount(keys, minlength=n_rows * n).reshape(n_rows, n).astype(float)
            for keys in (row[is_right] * n + truth[is_right], row * n + truth, row * n + predicted)
        )
        if not self.are_alone:  # else no two of a cell are of one part
            keys, place = _unique(row * n_pairs + touched, n_rows * n_pairs)
            row, touched = keys // n_pairs, keys % n_pairs
            hits, called = np.bincount(place, is_right), np.bincount(place).astype(float)
        at = self.classes[touched]
        # A mean cell's, with those of a cell in one part.
        mean = mean_of[row]
        exchanged = (
            self.other[0][mean, touched] + hits, self.other[1][touched],
            self.other[2][mean, touched] + called, at,
        )  # fmt: skip
        return SomeCells(self, mean_of, (*whole, np.arange(n)), row, touched, exchanged)

    def means(self, statistic: Statistic) -> _MeanCells:
        """Return a score of the mean cells, computed once."""
        if statistic not in self._means:
            self._means[statistic] = _MeanCells.of(self, statistic)
        return self._means[statistic]

    def weight(self, statistic: Statistic) -> np.ndarray:
        """Return the share of each part in the score of a perfect cell, [parts]; they sum to 1.

        Where cells differ alike on all recordings, this is what a part adds to a difference on average.
        """
        if statistic not in self._weights:
            truth, at = self.whole[1].astype(float), self.classes
            counts = truth[at] - self.true
            above, _ = statistic(truth[at], truth[at], truth[at], at)
            without, _ = statistic(counts, truth[at], counts, at)
            lost = np.bincount(self.part, above - without, self.n_parts)
            even = np.full(self.n_parts, 1 / self.n_parts)
            self._weights[statistic] = lost / lost.sum() if lost.sum() > 0 else even
        return self._weights[statistic]

    def scale(self, statistic: Statistic) -> float:
        """Return what first-order terms are multiplied by to have the variance that all terms together have.

        Predictions are exchanged between cells at random, part by part. It is the root of the variance that
        this makes between the scores of cells, over that between sums of their first-order terms.
        """
        if statistic not in self._scales:
            self._scales[statistic] = self._at_random.scale(self, statistic) if self._at_random else 1.0
        return self._scales[statistic]

    @functools.cached_property
    def _at_random(self) -> _RandomExchanges | None:
        """Cells that predicted every recording, after random exchanges; None for fewer than two."""
        complete = np.flatnonzero((self.predicted >= 0).all(axis=1))
        chosen = np.linspace(0, len(complete) - 1, min(len(complete), MOST_EXCHANGED)).astype(int)
        return _RandomExchanges.of(self, complete[chosen]) if len(complete) > 1 else None


_Counts = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class SomeCells:
    """Some of `Cells`, computed together, since there may be thousands."""

    _cells: Cells
    _mean_of: np.ndarray
    _whole: _Counts
    _row: np.ndarray
    _touched: np.ndarray
    _exchanged: _Counts

    def values(self, statistic: Statistic) -> np.ndarray:
        """Return the score of each cell; nan if there is nothing to average."""
        return _ratio(*statistic(*self._whole))

    def pooled(self, statistic: Statistic) -> Pooled:
        """Return the score of each cell with what each part adds to it."""
        cells, means, value = self._cells, self._cells.means(statistic), self.values(statistic)
        if np.isnan(means.value).any():
            return Pooled(value, np.zeros((len(value), cells.n_parts)))
        own = cells.scale(statistic) * self.own(statistic)
        influence = means.influence + own - own.sum(axis=1, keepdims=True) * cells.weight(statistic)
        return Pooled(value, np.where(np.isnan(value)[:, None], 0.0, influence))

    def own(self, statistic: Statistic) -> np.ndarray:
        """Return what each part adds to each cell and not to all, to first order, [cells, parts]."""
        cells, means, mean = self._cells, self._cells.means(statistic), self._mean_of[self._row]
        above, below = statistic(*self._exchanged)
        change = above - means.value[mean] * below - means.without[mean, self._touched]
        place = self._row * cells.n_parts + cells.part[self._touched]
        shape = len(self._mean_of), cells.n_parts
        moved = np.bincount(place, change, shape[0] * shape[1]).reshape(shape)
        own: np.ndarray = means.own[self._mean_of] + moved / means.total[self._mean_of, None]
        return own


@dataclass(frozen=True)
class _RandomExchanges:
    """Some cells whose predictions were exchanged between them at random, part by part, several times.

    Args:
        rows: of the cells that took part.
        source: [draws, cells, parts]: the cell whose predictions each has in each part.
        whole: as in `SomeCells`, [draws, cells, classes] each.
    """

    rows: np.ndarray  # and not the cells themselves, which would be kept in memory by a cycle
    source: np.ndarray
    whole: _Counts

    @classmethod
    def of(cls, cells: Cells, rows: np.ndarray) -> _RandomExchanges:
        n, truth, predicted = cells.n_classes, cells.truth, cells.predicted[rows]
        shape = -(-N_EXCHANGED // len(rows)), len(rows), cells.n_parts
        source = np.random.default_rng(0).random(shape, dtype=np.float32).argsort(axis=1)
        hits, called = [], []
        for some in np.array_split(source, -(-len(source) * predicted.size // AT_ONCE)):
            first = np.arange(len(some) * len(rows)).reshape(len(some), len(rows), 1) * n
            keys = first + predicted[some[:, :, cells.part_of], np.arange(len(truth))]
            hits.append(np.bincount(keys[keys == first + truth], minlength=first.size * n))
            called.append(np.bincount(keys.ravel(), minlength=first.size * n))
        by_class = *shape[:2], n
        true = np.broadcast_to(np.bincount(truth, minlength=n), by_class)
        whole = (
            np.concatenate(hits).reshape(by_class), true, np.concatenate(called).reshape(by_class),
            np.arange(n),
        )  # fmt: skip
        return cls(rows, source, whole)

    def scale(self, cells: Cells, statistic: Statistic) -> float:
        """Return `Cells.scale`."""
        own = cells.some(self.rows, np.zeros(len(self.rows), dtype=int)).own(statistic)
        of_sums = np.take_along_axis(own[None], self.source, axis=1).sum(axis=2).var(axis=1).sum()
        of_scores = _ratio(*statistic(*self.whole)).var(axis=1).sum()
        differ = of_sums > LEAST_VARIANCE * len(self.source)
        return float(np.sqrt(of_scores / of_sums)) if differ else 1.0


@dataclass(frozen=True)
class _MeanCells:
    """A score of the mean cells: `value`, and the sum below its line, `total`, [mean cells] each.

    Args:
        influence: [parts], how the score of the first moves with their weights; they sum to 0.
        without: [mean cells, pairs of part and class]: what the class adds above the line, less `value` times
            what it adds below, where the part's predictions are left out.
        own: [mean cells, parts]: how the first's score moves if those of another mean cell take the place of
            its predictions in a part, and then the other's, if these are left out.
    """

    value: np.ndarray
    total: np.ndarray
    influence: np.ndarray
    without: np.ndarray
    own: np.ndarray

    @classmethod
    def of(cls, cells: Cells, statistic: Statistic) -> _MeanCells:
        hits, true, called = cells.whole
        above, below = statistic(hits, true, called, np.arange(cells.n_classes))
        above, below = np.broadcast_arrays(above, below)
        value, total, at, part = _ratio(above, below), below.sum(axis=-1), cells.classes, cells.part
        if np.isnan(value).any():
            return cls(value, total, *np.zeros((3, 0)))
        now = (above - value[:, None] * below)[:, at]

        def with_others(hits: np.ndarray, true: np.ndarray, called: np.ndarray, of: slice) -> np.ndarray:
            found = statistic(hits, true, called, at)
            changed: np.ndarray = found[0] - value[of, None] * found[1]
            return changed

        first, every = slice(0, 1), slice(None)
        lowered = with_others(
            hits[first, at] - STEP * cells.hits[first], true[at] - STEP * cells.true,
            called[first, at] - STEP * cells.called[first], first,
        )[0]  # fmt: skip
        # A species is there or not: it goes with the part that holds all of its recordings, or of what was
        # predicted as a species without any.
        is_all = ((cells.true == true[at]) & (cells.true > 0)) | (
            (true[at] == 0) & (cells.called[0] > (1 - 1e-9) * called[0, at])
        )
        change = np.where(is_all, now[0], (now[0] - lowered) / STEP)
        influence = np.bincount(part, change, cells.n_parts) / total[0]
        without = with_others(*cells.other, every)
        exchanged = with_others(
            cells.other[0][first] + cells.hits, true[at], cells.other[2][first] + cells.called, first
        )
        own = _sums(part, exchanged - now[first], cells.n_parts) / total[0]
        own = own + _sums(part, without - now, cells.n_parts) / total[:, None]
        return cls(value, total, influence - influence.mean(), without, own)


def _sums(at: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """Return the sums of `values` [rows, columns] over columns with the same `at`, [rows, n]."""
    place = np.arange(len(values))[:, None] * n + at
    found: np.ndarray = np.bincount(place.ravel(), values.ravel(), len(values) * n).reshape(-1, n)
    return found


def _unique(keys: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct `keys`, which are below `n`, and the place of each key among them."""
    if n > MOST_KEYS:
        pairs, place = np.unique(keys, return_inverse=True)
        return pairs, place
    is_there = np.zeros(n, dtype=bool)
    is_there[keys] = True
    return np.flatnonzero(is_there), (np.cumsum(is_there, dtype=np.int32) - 1)[keys]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return the sum over classes, the last axis, of one over that of the other; nan for a sum of 0."""
    total = below.sum(axis=-1)
    found: np.ndarray = np.divide(
        above.sum(axis=-1), total, out=np.full(total.shape, np.nan), where=total > 0
    )
    return found


def statistics(strata: Mapping[str, np.ndarray], n_classes: int) -> dict[str, Statistic]:
    """Return the scores of `records.METRICS` that follow from predicted classes.

    `strata` names classes; a stratum's F1 is the mean over its species in truth, F1-macro over the species in
    truth or prediction.
    """

    def macro(
        hits: np.ndarray, true: np.ndarray, predicted: np.ndarray, _: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        # A class that few cells predicted, and that is not in truth, counts in part for the mean of cells.
        return _f1(hits, true, predicted), np.minimum(true + predicted, 1.0)

    def weighted(
        hits: np.ndarray, true: np.ndarray, predicted: np.ndarray, _: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return _f1(hits, true, predicted) * true, true

    found: dict[str, Statistic] = {
        "val/f1_macro": macro,
        "val/accuracy": lambda hits, true, *_: (hits, true),
        "val/f1_weighted": weighted,
    }
    for name, classes in strata.items():
        found[f"val/f1_{name}"] = _of_stratum(np.isin(np.arange(n_classes), classes))
    return found


def _of_stratum(is_member: np.ndarray) -> Statistic:
    def score(
        hits: np.ndarray, true: np.ndarray, predicted: np.ndarray, classes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        counted = (is_member[classes] & (true > 0)).astype(float)
        return _f1(hits, true, predicted) * counted, counted

    return score


def _f1(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return F1 = 2 TP / (2 TP + FP + FN) of every class, 0 for a class in neither truth nor prediction."""
    total = true + predicted
    found: np.ndarray = np.divide(2 * hits, total, out=np.zeros(total.shape), where=total > 0)
    return found
