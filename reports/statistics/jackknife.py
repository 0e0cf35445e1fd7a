"""Scores of recordings that were validated in different folds, put together, and what each recording adds.

A fold of a long-tailed collection holds one recording of a rare species or none, so that F1 of that species
in one fold means nothing. The predictions of all folds of a deal are scored together instead (Forman and
Scholz 2010, ACM SIGKDD Explorations 12:49). How certain such a score is follows from how it moves with the
weight of each group of recordings, as in the infinitesimal jackknife (Efron and Tibshirani 1993, chapter 21).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""What classes add above and below the line of a score. From right predictions, recordings in truth,
recordings predicted, and the number of the class, an entry each."""


STEP = 0.25
"""Of the weight of a group of recordings, by which it is lowered to see what it adds. A small step gives two
thirds of the variance of F1 of species with two recordings, a step of 1 several times as much."""


@dataclass(frozen=True)
class Pooled:
    """A score of all recordings of a deal's folds together, of each of several cells.

    Args:
        value: the score, [cells].
        influence: [cells, parts], by how much each moved the score; they sum to 0.
    """

    value: np.ndarray
    influence: np.ndarray

    def pseudo(self, fold: np.ndarray, n_folds: int) -> np.ndarray:
        """Return values of the folds, [cells, folds], whose mean is `value`, as the parts of each moved it.

        `fold` [parts] is of each part.
        """
        found: np.ndarray = self.value[:, None] + n_folds * self.influence @ np.eye(n_folds)[fold]
        return found


class Counts:
    """Right predictions, recordings in truth and recordings predicted, by cell, class and part.

    Args:
        truth: [recordings], classes.
        predicted: [cells, recordings], classes.
        part: [recordings], a number of the group of recordings within a fold.

    A part changes the counts of a few classes only. One recording changes them in three ways: it is right, it
    is missed in its own class, or it is predicted as another. So the influence of a part of one recording is
    looked up, by class; only parts of several are counted.
    """

    def __init__(self, truth: np.ndarray, predicted: np.ndarray, part: np.ndarray, n_classes: int) -> None:
        self.truth, self.predicted, self.part = truth, predicted, part
        self.is_right = predicted == truth
        self.n_parts = int(part.max()) + 1
        shape = (len(predicted), n_classes)
        cell = np.arange(shape[0])[:, None] * n_classes

        def by_class(classes: np.ndarray) -> np.ndarray:
            return np.bincount(classes.ravel(), minlength=shape[0] * n_classes).reshape(shape).astype(float)

        self.whole = (
            by_class((cell + truth)[self.is_right]), by_class(cell + truth), by_class(cell + predicted),
        )  # fmt: skip
        self.classes = np.arange(n_classes)
        self.is_alone = np.bincount(part)[part] == 1

    def value(self, statistic: Statistic) -> np.ndarray:
        """Return a score of all recordings, [cells]; nan where there is nothing to average."""
        above, below = (each.sum(axis=-1) for each in statistic(*self.whole, self.classes))
        found: np.ndarray = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
        return found

    def pooled(self, statistic: Statistic) -> Pooled:
        """Return a score of all recordings, with what each part adds to it."""
        value, total = self.value(statistic), statistic(*self.whole, self.classes)[1].sum(axis=-1)
        change = np.zeros((len(value), self.n_parts))
        # Tables by cell and class, of one recording that is right, missed, or predicted as the class.
        right, missed, called = (
            _change(statistic, value[:, None], self.whole, less, self.classes)
            for less in ((1, 1, 1), (0, 1, 0), (0, 0, 1))
        )
        alone, truth = self.is_alone, self.truth[self.is_alone]
        wrong = missed[:, truth] + np.take_along_axis(called, self.predicted[:, alone], axis=1)
        change[:, self.part[alone]] = np.where(self.is_right[:, alone], right[:, truth], wrong)
        for cell in range(len(value)) if not alone.all() else ():
            change[cell] += self._of_several(statistic, cell, value[cell])
        has_value = np.isfinite(value)[:, None]
        influence = np.divide(change, total[:, None], out=np.zeros_like(change), where=has_value)
        return Pooled(value, influence - influence.mean(axis=1, keepdims=True))

    def _of_several(self, statistic: Statistic, cell: int, value: float) -> np.ndarray:
        """Return what each part of several recordings changes above the line, [parts]."""
        several, n_classes = ~self.is_alone, len(self.classes)
        first = self.part[several] * n_classes
        keys = np.concatenate([first + self.truth[several], first + self.predicted[cell, several]])
        pairs, place = np.unique(keys, return_inverse=True)
        of_truth, of_predicted = place[: len(first)], place[len(first) :]
        less = (
            np.bincount(of_truth, self.is_right[cell, several], len(pairs)),
            np.bincount(of_truth, minlength=len(pairs)), np.bincount(of_predicted, minlength=len(pairs)),
        )  # fmt: skip
        classes = pairs % n_classes
        hits, true, called = (counts[cell, classes] for counts in self.whole)
        change = _change(statistic, value, (hits, true, called), less, classes)
        return np.bincount(pairs // n_classes, change, self.n_parts)


def _change(
    statistic: Statistic,
    value: np.ndarray | float,
    whole: tuple[np.ndarray, np.ndarray, np.ndarray],
    less: tuple[np.ndarray | int, np.ndarray | int, np.ndarray | int],
    classes: np.ndarray,
) -> np.ndarray:
    """Return what a part with the counts `less`, of all in `whole`, changes above the line of a score."""
    _, true, called = less
    # A species is there or not: it goes with the part that holds all of its recordings, or of what was
    # predicted as a species without any.
    is_all = ((true == whole[1]) & (np.asarray(true) > 0)) | ((whole[1] == 0) & (called == whole[2]))
    above, below = statistic(*whole, classes)
    less_above, less_below = statistic(
        whole[0] - STEP * less[0], whole[1] - STEP * true, whole[2] - STEP * called, classes
    )
    change = np.where(is_all, above, (above - less_above) / STEP)
    change -= value * np.where(is_all, below, (below - less_below) / STEP)
    return change


def statistics(strata: Mapping[str, np.ndarray], n_classes: int) -> dict[str, Statistic]:
    """Return the scores of `records.METRICS` that follow from predicted classes.

    `strata` names classes; a stratum's F1 is the mean over its species in truth, F1-macro over the species in
    truth or prediction.
    """

    def macro(
        hits: np.ndarray, true: np.ndarray, predicted: np.ndarray, _: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return _f1(hits, true, predicted), (true + predicted > 0).astype(float)

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
