"""Scores of recordings, for validation and test alike.

`records.metrics` defines each name. The probabilities of a recording's windows are averaged first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from birdnet_core.inference.calibration import calibration_error
from birdnet_core.records.metrics import METRICS
from birdnet_core.records.predictions import N_TOP


def average_windows(probabilities: np.ndarray, recording: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean probabilities [recordings, classes] and the recording of each row.

    `probabilities` is [windows, classes]; `recording` names the recording of each window.
    """
    names, counts = np.unique(recording, return_counts=True)
    together = probabilities[np.argsort(recording, kind="stable")]
    total = np.add.reduceat(together, np.cumsum(counts) - counts, axis=0, dtype=float)
    return total / counts[:, None], names


def score(probabilities: np.ndarray, truth: np.ndarray, strata: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return every score of `probabilities` [recordings, classes] against the classes in `truth`.

    Those that `records.metrics` has of validation, as `Scores` defines them.

    `strata` gives the classes of rare, medium and common; a stratum without a class in truth scores nan.
    """
    scores = Scores(probabilities, truth, strata)()
    return {name: value for name, value in scores.items() if f"val/{name}" in METRICS}


def likeliest(probabilities: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the `N_TOP` likeliest classes of each recording, uint16, and their probabilities, float16.

    The class of `predicted` [recordings] comes first: another may be as likely.
    """
    first = predicted[:, None]
    ranked = probabilities.copy()
    np.put_along_axis(ranked, first, 2, axis=1)
    top = torch.from_numpy(ranked).topk(min(N_TOP, ranked.shape[1])).indices.numpy()
    return top.astype(np.uint16), np.take_along_axis(probabilities, top, axis=1).astype(np.float16)


def f1_per_class(
    predicted: np.ndarray, truth: np.ndarray, n_classes: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return F1 = 2 TP / (2 TP + FP + FN) of every class, 0 for a class in neither truth nor prediction.

    `weights` [recordings] count a recording several times.
    """
    counted = np.ones(len(truth)) if weights is None else weights.astype(float)
    total = np.bincount(truth, counted, n_classes) + np.bincount(predicted, counted, n_classes)
    found = np.bincount(truth, counted * (predicted == truth), n_classes)
    values: np.ndarray = np.divide(2 * found, total, out=np.zeros(n_classes), where=total > 0)
    return values


def _ties(*values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first place equal to each place of sorted rows [rows, places], and one past the last.

    Places are equal that agree in all of `values`.
    """
    n_rows, n = values[0].shape
    is_first = np.ones((n_rows, n + 1), dtype=bool)
    is_first[:, 1:n] = np.any([v[:, 1:] != v[:, :-1] for v in values], axis=0)
    places = np.arange(n + 1)
    first = np.maximum.accumulate(np.where(is_first[:, :n], places[:n], 0), axis=1)
    end = np.minimum.accumulate(np.where(is_first[:, 1:], places[1:], n)[:, ::-1], axis=1)[:, ::-1]
    return first, end


class Scores:
    """The scores of `probabilities` [recordings, classes], for any weights of the recordings.

    Recordings are sorted once, for the thousands of weights of a bootstrap. Average precision and the area
    under the ROC curve are as scikit-learn defines them: equal probabilities share a threshold, and precision
    is summed without interpolation, AP = sum_n (R_n - R_{n-1}) P_n. A class needs only the places of its own
    recordings in its ranking, so that its cost is little more than one sort.

    Raises ValueError for probabilities that are not finite.
    """

    def __init__(
        self, probabilities: np.ndarray, truth: np.ndarray, strata: Mapping[str, np.ndarray]
    ) -> None:
        n_broken = int((~np.isfinite(probabilities)).any(axis=1).sum())
        if n_broken:
            raise ValueError(f"{n_broken} of {len(truth)} recordings have probabilities that are not finite")
        self.probabilities, self.truth, self.strata = probabilities, truth, strata
        n, self.n_classes = probabilities.shape
        self.predicted = probabilities.argmax(axis=1)
        of_truth = probabilities[np.arange(n), truth]
        self.losses = -np.log(np.maximum(of_truth, np.finfo(np.float32).tiny))
        # Equal probabilities rank by the number of the class.
        ahead = probabilities > of_truth[:, None]
        ahead |= (probabilities == of_truth[:, None]) & (np.arange(self.n_classes) < truth[:, None])
        self.is_in_top5 = ahead.sum(axis=1) < 5
        self._rank(probabilities, truth)

    def _rank(self, probabilities: np.ndarray, truth: np.ndarray) -> None:
        """Find the places of each class's recordings in the ranking of all by that class's probability."""
        present = np.unique(truth)
        falling = -probabilities[:, present].T
        self.order = np.argsort(falling, axis=1).astype(np.int32)
        first, end = _ties(np.take_along_axis(falling, self.order, axis=1))
        place = np.empty_like(self.order)
        np.put_along_axis(place, self.order, np.arange(len(truth), dtype=np.int32)[None], axis=1)
        of_truth = -probabilities[np.arange(len(truth)), truth]
        self.own = np.lexsort((of_truth, truth))  # the recordings by class, likeliest first
        self.row = np.searchsorted(present, truth[self.own])
        # The first and the last place of those that share a threshold, among all and among its own.
        at = self.row, place[self.row, self.own]
        self.first, self.end = first[at], end[at]
        self.own_start = np.searchsorted(self.row, self.row, "left")
        (self.own_first,), (self.own_end,) = _ties(of_truth[None, self.own], self.row[None])
        self.n_present = len(present)

    def __call__(self, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return every score that `records.TEST_METRICS` names; `weights` count a recording several times.

        F1-macro averages the classes in truth or prediction, mAP, AUROC and the strata those in truth. nan
        where nothing is left to average.
        """
        counted = np.ones(len(self.truth)) if weights is None else weights.astype(float)
        total = counted.sum()
        is_right = self.predicted == self.truth
        in_truth = np.bincount(self.truth, counted, self.n_classes)
        in_prediction = np.bincount(self.predicted, counted, self.n_classes)
        f1 = f1_per_class(self.predicted, self.truth, self.n_classes, counted)
        precision, area = self._of_rankings(counted, is_weighted=weights is not None)
        return {
            "loss": float(counted @ self.losses / total),
            "accuracy": float(counted @ is_right / total),
            "f1_macro": float(f1[in_truth + in_prediction > 0].mean()),
            "f1_weighted": float(f1 @ in_truth / total),
            "map": precision,
            **{
                f"f1_{name}": _mean(f1[classes][in_truth[classes] > 0])
                for name, classes in self.strata.items()
            },
            "top5": float(counted @ self.is_in_top5 / total),
            "auroc": area,
            "ece": calibration_error(self.probabilities, self.truth, counted),
        }

    def _of_rankings(self, counted: np.ndarray, *, is_weighted: bool) -> tuple[float, float]:
        """Return the means over classes of average precision and of the area under the ROC curve."""
        if is_weighted:
            ranked = np.zeros((self.n_present, len(counted) + 1))
            np.cumsum(counted[self.order], axis=1, out=ranked[:, 1:])
            all_first, all_end = ranked[self.row, self.first], ranked[self.row, self.end]
        else:
            all_first, all_end = self.first.astype(float), self.end.astype(float)
        weight = counted[self.own]
        hits = np.concatenate([[0.0], np.cumsum(weight)])
        hits_first, hits_end = (hits[at] - hits[self.own_start] for at in (self.own_first, self.own_end))
        positive = np.bincount(self.row, weight, self.n_present)
        negative = counted.sum() - positive
        precision = np.bincount(self.row, weight * hits_end / np.maximum(all_end, 1e-12), self.n_present)
        # Negatives before each of its recordings, those that tie with it counted by half.
        above = ((all_first - hits_first) + (all_end - hits_end)) / 2
        outranked = np.bincount(self.row, weight * above, self.n_present)
        there = positive > 0
        both = there & (negative > 0)
        return (
            _mean(precision[there] / positive[there]),
            _mean(1 - outranked[both] / (positive[both] * negative[both])),
        )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
