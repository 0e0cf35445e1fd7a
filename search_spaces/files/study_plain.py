"""A study as plain values, in the form of a study file in YAML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from birdnet_core.errors import ConfigError
from search_spaces.designs import Design, Range
from search_spaces.files.schema import DESIGNS, is_whole_number
from search_spaces.files.yaml_file import write_yaml
from search_spaces.space import SAMPLES, Parameter, Space, SpaceFunction, declared, parameter_of, sample
from search_spaces.study import Ablation, Study


def to_yaml(study: Study) -> str:
    """Return `study` as a file that `parse_study` reads back; ConfigError where it cannot be written down."""
    try:
        return write_yaml(to_plain(study))
    except ConfigError as error:
        raise ConfigError(f"study {study.name!r} cannot be written as YAML: {error}") from None


def to_plain(study: Study) -> dict[str, Any]:
    """Return what stands in the YAML of `study`: what differs from the defaults, and what is varied."""
    plain: dict[str, Any] = {"name": study.name, "question": study.question}
    if isinstance(study, Ablation):
        plain |= {
            "kind": "ablation",
            "base": study.base,
            "factors": {name: _plain_levels(name, levels) for name, levels in study.factors.items()},
            "design": _plain_design(study.design),
            "baseline": study.baseline_cell() or {},
            "seeds": study.n_seeds,
            "metric": study.metric,
        }
        quick = {**study.quick, "seeds": study.quick_seeds}
        if study.quick_factors:
            quick["factors"] = {name: _plain_levels(name, each) for name, each in study.quick_factors.items()}
    else:
        plain |= {
            "kind": "search",
            "base": study.base,
            "space": plain_space(declared(study.space)),
            "trials": study.n_trials,
            "metric": study.metric,
            "also": list(study.also),
            "scheduler": study.scheduler,
            "grace_epochs": study.grace_epochs,
            "reduction_factor": study.reduction_factor,
            "asha_within": study.asha_within,
        }
        quick = {**study.quick, "trials": study.quick_trials}
        if study.quick_space is not None:
            quick["space"] = plain_space(declared(study.quick_space))
    gates = [{k: v for k, v in asdict(gate).items() if v is not None} for gate in study.gates]
    given = {key: value for key, value in (plain | {"gates": gates}).items() if value not in ({}, [], None)}
    return {**given, "quick": quick}


def _plain_levels(name: str, levels: Any) -> Any:
    if isinstance(levels, Range):
        return _plain_range(name, levels)
    return dict(levels) if isinstance(levels, Mapping) else list(levels)


def _plain_range(name: str, given: Range) -> dict[str, Any]:
    plain: dict[str, Any] = {"low": given.low, "high": given.high}
    if given.log:
        plain["log"] = True
    if given.integer != is_whole_number(name):
        plain["integer"] = given.integer
    return plain


def _plain_design(design: Design) -> Any:
    names = [name for name, known in DESIGNS.items() if type(design) is known]
    if not names:
        raise ConfigError(
            f"{type(design).__name__} is no design of study files, which are {', '.join(DESIGNS)}"
        )
    options = {f.name: getattr(design, f.name) for f in fields(design)}  # type: ignore[arg-type]
    return {names[0]: options} if options else names[0]


def plain_space(space: Space) -> dict[str, Any]:
    """Return a space as it stands in YAML."""
    return {name: _plain_parameter(name, space.parameters[name]) for name in space.order}


def space_facts(space: SpaceFunction) -> dict[str, Any]:
    """Return what a search samples: its space as it stands in YAML, else what random trials show of it."""
    try:
        return plain_space(declared(space))
    except ConfigError:
        return sampled_space(space)


def sampled_space(space: SpaceFunction) -> dict[str, Any]:
    """Return of each parameter its `distributions` in random trials, and the `share` of them that had it."""
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
    if isinstance(parameter.values, Range):
        plain = _plain_range(name, parameter.values)
        if parameter.step is not None:
            plain["step"] = parameter.step
    elif not parameter.when:
        return list(parameter.values)
    else:
        plain = {"values": list(parameter.values)}
    when = {key: values[0] if len(values) == 1 else list(values) for key, values in parameter.when.items()}
    if when:
        plain["when"] = when
    if parameter.has_otherwise:
        plain["else"] = parameter.otherwise
    return plain
