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
NEAR, FAR = 0.05, 0.15
"""Std of the weights with which cells count as alike, by the share of recordings that each gets right: of
those that are nearly as good, and then of those further off. Shares are rounded to multiples of these, so
that cells which are about as good have the same alike."""
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
    steps: the cell's predictions take the place of those of the mean over the cells alike, in this part
    alone; these that of the mean over cells further off (`NEAR`, `FAR`); and these that of the mean over all.
    Where cells are alike, all of it is in the first step; two that are far better than the others share the
    later ones. Influences are scaled for the terms of higher order (`scale`). The sum of squared differences
    of two cells estimates the variance of their difference.
    """

    def __init__(self, truth: np.ndarray, predicted: np.ndarray, part: np.ndarray, n_classes: int) -> None:
        self.truth, self.predicted, self.n_classes = truth, predicted, n_classes
        self.n_parts = int(part.max()) + 1
        self.are_alone, self.part_of = len(part) == self.n_parts, part
        is_there, is_right = predicted >= 0, predicted == truth
        keys = np.concatenate([part * n_classes + truth, (part * n_classes + predicted)[is_there]])
        pairs, place = _unique(keys, self.n_parts * n_classes)
        self.place = np.full(predicted.shape, -1, dtype=np.int32)
        self.place[is_there] = place[len(truth) :]
        self.part, self.classes = pairs // n_classes, pairs % n_classes
        # Of each pair of part and class, and of each class: recordings in truth.
        self.true = np.bincount(place[: len(truth)], minlength=len(pairs)).astype(float)
        self.all_true = np.bincount(truth, minlength=n_classes).astype(float)
        self.share = is_right.sum(axis=1) / np.maximum(is_there.sum(axis=1), 1)
        self._hits, self._called = (_rows(each, self.place, len(pairs)) for each in (is_right, is_there))
        self._of_part = None  # where every cell predicted every part
        if not is_there.all():
            # A cell predicted all recordings of a part or none: the first one tells.
            first = is_there[:, np.unique(part, return_index=True)[1]]
            self._of_part = _rows(first, np.broadcast_to(np.arange(self.n_parts), first.shape), self.n_parts)
        (self.mean,) = self._means(np.ones((1, len(predicted))))
        self._scores: dict[Statistic, _MeanScore] = {}
        self._scales: dict[Statistic, float] = {}
        self._weights: dict[Statistic, np.ndarray] = {}

    def _means(self, weights: np.ndarray) -> list[_MeanCell]:
        """Return means with `weights` [means, cells], in each part over the cells that predicted it."""
        total = weights.sum(axis=1, keepdims=True)
        if self._of_part is not None:
            total = (weights @ self._of_part)[:, self.part]
        hits, called = weights @ self._hits / total, weights @ self._called / total
        return [_MeanCell.of(self, *each) for each in zip(hits, called, strict=True)]

    def alike(self, share: np.ndarray, std: np.ndarray) -> list[_MeanCell]:
        """Return means over cells by how near they are to getting a `share` of the recordings right.

        The weight falls as a Gaussian of `std`; both are [means].
        """
        return self._means(np.exp(-(((share[:, None] - self.share) / std[:, None]) ** 2) / 2))

    def some(self, rows: np.ndarray) -> SomeCells:
        """Return the scores of a few cells, each of all recordings that it predicted."""
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
        return SomeCells(self, self.share[rows], (*whole, np.arange(n)), row, touched, hits, called)

    def score(self, statistic: Statistic) -> _MeanScore:
        """Return a score of the mean over all cells, computed once."""
        if statistic not in self._scores:
            self._scores[statistic] = _MeanScore.of(self, self.mean, statistic)
        return self._scores[statistic]

    def common(self, statistic: Statistic) -> np.ndarray:
        """Return how the score of the mean over all cells moves with the weights of parts, [parts]; sum 0."""
        mean, at, score = self.mean, self.classes, self.score(statistic)
        hits, true, called = mean.whole
        above, below = statistic(
            hits[at] - STEP * mean.hits, true[at] - STEP * self.true, called[at] - STEP * mean.called, at
        )
        # A species is there or not: it goes with the part that holds all of its recordings, or of what was
        # predicted as a species without any.
        is_all = ((self.true == true[at]) & (self.true > 0)) | (
            (true[at] == 0) & (mean.called > (1 - 1e-9) * called[at])
        )
        lost = np.where(is_all, score.now, (score.now - (above - score.value * below)) / STEP)
        moved = np.bincount(self.part, lost, self.n_parts) / score.total
        found: np.ndarray = moved - moved.mean()
        return found

    def weight(self, statistic: Statistic) -> np.ndarray:
        """Return the share of each part in the score of a perfect cell, [parts]; they sum to 1.

        Where cells differ alike on all recordings, this is what a part adds to a difference on average.
        """
        if statistic not in self._weights:
            truth, at = self.all_true, self.classes
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
            self._scales[statistic] = self._at_random.scale(statistic) if self._at_random else 1.0
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
    _share: np.ndarray
    _whole: _Counts
    _row: np.ndarray
    _touched: np.ndarray
    _hits: np.ndarray
    _called: np.ndarray

    def values(self, statistic: Statistic) -> np.ndarray:
        """Return the score of each cell; nan if there is nothing to average."""
        return _ratio(*statistic(*self._whole))

    def pooled(self, statistic: Statistic, *, in_steps: bool = True) -> Pooled:
        """Return the score of each cell with what each part adds to it.

        Not `in_steps`, own influences start from the mean over all cells, which takes a fraction of the time.
        """
        cells, value = self._cells, self.values(statistic)
        if np.isnan(cells.score(statistic).value):
            return Pooled(value, np.zeros((len(value), cells.n_parts)))
        own = cells.scale(statistic) * (self.own_in_steps(statistic) if in_steps else self.own(statistic))
        influence = cells.common(statistic) + own - own.sum(axis=1, keepdims=True) * cells.weight(statistic)
        return Pooled(value, np.where(np.isnan(value)[:, None], 0.0, influence))

    def own(self, statistic: Statistic) -> np.ndarray:
        """Return how the score of the mean over all cells moves by each cell's part, [cells, parts]."""
        cells = self._cells
        return self._from(cells.mean, cells.score(statistic), statistic, 0, len(self._share))

    def own_in_steps(self, statistic: Statistic) -> np.ndarray:
        """Return what each part adds to each cell and not to all, to first order, [cells, parts].

        Cells that follow each other and get about the same share right are computed together.
        """
        cells, found = self._cells, np.zeros((len(self._share), self._cells.n_parts))
        level = np.round(self._share / NEAR)
        starts = np.append(0, np.flatnonzero(np.diff(level)) + 1)
        ends = np.append(starts[1:], len(level))
        wider = np.round(level[starts] * NEAR / FAR)
        for each in np.unique(wider):  # and not all at once: mean cells may be large
            numbers = np.flatnonzero(wider == each)
            share = np.append(level[starts[numbers]] * NEAR, each * FAR)
            *nearer, far = cells.alike(share, np.append(np.full(len(numbers), NEAR), FAR))
            of_far = _MeanScore.of(cells, far, statistic)
            last = cells.score(statistic).moved(cells, cells.mean, statistic, far)
            for start, end, near in zip(starts[numbers], ends[numbers], nearer, strict=True):
                first = self._from(near, _MeanScore.of(cells, near, statistic), statistic, start, end)
                found[start:end] = first + of_far.moved(cells, far, statistic, near) + last
        return found

    def _from(
        self, mean: _MeanCell, score: _MeanScore, statistic: Statistic, start: int, end: int
    ) -> np.ndarray:
        """Return how the score of a mean cell moves by the parts of the cells from `start` on, before `end`.

        [these cells, parts]. Of a part, only classes that a cell predicted differ from a mean cell whose
        predictions are left out.
        """
        cells = self._cells
        some = slice(*np.searchsorted(self._row, [start, end]))
        row, touched, hits, called = (
            each[some] for each in (self._row, self._touched, self._hits, self._called)
        )
        above, below = statistic(
            mean.other[0][touched] + hits, mean.other[1][touched], mean.other[2][touched] + called,
            cells.classes[touched],
        )  # fmt: skip
        change = above - score.value * below - score.without[touched]
        shape = end - start, cells.n_parts
        place = (row - start) * cells.n_parts + cells.part[touched]
        moved = np.bincount(place, change, shape[0] * shape[1])
        found: np.ndarray = score.own + moved.reshape(shape) / score.total
        return found


@dataclass(frozen=True)
class _RandomExchanges:
    """Some cells whose predictions were exchanged between them at random, part by part, several times.

    Args:
        cells: those that took part, and no others.
        source: [draws, cells, parts]: the cell whose predictions each has in each part.
        whole: as in `SomeCells`, [draws, cells, classes] each.
    """

    cells: Cells
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
        return cls(Cells(truth, predicted, cells.part_of, n), source, whole)

    def scale(self, statistic: Statistic) -> float:
        """Return `Cells.scale`, of first-order terms from the mean over the cells that are exchanged."""
        own = self.cells.some(np.arange(len(self.cells.predicted))).own(statistic)
        of_sums = np.take_along_axis(own[None], self.source, axis=1).sum(axis=2).var(axis=1).sum()
        of_scores = _ratio(*statistic(*self.whole)).var(axis=1).sum()
        differ = of_sums > LEAST_VARIANCE * len(self.source)
        return float(np.sqrt(of_scores / of_sums)) if differ else 1.0


@dataclass(frozen=True)
class _MeanCell:
    """The mean over some cells.

    Args:
        hits, called: right predictions and recordings predicted, [pairs of part and class] each.
        whole: these and the recordings in truth, [classes] each, as a `Statistic` takes them.
        other: the same without the part, [pairs of part and class] each.
    """

    hits: np.ndarray
    called: np.ndarray
    whole: _Counts
    other: _Counts

    @classmethod
    def of(cls, cells: Cells, hits: np.ndarray, called: np.ndarray) -> _MeanCell:
        at, n = cells.classes, cells.n_classes
        whole = np.bincount(at, hits, n), cells.all_true, np.bincount(at, called, n)
        other = whole[0][at] - hits, whole[1][at], whole[2][at] - called
        return cls(hits, called, whole, other)


@dataclass(frozen=True)
class _MeanScore:
    """A score of a mean cell, `value`, and the sum below its line, `total`.

    Args:
        now: [pairs of part and class]: what the class adds above the line, less `value` times what it adds
            below. without: the same where the part's predictions are left out.
        own: [parts]: how the score moves if the predictions of a part are left out.
    """

    value: float
    total: float
    now: np.ndarray
    without: np.ndarray
    own: np.ndarray

    @classmethod
    def of(cls, cells: Cells, mean: _MeanCell, statistic: Statistic) -> _MeanScore:
        (hits, true, called), at = mean.whole, cells.classes
        above, below = statistic(hits, true, called, np.arange(cells.n_classes))
        value, total = float(_ratio(above, below)), float(below.sum())
        if np.isnan(value):
            return cls(value, total, *np.zeros((3, 0)))
        now = (above - value * below)[at]
        hits, true, called = mean.other
        above, below = statistic(hits, true, called, at)
        without = above - value * below
        return cls(value, total, now, without, np.bincount(cells.part, without - now, cells.n_parts) / total)

    def moved(self, cells: Cells, mean: _MeanCell, statistic: Statistic, by: _MeanCell) -> np.ndarray:
        """Return how the score of `mean` moves if predictions of another take the place of its own, [parts].

        In each part alone.
        """
        hits, true, called = mean.other
        above, below = statistic(hits + by.hits, true, called + by.called, cells.classes)
        change = above - self.value * below - self.now
        found: np.ndarray = np.bincount(cells.part, change, cells.n_parts) / self.total
        return found


def _rows(is_counted: np.ndarray, column: np.ndarray, n_columns: int) -> sparse.csr_array:
    """Return how often each column is counted in each row; `is_counted` and `column` are of equal shape."""
    ends = np.concatenate([[0], np.cumsum(is_counted.sum(axis=1))])
    columns = column[is_counted]
    return sparse.csr_array((np.ones(len(columns)), columns, ends), (len(is_counted), n_columns))


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
    found: np.ndarray = 2 * hits / np.maximum(total, 1e-300)
    return found
