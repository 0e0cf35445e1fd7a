"""Scores of recordings, each by one written definition.

`records.METRICS` says what each name means and which way is better; here they are computed. Everything works
on recordings: the probabilities of a recording's windows are averaged first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# scikit-learn is imported where it is used: it takes a second or more to load, and a sweep's driver, which
# imports this module with all that a trial is made of, scores nothing.


def average_windows(probabilities: np.ndarray, recording: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean probabilities [recordings, classes] and the recording of each row.

    `probabilities` is [windows, classes]; `recording` names the recording of each window.
    """
    names, index = np.unique(recording, return_inverse=True)
    total = np.zeros((len(names), probabilities.shape[1]))
    np.add.at(total, index, probabilities)
    return total / np.bincount(index)[:, None], names


def score(probabilities: np.ndarray, truth: np.ndarray, strata: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return every score of `probabilities` [recordings, classes] against the classes in `truth`.

    `strata` gives the classes of rare, medium and common; a stratum without a class in truth scores nan.
    """
    from sklearn.metrics import f1_score

    predicted = probabilities.argmax(axis=1)
    present = np.unique(truth)
    f1 = f1_per_class(predicted, truth, probabilities.shape[1])
    right = np.maximum(probabilities[np.arange(len(truth)), truth], np.finfo(np.float32).tiny)
    scores = {
        "loss": float(-np.log(right).mean()),
        "accuracy": float((predicted == truth).mean()),
        "f1_macro": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "f1_weighted": float(f1_score(truth, predicted, average="weighted", zero_division=0)),
        "map": mean_average_precision(probabilities, truth),
    }
    for name, classes in strata.items():
        scored = np.intersect1d(classes, present)
        scores[f"f1_{name}"] = float(f1[scored].mean()) if len(scored) else float("nan")
    return scores


def f1_per_class(predicted: np.ndarray, truth: np.ndarray, n_classes: int) -> np.ndarray:
    """Return F1 = 2 TP / (2 TP + FP + FN) of every class, 0 for a class in neither truth nor prediction."""
    from sklearn.metrics import f1_score

    values: np.ndarray = f1_score(
        truth, predicted, labels=np.arange(n_classes), average=None, zero_division=0
    )
    return values


def mean_average_precision(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean over the classes present in `truth` of average precision.

    AP = sum_n (R_n - R_{n-1}) P_n over the ranking of all recordings by one class's probability, without
    interpolation, as scikit-learn has it.
    """
    from sklearn.metrics import average_precision_score

    present = np.unique(truth)
    is_class = truth[:, None] == present[None, :]
    return float(np.mean(average_precision_score(is_class, probabilities[:, present], average=None)))
