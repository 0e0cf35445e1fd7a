"""The names of what a run reports, with the direction of each: metrics by epoch, test scores and costs."""

from __future__ import annotations

import math
from typing import Literal

from birdnet_core.errors import ConfigError, did_you_mean

Direction = Literal["maximize", "minimize"]


_SCORES: dict[str, tuple[Direction, str]] = {
    "loss": (
        "minimize",
        "mean cross-entropy of the recordings' averaged probabilities, whatever loss trains",
    ),
    "accuracy": ("maximize", "share of recordings whose most probable species is the right one"),
    "f1_macro": ("maximize", "mean F1 over the species present in truth or prediction"),
    "f1_weighted": ("maximize", "mean F1 over species, weighted by their recordings in truth"),
    "map": ("maximize", "mean average precision over the species present in truth"),
    "f1_rare": ("maximize", "mean F1 over the rare stratum's species present in truth"),
    "f1_medium": ("maximize", "mean F1 over the medium stratum's species present in truth"),
    "f1_common": ("maximize", "mean F1 over the common stratum's species present in truth"),
}


METRICS: dict[str, tuple[Direction, str]] = {
    "train/loss": ("minimize", "mean training loss over the epoch's steps"),
    "train/accuracy": ("maximize", "accuracy of the training clips as they were seen during the epoch"),
    **{f"val/{name}": value for name, value in _SCORES.items()},
}


TEST_METRICS: dict[str, tuple[Direction, str]] = {
    **{f"test/{name}": value for name, value in _SCORES.items()},
    "test/top5": ("maximize", "share of recordings whose species is among the five most probable"),
    "test/auroc": ("maximize", "mean area under the ROC curve, one against the rest, over species in truth"),
    "test/ece": ("minimize", "expected calibration error, 15 bins of equal width (Guo et al. 2017)"),
}
"""What `birdtune evaluate` reports; no study can name one, so that none can look at the test split."""


def metric_direction(metric: str) -> Direction:
    """Return ``maximize`` or ``minimize``; the one place where a metric's direction is typed."""
    if metric not in METRICS:
        raise ConfigError(
            f"unknown metric {metric!r}{did_you_mean(metric, METRICS)} (known: {', '.join(METRICS)})"
        )
    return METRICS[metric][0]


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
