"""A study as the values of a study file in YAML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from birdnet_core.errors import ConfigError
from search_spaces.designs import Design, Range
from search_spaces.factors import Factors
from search_spaces.files.schema import DESIGNS, OF_SEARCH, is_whole_number
from search_spaces.files.yaml_file import write_yaml
from search_spaces.space import SAMPLES, Parameter, Space, SpaceFunction, declared, parameter_of, sample
from search_spaces.study import Ablation, Study


def to_yaml(study: Study) -> str:
    """Return `study` as a file that `parse_study` reads; ConfigError where it has no such form."""
    try:
        return write_yaml(to_plain(study))
    except ConfigError as error:
        raise ConfigError(f"study {study.name!r} cannot be written as YAML: {error}") from None


def to_plain(study: Study) -> dict[str, Any]:
    """Return `study` as the values of a study file, without those that are empty."""
    quick: dict[str, Any] = dict(study.quick)
    if isinstance(study, Ablation):
        own = {
            "factors": _plain_factors(study.factors),
            "design": _plain_design(study.design),
            "baseline": study.baseline_cell(),
            "repeats": study.n_repeats,
        }
        quick |= {"repeats": study.quick_repeats, "factors": _plain_factors(study.quick_factors)}
    else:
        own = {
            "space": plain_space(declared(study.space)),
            "trials": study.n_trials,
            "also": list(study.also),
        }
        own |= {name: getattr(study, name) for name in OF_SEARCH}
        quick["trials"] = study.quick_trials
        if study.quick_space is not None:
            quick["space"] = plain_space(declared(study.quick_space))
    plain = {
        "name": study.name,
        "question": study.question,
        "kind": study.kind,
        "base": study.base,
        **own,
        "metric": study.metric,
        "gates": [{k: v for k, v in asdict(gate).items() if v is not None} for gate in study.gates],
        "constraints": [str(bound) for bound in study.constraints],
        "quick": {key: value for key, value in quick.items() if value != {}},
    }
    return {key: value for key, value in plain.items() if value not in ({}, [], None)}


def _plain_factors(factors: Factors) -> dict[str, Any]:
    return {name: _plain_levels(name, levels) for name, levels in factors.items()}


def _plain_levels(name: str, levels: Any) -> Any:
    if isinstance(levels, Range):
        return _plain_range(name, levels)
    return dict(levels) if isinstance(levels, Mapping) else list(levels)


def _plain_range(name: str, given: Range) -> dict[str, Any]:
    log = {"log": True} if given.log else {}
    integer = {"integer": given.integer} if given.integer != is_whole_number(name) else {}
    return {"low": given.low, "high": given.high, **log, **integer}


def _plain_design(design: Design) -> Any:
    name = next((name for name, known in DESIGNS.items() if type(design) is known), None)
    if name is None:
        raise ConfigError(
            f"{type(design).__name__} is no design of study files, which are {', '.join(DESIGNS)}"
        )
    options = {f.name: getattr(design, f.name) for f in fields(design)}  # type: ignore[arg-type]
    return {name: options} if options else name


def plain_space(space: Space) -> dict[str, Any]:
    """Return a space as in YAML."""
    return {name: _plain_parameter(name, space.parameters[name]) for name in space.order}


def space_facts(space: SpaceFunction) -> dict[str, Any]:
    """Return the space of a search as in YAML, or where it has no such form, its `sampled_space`."""
    try:
        return plain_space(declared(space))
    except ConfigError:
        return sampled_space(space)


def sampled_space(space: SpaceFunction) -> dict[str, Any]:
    """Return the `distributions` of each parameter in random trials, and the `share` of trials with it."""
    found: dict[str, list[BaseDistribution]] = {}
    counts: Counter[str] = Counter()
    for trial in sample(space, SAMPLES):
        counts.update(trial.distributions.keys())
        for name, distribution in trial.distributions.items():
            seen = found.setdefault(name, [])
            if distribution not in seen:
                seen.append(distribution)
    return {
        name: {
            "distributions": [_plain_distribution(name, distribution) for distribution in seen],
            "share": counts[name] / SAMPLES,
        }
        for name, seen in found.items()
    }


def _plain_distribution(name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)  # lists among them have no form in YAML
    return _plain_parameter(name, parameter_of(distribution))


def _plain_parameter(name: str, parameter: Parameter) -> Any:
    when = {key: values[0] if len(values) == 1 else list(values) for key, values in parameter.when.items()}
    condition = {"when": when} if when else {}
    if parameter.has_otherwise:
        condition["else"] = parameter.otherwise
    if isinstance(parameter.values, Range):
        step = {} if parameter.step is None else {"step": parameter.step}
        return _plain_range(name, parameter.values) | step | condition
    return {"values": list(parameter.values), **condition} if condition else list(parameter.values)
