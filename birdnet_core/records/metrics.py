"""Every metric, test score and cost that a run reports: its name, direction and definition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from birdnet_core.errors import ConfigError, did_you_mean

Direction = Literal["maximize", "minimize"]


class Metric(NamedTuple):
    """Which way a metric is better, its title in tables, and its definition."""

    direction: Direction
    title: str
    definition: str


_SCORES = {
    "loss": Metric(
        "minimize",
        "log loss",
        "mean cross-entropy of the recordings' averaged probabilities, whatever loss trains",
    ),
    "accuracy": Metric(
        "maximize", "accuracy", "share of recordings whose most probable species is the right one"
    ),
    "f1_macro": Metric("maximize", "F1-macro", "mean F1 over the species present in truth or prediction"),
    "f1_weighted": Metric(
        "maximize", "F1-weighted", "mean F1 over species, weighted by their recordings in truth"
    ),
    "map": Metric("maximize", "mAP", "mean average precision over the species present in truth"),
    "f1_rare": Metric("maximize", "F1 rare", "mean F1 over the rare stratum's species present in truth"),
    "f1_medium": Metric(
        "maximize", "F1 medium", "mean F1 over the medium stratum's species present in truth"
    ),
    "f1_common": Metric(
        "maximize", "F1 common", "mean F1 over the common stratum's species present in truth"
    ),
}


VALIDATION_METRICS = tuple(f"val/{name}" for name in _SCORES)

METRICS: dict[str, Metric] = {
    "train/loss": Metric("minimize", "training loss", "mean training loss over the epoch's steps"),
    "train/accuracy": Metric(
        "maximize", "training accuracy", "accuracy of the training clips as they were seen during the epoch"
    ),
    **{f"val/{name}": metric for name, metric in _SCORES.items()},
}


TEST_METRICS: dict[str, Metric] = {
    **{f"test/{name}": metric for name, metric in _SCORES.items()},
    "test/top5": Metric(
        "maximize", "top-5", "share of recordings whose species is among the five most probable"
    ),
    "test/auroc": Metric(
        "maximize", "AUROC", "mean area under the ROC curve, one against the rest, over species in truth"
    ),
    "test/ece": Metric(
        "minimize", "ECE", "expected calibration error, 15 bins of equal width (Guo et al. 2017)"
    ),
}
"""Scores of `birdtune evaluate`. A study cannot name one: the test split is not for choosing."""

TIES_BY = "val/loss"
"""What decides between trials, or configs, of the same value: lower is better. F1 is the same to the last
digit of all networks that predict one species only, as many do in their first epochs, and of all that are
right about the same recordings, as many are in their last."""

EVALUATION_SCHEMA = 2  # of evaluation.json


COSTS: dict[str, tuple[Direction, str]] = {
    "n_params": ("minimize", "trainable values of the network"),
    "hours": ("minimize", "wall time of building, training and validating"),
}
"""Costs of a trial, which a search of several objectives may weigh against the metrics."""


_DIRECTIONS: dict[str, Direction] = {name: metric.direction for name, metric in METRICS.items()}


def metric_direction(metric: str) -> Direction:
    """Return ``maximize`` or ``minimize``; raises ConfigError for an unknown metric."""
    return _direction("metric", metric, _DIRECTIONS)


def objective_direction(objective: str) -> Direction:
    """Return ``maximize`` or ``minimize`` of a metric or a cost; ConfigError for an unknown name."""
    costs = {name: direction for name, (direction, _) in COSTS.items()}
    return _direction("objective", objective, {**costs, **_DIRECTIONS})


def _direction(kind: str, name: str, known: Mapping[str, Direction]) -> Direction:
    if name not in known:
        raise ConfigError(f"unknown {kind} {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")
    return known[name]


def is_better(value: float, than: float | None, direction: Direction) -> bool:
    """Return whether `value` beats `than`; nan beats nothing and anything finite beats None."""
    if math.isnan(value):
        return False
    if than is None:
        return True
    return value > than if direction == "maximize" else value < than
