"""The names of what a run reports, with the direction of each: metrics by epoch, test scores and costs."""

from __future__ import annotations

import math
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
"""What `birdtune evaluate` reports; no study can name one, so that none can look at the test split."""


def metric_direction(metric: str) -> Direction:
    """Return ``maximize`` or ``minimize``; the one place where a metric's direction is typed."""
    if metric not in METRICS:
        raise ConfigError(
            f"unknown metric {metric!r}{did_you_mean(metric, METRICS)} (known: {', '.join(METRICS)})"
        )
    return METRICS[metric].direction


COSTS: dict[str, tuple[Direction, str]] = {
    "n_params": ("minimize", "trainable values of the network"),
    "hours": ("minimize", "wall time of building, training and validating"),
}
"""What a trial costs: with the metrics, all that a search of several objectives may weigh."""


def objective_direction(objective: str) -> Direction:
    """Return ``maximize`` or ``minimize`` of a metric or a cost; ConfigError for an unknown name."""
    if objective in COSTS:
        return COSTS[objective][0]
    if objective not in METRICS:
        known = (*COSTS, *METRICS)
        raise ConfigError(
            f"unknown objective {objective!r}{did_you_mean(objective, known)} (known: {', '.join(known)})"
        )
    return metric_direction(objective)


def is_better(value: float, than: float | None, direction: Direction) -> bool:
    """Return whether `value` beats `than`; nan beats nothing and anything finite beats None."""
    if math.isnan(value):
        return False
    if than is None:
        return True
    return value > than if direction == "maximize" else value < than
