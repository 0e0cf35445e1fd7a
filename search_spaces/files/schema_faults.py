"""What the schema refuses, as a newcomer needs it: what was given, what would be accepted, what was meant."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

from jsonschema import Draft202012Validator, TypeChecker, ValidationError
from jsonschema.validators import extend

from birdnet_core.errors import did_you_mean
from search_spaces.files.schema import Schema, setting_types, study_schema
from search_spaces.files.yaml_file import Place, shown


def _is_whole(checker: TypeChecker, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(checker: TypeChecker, value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# For JSON Schema 3.0 is an integer and .nan a number; for what takes them here they are not.
_Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": _is_whole, "number": _is_number}
    ),
)


def refusals(values: dict[str, Any]) -> list[tuple[Place, str]]:
    """Return what the schema refuses: where, and what was given and would be accepted."""
    is_both = {"factors", "space"} <= set(values)
    found = []
    for error in _Validator(study_schema()).iter_errors(values):
        # Which keys are too many is known only when one of the two is gone.
        if not (is_both and "dependentSchemas" in error.absolute_schema_path):
            found += _told(error)
    return found


def _told(error: ValidationError) -> list[tuple[Place, str]]:
    place: Place = tuple(error.absolute_path)
    schema: Schema = error.schema
    given, asked = error.instance, error.validator_value
    keys = [key for key in place if isinstance(key, str)]
    name = keys[-1] if keys else "the study"
    if place and isinstance(place[-1], int) and isinstance(given, dict):
        name = f"an item of {name}"
    match error.validator:
        case "additionalProperties":
            known, patterns = schema["properties"], schema.get("patternProperties", ())
            extra = [k for k in given if k not in known and not any(re.search(p, k) for p in patterns)]
            return [((*place, key), _unknown(key, known)) for key in extra]
        case "required":
            return [(place, _missing(name, schema, key)) for key in asked if key not in given]
        case "not":
            return [(place, f"{name} cannot stand here: {schema['description']}")]
        case "oneOf":
            unknown = given.keys() - schema["properties"].keys()
            if any(difflib.get_close_matches(key, ("factors", "space"), n=1) for key in unknown):
                return []  # a slip in one of the two, which is told as an unknown key
            has = "both `factors` and `space`" if "space" in given else "neither `factors` nor `space`"
            return [(place, f"the study has {has}; an ablation has factors, a search has a space")]
        case "anyOf" if "required" in asked[0]:
            return [(place, f"{name} has {', '.join(given) or 'no keys'}; it takes {schema['description']}")]
        case "dependentRequired":
            return [(place, f"{name} has `else`, its value where it is not sampled, and no `when` it is")]
        case "minItems" | "minProperties":
            has = f"has only {len(given)}" if given else "is empty"
            return [(place, f"{name} {has}; it takes {asked} or more{_own_description(schema)}")]
        case "maxProperties":
            return [(place, f"{name} has {' and '.join(given)}; it takes one of them")]
        case "uniqueItems":
            twice = next(value for i, value in enumerate(given) if value in given[:i])
            return [(place, f"{name} has {shown(twice)} twice; leave one out")]
        case "type" if place[:1] == ("factors",) and len(place) == 2 and "." not in name:
            near = near_setting(name, setting_types()) or "."
            return [(place, f"{name} is no setting{near} A name of your own takes {schema['description']}")]
        case "minimum":
            accepted = f"{asked} or more"
        case "exclusiveMinimum":
            accepted = f"more than {asked}"
        case "minLength":
            accepted = "some text"
        case "pattern":
            accepted = "letters, digits, dots, dashes and underscores"
        case _:
            accepted = _accepted(schema)
    return [(place, f"{name} = {shown(given)} is not accepted; it takes {accepted}{_hint(given, schema)}")]


def _missing(name: str, schema: Schema, key: str) -> str:
    description = schema["properties"].get(key, {}).get("description")
    what = f": {description}" if description else f" (it needs {', '.join(schema['required'])})"
    return f"{name} has no `{key}`{what}"


def _own_description(schema: Schema) -> str:
    return f": {schema['description']}" if "description" in schema else ""


def _unknown(key: str, known: Iterable[str]) -> str:
    if not any("." in name for name in known):
        return f"unknown key {key!r}{did_you_mean(key, known)} (known: {', '.join(known)})"
    near = near_setting(key, known) or " (a setting is written group.name, such as optim.lr)"
    return f"unknown setting {key!r}{near}"


def near_setting(key: str, known: Iterable[str]) -> str:
    """Return a hint at the setting that was meant, or at those of its group; "" where nothing is near."""
    settings = [name for name in known if "." in name]
    group, _, last = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in settings if name.rpartition(".")[0] == group}
    meant = [siblings[name] for name in difflib.get_close_matches(last, siblings, n=1)]
    meant += [name for name in settings if name.rpartition(".")[2] == last]
    if meant:
        return f"; did you mean {meant[0]!r}?"
    for owner in (key, group):
        if options := [name.removeprefix(f"{owner}.") for name in settings if name.startswith(f"{owner}.")]:
            return f" ({owner} has {', '.join(options)})"
    return did_you_mean(key, settings)


_TYPES = {
    "integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text",
    "null": "null", "array": "a list", "object": "a mapping",
}  # fmt: skip


def _types(schema: Schema) -> list[str]:
    found = schema.get("type", [])
    return [found] if isinstance(found, str) else list(found)


def _accepted(schema: Schema) -> str:
    """Return what a schema takes, as a person would say it."""
    if {"array", "object"} & set(_types(schema)) and "description" in schema:
        return str(schema["description"])
    options = _options(schema)
    if len(options) > 12:
        return f"one of {len(options)}, such as {', '.join(options[:3])}"
    return " or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)


def _options(schema: Schema) -> list[str]:
    inner = [option for each in schema.get("anyOf", ()) for option in _options(each)]
    listed = [shown(option) for option in schema.get("enum", ())]
    return [*(_TYPES[name] for name in _types(schema)), *listed, *inner]


def _hint(given: Any, schema: Schema) -> str:
    """Return what newcomers trip over."""
    if isinstance(given, float) and given.is_integer() and abs(given) < 2**53:
        takes = {name for each in (schema, *schema.get("anyOf", ())) for name in _types(each)}
        return f"; write {int(given)}" if "integer" in takes else ""
    if not isinstance(given, str):
        return ""
    inner = [schema, *schema.get("anyOf", ())]
    types = {name for each in inner for name in _types(each)}
    is_number = re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", given)
    if (is_number and types & {"number", "integer"}) or (given in ("true", "false") and "boolean" in types):
        return "; leave the quotes out"
    if "array" in types:
        return "; a list is written [a, b]"
    words = [option for each in inner for option in each.get("enum", ()) if isinstance(option, str)]
    return did_you_mean(given, words)
