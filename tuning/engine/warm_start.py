"""What a search trains first: the best configs of an earlier search, and configs that are given."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna

from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.records.metrics import metric_direction
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from search_spaces.replay import OutsideSpaceError, parameters_of
from search_spaces.study import Overrides, Search
from tuning.engine.searcher import written_together

NOT_OF_ABLATIONS = "{!r} is an ablation; --from and --enqueue are for searches"
N_BEST = 3
"""How many configs of an earlier search are trained first: see the replays in benchmarks/RESULTS.md."""


def best_of_earlier(path: str | Path, search: Search) -> dict[str, Any]:
    """Return what the file of `search` keeps of an earlier search in the run folder `path`.

    That is the search of the same name there, or the only one. `configs` are the parameters of its best
    completed configs that keep the constraints of `search`, the best first; of a search by folds those with
    the most folds, by their mean. Configs outside of the space of `search` are passed over: `n_outside`.
    Raises ConfigError for another metric, where no config is within the space, and for a folder without
    such a search.
    """
    run = RunFolder.existing(path)
    there = _search_in(run, search.name)
    if there["metric"] != search.metric:
        raise ConfigError(
            f"--from {str(path)!r}: its search {there['name']!r} is by {there['metric']}, and this one by "
            f"{search.metric}: its best configs may be none by this metric"
        )
    configs, n_outside = list[dict[str, Any]](), 0
    ranked = _ranked(run, there["name"], search)
    for config in ranked:
        try:
            parameters, _ = parameters_of(search.space, config.flat())
        except OutsideSpaceError:
            n_outside += 1
            continue
        if parameters not in configs:
            configs.append(parameters)
        if len(configs) == N_BEST:
            break
    if not configs:
        raise ConfigError(
            f"--from {str(path)!r}: none of the {len(ranked)} configs of its search {there['name']!r} that "
            "completed and keep the constraints is in this search space; leave --from out"
        )
    return {
        "run": str(Path(path).absolute()), "study": there["name"], "configs": configs, "n_outside": n_outside,
        "epochs": there["epochs"], "data_id": (there.get("data") or {}).get("data_id"),
    }  # fmt: skip


def _ranked(run: RunFolder, study: str, search: Search) -> list[TrainConfig]:
    """Return the completed configs of a study that keep the constraints of `search`, the best first."""
    records, names = run.records(), dict[str, None]()
    for event in run.events():
        if event["event"] == "trial" and event["study"] == study:
            names[event["trial_id"]] = None
    configs: dict[str, list[TrialRecord]] = {}
    for name in names:
        if name in records and records[name].status == "completed":
            configs.setdefault(records[name].config_id, []).append(records[name])
    sign = 1 if metric_direction(search.metric) == "maximize" else -1
    found = []
    for of_folds in configs.values():
        value = fmean(record.objective(search.metric) for record in of_folds)
        bounds = [(each, fmean(r.objective(each.name) for r in of_folds)) for each in search.constraints]
        if math.isfinite(value) and all(bound.holds(mean) for bound, mean in bounds):
            found.append((len(of_folds), sign * value, TrainConfig.from_dict(of_folds[0].config)))
    return [config for *_, config in sorted(found, key=lambda each: each[:2], reverse=True)]


def _search_in(run: RunFolder, name: str) -> dict[str, Any]:
    found = {study: run.read_study(study) for study in run.study_names()}
    searches = {study: content for study, content in found.items() if content["kind"] == "search"}
    if name in searches:
        return searches[name]
    if len(searches) != 1:
        raise ConfigError(
            f"--from {str(run.path)!r}: it holds no search {name!r}; its searches are "
            f"{', '.join(searches) or 'none'}. A search takes one of its name, or the only one"
        )
    return next(iter(searches.values()))


@dataclass(frozen=True)
class Enqueued:
    """A config that is trained first: the parameters that lead to it, and the settings that it gives."""

    parameters: dict[str, Any]
    settings: Overrides


def enqueued(configs: Sequence[TrainConfig], search: Search) -> list[Enqueued]:
    """Return configs as `search` samples them; ConfigError with the values that are outside of its space."""
    found = []
    for number, config in enumerate(configs, start=1):
        try:
            found.append(Enqueued(*parameters_of(search.space, config.flat())))
        except OutsideSpaceError as error:
            raise ConfigError(f"--enqueue, config {number}: {error}") from None
    return found


def enqueue(study: optuna.Study, configs: Sequence[Mapping[str, Any]]) -> None:
    """Let an Optuna study suggest configs, by their parameters, first; each once, however often called."""
    there = {trial.user_attrs.get("enqueued") for trial in study.get_trials(deepcopy=False)}
    with written_together(study):
        for parameters in configs:
            text = json.dumps(parameters, sort_keys=True)
            name = hashlib.sha256(text.encode()).hexdigest()[:10]
            if name not in there:
                there.add(name)
                study.enqueue_trial(dict(parameters), user_attrs={"enqueued": name})
