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
from scipy.sparse import csr_array

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Of right predictions, recordings in truth and recordings predicted of every class, [..., classes] each."""
CHUNK = 2**21  # values in a matrix of groups and classes


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


def statistics(strata: Mapping[str, np.ndarray]) -> dict[str, Statistic]:
    """Return the scores of `records.METRICS` that follow from predicted classes; strata are classes."""
    return {
        "val/f1_macro": lambda hits, true, predicted: _mean(
            f1(hits, true, predicted), (true > 0) | (predicted > 0)
        ),
        "val/accuracy": lambda hits, true, _: _ratio(hits.sum(axis=-1), true.sum(axis=-1)),
        "val/f1_weighted": lambda hits, true, predicted: _ratio(
            (f1(hits, true, predicted) * true).sum(axis=-1), true.sum(axis=-1)
        ),
        **{f"val/f1_{name}": _of_stratum(classes) for name, classes in strata.items()},
    }


def f1(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return F1 = 2 TP / (2 TP + FP + FN) of every class, 0 for a class in neither truth nor prediction."""
    return _ratio(2 * hits, true + predicted, 0.0)


def pooled(
    truth: np.ndarray,
    predicted: np.ndarray,
    group: np.ndarray,
    fold: np.ndarray,
    n_classes: int,
    statistic: Statistic,
) -> Pooled:
    """Return the score of `predicted` [recordings] against `truth`, with what folds and groups add to it.

    `group` and `fold` number those of each recording from 0; every group is in one fold.
    """
    n_folds, n_groups = int(fold.max()) + 1, int(group.max()) + 1
    whole = [part.sum(axis=0) for part in _sums(truth, predicted, fold, n_folds, n_classes)]
    value = float(statistic(*whole))
    pseudo = np.full(n_folds, value)
    if n_folds > 1:
        without = statistic(
            *(w - s for w, s in zip(whole, _sums(truth, predicted, fold, n_folds, n_classes), strict=True))
        )
        pseudo = n_folds * value - (n_folds - 1) * without
        pseudo += value - np.nanmean(pseudo)  # less the jackknife's estimate of bias
    influence = np.empty(n_groups)
    step = max(1, CHUNK // n_classes)
    for first in range(0, n_groups, step):
        here = (group >= first) & (group < first + step)
        n = min(step, n_groups - first)
        sums = _sums(truth[here], predicted[here], group[here] - first, n, n_classes)
        influence[first : first + n] = value - statistic(*(w - s for w, s in zip(whole, sums, strict=True)))
    influence = np.nan_to_num(influence - np.nanmean(influence))
    return Pooled(value, pseudo, influence)


def _sums(
    truth: np.ndarray, predicted: np.ndarray, part: np.ndarray, n_parts: int, n_classes: int
) -> list[np.ndarray]:
    """Return what a `Statistic` takes, of every part, [parts, classes] each."""
    shape = (n_parts, n_classes)
    is_right = truth == predicted
    return [
        csr_array((counted.astype(float), (part, classes)), shape=shape).toarray()
        for classes, counted in (
            (truth, is_right),
            (truth, np.ones(len(truth))),
            (predicted, np.ones(len(truth))),
        )
    ]


def _of_stratum(classes: np.ndarray) -> Statistic:
    def score(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        chosen = [part[..., classes] for part in (hits, true, predicted)]
        return _mean(f1(*chosen), chosen[1] > 0)

    return score


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return _ratio(np.where(counted, values, 0.0).sum(axis=-1), counted.sum(axis=-1))


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    found: np.ndarray = np.divide(above, below, out=np.full(np.shape(below), otherwise), where=below > 0)
    return found
