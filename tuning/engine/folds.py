"""How many configs of a search are trained on all folds, without Ray and Optuna.

The first fold is the cheap fidelity of a config, and all folds together are its result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdnet_core.errors import ConfigError
from birdnet_core.records.trial import parts_of, trial_id
from search_spaces.study import Search, Study


def n_folds_of(study: Study, repeat: int, folds: Mapping[str, Any]) -> int:
    """Return how many folds the best configs of a search are trained on; 1 of an ablation.

    `repeat` is the first one, `folds` are those of the data (`facts.gather`). Raises ConfigError where a
    search by folds has one validation split, or begins amid a deal.
    """
    if not isinstance(study, Search) or not study.folds:
        return 1
    n: int = folds["n"]
    if n == 1:
        why = "the manifest gives the split" if folds["given"] else "data.folds = 1"
        raise ConfigError(
            f"study {study.name!r} trains its best configs on further folds, and there is one validation "
            f"split: {why}; leave --folds out, or have two folds or more"
        )
    if repeat % n:
        raise ConfigError(
            f"study {study.name!r} trains its best configs on all {n} folds of a deal, and repeat = "
            f"{repeat} is amid one; it takes a multiple of {n}"
        )
    return n


ENOUGH_CONFIGS = 30
"""From about so many configs on, a search by folds finds better ones than one fold for all."""


def n_finalists(n_configs: int) -> int:
    """Return how many of the configs of a search are trained on all folds: a tenth, at least one.

    They are the best on the first fold, once all configs have it. Rules that let configs go on before lost
    more in the replays of benchmarks/RESULTS.md, as they have less to compare them with.
    """
    return max(1, n_configs // 10)


def few_configs(study: Study) -> list[str]:
    """Return a caution for a search with too few configs to gain by its folds, or none."""
    if not isinstance(study, Search) or not study.folds or study.n_trials >= ENOUGH_CONFIGS:
        return []
    n = n_finalists(study.n_trials)
    return [
        f"--folds pays from about {ENOUGH_CONFIGS} trials on: of {study.n_trials}, {n} will be trained on "
        "all folds, which makes scores more certain, and hardly improves the choice"
    ]


def fold_of(first: str, fold: int) -> str:
    """Return the trial_id of a config on a further fold, from that on its first one."""
    config_id, repeat, seed = parts_of(first)
    return trial_id(config_id, repeat + fold, seed + fold)
