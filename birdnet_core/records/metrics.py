"""Every metric, test score and cost that a run reports: its name, direction and definition."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
"""Scores of `birdtune evaluate`. A study cannot name one: the test split is not for choosing."""


COSTS: dict[str, tuple[Direction, str]] = {
    "n_params": ("minimize", "trainable values of the network"),
    "hours": ("minimize", "wall time of building, training and validating"),
}
"""Costs of a trial, which a search of several objectives may weigh against the metrics."""


def metric_direction(metric: str) -> Direction:
    """Return ``maximize`` or ``minimize``; raises ConfigError for an unknown metric."""
    return _direction("metric", metric, METRICS)


def objective_direction(objective: str) -> Direction:
    """Return ``maximize`` or ``minimize`` of a metric or a cost; ConfigError for an unknown name."""
    return _direction("objective", objective, {**COSTS, **METRICS})


def _direction(kind: str, name: str, known: Mapping[str, tuple[Direction, str]]) -> Direction:
    if name not in known:
        raise ConfigError(f"unknown {kind} {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")
    return known[name][0]


def is_better(value: float, than: float | None, direction: Direction) -> bool:
    """Return whether `value` beats `than`; nan beats nothing and anything finite beats None."""
    if math.isnan(value):
        return False
    if than is None:
        return True
    return value > than if direction == "maximize" else value < than
