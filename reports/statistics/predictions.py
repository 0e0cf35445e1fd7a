"""F1 of species and strata over validation recordings with intervals, and the most frequent confusions.

The intervals of `aggregate` are over seeds, those here over recordings: how much F1 would differ on other
recordings of the same species. A species with two validation recordings has no reliable F1, however many
seeds agree on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from birdnet_core.intervals import bootstrap_interval
from birdnet_core.records.seen import SEEN
from reports.statistics.repeats import repeats_of

N_RESAMPLES = 2000
N_PAIRS = 15
OVERALL = "all species"


@dataclass(frozen=True)
class Predictions:
    """What the completed trials of one cell predicted for the validation recordings.

    Args:
        species: the name of each class.
        truth: [recordings], classes.
        group: [recordings], a number a group of recordings that the split keeps together.
        predicted: [deals, recordings], classes: each deal's folds together predict every recording once.
        seen: [recordings], a word of `records.seen` of the cell's backbone; None for a cell without one.
    """

    species: list[str]
    truth: np.ndarray
    group: np.ndarray
    predicted: np.ndarray
    seen: np.ndarray | None = None


def predictions_of(trials: pd.DataFrame, config_id: str, study: dict[str, Any]) -> Predictions | None:
    """Return the predictions of a config's completed trials, None where one of them has none on disk.

    `trials` are of `repeats.read`. A deal whose recordings are not those of the first, because it is not
    complete yet, is left out. Raises RunFolderError for files that do not fit each other.
    """
    repeats = repeats_of(trials, [config_id], study)
    parts = [part for deal in repeats.deals or () if (part := deal.of_cell(0)) is not None]
    if not parts:
        return None
    parts = [part.by_recording() for part in parts]
    first = parts[0]
    alike = [part for part in parts if np.array_equal(part.recording, first.recording)]
    config = next(c for c, of in zip(trials["config"], trials["config_id"], strict=True) if of == config_id)
    seen = first.seen_by(str(config.get("features", {}).get("weights_hash")))
    return Predictions(
        first.species, first.truth, first.group, np.array([part.predicted for part in alike]), seen
    )


def f1_intervals(
    predictions: Predictions,
    strata: Mapping[str, list[str]],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return F1 of all species, of each stratum and of each species in truth, with bootstrap intervals.

    Where the cell has a backbone, F1 of all species also over the recordings that this has possibly seen, and
    over those that it has not (kind ``seen``).

    Columns: `kind` (``all``, ``seen``, ``stratum``, ``species``), `name`, `n_val` (recordings in truth),
    `f1` (mean over the trials), `low`, `high`. The means over species are those of `records.METRICS`: macro
    over the species in truth or prediction, a stratum's over its species in truth.

    The interval, `intervals.bootstrap_interval`, resamples recordings, those of one group together; the
    trials stay as they are. A species that a resample lacks in truth has no F1 there and enters no mean.
    With fewer than two recordings in truth the interval is nan. docs/statistics.md gives its coverage.
    """
    n_classes = len(predictions.species)
    group = np.unique(predictions.group, return_inverse=True)[1]
    n_groups = int(group.max()) + 1
    chances = np.full(n_groups, 1 / n_groups)
    drawn = np.random.default_rng(seed).multinomial(n_groups, chances, size=n_resamples)
    # The first column is the sample itself.
    weights = np.vstack([np.ones(n_groups), drawn]).T[group].astype(np.float32)
    ones = np.ones(len(predictions.truth))
    n_true = _sums(predictions.truth, ones, n_classes, weights)
    per_class = np.zeros((n_classes, 1 + n_resamples))
    macro = np.zeros(1 + n_resamples)
    parts = {} if predictions.seen is None else {s: predictions.seen == s for s in SEEN}
    parts = {status: part for status, part in parts.items() if 0 < part.sum() < len(part)}
    of_part = {status: np.zeros(1 + n_resamples) for status in parts}
    of_stratum = {name: np.zeros(1 + n_resamples) for name in strata}
    in_truth = np.isin(np.arange(n_classes), predictions.truth)
    members = {name: np.isin(predictions.species, list(those)) & in_truth for name, those in strata.items()}
    for predicted in predictions.predicted:
        hits = _sums(predictions.truth, predicted == predictions.truth, n_classes, weights)
        total = n_true + _sums(predicted, ones, n_classes, weights)
        with np.errstate(invalid="ignore"):
            f1 = np.where(total > 0, 2 * hits / total, np.nan)
        macro += _mean(f1)
        for status, part in parts.items():
            of_part[status] += _macro(predictions, predicted, weights * part[:, None])
        f1[n_true == 0] = np.nan
        for name, those in members.items():
            of_stratum[name] += _mean(f1[those])
        per_class += f1
    n_trials = len(predictions.predicted)
    counts = np.bincount(predictions.truth, minlength=n_classes)
    rows = [_row("all", OVERALL, len(predictions.truth), macro / n_trials)]
    for status, part in parts.items():
        rows.append(_row("seen", status, int(part.sum()), of_part[status] / n_trials))
    for name, those in members.items():
        rows.append(_row("stratum", name, int(counts[those].sum()), of_stratum[name] / n_trials))
    for c in in_truth.nonzero()[0]:
        rows.append(_row("species", predictions.species[c], int(counts[c]), per_class[c] / n_trials))
    return pd.DataFrame(rows)


def f1_of_species(predictions: Predictions) -> pd.Series[Any]:
    """Return F1 of each species in truth by its name, the mean over deals."""
    n = len(predictions.species)
    n_true = np.bincount(predictions.truth, minlength=n)
    each = []
    for predicted in predictions.predicted:
        hits = np.bincount(predictions.truth[predicted == predictions.truth], minlength=n)
        each.append(2 * hits / np.maximum(n_true + np.bincount(predicted, minlength=n), 1))
    in_truth = n_true > 0
    return pd.Series(np.mean(each, axis=0)[in_truth], np.array(predictions.species, dtype=object)[in_truth])


def _macro(predictions: Predictions, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return F1-macro [resamples] of the recordings with a weight [recordings, resamples]."""
    n_classes, ones = len(predictions.species), np.ones(len(predicted))
    total = sum(_sums(each, ones, n_classes, weights) for each in (predictions.truth, predicted))
    hits = _sums(predictions.truth, predicted == predictions.truth, n_classes, weights)
    with np.errstate(invalid="ignore"):
        return _mean(np.where(total > 0, 2 * hits / total, np.nan))


def _sums(classes: np.ndarray, counted: np.ndarray, n_classes: int, weights: np.ndarray) -> np.ndarray:
    """Return `weights` [recordings, resamples] summed by class [classes, resamples], of the counted."""
    places = (classes, np.arange(len(classes)))
    matrix = csr_array((counted.astype(np.float32), places), shape=(n_classes, len(classes)))
    sums: np.ndarray = matrix @ weights
    return sums


def _mean(f1: np.ndarray) -> np.ndarray:
    """Return the mean over the classes that have an F1 [classes, resamples], nan where none has."""
    known = np.isfinite(f1)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(known, f1, 0).sum(axis=0) / known.sum(axis=0)
    return mean


def _row(kind: str, name: str, n_val: int, values: np.ndarray) -> dict[str, Any]:
    low = high = math.nan
    if n_val > 1:
        low, high = bootstrap_interval(values[0], values[1:], lowest=0, highest=1)
    return {"kind": kind, "name": name, "n_val": n_val, "f1": values[0], "low": low, "high": high}


def confusions(predictions: Predictions, n: int = N_PAIRS) -> pd.DataFrame:
    """Return the `n` most frequent confusions, one row a (true species, predicted species).

    Columns: `truth`, `predicted`, `n_val` (recordings of the truth), `count` (mean over the trials), `share`
    of `n_val`. By count, then by share.
    """
    matrix = confusion_matrix(predictions)
    n_val = np.bincount(predictions.truth, minlength=len(predictions.species))
    rows = [
        {
            "truth": predictions.species[i],
            "predicted": predictions.species[j],
            "n_val": int(n_val[i]),
            "count": matrix[i, j],
            "share": matrix[i, j] / n_val[i],
        }
        for i, j in np.argwhere(matrix > 0)
        if i != j
    ]
    frame = pd.DataFrame(rows, columns=["truth", "predicted", "n_val", "count", "share"])
    return (
        frame.sort_values(["count", "share"], ascending=False, kind="stable").head(n).reset_index(drop=True)
    )


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Return the recordings of class i predicted as class j [classes, classes], mean over trials."""
    matrix = np.zeros((len(predictions.species),) * 2)
    for predicted in predictions.predicted:
        np.add.at(matrix, (predictions.truth, predicted), 1 / len(predictions.predicted))
    return matrix
