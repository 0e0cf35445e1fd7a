"""YAML as an editor takes it, with the line of everything."""

import pytest

from birdnet_core.errors import ConfigError
from search_spaces.files.yaml_file import read_yaml, write_yaml


# YAML 1.2, section 10.3.2, "Tag resolution" of the core schema.
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5E3", 1500.0),
        (".5", 0.5),
        ("-0", 0),
        ("010", 10),
        ("0o14", 12),
        ("0xC", 12),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("-.inf", float("-inf")),
        ("<<", "<<"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    read = read_yaml(f"a: {text}", "f.yaml").values["a"]
    assert read == value
    assert type(read) is type(value)


def test_keys_are_text_whatever_they_look_like():
    assert read_yaml("{on: 1, 2: 2, true: 3, ~: 4, 1e-3: 5}", "f.yaml").values == {
        "on": 1, "2": 2, "true": 3, "~": 4, "1e-3": 5,
    }  # fmt: skip


def test_every_value_knows_its_line():
    file = read_yaml("# a comment\na: 1\nb:\n  - 2\n  - c: 3\nd: {e: 4}\n", "f.yaml")
    assert file.lines == {
        (): 2, ("a",): 2, ("b",): 3, ("b", 0): 4, ("b", 1): 5, ("b", 1, "c"): 5, ("d",): 6, ("d", "e"): 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml:1: the file is empty; it takes lines such as `question: Does MixUp help?`"),
        ("- 1\n- 2", "f.yaml:1: the file holds no keys with values; it takes lines such as"),
        ("a:\n\tb: 1", "f.yaml:2: a tab; YAML is indented with spaces"),
        ("a: 1\nb: what: now", "f.yaml:2: this is no YAML: a second colon on one line; text with a colon"),
        ("a:\n  b: 1\n c: 2", "f.yaml:3: this is no YAML: the line is not indented like those above"),
        ("a: [1, 2\nb: 3", "f.yaml:2: this is no YAML: a bracket that is not closed, in 'b: 3'"),
        ("a: *b", "f.yaml:1: this is no YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2", "f.yaml:2: this is no YAML: but found another document, in '---'"),
        ("a: 1\nb: \x01", "f.yaml:2: this is no YAML: special characters are not allowed"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(text, message):
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "f.yaml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3: 'a' is given twice, first in line 1; leave one out"),
        ("a:\n  b: 1\n  b: 2", "f.yaml:3: 'b' is given twice, first in line 2; leave one out"),
        ("a: !!int x", "f.yaml:1: the tag '!!int' is not accepted here; leave it out"),
        ("a: 1\nb: !python/name:os.system ''", "f.yaml:2: the tag '!python/name:os.system' is not accepted"),
        ("a: &x\n  b: *x", "f.yaml:2: an alias of the value that contains it; write the values out"),
        ("? [a]\n: 1", "f.yaml:1: a key is a list or a mapping; it takes a word"),
    ],
)
def test_what_yaml_allows_and_a_study_does_not(text, fault):
    file = read_yaml(text, "f.yaml")
    with pytest.raises(ConfigError) as caught:
        raise file.error(file.faults)
    assert str(caught.value).startswith(fault)


def test_of_two_equal_keys_the_first_is_kept():
    assert read_yaml("a: 1\na: 2", "f.yaml").values == {"a": 1}


def test_what_is_written_is_read_back():
    values = {
        "a": [1e-5, 1, "1e-3", "on", "1", None, True, "x: y", "ü"],
        "b": {"on": {}, "off": {"c.d": [[1], {}]}},
        "e": "What? That: " * 20,
        "f": {f"{i}{i}": "a  \nb" for i in range(40)},
    }
    text = write_yaml(values)
    assert read_yaml(text, "f.yaml").values == values
    assert text.endswith("\n") and not any(line.endswith(" ") for line in text.split("\n"))
