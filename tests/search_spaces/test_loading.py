"""Files of a user's own: YAML and Python give the same study, and errors their line."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from birdnet_core import registry
from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from search_spaces.loading import load_study
from search_spaces.space import declared
from search_spaces.study import Ablation, base_config, trial_config

EXAMPLES = Path(__file__).parents[2] / "examples" / "studies"

HEAD = """from search_spaces import Ablation, Search, register_study


@register_study("mine")
def mine():
    '''Which?'''
"""


def load(tmp_path, text, name="mine.py"):
    (tmp_path / name).write_text(text)
    return load_study(str(tmp_path / name))


@pytest.mark.parametrize("name", sorted({path.stem for path in EXAMPLES.iterdir() if path.suffix == ".yaml"}))
def test_an_example_is_the_same_study_in_yaml_and_python(name):
    yaml, python = (load_study(str(EXAMPLES / f"{name}{suffix}")) for suffix in (".yaml", ".py"))
    if isinstance(yaml, Ablation):
        assert yaml == python
        assert yaml.cells() == python.cells()
        ids = [
            [
                trial_config(base_config(s, TrainConfig()), {}, s.overrides(cell)).trial_id
                for cell in s.cells()
            ]
            for s in (yaml, python)
        ]
        assert ids[0] == ids[1]
        assert len(set(ids[0])) == len(yaml.cells())
    else:
        assert replace(yaml, space=declared(yaml.space)) == replace(python, space=declared(python.space))


def test_the_example_in_yaml_is_ten_lines_with_a_factor_of_its_own_and_a_gate():
    text = (EXAMPLES / "gamma_mixup.yaml").read_text()
    study = load_study(str(EXAMPLES / "gamma_mixup.yaml"))
    assert len(text.splitlines()) == 10
    assert "mixup" in study.factors and study.gates


def test_a_python_file_leaves_registry_path_and_modules_as_they_were(tmp_path):
    names, path, modules = registry.studies.names(), list(sys.path), set(sys.modules)
    study = load(tmp_path, HEAD + "    return Ablation(factors={'optim.lr': (1e-3, 1e-4)})\n")
    assert (study.name, study.question, len(study.cells())) == ("mine", "Which?", 2)
    assert (registry.studies.names(), list(sys.path)) == (names, path)
    assert not [name for name in set(sys.modules) - modules if "mine" in name]


def test_a_python_file_may_take_a_built_in_study_as_it_is(tmp_path):
    study = load(
        tmp_path,
        "from dataclasses import dataclass, replace\n"
        "from birdnet_core.registry import studies\n"
        "from search_spaces import register_study\n"
        "@dataclass\nclass Kept:\n    n: 'int' = 5\n"
        "@register_study('more-seeds')\n"
        "def more():\n    '''The same on five repeats?'''\n"
        "    return replace(studies['capacity'].make(), n_repeats=Kept().n)\n",
    )
    assert study.cells() == load_study("capacity").cells()
    assert study.n_repeats == 5


def test_what_a_file_held_before_is_loaded_in_its_place(tmp_path):
    text = HEAD + "    return Ablation(factors={'optim.lr': (1e-3, 1e-4)})\n"
    file = tmp_path / "mine.py"
    file.write_text("not Python at all")
    assert len(load_study(str(file), source=text).cells()) == 2
    file.unlink()
    assert len(load_study(str(file), source=text).cells()) == 2


def test_options_are_the_parameters_of_the_function(tmp_path):
    file = tmp_path / "mine.py"
    text = HEAD.replace("mine()", "mine(*, n: int = 2)")
    file.write_text(
        text + "    return Ablation(factors={'optim.lr': tuple(0.1 / i for i in range(1, n + 1))})\n"
    )
    assert len(load_study(str(file)).cells()) == 2
    assert len(load_study(str(file), options={"n": 4}).cells()) == 4
    with pytest.raises(ConfigError, match=r"study 'mine' has no option 'm' \(it takes n\)"):
        load_study(str(file), options={"m": 4})
    with pytest.raises(
        ConfigError, match="option 'n' of study 'mine' = 'many' is not accepted; it takes int"
    ):
        load_study(str(file), options={"n": "many"})
    with pytest.raises(ConfigError, match=r"mixup.yaml has no option n: a study in YAML takes none"):
        load_study(str(EXAMPLES / "gamma_mixup.yaml"), options={"n": 4})


def test_quick_is_the_quick_size_of_a_file_too():
    file = str(EXAMPLES / "gamma_mixup.yaml")
    assert load_study(file).base["training.epochs"] == 30
    assert load_study(file, quick=True).base["training.epochs"] == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os\nx = (1,\n", "mine.py:2: this is no Python: '(' was never closed"),
        ("import os\n\nx = 1 / 0\n", "mine.py:3: ZeroDivisionError: division by zero"),
        (
            "import birds_of_mine\n",
            "mine.py:1: ModuleNotFoundError: No module named 'birds_of_mine'; a study is one file, and "
            "imports what is installed",
        ),
        ("import sys\nsys.exit(3)\n", "mine.py:2: SystemExit: 3"),
        (
            "x = 1\n",
            "mine.py:1: no study in this file; decorate a function that returns an Ablation or a Search with "
            '@register_study("name")',
        ),
        (
            HEAD + "    return Ablation(factors={})\n@register_study('other')\ndef other():\n    '''?'''\n",
            "mine.py:1: 2 studies in this file (mine, other); it takes one",
        ),
        (
            HEAD + "    return {'optim.lr': (1e-3, 1e-4)}\n",
            "mine.py:4: study 'mine' returned a dict; it returns an Ablation or a Search",
        ),
        (
            HEAD + "    return Ablation(factor={'optim.lr': (1e-3, 1e-4)})\n",
            "mine.py:7: TypeError: Ablation.__init__() got an unexpected keyword argument 'factor'",
        ),
        (
            HEAD.replace("    '''Which?'''\n", "")
            + "    return Ablation(factors={'optim.lr': (1e-3, 1e-4)})\n",
            "mine.py:4: study 'mine' has no docstring; its first line is the question",
        ),
        (
            HEAD.replace("mine()", "mine(n)") + "    return Ablation(factors={'optim.lr': (1e-3, 1e-4)})\n",
            "mine.py:4: TypeError: mine() missing 1 required positional argument: 'n'",
        ),
        (
            HEAD + "    return Ablation(factors={'optim.lr': (1e-3, 1e-3)})\n",
            "mine.py:4: factor 'optim.lr' has level 0.001 twice; leave one out",
        ),
        (
            HEAD
            + "    return Search(space=space)\n\n\ndef space(trial):\n    return {'optim.lr': trial.lr}\n",
            "mine.py:11: AttributeError: 'Trial' object has no attribute 'lr'",
        ),
        (
            HEAD + "    return Search(space=lambda trial: trial.suggest_float('optim.lr', 0.1, 0.2))\n",
            "mine.py:4: the space of a search returned 0.1",
        ),
    ],
)
def test_a_faulty_python_file_is_refused_with_the_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the study '.*mine.yaml': No such file or directory"):
        load_study(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_bytes(b"question: \xff\xfe")
    with pytest.raises(ConfigError, match=r"the study '.*mine.yaml' is not text in UTF-8"):
        load_study(str(tmp_path / "mine.yaml"))


def test_the_error_of_an_unknown_study_names_files_too():
    with pytest.raises(
        ConfigError, match=r"unknown study 'mine' .*; a study of your own is a .yaml or .py file"
    ):
        load_study("mine")
