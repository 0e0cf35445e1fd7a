"""What docs/studies.md shows is what works."""

import re
from pathlib import Path

import pytest

from birdnet_core.config import TrainConfig
from search_spaces.files.schema import DESIGNS, study_schema
from search_spaces.files.study_yaml import parse_study
from search_spaces.loading import load_study
from search_spaces.study import Ablation, base_config, check

TEXT = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
BLOCKS = {kind: re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL) for kind in ("yaml", "python")}


@pytest.mark.parametrize("block", BLOCKS["yaml"])
def test_yaml_of_the_docs_is_a_study(block):
    study = parse_study(block, Path("docs.yaml"))
    configs = check(study, base_config(study, TrainConfig()), {})
    assert len({config.config_id for config in configs}) == len(configs)


@pytest.mark.parametrize("block", BLOCKS["python"])
def test_python_of_the_docs_is_a_study(block, tmp_path):
    file = tmp_path / "docs.py"
    file.write_text(block)
    study = load_study(str(file))
    assert check(study, base_config(study, TrainConfig()), {})


def test_the_ablation_of_the_docs_is_the_same_in_yaml_and_python(tmp_path):
    (tmp_path / "docs.py").write_text(BLOCKS["python"][0])
    yaml, python = parse_study(BLOCKS["yaml"][0], Path("docs.yaml")), load_study(str(tmp_path / "docs.py"))
    assert isinstance(yaml, Ablation) and isinstance(python, Ablation)
    assert yaml.cells() == python.cells()
    assert yaml.baseline_cell() == python.baseline_cell()


def test_the_docs_name_every_key_and_every_design():
    keys = {
        key for row in re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE) for key in re.findall("`(.*?)`", row)
    }
    schema = study_schema()
    assert {*schema["then"]["properties"], *schema["else"]["properties"]} <= keys
    assert all(name in TEXT for name in DESIGNS)
