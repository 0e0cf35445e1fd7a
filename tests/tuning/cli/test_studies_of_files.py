"""Studies on the command line: shown, tried out, and a user's own from a file."""

import json
import shlex

import jsonschema
import pytest
from ruamel.yaml import YAML

from birdnet_core import registry
from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.records.run_folder import RunFolder
from search_spaces.files.study_yaml import parse_study
from search_spaces.loading import load_study
from search_spaces.study import Ablation, base_config, check
from tests.settings import SMALL

SET = shlex.join(word for key, value in SMALL.items() for word in ("--set", f"{key}={value}"))
MINE = """question: Which rate?
factors:
  optim.lr: [1e-3, 1e-4]
repeats: 2
"""


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    return file


# show and schema


@pytest.mark.parametrize("name", registry.studies.names())
def test_show_gives_every_cell_or_every_parameter(birdtune, name):
    code, out, err = birdtune(f"study show {name} --json")
    assert code == 0, err
    shown, study = json.loads(out), load_study(name)
    assert (shown["question"], shown["metric"]) == (study.question, study.metric)
    if isinstance(study, Ablation):
        assert [cell["factors"] for cell in shown["cells"]] == study.cells()
        assert [cell["settings"] for cell in shown["cells"]] == [study.overrides(c) for c in study.cells()]
        assert sum(cell["is_baseline"] for cell in shown["cells"]) == (study.baseline_cell() is not None)
    else:
        sampled = {k for c in check(study, base_config(study, TrainConfig()), {}) for k in c.difference()}
        assert sampled & set(shown["space"])
    code, out, err = birdtune(f"study show {name}")
    assert code == 0, err
    assert study.question in out
    assert all(part in out for part in (shown.get("space") or shown["cells"][0]["factors"]))


def test_show_yaml_is_a_file_to_start_from(birdtune, tmp_path):
    code, out, _ = birdtune("study show capacity --yaml")
    assert code == 0
    assert parse_study(out, tmp_path / "mine.yaml").cells() == load_study("capacity").cells()


def test_show_prints_ranges_and_conditions(birdtune, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "question: Which?\nspace:\n  optim.lr: {low: 1e-4, high: 1e-2, log: true}\n"
        "  loss.gamma: {low: 1, high: 3, step: 0.5, when: {loss.name: focal}}\n"
        "  loss.name: [focal, cross_entropy]\n"
    )
    _, out, _ = birdtune(f"study show {tmp_path / 'mine.yaml'}")
    lines = [line.split("  ") for line in out.splitlines()]
    rows = {line[0]: [part.strip() for part in line[1:] if part.strip()] for line in lines}
    assert rows["optim.lr"] == ["0.0001 to 0.01, log"]
    assert rows["loss.gamma"] == ["1 to 3, step 0.5", "loss.name = focal"]
    assert rows["loss.name"] == ["focal, cross_entropy"]


def test_show_of_a_space_without_a_form_in_yaml_says_why_and_what_was_sampled(birdtune, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from search_spaces import Search, register_study\n\n\n@register_study('mine')\ndef mine():\n"
        "    '''Which?'''\n    return Search(space=space)\n\n\ndef space(trial):\n"
        "    batch = trial.suggest_categorical('training.batch_size', [8, 16])\n"
        "    micro = trial.suggest_int('training.micro_batch_size', 1, batch)\n"
        "    return {'training.batch_size': batch, 'training.micro_batch_size': micro}\n"
    )
    why = "what training.micro_batch_size may be depends on what was sampled before"
    code, out, _ = birdtune(f"study show {file}")
    assert code == 0
    assert f"the space cannot be written as YAML: {why}" in out
    assert "training.micro_batch_size  100%       1 to 16; 1 to 8" in out
    code, out, err = birdtune(f"study show {file} --yaml")
    assert (code, out) == (1, "")
    assert f"error: study 'mine' cannot be written as YAML: {why}" in err


def test_schema_accepts_what_study_show_prints(birdtune):
    code, out, _ = birdtune("study schema")
    assert code == 0
    validator = jsonschema.Draft202012Validator(json.loads(out))
    written = []
    for name in registry.studies.names():
        code, text, _ = birdtune(f"study show {name} --yaml")
        if code == 0:  # not every search in Python has a form in YAML
            validator.validate(YAML(typ="safe").load(text))
            written.append(name)
    assert {"capacity", "learning-rate"} <= set(written)


# dry run


def test_a_dry_run_prints_every_trial_and_writes_nothing(birdtune, mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = birdtune(f"sweep {mine} --repeats 3 --set optim.weight_decay=0.5 --dry-run --json")
    assert code == 0, err
    printed = json.loads(out)
    base = TrainConfig().override({"optim.weight_decay": 0.5})
    expected = [
        (base.override({"optim.lr": lr, "repeat": r, "seed": r}).trial_id, r, r, {"optim.lr": lr})
        for r in range(3)
        for lr in (1e-3, 1e-4)
    ]
    columns = ("trial_id", "repeat", "seed", "factors")
    assert [tuple(t[column] for column in columns) for t in printed["trials"]] == expected
    assert (printed["n_trials"], printed["epochs"], printed["study"]) == (6, 50, "mine")
    _, out, _ = birdtune(f"sweep {mine} --repeats 2 --set seed=4 --dry-run --json")
    assert [(t["repeat"], t["seed"]) for t in json.loads(out)["trials"]] == [(0, 4), (0, 4), (1, 5), (1, 5)]
    code, out, err = birdtune(f"sweep {mine} --dry-run --out {tmp_path / 'run'}")
    assert code == 0, err
    assert "trials    4 of 50 epochs: 2 cells x 2 repeats" in out
    assert "nothing was trained or written" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_of_a_search_prints_ten_of_its_configs(birdtune):
    code, out, err = birdtune("sweep learning-rate --trials 7 --dry-run --json")
    assert code == 0, err
    printed = json.loads(out)
    assert (printed["n_trials"], len(printed["trials"])) == (7, 10)
    assert all(1e-4 <= trial["factors"]["optim.lr"] <= 1e-2 for trial in printed["trials"])
    code, out, _ = birdtune("sweep learning-rate --dry-run")
    assert code == 0
    assert "10 random configs of the space; the sampler will choose others" in out
    assert printed["trials"][0]["config_id"] in out


def test_a_dry_run_checks_and_prints_the_configs_that_are_trained_first(birdtune, tmp_path):
    for name, lr in (("inside", 2e-3), ("outside", 0.5)):
        config = TrainConfig().override({"optim.lr": lr, "training.epochs": 50})
        (tmp_path / f"{name}.json").write_text(json.dumps(config.to_dict()))
    line = "sweep learning-rate --dry-run --enqueue"
    code, out, err = birdtune(f"{line} {tmp_path / 'inside.json'}")
    assert code == 0, err
    assert "first     optim.lr=0.002, " in out
    code, _, err = birdtune(f"{line} {tmp_path / 'inside.json'} --enqueue {tmp_path / 'outside.json'}")
    assert code == 1
    assert err.startswith("error: --enqueue, config 2: ") and "0.5" in err


def test_a_dry_run_names_cells_that_are_one_config(birdtune, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("question: Is it?\nfactors: {own: {a: {}, b: {optim.lr: 1e-3}, c: {optim.lr: 1e-2}}}\n")
    _, out, _ = birdtune(f"sweep {file} --dry-run --repeats 1")
    assert "caution   3 cells are only 2 configs" in out
    assert "trials    2 of 50 epochs: 3 cells x 1 repeats" in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sweep {mine} --dry-run --out {mine}", "is a file; give a folder"),
        ("plan {mine} --out {mine}", "is a file; give a folder"),
        ("train --out {mine}", "is a file; give a folder"),
        ("sweep learning-rate --dry-run --from {tmp}/none", "none': there is no such folder"),
        ("sweep learning-rate --dry-run --from {mine}", "': it is a file"),
        ("sweep capacity --dry-run --from {tmp}/none", "'capacity' is an ablation; --from and --enqueue are"),
        ("sweep learning-rate --dry-run --repeats 3", "`birdtune sweep --folds`"),
        ("sweep {mine} --dry-run --trials 3", "--repeats, not --trials"),
        ("sweep {mine} --dry-run --set optim.lr=0.1", "optim.lr cannot be set here: the study varies it"),
        ("sweep {mine} --dry-run --set optim.lrr=0.1", "unknown setting 'optim.lrr'"),
        ("sweep {tmp}/none.yaml --dry-run", "none.yaml': No such file or directory"),
        ("plan {tmp}/none.py", "none.py': No such file or directory"),
        ("study show mine", "unknown study 'mine'"),
        ("sweep {tmp}/bad.yaml", "bad.yaml:2: unknown key 'factor'; did you mean 'factors'?"),
        ("plan {tmp}/bad.yaml", "bad.yaml:2: unknown key 'factor'; did you mean 'factors'?"),
        ("study show {tmp}/bad.yaml", "bad.yaml:2: unknown key 'factor'; did you mean 'factors'?"),
    ],
)
def test_what_cannot_be_run_is_an_error(no_early_ray, birdtune, mine, tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("question: Is it?\nfactor: {optim.lr: [1, 2]}\n")
    code, out, err = birdtune(line.format(mine=mine, tmp=tmp_path))
    assert code == 1
    assert err.startswith("error: ") and words in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "runs").exists()


# a sweep from a file


def test_plan_takes_a_file_and_names_the_run_folder_after_the_study(birdtune, mine, birds):
    code, out, err = birdtune(f"plan {mine} --data {birds} {SET} --json")
    assert code == 0, err
    printed = json.loads(out)
    assert (printed["study"], printed["n_trials"]) == ("mine", 4)
    assert printed["command"].startswith(f"birdtune sweep {mine} ")


@pytest.mark.ray
def test_a_run_that_was_started_from_a_file_is_resumed_as_it_was_started(
    cluster, birdtune, birds, mine, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    line = f"sweep mine.yaml --data {birds} --repeats 1 {SET} --set training.epochs=1 --json"
    code, out, err = birdtune(line)
    assert code == 0, err
    assert json.loads(out)["run"] == "runs/mine"
    run = RunFolder(tmp_path / "runs" / "mine")
    request = run.read_study("mine")["request"]
    assert (request["study"], request["source"]) == (str(mine), MINE)

    # As a killed driver leaves it, and with other cells in the file.
    (run.path / "trials" / f"{next(iter(run.records()))}.json").unlink()
    mine.write_text(MINE.replace("1e-4", "5e-4"))
    code, out, err = birdtune(line)
    assert code == 1
    assert "holds study 'mine' with other settings" in err
    assert "{'factors': {'optim.lr': [0.001, 0.0001]}}" in err
    assert "{'factors': {'optim.lr': [0.001, 0.0005]}}" in err
    code, out, err = birdtune("resume runs/mine --json")
    assert code == 0, err
    assert json.loads(out)["counts"] == {"completed": 2}
    assert f"{mine} has changed since this run was started: the run continues with what it was" in err


@pytest.fixture
def begun(no_early_ray, birdtune, mine, birds, tmp_path, monkeypatch):
    """A run of `mine` that is stopped where Ray would start."""
    monkeypatch.setattr("tuning.engine.launch.ray_session", _stop)
    code, _, err = birdtune(f"sweep {mine} --data {birds} --out {tmp_path / 'run'} {SET}")
    assert (code, err) == (1, "error: stopped before Ray\n")
    return tmp_path / "run"


def _stop(*arguments):
    raise ConfigError("stopped before Ray")


def test_a_longer_study_is_named_after_the_study_also_where_its_file_is_gone(birdtune, begun, mine):
    mine.unlink()
    for more in ("extend {run} --epochs 5", "extend {run} --study mine-5-epochs --epochs 7"):
        _, _, err = birdtune(more.format(run=begun))
        assert f"{mine} is gone: the run continues with what it was then, which its folder keeps" in err
        assert "error: stopped before Ray" in err
    run = RunFolder(begun)
    assert run.study_names() == ["mine", "mine-5-epochs", "mine-7-epochs"]
    assert {tuple(run.read_study(name)["factors"]["optim.lr"]) for name in run.study_names()} == {
        (1e-3, 1e-4)
    }


def test_a_search_with_another_space_is_another_study(birdtune, begun, birds):
    file = begun.parent / "search.yaml"
    text = (
        "question: Which?\n"
        "space: {optim.lr: {low: 1e-4, high: 1e-2, log: true}, loss.name: [focal, cross_entropy]}\n"
    )
    line = f"sweep {file} --data {birds} --out {begun} {SET}"
    file.write_text(text)
    assert "stopped before Ray" in birdtune(line)[2]
    assert RunFolder(begun).read_study("search")["space"] == {
        "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "loss.name": ["focal", "cross_entropy"],
    }
    file.write_text(text.replace("1e-2", "1e-1"))
    code, _, err = birdtune(line)
    assert code == 1
    assert "it has {'space': {'optim.lr': {'high': 0.01}}}, this asks for " in err
    assert "{'space': {'optim.lr': {'high': 0.1}}}; give another --out" in err
    file.write_text(f"{text}trials: 9\n")
    assert "stopped before Ray" in birdtune(line)[2]
