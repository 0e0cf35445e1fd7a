"""The JSON Schema that editors complete from, and that files are checked against."""

import json
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from birdnet_core.config import TrainConfig
from birdnet_core.registry import losses
from search_spaces.files.schema import setting_types, study_schema
from tests.search_spaces.files.test_study_yaml import ABLATION, SEARCH

EXAMPLES = Path(__file__).parents[3] / "examples" / "studies"
GOOD = [ABLATION, SEARCH, *(path.read_text() for path in sorted(EXAMPLES.glob("*.yaml")))]


def as_editors_read(text):
    """The values of a file, without a line of ours: as ruamel.yaml reads YAML 1.2."""
    return json.loads(json.dumps(YAML(typ="safe").load(text)))


@pytest.fixture(scope="module")
def schema():
    return json.loads(json.dumps(study_schema()))


def test_it_is_a_schema_of_draft_2020_12(schema):
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("text", GOOD)
def test_good_files_are_accepted(schema, text):
    jsonschema.Draft202012Validator(schema).validate(as_editors_read(text))


GOOD_FACTORS = "factors: {optim.lr: [0.1, 0.2]}"


@pytest.mark.parametrize(
    "text",
    [
        GOOD_FACTORS,
        "question: ''\n" + GOOD_FACTORS,
        "question: Is it?",
        f"question: Is it?\n{GOOD_FACTORS}\nspace: {{optim.lr: [0.1, 0.2]}}",
        f"question: Is it?\n{GOOD_FACTORS}\nsedes: 3",
        f"question: Is it?\n{GOOD_FACTORS}\ntrials: 3",
        f"question: Is it?\n{GOOD_FACTORS}\nrepeats: 0",
        f"question: Is it?\n{GOOD_FACTORS}\nkind: search",
        f"question: Is it?\n{GOOD_FACTORS}\nname: my study",
        f"question: Is it?\n{GOOD_FACTORS}\nmetric: train/loss",
        f"question: Is it?\n{GOOD_FACTORS}\nbase: {{training.monitor: val/loss}}",
        f"question: Is it?\n{GOOD_FACTORS}\nbase: {{loss.name: focl}}",
        f"question: Is it?\n{GOOD_FACTORS}\nbase: {{training.epochs: 2.5}}",
        f"question: Is it?\n{GOOD_FACTORS}\nquick: {{trials: 5}}",
        f"question: Is it?\n{GOOD_FACTORS}\ndesign: fractionl",
        f"question: Is it?\n{GOOD_FACTORS}\ndesign: {{latin-hypercube: {{}}}}",
        f"question: Is it?\n{GOOD_FACTORS}\ngates: [{{metric: val/f1_macro}}]",
        "question: Is it?\nfactors: {optim.lr: [0.1]}",
        "question: Is it?\nfactors: {optim.lr: [0.1, 0.1]}",
        "question: Is it?\nfactors: {optim.lrr: [0.1, 0.2]}",
        "question: Is it?\nfactors: {seed: [1, 2]}",
        "question: Is it?\nfactors: {seed: {a: {}, b: {}}}",
        "question: Is it?\nfactors: {own: [1, 2]}",
        "question: Is it?\nfactors: {own: {a: {optim.lrr: 1}, b: {}}}",
        "question: Is it?\nspace: {optim.lr: {low: 0.1}}",
        "question: Is it?\nspace: {optim.lr: {low: 0.1, high: 1, values: [1]}}",
        "question: Is it?\nspace: {optim.lr: {low: 0.1, high: 1, when: {loss.name: focl}}}",
        "question: Is it?\nspace: {optim.lr: [0.1, 0.2]}\ndesign: full",
        "question: Is it?\nspace: {optim.lr: [0.1, 0.2]}\nscheduler: ahsa",
        "question: Is it?\nspace: {own: {a: {}, b: {}}}",
    ],
)
def test_broken_files_are_refused(schema, text):
    assert not jsonschema.Draft202012Validator(schema).is_valid(as_editors_read(text))


def test_every_setting_of_every_component_is_known(schema):
    assert set(TrainConfig().flat()) <= set(setting_types())
    for name in losses.names():
        config = TrainConfig().override({"loss.name": name})
        assert set(config.flat()) <= set(schema["$defs"])


@pytest.mark.parametrize(
    ("setting", "good", "bad"),
    [
        ("optim.lr", [1, 0.1], ["1", None, True]),
        ("optim.backbone_lr", [0.1, None], ["none"]),
        ("training.epochs", [3], [3.5, None]),
        ("model.freeze_backbone", [True, False], ["yes", 1]),
        ("loss.alpha", [0.5, "sqrt", None], ["square"]),
        ("loss.name", ["focal"], ["focl"]),
        ("model.pretrained", ["a/b", None], [3]),
    ],
)
def test_a_settings_schema_is_its_type(schema, setting, good, bad):
    validator = jsonschema.Draft202012Validator(schema["$defs"][setting])
    assert all(validator.is_valid(value) for value in good)
    assert not any(validator.is_valid(value) for value in bad)
