"""Which configs of a search are trained on a further fold, without Ray and Optuna.

The first fold is the cheapest fidelity of a config, and all folds together are its result: early-stopped
cross-validation (Bergman, Purucker and Hutter 2024, arXiv:2405.03389).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from birdnet_core.errors import ConfigError
from birdnet_core.records.metrics import Direction
from birdnet_core.records.trial import parts_of, trial_id
from search_spaces.study import Search, Study


def n_folds_of(study: Study, repeat: int, folds: Mapping[str, Any]) -> int:
    """Return how many folds a config of a search is trained on if it is not left behind; 1 of an ablation.

    `repeat` is the first one, `folds` are those of the data (`facts.gather`). Raises ConfigError where a
    search by folds has one validation split, or begins amid a deal.
    """
    if not isinstance(study, Search) or not study.folds:
        return 1
    n: int = folds["n"]
    if n == 1:
        why = "the manifest gives the split" if folds["given"] else "data.folds = 1"
        raise ConfigError(
            f"study {study.name!r} trains promising configs on further folds, and there is one validation "
            f"split: {why}; leave --folds out, or have two folds or more"
        )
    if repeat % n:
        raise ConfigError(
            f"study {study.name!r} trains promising configs on all {n} folds of a deal, and repeat = "
            f"{repeat} is amid one; it takes a multiple of {n}"
        )
    return n


BEST = 1 / 3
"""The share of the configs with as many folds that go on to the next one."""


class FoldRace:
    """Compares configs by their means over the folds that they have.

    As ASHA does at its rungs (Li et al. 2020, arXiv:1810.05934), it needs no config that has all folds, and
    keeps many workers busy. See the replays in benchmarks/RESULTS.md.
    """

    def __init__(self, n_folds: int, direction: Direction) -> None:
        self.n_folds = n_folds
        self._sign = 1 if direction == "maximize" else -1
        self._means: list[list[float]] = [[] for _ in range(n_folds)]

    def goes_on(self, values: Sequence[float]) -> bool:
        """Record the values of a config, one a fold; return whether it is trained on the next fold.

        It is if its mean is among the best third of those that were recorded before with as many folds.
        """
        n, mean = len(values), self._sign * fmean(values)
        if not math.isfinite(mean):
            return False
        others = self._means[n - 1]
        is_among = not others or mean >= np.percentile(others, 100 * (1 - BEST))
        others.append(mean)
        return bool(is_among) and n < self.n_folds

    def record(self, values: Sequence[float]) -> None:
        """Record the values of a config whose folds an earlier driver decided on."""
        for n in range(1, len(values) + 1):
            self.goes_on(values[:n])


def fold_of(first: str, fold: int) -> str:
    """Return the trial_id of a config on a further fold, from that on its first one."""
    config_id, repeat, seed = parts_of(first)
    return trial_id(config_id, repeat + fold, seed + fold)
