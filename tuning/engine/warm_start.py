"""What a search begins with: observations of an earlier search, and configs that are trained first."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.records.run_folder import RunFolder
from search_spaces.replay import OutsideSpaceError, parameters_of, replayed
from search_spaces.study import Overrides, Search
from tuning.engine.searcher import OBSERVED, stored_trials, written_together

LEARNING = ("tpe", "gp")
"""The samplers that learn from trials which another search has trained."""
MARK = "warm_start"
"""The attribute of an Optuna study that holds its observations."""


@dataclass(frozen=True)
class Observations:
    """Trials of an earlier search as a new one takes them, and `facts` for the study's file."""

    trials: list[FrozenTrial]
    facts: dict[str, Any]


def observations(path: str | Path, search: Search, sampler: str) -> Observations:
    """Return what the earlier search in the run folder `path` observed, within the space of `search`.

    It is the search of the same name there, or the only one. Parameters that `search` does not sample are
    left out, and so are trials with a value outside of its space, without a value that its constraints
    need, or, for ``gp``, without all of its parameters. Raises ConfigError for other objectives, a sampler
    that does not learn from them, and a folder without such a search.
    """
    if sampler not in LEARNING:
        raise ConfigError(
            f"sampler {sampler!r} does not learn from observations of an earlier search; "
            f"take {' or '.join(LEARNING)}, or leave --from out"
        )
    run = RunFolder.existing(path)
    there = _search_in(run, search.name)
    objectives = (there["metric"], *there.get("also", ()))
    if objectives != search.objectives:
        raise ConfigError(
            f"--from {str(path)!r}: its search {there['name']!r} is by {', '.join(objectives)}, and this one "
            f"by {', '.join(search.objectives)}; observations of another metric teach nothing"
        )
    records = run.records()
    taken, left_out, n_outside = list[FrozenTrial](), Counter[str](), 0
    for trial in stored_trials(run, there):
        record = records.get(trial.user_attrs.get("trial_id", ""))
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or OBSERVED in trial.user_attrs:
            continue
        is_whole = trial.state == TrialState.COMPLETE
        try:
            part = replayed(search.space, trial.params)
        except OutsideSpaceError:
            n_outside += 1
            continue
        excesses = {
            str(bound): bound.excess(record.objective(bound.name) if record else float("nan"))
            for bound in search.constraints
            if is_whole or bound.name == "n_params"
        }
        is_known = all(excess == excess for excess in excesses.values())
        if not part.parameters or not is_known or (sampler == "gp" and part.missing):
            n_outside += 1
            continue
        left_out.update(trial.params.keys() - part.parameters.keys())
        taken.append(
            optuna.create_trial(
                state=trial.state,
                values=trial.values if is_whole else None,
                params=part.parameters,
                distributions=part.distributions,
                intermediate_values=trial.intermediate_values,
                user_attrs={OBSERVED: trial.number},
                constraints=excesses,
            )
        )
    facts = {
        "run": str(Path(path).absolute()), "study": there["name"], "n": len(taken), "n_outside": n_outside,
        "left_out": sorted(left_out), "epochs": there["epochs"],
        "data_id": (there.get("data") or {}).get("data_id"),
    }  # fmt: skip
    return Observations(taken, facts)


def _search_in(run: RunFolder, name: str) -> dict[str, Any]:
    found = {study: run.read_study(study) for study in run.study_names()}
    searches = {study: content for study, content in found.items() if content["kind"] == "search"}
    if name in searches:
        return searches[name]
    if len(searches) != 1:
        raise ConfigError(
            f"--from {str(run.path)!r}: it holds no search {name!r}; its searches are "
            f"{', '.join(searches) or 'none'}. A search learns from one of its name, or from the only one"
        )
    return next(iter(searches.values()))


def add_observations(study: optuna.Study, found: Observations) -> None:
    """Add observations to an Optuna study, once."""
    there = {trial.user_attrs.get(OBSERVED) for trial in study.get_trials(deepcopy=False)}
    with written_together(study):
        study.add_trials([trial for trial in found.trials if trial.user_attrs[OBSERVED] not in there])
        study.set_user_attr(MARK, found.facts)


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


def enqueue(study: optuna.Study, found: Sequence[Enqueued]) -> None:
    """Let an Optuna study suggest configs first, each once however often it is asked to."""
    there = {trial.user_attrs.get("enqueued") for trial in study.get_trials(deepcopy=False)}
    for each in found:
        text = json.dumps(each.parameters, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:10]
        if name not in there:
            study.enqueue_trial(each.parameters, user_attrs={"enqueued": name})
