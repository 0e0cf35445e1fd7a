"""What the schema refuses, in words: what a file has, what is accepted, and what was probably meant."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

from jsonschema import Draft202012Validator, TypeChecker, ValidationError
from jsonschema.validators import extend

from birdnet_core.config import NUMBERS
from birdnet_core.errors import did_you_mean
from search_spaces.faults import Fault
from search_spaces.files.schema import KINDS, Schema, setting_types, study_schema
from search_spaces.files.yaml_file import in_line


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
    return [fault for error in _Validator(study_schema()).iter_errors(values) for fault in _faults(error)]


def _faults(error: ValidationError) -> list[Fault]:
    place, schema, given = tuple(error.absolute_path), error.schema, error.instance
    name = next((key for key in reversed(place) if isinstance(key, str)), f"the {schema.get('title')}")
    if place and isinstance(place[-1], int) and isinstance(given, dict):
        name = f"an item of {name}"
    match error.validator:
        case "additionalProperties":
            own = re.compile("|".join(schema.get("patternProperties", ("(?!)",))))
            extra = [key for key in given if key not in schema["properties"] and not own.search(key)]
            return [Fault((*place, key), _unknown(key, schema)) for key in extra]
        case "required":
            is_misspelt = "title" in schema and any(did_you_mean(key, KINDS.values()) for key in given)
            known = {*given, KINDS[schema["title"]]} if is_misspelt else given
            lacks = {key: schema["properties"][key] for key in error.validator_value if key not in known}
            return [Fault(place, f"{name} has no `{key}`: {_accepted(each)}") for key, each in lacks.items()]
        case "not":
            text = f"{name} is not accepted here: {schema['description']}"
        case _:
            text = f"{name} = {in_line(given)} is not accepted; it takes {_accepted(schema)}"
            is_own = place == ("factors", name) and "." not in name
            text += near_setting(name, setting_types()) if is_own else _hint(given, schema)
    return [Fault(place, text)]


def _unknown(key: str, schema: Schema) -> str:
    settings = [name for name in schema["properties"] if "." in name]
    others = [name for name in schema["properties"] if "." not in name and name not in NUMBERS]
    if settings and ("." in key or not others or near_setting(key, settings)):
        near = near_setting(key, settings) or " (a setting is written group.name, such as optim.lr)"
        return f"unknown setting {key!r}{near}"
    near, of = did_you_mean(key, others), ""
    if "title" in schema and not near:
        near = did_you_mean(key, set(KINDS.values()) - {key})
        of = "" if near else f" of the {schema['title']}"
    also = ", and settings such as optim.lr" if settings else ""
    return f"unknown key {key!r}{of}{near} (known: {', '.join(others)}{also})"


def near_setting(key: str, settings: Iterable[str]) -> str:
    """Return a hint at the setting that was meant, or at those of its group; "" where nothing is near."""
    for group in (key, key.rpartition(".")[0]):
        options = [name.removeprefix(f"{group}.") for name in settings if name.startswith(f"{group}.")]
        if near := difflib.get_close_matches(key.removeprefix(f"{group}."), options, n=1):
            return f"; did you mean {f'{group}.{near[0]}'!r}?"
        if options:
            return f" ({group} has {', '.join(options)})"
    same = [name for name in settings if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"; did you mean {same[0]!r}?" if same else did_you_mean(key, settings)


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
    words = [*(_TYPES[name] for name in types), *map(in_line, options)]
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
    is_number = re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", given) and {"number", "integer"} & set(types)
    if is_number or (given in ("true", "false") and "boolean" in types):
        return "; leave the quotes out"
    if "array" in types:
        return "; a list is written [a, b]"
    return did_you_mean(given, [option for option in options if isinstance(option, str)])
