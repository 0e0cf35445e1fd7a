"""Scores of recordings that were validated in different folds, put together, and what each recording adds.

A fold of a long-tailed collection holds one recording of a rare species or none, so that F1 of that species
in one fold means nothing. The predictions of all folds of a deal are scored together instead (Forman and
Scholz 2010, ACM SIGKDD Explorations 12:49). How certain such a score is follows from leaving out one group of
recordings, or one fold, after the other (Efron and Tibshirani 1993, chapter 11).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""What classes add above and below the line of a score. From right predictions, recordings in truth,
recordings predicted, and the number of the class, an entry each."""


@dataclass(frozen=True)
class Pooled:
    """A score of all recordings of a deal's folds together.

    Args:
        value: the score.
        pseudo: [folds], the jackknife's pseudo-values of the folds; their mean is `value`.
        influence: [groups], by how much each group moved the score; they sum to 0.
    """

    value: float
    pseudo: np.ndarray
    influence: np.ndarray


class Counts:
    """Right predictions, recordings in truth and recordings predicted, by class and by part.

    Args:
        truth, predicted: [recordings], classes.
        part: [recordings], the number of what is left out at once, a fold or a group of recordings.

    A part changes the counts of a few classes only, so that leaving out every part after the other costs as
    much as a sort of the recordings.
    """

    def __init__(self, truth: np.ndarray, predicted: np.ndarray, part: np.ndarray, n_classes: int) -> None:
        is_right = truth == predicted
        self.whole = [
            np.bincount(truth[is_right], minlength=n_classes).astype(float),
            np.bincount(truth, minlength=n_classes).astype(float),
            np.bincount(predicted, minlength=n_classes).astype(float),
        ]
        self.n_parts = int(part.max()) + 1
        keys = np.concatenate([part * n_classes + truth, part * n_classes + predicted])
        pairs, place = np.unique(keys, return_inverse=True)
        of_truth, of_predicted = place[: len(truth)], place[len(truth) :]
        self.part, self.classes = pairs // n_classes, pairs % n_classes
        n = len(pairs)
        of_parts = [
            np.bincount(of_truth, is_right, n), np.bincount(of_truth, minlength=n),
            np.bincount(of_predicted, minlength=n),
        ]  # fmt: skip
        self.without = [whole[self.classes] - of for whole, of in zip(self.whole, of_parts, strict=True)]

    def score(self, statistic: Statistic) -> tuple[float, np.ndarray]:
        """Return the score, and the score without each part [parts]; nan where nothing is left."""
        hits, true, predicted = self.whole
        above, below = statistic(hits, true, predicted, np.arange(len(hits)))
        hits, true, predicted = self.without
        less_above, less_below = statistic(hits, true, predicted, self.classes)
        totals = []
        for values, left in ((above, less_above), (below, less_below)):
            change = np.bincount(self.part, left - values[self.classes], self.n_parts)
            totals.append((values.sum(), values.sum() + change))
        (whole_above, above_left), (whole_below, below_left) = totals
        value = float(whole_above / whole_below) if whole_below > 0 else np.nan
        left = np.divide(above_left, below_left, out=np.full(self.n_parts, np.nan), where=below_left > 1e-9)
        return value, left


def pooled(of_folds: Counts, of_groups: Counts | None, statistic: Statistic) -> Pooled:
    """Return a score with what folds and groups add to it; no influence without `of_groups`."""
    value, without = of_folds.score(statistic)
    n = of_folds.n_parts
    pseudo = np.full(n, value)
    if n > 1:
        pseudo = n * value - (n - 1) * without
        pseudo += value - _mean(pseudo)  # less the jackknife's estimate of bias
    influence = np.zeros(0)
    if of_groups is not None:
        influence = value - of_groups.score(statistic)[1]
        influence = np.nan_to_num(influence - _mean(influence))
    return Pooled(value, pseudo, influence)


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


def _mean(values: np.ndarray) -> float:
    """Return the mean of the finite values, nan where there is none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


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
