"""Calibration of probabilities: its measures, and temperature scaling.

Guo, Pleiss, Sun and Weinberger (2017), On Calibration of Modern Neural Networks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

N_BINS = 15
# Of the temperature. Where every recording is right with a large margin the loss falls for ever as it goes
# to 0, and where probabilities say nothing, as it grows.
COLDEST, HOTTEST = 0.05, 20.0


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return p^(1/T) of `probabilities` [..., classes], renormalised over the classes.

    That is softmax(log(p) / T), temperature scaling of log-probabilities, which an average of networks has
    and logits it has not; for one network the two are the same. The order of the classes stays.
    """
    return _softmax(_logarithms(probabilities) / temperature)


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the temperature, from 0.05 to 20, that minimises the mean of -log p of the classes in `truth`.

    The loss is convex in b = 1/T. Its derivative is mean(sum_k q_k log p_k - log p_truth), with q the
    probabilities at T; its zero is found by bisection over log b.
    """
    logs = _logarithms(probabilities)
    of_truth = logs[np.arange(len(truth)), truth].mean()
    low, high = -math.log(HOTTEST), -math.log(COLDEST)
    for _ in range(60):  # halves the interval to less than a double resolves
        middle = (low + high) / 2
        slope = (_softmax(math.exp(middle) * logs) * logs).sum(axis=1).mean() - of_truth
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def reliability(probabilities: np.ndarray, truth: np.ndarray, n_bins: int = N_BINS) -> list[dict[str, Any]]:
    """Return a row for each bin of the most probable class's probability: mean confidence and accuracy.

    A row has ``low`` and ``high``, the ends of the bin (the upper one is within), ``n`` recordings, their
    mean ``confidence`` and their ``accuracy``, both None in an empty bin.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = bin_of(confidence, n_bins)
    rows = []
    for b in range(n_bins):
        mine = bins == b
        n = int(mine.sum())
        rows.append(
            {
                "low": b / n_bins,
                "high": (b + 1) / n_bins,
                "n": n,
                "confidence": float(confidence[mine].mean()) if n else None,
                "accuracy": float(right[mine].mean()) if n else None,
            }
        )
    return rows


def calibration_error(
    probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None, n_bins: int = N_BINS
) -> float:
    """Return the expected calibration error: sum over bins of (n_b / n) |accuracy_b - confidence_b|.

    `weights` [recordings] count a recording several times.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    counted = np.ones(len(truth)) if weights is None else weights
    gaps = np.bincount(bin_of(confidence, n_bins), counted * (right - confidence), minlength=n_bins)
    return float(np.abs(gaps).sum() / counted.sum())


def bin_of(confidence: np.ndarray, n_bins: int = N_BINS) -> np.ndarray:
    """Return which of the bins (b / n_bins, (b + 1) / n_bins] each value from 0 to 1 is in."""
    number: np.ndarray = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    return number


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    # A probability of 0 is one that a float32 could not hold.
    logs: np.ndarray = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return logs


def _softmax(values: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.exp(values - values.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return shares
