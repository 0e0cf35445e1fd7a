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
    """A score of all recordings of a deal's folds together.

    Args:
        value: the score.
        influence: [parts], by how much each moved the score; they sum to 0.
    """

    value: float
    influence: np.ndarray

    def pseudo(self, fold: np.ndarray, n_folds: int) -> np.ndarray:
        """Return a value of each fold whose mean is `value`, as the parts of the fold moved it, [folds].

        `fold` [parts] is of each part.
        """
        found: np.ndarray = self.value + n_folds * np.bincount(fold, self.influence, n_folds)
        return found


class Counts:
    """Right predictions, recordings in truth and recordings predicted, by class and by part.

    Args:
        truth, predicted: [recordings], classes.
        part: [recordings], a number of the group of recordings within a fold.

    A part changes the counts of a few classes only, so that the influence of all parts costs as much as a
    sort of the recordings.
    """

    def __init__(self, truth: np.ndarray, predicted: np.ndarray, part: np.ndarray, n_classes: int) -> None:
        is_right = truth == predicted
        self.whole = (
            np.bincount(truth[is_right], minlength=n_classes).astype(float),
            np.bincount(truth, minlength=n_classes).astype(float),
            np.bincount(predicted, minlength=n_classes).astype(float),
        )
        self.n_parts = int(part.max()) + 1
        keys = np.concatenate([part * n_classes + truth, part * n_classes + predicted])
        pairs, place = np.unique(keys, return_inverse=True)
        of_truth, of_predicted = place[: len(truth)], place[len(truth) :]
        self.part, self.classes = pairs // n_classes, pairs % n_classes
        n = len(pairs)
        hits, true, called = (
            np.bincount(of_truth, is_right, n), np.bincount(of_truth, minlength=n),
            np.bincount(of_predicted, minlength=n),
        )  # fmt: skip
        # A species is there or not: it goes with the part that holds all of its recordings, or of what was
        # predicted as a species without any.
        all_true, all_called = self.whole[1][self.classes], self.whole[2][self.classes]
        self.is_all = ((true == all_true) & (true > 0)) | ((all_true == 0) & (called == all_called))
        all_hits = self.whole[0][self.classes]
        self.lowered = (all_hits - STEP * hits, all_true - STEP * true, all_called - STEP * called)

    def value(self, statistic: Statistic) -> float:
        """Return a score of all recordings; nan where there is nothing to average."""
        above, below = statistic(*self.whole, np.arange(len(self.whole[0])))
        total = float(below.sum())
        return float(above.sum()) / total if total > 0 else np.nan

    def pooled(self, statistic: Statistic) -> Pooled:
        """Return a score of all recordings, with what each part adds to it."""
        value = self.value(statistic)
        if np.isnan(value):
            return Pooled(value, np.zeros(self.n_parts))
        above, below = statistic(*self.whole, np.arange(len(self.whole[0])))
        less_above, less_below = statistic(*self.lowered, self.classes)
        total = float(below.sum())
        above, below = above[self.classes], below[self.classes]
        change = np.where(self.is_all, above, (above - less_above) / STEP)
        change -= value * np.where(self.is_all, below, (below - less_below) / STEP)
        influence = np.bincount(self.part, change, self.n_parts) / total
        return Pooled(value, influence - influence.mean())


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
    found: np.ndarray = np.divide(2 * hits, total, out=np.zeros(len(total)), where=total > 0)
    return found
