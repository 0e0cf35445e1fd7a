"""The JSON Schema (draft 2020-12) of a study in YAML.

It is made from the config's dataclasses and the registries, so that it has the options of a new model. Files
are checked against it (`schema_faults`), and editors complete from it (`birdtune study schema`). Every
description completes the sentence "it takes ...", or, for what is not accepted at all, says why.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal

from birdnet_core.config import COMPONENTS, NUMBERS, TrainConfig
from birdnet_core.records.checks import A_NAME, NAME
from birdnet_core.records.metrics import COSTS, METRICS, VALIDATION_METRICS
from birdnet_core.registry import augmentations
from search_spaces.designs import (
    Design,
    FractionalFactorial,
    FullFactorial,
    LatinHypercube,
    LeaveOneOut,
    OneAtATime,
    Range,
)
from search_spaces.study import SCHEDULERS, Gate

Schema = dict[str, Any]

DESIGNS: dict[str, type[Design]] = {
    "full": FullFactorial,
    "one-at-a-time": OneAtATime,
    "leave-one-out": LeaveOneOut,
    "fractional": FractionalFactorial,
    "latin-hypercube": LatinHypercube,
}
"""The designs by their names in a study file; their options there are the fields of the class."""

KINDS = {"ablation": "factors", "search": "space"}
"""What each kind of study varies."""

OF_SEARCH = (
    "scheduler", "grace_epochs", "reduction_factor", "audit", "folds", "rung_metric", "asha_within",
)  # fmt: skip
"""The keys of a file that are fields of `Search`."""

OWN_NAME = r"^(?!(seed|repeat)$)[^.]+$"
SIZES = ("repeats", "factors", "trials", "space")
"""The keys of `quick` that are not settings."""

_SIMPLE = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}


def setting_types() -> dict[str, list[Any]]:
    """Return every dotted setting with its types: an option has one in each component that knows it."""
    found: dict[str, list[Any]] = {name: [int] for name in NUMBERS}

    def add(setting: str, annotation: Any) -> None:
        known = found.setdefault(setting, [])
        if annotation not in known:
            known.append(annotation)

    config = TrainConfig()
    for section in fields(config):
        value = getattr(config, section.name)
        if section.name in COMPONENTS:
            registered = COMPONENTS[section.name]
            add(f"{section.name}.name", Literal[tuple(registered.names())])
            for name in registered.names():
                for option in registered[name].options.values():
                    add(f"{section.name}.{option.name}", option.annotation)
        elif section.name == "augment":
            for name in augmentations.names():
                for option in augmentations[name].options.values():
                    add(f"augment.{name}.{option.name}", option.annotation)
        elif is_dataclass(value):
            for name, annotation in typing.get_type_hints(type(value)).items():
                add(f"{section.name}.{name}", annotation)
    return found


def is_whole_number(setting: str) -> bool:
    """Return whether whole numbers are the only numbers that the setting takes."""
    types = setting_types().get(setting, [])
    members = {member for each in types for member in (typing.get_args(each) or (each,))}
    return int in members and float not in members


def type_schema(annotation: Any) -> Schema:
    """Return the schema of a type's values."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _SIMPLE:
        return {"type": _SIMPLE[annotation]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        if arguments[-1] is ...:
            return {"type": "array", "items": type_schema(arguments[0])}
        members = [type_schema(argument) for argument in arguments]
        return {"type": "array", "prefixItems": members, "minItems": len(members), "maxItems": len(members)}
    if origin in (types.UnionType, typing.Union):
        return _any_of([type_schema(argument) for argument in arguments])
    return {}


def _any_of(schemas: list[Schema]) -> Schema:
    distinct = [schema for i, schema in enumerate(schemas) if schema not in schemas[:i]]
    if len(distinct) == 1:
        return distinct[0]
    if all(list(schema) == ["type"] for schema in distinct):
        return {"type": [schema["type"] for schema in distinct]}
    return {"anyOf": distinct}


def dataclass_schema(cls: type[Any], **instead: Schema) -> Schema:
    """Return the schema of a dataclass written as a mapping; `instead` replaces that of a field."""
    hints = typing.get_type_hints(cls)
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    properties = {f.name: instead.get(f.name, type_schema(hints[f.name])) for f in fields(cls)}
    return _mapping(properties, required=needed)


def _mapping(properties: Mapping[str, Schema], **more: Any) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False, **more}


def _count(of: str, least: int = 1) -> Schema:
    return {"type": "integer", "minimum": least, "description": f"a whole number of {least} or more: {of}"}


def _refused(why: str) -> Schema:
    """Return the schema of what is not accepted at all."""
    return {"not": {}, "description": why}


def study_schema() -> Schema:
    """Return the schema of a study file: of a search where it has a key of one and no factors."""
    values = {name: _any_of([type_schema(each) for each in types]) for name, types in setting_types().items()}
    values["training.monitor"] = _refused("it is the study's metric; set `metric`")
    ref = {name: {"$ref": f"#/$defs/{name}"} for name in values}
    # Not part of a config's identity: cells that differ in it would be one config.
    fixed = {name: _refused("trials do not differ in it; it belongs in base") for name in values
             if name.startswith("runtime.") or name == "training.monitor"}  # fmt: skip
    fixed["optim.decay_before"] = _refused("a list is no level; set it in base, or in named levels")
    for name in NUMBERS:
        fixed[name] = _refused("every cell has the same repeats and seeds; `repeats` is how many")
    varied = {name: each for name, each in ref.items() if name not in fixed}

    def of_kind(kind: str, own: dict[str, Schema]) -> Schema:
        quick = {**ref, **{key: own[key] for key in SIZES if key in own}}
        properties: dict[str, Schema] = {
            "name": {
                "type": "string", "pattern": f"{NAME}(?!\\n)", "maxLength": 100,
                "description": f"a name for the run folder and the report, which holds {A_NAME}",
            },
            "question": {
                "type": "string", "minLength": 1,
                "description": "the question in words, with which reports open",
            },
            "kind": {"enum": [kind], "description": "ablation with factors, search with a space"},
            "base": {"$ref": "#/$defs/settings"},
            "epochs": _count("the epochs of a trial (training.epochs)"),
            "metric": {
                "enum": list(VALIDATION_METRICS),
                "description": "the metric that ranks cells or trials, val/f1_macro if left out",
            },
            "gates": {
                "type": "array", "items": dataclass_schema(Gate, metric={"enum": list(METRICS)}),
                "description": "a list of values for the best cell to reach, each {metric: ..., target: ...}",
            },
            "constraints": {
                "type": "array", "items": {"type": "string"},
                "description": "a list of bounds that a config has to keep, such as n_params<=5e6",
            },
            "quick": _mapping(quick, description=f"changes under --quick: settings, or {', '.join(SIZES)}"),
            **own,
        }  # fmt: skip
        return _mapping(properties, title=kind, required=["question", KINDS[kind]])

    of_search = _of_search(varied, fixed)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "birdtune study",
        "if": {"not": {"required": ["factors"]}, "anyOf": [{"required": [key]} for key in of_search]},
        "then": of_kind("search", of_search),
        "else": of_kind("ablation", _of_ablation(varied, fixed)),
        "$defs": {
            "settings": _mapping(ref, description="settings, such as {optim.lr: 1e-3}"),
            "when": _when_schema(varied),
            **values,
        },
    }


def _list(value: Schema, least: int, description: str) -> Schema:
    return {
        "type": "array", "items": value, "minItems": least, "uniqueItems": True, "description": description
    }  # fmt: skip


def _of_ablation(varied: Mapping[str, Schema], fixed: Mapping[str, Schema]) -> dict[str, Schema]:
    levels = "two or more different values to compare, or for a latin-hypercube {low: ..., high: ...}"
    by_name = [name for name, design in DESIGNS.items() if not dataclass_schema(design)["required"]]
    lists = {
        name: dataclass_schema(Range) | _list(value, 2, f"a list of {levels}") | {"type": ["array", "object"]}
        for name, value in varied.items()
    }
    named: Schema = {
        "type": "object", "minProperties": 2, "additionalProperties": {"$ref": "#/$defs/settings"},
        "description": "two or more named levels, each with settings: {on: {augment.mixup.p: 0.6}, off: {}}",
    }  # fmt: skip
    return {
        "factors": _mapping(
            {**lists, **fixed}, patternProperties={OWN_NAME: named}, minProperties=1,
            description="one factor or more, settings with lists of values or own names with named levels; "
            "without factors, a search has a space",
        ),
        "design": {
            "type": ["string", "object"],
            "if": {"type": "string"}, "then": {"enum": [*by_name, {"latin-hypercube": {"n": 20}}]},
            "properties": {name: dataclass_schema(design) for name, design in DESIGNS.items()},
            "additionalProperties": False, "minProperties": 1, "maxProperties": 1,
            "description": f"one of {', '.join(by_name)}, or with options {{latin-hypercube: {{n: 20}}}}",
        },
        "baseline": _mapping(
            varied, patternProperties={OWN_NAME: {"type": ["string", "number", "boolean", "null"]}},
            description="factors with the level that the others are compared with, the first if left out",
        ),
        "repeats": _count("the repeats of every cell"),
    }  # fmt: skip


def _of_search(varied: Mapping[str, Schema], fixed: Mapping[str, Schema]) -> dict[str, Schema]:
    step = {"type": "number", "exclusiveMinimum": 0, "description": "a number above 0"}

    def parameter(value: Schema) -> Schema:
        listed = _list(value, 1, "a list of different values to choose from")
        rest = {"when": {"$ref": "#/$defs/when"}, "else": value}
        bounds = {**dataclass_schema(Range)["properties"], "step": step, **rest}
        more = {
            "type": ["array", "object"],
            "description": "a list of different values, {low: ..., high: ...}, or {values: [...], when: ...}",
        }
        return {
            "if": {"type": "array"}, "then": listed,
            "else": {
                "if": {"required": ["values"]}, "then": _mapping({"values": listed, **rest}, **more),
                "else": _mapping(bounds, required=["low", "high"], **more),
            },
        }  # fmt: skip

    return {
        "space": _mapping(
            {**{name: parameter(value) for name, value in varied.items()}, **fixed}, minProperties=1,
            description="one setting or more, each with a list of values or with {low: ..., high: ...}",
        ),
        "trials": _count("the configs to sample"),
        "scheduler": {
            "enum": list(SCHEDULERS), "description": "the scheduler that ends trials early, asha if left out"
        },
        "grace_epochs": _count("the epochs that every trial may train before the scheduler compares it"),
        "reduction_factor": _count("asha and hyperband keep the best 1/factor at each rung", 2),
        "audit": {
            "type": "number", "minimum": 0, "maximum": 1,
            "description": "the share of the trials to be ended early that train to the end, 0.1 if left out",
        },
        "folds": {
            "type": "boolean",
            "description": "whether promising configs are trained on all validation folds, false if left out",
        },
        "rung_metric": {
            "enum": list(VALIDATION_METRICS),
            "description": "the metric by which the scheduler compares trials, the study's if left out",
        },
        "asha_within": {
            "enum": sorted(varied),
            "description": "a setting: the scheduler compares only trials with the same value of it",
        },
        "also": _list({"enum": [*METRICS, *COSTS]}, 0, "a list of further, different objectives, under fifo"),
    }  # fmt: skip


def _when_schema(varied: Mapping[str, Schema]) -> Schema:
    either = {
        name: {"if": {"type": "array"}, "then": {"items": value, "minItems": 1}, "else": value}
        for name, value in varied.items()
    }
    what = "other settings of the space, each with the value, or the list of values, that it must have"
    return _mapping(either, minProperties=1, description=what)
