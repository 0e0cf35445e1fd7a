"""A YAML file as plain values that know their lines.

Numbers and booleans are those of YAML 1.2, as editors take them: `1e-3` is a number and `on` a word. PyYAML
alone reads YAML 1.1, where it is the other way round, and takes the last of two equal keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from birdnet_core.errors import ConfigError

Place = tuple[str | int, ...]
"""Keys and indices that lead to a value."""

_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (
        r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        lambda text: int(text, 0) if text.startswith(("0o", "0x")) else int(text),
    ),
    "float": (_FLOAT, lambda text: float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))),
    "str": (r"(?!)", str),
}
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Takes scalars as the core schema of YAML 1.2 does."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes what YAML 1.1 or 1.2 would take for something else than text."""


for _name, (_pattern, _) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), None)
_Dumper.add_implicit_resolver(_TAG + "float", re.compile(f"(?:{_FLOAT})$"), None)


@dataclass
class YamlFile:
    """What a file says.

    Args:
        shown: the path, as messages give it.
        values: mappings, lists and scalars; keys are always text.
        lines, texts: of every value by its place: the line of its key or item; the text of a scalar.
        faults: what was found wrong, with the line.
    """

    shown: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)
    texts: dict[Place, str] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)

    def fault(self, place: Place, text: str) -> None:
        """Note what is wrong at `place`, or at what stands nearest around it."""
        while place not in self.lines:
            place = place[:-1]
        if (self.lines[place], text) not in self.faults:
            self.faults.append((self.lines[place], text))

    def raise_faults(self) -> None:
        """Raise ConfigError that lists the faults, if any, by their lines."""
        if self.faults:
            faults = sorted(self.faults, key=lambda fault: fault[0])
            raise ConfigError("\n".join(f"{self.shown}:{line}: {text}" for line, text in faults))


def read_yaml(text: str, shown: str) -> YamlFile:
    """Return what `text` says; ConfigError where it is no YAML or no mapping."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_no_yaml(error, text, shown)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{shown}:{line}: this is no YAML: {error.reason}") from None
    if not isinstance(node, yaml.MappingNode):
        given = "is empty" if node is None else "holds no keys with values"
        raise ConfigError(f"{shown}:1: the file {given}; it takes lines such as `question: Does MixUp help?`")
    file = YamlFile(shown)
    file.values = _value(node, (), file, ())
    return file


_COMMON = {
    "mapping values are not allowed here": "a second colon on one line; text with a colon takes quotes",
    "expected <block end>": "the line is indented otherwise than those above that it belongs to",
    "expected ',' or": "a bracket that is not closed",
    "expected the node content": "a value is missing",
}


def _no_yaml(error: yaml.MarkedYAMLError, text: str, shown: str) -> str:
    mark = error.problem_mark or error.context_mark
    number = mark.line if mark else 0
    line = (*text.splitlines(), "")[number]
    if line[: mark.column + 1 if mark else 0].strip(" -").startswith("\t"):
        return f"{shown}:{number + 1}: a tab; YAML is indented with spaces"
    problem = str(error.problem)
    told = next((words for start, words in _COMMON.items() if problem.startswith(start)), problem)
    return f"{shown}:{number + 1}: this is no YAML: {told}, in {line.strip()!r}"


def _value(node: yaml.Node, place: Place, file: YamlFile, around: tuple[yaml.Node, ...]) -> Any:
    """Return the plain value of a node, and enter its lines."""
    file.lines.setdefault(place, node.start_mark.line + 1)
    if node in around:
        file.fault(place, "an alias of what it stands in; write the values out")
        return None
    inside = (*around, node)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return [_value(item, (*place, i), file, inside) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return _mapping(node, place, file, inside)
    name = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.ScalarNode) and name in _SCALARS:
        file.texts[place] = node.value
        pattern, read = _SCALARS[name]
        if name == "str" or re.fullmatch(pattern, node.value):
            return read(node.value)
    file.fault(place, f"the tag {node.tag.replace(_TAG, '!!')!r} is not accepted here; leave it out")
    return None


def _mapping(
    node: yaml.MappingNode, place: Place, file: YamlFile, inside: tuple[yaml.Node, ...]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            file.faults.append((line, "a key is a list or a mapping; it takes a word"))
            continue
        key = key_node.value
        here = (*place, key)
        if key in values:
            file.faults.append(
                (line, f"{key!r} is given twice, first in line {file.lines[here]}; leave one out")
            )
            continue
        file.lines[here] = line
        values[key] = _value(value_node, here, file, inside)
    return values


def write_yaml(values: dict[str, Any]) -> str:
    """Return `values` as YAML in their order, the innermost lists and mappings on a line."""
    text: str = yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100
    )
    return text


def shown(value: Any) -> str:
    """Return a value as it stands in YAML, on one line and not too long."""
    if isinstance(value, str):
        return repr(value)
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=1_000_000, sort_keys=False)
    text = text.strip().removesuffix("...").strip()
    return text if len(text) <= 60 else f"{text[:57]}..."
