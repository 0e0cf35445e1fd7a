"""A YAML file as plain values, with the line of each, read and written by ruamel.yaml.

Scalars are those of the core schema of YAML 1.2, as editors read them: `1e-3` is a number, `on` a word.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver

from birdnet_core.errors import ConfigError
from search_spaces.faults import Fault, Place

_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (
        r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        lambda text: int(text, 0) if text.startswith(("0o", "0x")) else int(text),
    ),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        lambda text: float(re.sub(r"\.(inf|nan)", r"\1", text.lower())),
    ),
}


class _CoreSchema(VersionedResolver):
    """The core schema and no more: ruamel.yaml takes `1_000` for a number and has dates."""

    versioned_resolver = {
        None: [(_TAG + name, re.compile(f"(?:{pattern})$")) for name, (pattern, _) in _SCALARS.items()]
    }


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _CoreSchema
    return yaml


@dataclass
class YamlFile:
    """The content of a file.

    Args:
        path: as messages give it.
        values: mappings, lists and scalars; keys are always text.
        lines, texts: of every value by its place: the line of its key or item; the text of a scalar.
        faults: what YAML allows and a study does not.
    """

    path: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)
    texts: dict[Place, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def error(self, faults: Iterable[Fault]) -> ConfigError:
        """Return an error that lists `faults` by line; a place that the file lacks has the line around it."""
        located = dict.fromkeys((self._line(fault.place), fault.text) for fault in faults)
        return _error(self.path, *sorted(located, key=lambda each: each[0]))

    def _line(self, place: Place) -> int:
        while place not in self.lines:
            place = place[:-1]
        return self.lines[place]


def _error(path: str, *located: tuple[int, str]) -> ConfigError:
    return ConfigError("\n".join(f"{path}:{line}: {text}" for line, text in located))


def read_yaml(text: str, path: str) -> YamlFile:
    """Return the content of `text`; ConfigError where it is not YAML or not a mapping."""
    try:
        node = _yaml().compose(text)
    except MarkedYAMLError as error:
        raise _error(path, _syntax_fault(error, text)) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _error(path, (line, f"this is no YAML: {error.reason}")) from None
    if not isinstance(node, MappingNode):
        given = "is empty" if node is None else "holds no keys with values"
        raise _error(path, (1, f"the file {given}; it takes lines such as `question: Does MixUp help?`"))
    file = YamlFile(path)
    file.values = _value(node, (), file, ())
    return file


_COMMON = {
    "mapping values are not allowed here": "a second colon on one line; text with a colon takes quotes",
    "expected <block end>": "the line is not indented like those above that it belongs to",
    "expected ',' or": "a bracket that is not closed",
    "expected the node content": "a value is missing",
}


def _syntax_fault(error: MarkedYAMLError, text: str) -> tuple[int, str]:
    mark = error.problem_mark or error.context_mark
    line = (*text.splitlines(), "")[mark.line]
    if line[: mark.column + 1].strip(" -").startswith("\t"):
        return mark.line + 1, "a tab; YAML is indented with spaces"
    problem = str(error.problem)
    words = next((words for start, words in _COMMON.items() if problem.startswith(start)), problem)
    return mark.line + 1, f"this is no YAML: {words}, in {line.strip()!r}"


def _value(node: Node, place: Place, file: YamlFile, around: tuple[Node, ...]) -> Any:
    """Return the plain value of a node, and enter its lines."""
    file.lines.setdefault(place, node.start_mark.line + 1)
    tag, inside = str(node.tag).removeprefix(_TAG), (*around, node)
    if node in around:
        file.faults.append(Fault(place, "an alias of the value that contains it; write the values out"))
    elif isinstance(node, SequenceNode) and tag == "seq":
        return [_value(item, (*place, i), file, inside) for i, item in enumerate(node.value)]
    elif isinstance(node, MappingNode) and tag == "map":
        return _mapping(node, place, file, inside)
    elif isinstance(node, ScalarNode) and (value := _scalar(tag, node.value)) is not ...:
        file.texts[place] = node.value
        return value
    else:
        tag = str(node.tag).replace(_TAG, "!!")
        file.faults.append(Fault(place, f"the tag {tag!r} is not accepted here; leave it out"))
    return None


def _scalar(tag: str, text: str) -> Any:
    """Return the value of a scalar, an ellipsis where `text` is none of its tag."""
    pattern, read = _SCALARS.get(tag, (r"(?!)", str))
    return text if tag == "str" else read(text) if re.fullmatch(pattern, text) else ...


def _mapping(node: MappingNode, place: Place, file: YamlFile, inside: tuple[Node, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for i, (key_node, value_node) in enumerate(node.value):
        key, line, text = key_node.value, key_node.start_mark.line + 1, ""
        if not isinstance(key_node, ScalarNode):
            text = "a key is a list or a mapping; it takes a word"
        elif key in values:
            text = f"{key!r} is given twice, first in line {file.lines[*place, key]}; leave one out"
        if text:
            file.lines[*place, i] = line  # an item without a key of its own has its index
            file.faults.append(Fault((*place, i), text))
        else:
            file.lines[*place, key] = line
            values[key] = _value(value_node, (*place, key), file, inside)
    return values


def write_yaml(values: Any, *, flow: bool | None = None, width: int = 100) -> str:
    """Return `values` as YAML in their order: in one line with `flow`, else the innermost ones in one."""
    yaml = _yaml()
    yaml.width, yaml.default_flow_style = width, flow
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # annotated as None there
    stream = io.StringIO()
    yaml.dump(values, stream)
    return re.sub(r" +$", "", stream.getvalue(), flags=re.MULTILINE)  # of the lines that it breaks


def in_line(value: Any) -> str:
    """Return a value as YAML in one line of at most 60 characters."""
    if isinstance(value, str):
        return repr(value)
    text = write_yaml(value, flow=True, width=1_000_000).strip().removesuffix("...").strip()
    return text if len(text) <= 60 else f"{text[:57]}..."
