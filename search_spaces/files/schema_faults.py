"""What the schema refuses, in words: what a file has, what is accepted, and what was probably meant."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

from jsonschema import Draft202012Validator, TypeChecker, ValidationError
from jsonschema.validators import extend

from birdnet_core.errors import did_you_mean
from search_spaces.faults import Fault
from search_spaces.files.schema import Schema, setting_types, study_schema
from search_spaces.files.yaml_file import shown


def _is_whole(checker: TypeChecker, value: Any) -> bool:
    return type(value) is int


def _is_number(checker: TypeChecker, value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


# In JSON Schema 3.0 is an integer and .nan a number; a config accepts neither as such.
_Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": _is_whole, "number": _is_number}
    ),
)


def schema_faults(values: dict[str, Any]) -> list[Fault]:
    """Return what the schema refuses of the values of a file."""
    errors = list(_Validator(study_schema()).iter_errors(values))
    if {"factors", "space"} <= set(values):  # which keys are too many shows once one of the two is gone
        errors = [error for error in errors if "dependentSchemas" not in error.absolute_schema_path]
    return [fault for error in errors for fault in _faults(error)]


def _faults(error: ValidationError) -> list[Fault]:
    place, schema, given = tuple(error.absolute_path), error.schema, error.instance
    name = next((key for key in reversed(place) if isinstance(key, str)), "the study")
    if place and isinstance(place[-1], int) and isinstance(given, dict):
        name = f"an item of {name}"
    match error.validator:
        case "additionalProperties":
            known, patterns = schema["properties"], schema.get("patternProperties", ())
            extra = [k for k in given if k not in known and not any(re.search(p, k) for p in patterns)]
            return [Fault((*place, key), _unknown(key, known)) for key in extra]
        case "required":
            lacks = [key for key in error.validator_value if key not in given]
            return [
                Fault(place, f"{name} has no `{key}`: {_accepted(schema['properties'][key])}")
                for key in lacks
            ]
        case "not":
            text = f"{name} cannot stand here: {schema['description']}"
        case "oneOf":
            unknown = given.keys() - schema["properties"].keys()
            if any(difflib.get_close_matches(key, ("factors", "space"), n=1) for key in unknown):
                return []  # a misspelt one of the two is an unknown key
            has = "both `factors` and `space`" if "space" in given else "neither `factors` nor `space`"
            text = f"the study has {has}; an ablation has factors, a search has a space"
        case _:
            text = f"{name} = {shown(given)} is not accepted; it takes {_accepted(schema)}"
            text += (
                near_setting(name, setting_types()) if place == ("factors", name) and "." not in name else ""
            )
            text += _hint(given, schema)
    return [Fault(place, text)]


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


def _types_and_options(schema: Schema) -> tuple[list[str], list[Any]]:
    """Return the types that a schema accepts, and the values that it lists."""
    members = [schema, *schema.get("anyOf", ())]
    listed = [each.get("type", []) for each in members]
    types = [name for each in listed for name in ([each] if isinstance(each, str) else each)]
    return types, [option for each in members for option in each.get("enum", ())]


def _accepted(schema: Schema) -> str:
    """Return what a schema accepts: its values, its description, or its types."""
    types, options = _types_and_options(schema)
    if "description" in schema and not options:
        return str(schema["description"])
    words = [*(_TYPES[name] for name in types), *map(shown, options)]
    if len(words) > 12:
        return f"one of {len(words)}, such as {', '.join(words[:3])}"
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _hint(given: Any, schema: Schema) -> str:
    """Return a hint at common mistakes in the notation of a value."""
    types, options = _types_and_options(schema)
    if isinstance(given, float) and given.is_integer() and abs(given) < 2**53 and "integer" in types:
        return f"; write {int(given)}"
    if not isinstance(given, str):
        return ""
    is_number = re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", given)
    if (is_number and {"number", "integer"} & set(types)) or (
        given in ("true", "false") and "boolean" in types
    ):
        return "; leave the quotes out"
    if "array" in types:
        return "; a list is written [a, b]"
    return did_you_mean(given, [option for option in options if isinstance(option, str)])
