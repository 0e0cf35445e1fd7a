"""Names of a user's own in the processes of a sweep, and what a run folder may run when a run continues."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from birdnet_core import plugins, registry
from birdnet_core.errors import ConfigError
from birdnet_core.records.run_folder import RunFolder
from tests.plugged import STUDY, own_process, write_lab, write_study
from tests.settings import SMALL
from tuning.cli.request import Request
from tuning.cli.trust import load_code
from tuning.engine.halt import Budget
from tuning.engine.nodes import TrialFault
from tuning.engine.trainable import RUN_ID, TrainTrial

SET = [word for k, v in {**SMALL, "training.epochs": 1}.items() for word in ("--set", f"{k}={json.dumps(v)}")]


ROOT = Path(__file__).parents[3]
REQUEST = Request(study="capacity", quick=True).to_dict()


@pytest.fixture
def here(birdtune):
    """Run a command that ends before it registers anything, in this process."""
    return birdtune


@pytest.fixture
def done(birdtune):
    """Run a command to its end; what it registers is forgotten."""

    def run(*words):
        with own_process():
            code, out, err = birdtune(shlex.join(map(str, words)))
        assert code == 0, out + err

    return run


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return write_lab(tmp_path_factory.mktemp("lab"))


def unfinished(run):
    """Let one trial of a run be as if it had never been trained; return its id."""
    name = sorted(RunFolder(run).records())[0]
    (run / "trials" / f"{name}.json").unlink()
    return name


@pytest.mark.ray
def test_a_plugins_model_is_swept_resumed_and_trained(cluster, here, done, lab, birds, tmp_path, monkeypatch):
    run, model = tmp_path / "run", tmp_path / "model"
    plugin = ("--plugin", "my_lab.models")
    study = tmp_path / "which.yaml"
    study.write_text("question: Which?\nfactors: {model.name: [lab_linear, audio_cnn]}\nrepeats: 1\n")
    words = ("sweep", study, "--data", birds, "--out", run, *SET, *plugin, "--concurrent", 1)
    command = [Path(sys.executable).with_name("birdtune"), *map(str, words)]
    # In a process of its own, as users do.
    subprocess.run(command, cwd=lab, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    records = RunFolder(run).records()
    assert {r.status for r in records.values()} == {"completed"}
    sha256 = RunFolder(run).read_study("which")["request"]["plugins"][0]["sha256"]
    facts = [{"name": "my_lab.models", "kind": "module", "version": None, "sha256": sha256}]
    assert RunFolder(run).read_study("which")["provenance"]["plugins"] == facts
    assert [r.provenance["plugins"] for r in records.values()] == [facts, facts]

    # From elsewhere, and without a name, the module is not found; no folder that the run names is tried.
    unfinished(run)
    code, _, printed = here(f"resume {run}")
    assert code == 1
    assert "the plugin 'my_lab.models' is not found" in printed and "give --plugin my_lab.models" in printed
    monkeypatch.chdir(lab)
    done("resume", run, *plugin)
    assert len(RunFolder(run).records()) == 2

    (linear,) = (r for r in RunFolder(run).records().values() if r.config["model"]["name"] == "lab_linear")
    record = run / "trials" / f"{linear.trial_id}.json"
    done("train", record, "--data", birds, "--out", model, *plugin)
    monkeypatch.chdir(tmp_path)
    code, _, printed = here(f"predict {model} {birds.parent} --out {tmp_path / 'out.csv'}")
    assert code == 1 and "its model 'lab_linear' comes with the plugin 'my_lab.models'" in printed


@pytest.mark.ray
def test_a_loss_in_a_studys_file_reaches_the_workers_and_the_run_folders_text_is_not_trusted(
    cluster, here, done, birds, tmp_path
):
    run, file = tmp_path / "run", write_study(tmp_path / "mine")
    done("sweep", file, "--data", birds, "--out", run, *SET)
    records = RunFolder(run).records()
    assert {(r.config["loss"]["name"], r.status) for r in records.values()} == {
        ("cross_entropy", "completed"), ("half_entropy", "completed"),
    }  # fmt: skip
    sha256 = plugins.digest(STUDY)
    assert all(r.provenance["plugins"][0]["sha256"] == sha256 for r in records.values())

    # An attacker's folder: its text would leave a mark.
    name = unfinished(run)
    mark = tmp_path / "mark"
    there = run / "studies" / "halves.json"
    honest = there.read_text()
    content = json.loads(honest)
    content["request"]["source"] = f"open({str(mark)!r}, 'w')\n{STUDY}"
    there.write_text(json.dumps(content))
    for verb in ("resume", "rerun --failed", "extend --repeats +1", "best --confirm 3"):
        word, *more = verb.split()
        # Also where the path in the request is that of the user's file.
        code, _, printed = here(shlex.join([word, str(run), *more]))
        assert code == 1
        assert "study 'halves' of" in printed and "is Python, halves.py (SHA-256 " in printed, verb
        assert "--study halves.py" in printed and "--trust" in printed
    code, _, printed = here(f"resume {run} --study {file}")
    assert code == 1
    assert f"{file} is another text (SHA-256 {sha256[:12]})" in printed
    assert not mark.exists() and name not in RunFolder(run).records()

    # With the user's own copy, wherever it lies now, the run continues.
    there.write_text(honest)
    assert "--trust" in here(f"resume {run}")[2]
    copy = tmp_path / "elsewhere" / "halves.py"
    copy.parent.mkdir()
    file.rename(copy)
    done("resume", run, "--study", copy)
    assert len(RunFolder(run).records()) == 2
    done("best", run, "--study", copy, "--confirm", 3)
    assert {r.status for r in RunFolder(run / "confirm").records().values()} == {"completed"}


@pytest.fixture
def of_a_plugin_file(own_names, tmp_path):
    """A run folder whose request has the text of a plugin file, and that request."""
    plugin = plugins.Plugin("/home/them/halved.py", "file", plugins.digest(STUDY), source=STUDY)
    run = RunFolder(tmp_path / "run")
    request = {**REQUEST, "study": "rates", "plugins": [plugin.to_dict()]}
    run.write_study(
        {"name": "rates", "kind": "search", "metric": "val/loss", "direction": "minimize", "epochs": 1,
         "repeats": [0], "seed": 0, "n_trials": 1, "request": request}
    )  # fmt: skip
    return run, Request.of(run, "rates")


def test_the_text_of_a_plugin_file_is_not_trusted_either(of_a_plugin_file, tmp_path):
    run, request = of_a_plugin_file
    with pytest.raises(
        ConfigError, match=r"plugin 'halved\.py' of .* is Python, .*\n.*--plugin halved\.py, which"
    ):
        load_code(run, "rates", request)
    assert "half_entropy" not in registry.losses.names()
    load_code(run, "rates", request, trust=True)
    assert "half_entropy" in registry.losses.names()


def test_a_plugin_file_that_the_user_gives_is_run_and_not_that_of_the_folder(of_a_plugin_file, tmp_path):
    run, request = of_a_plugin_file
    mine = tmp_path / "halved.py"
    mine.write_text(STUDY)
    plugins.load(str(mine))
    load_code(run, "rates", request)
    assert [p.name for p in plugins.loaded()] == [str(mine)]


def test_a_module_that_has_changed_is_taken_only_if_the_user_names_it(own_names, lab, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(lab)
    then = plugins.Plugin("my_lab.models", "module", "0" * 64)
    run, request = RunFolder(tmp_path / "run"), Request(study="capacity", plugins=(then,))
    with pytest.raises(
        ConfigError, match=r"another one here.*was started with it: give --plugin my_lab\.models"
    ):
        load_code(run, "rates", request)
    assert "my_lab.models" not in sys.modules
    now = plugins.load("my_lab.models")
    load_code(run, "rates", request)
    assert plugins.loaded() == [now]


def test_the_address_of_a_cluster_is_not_taken_from_a_run_folder(here, tmp_path):
    run = tmp_path / "run"
    RunFolder(run).write_study(
        {"name": "learning-rate", "kind": "search", "metric": "val/loss", "direction": "minimize",
         "epochs": 1,
         "repeats": [0], "seed": 0, "n_trials": 1, "request": {**REQUEST, "study": "learning-rate"}}
    )  # fmt: skip
    there = run / "studies" / "learning-rate.json"
    content = json.loads(there.read_text())
    content["request"]["address"] = "203.0.113.5:6379"
    there.write_text(json.dumps(content))
    code, _, printed = here(f"resume {run}")
    assert code == 1
    assert "was started on the Ray cluster at '203.0.113.5:6379', which would send code" in printed


def test_a_worker_without_the_plugin_names_it_and_itself(small_config, small_dataset, tmp_path):
    (tmp_path / RUN_ID).write_text("abc")
    missing = {"name": "their_lab.models", "kind": "module", "sha256": "ab" * 32, "version": "1.2",
               "source": None, "folder": None}  # fmt: skip
    payload = {
        "config": {**small_config.to_dict(), "model": {"name": "theirs"}},
        "dataset": str(small_dataset.folder),
        "journal": {"study": "s", "trial_id": "abc-r0", "number": 0, "factors": {}},
        "resources": {"cpu": 1.0, "gpu": 0.0},
        "memory_cap": None,
        "timeout_s": None,
        "decisions": [],
        "plugins": [missing],
        "checkpoints": {"folder": str(tmp_path), "run_id": "abc", "shorter": "", "keep": False},
    }
    with pytest.raises(TrialFault) as caught:
        TrainTrial(payload).step()
    assert caught.value.at_fault == "node"
    assert json.loads(caught.value.record)["trial_id"] == "abc-r0"
    assert f"{platform.node()} cannot train with the driver's plugins: " in caught.value.why
    assert "'their_lab.models' is not found" in caught.value.why


def test_a_worker_with_other_files_of_a_plugin_does_not_train_with_them(tmp_path, monkeypatch):
    folder = write_lab(tmp_path / "lab")
    plugin = plugins.Plugin("my_lab.models", "module", "0" * 64, version="2.0", folder=str(folder))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(
        plugins.ConfigError, match=r"another one here.*000000000000 is needed \(version 2\.0\)"
    ):
        plugins.load_shipped(plugin)
    assert "my_lab" not in sys.modules


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": 3}, "study = 3 is not accepted; it takes text"),
        ({"plugins": [{}]}, "a plugin: it lacks 'name', 'kind'"),
        ({"settings": None}, "settings = None is not accepted; it takes an object"),
        (
            {"budget": {**asdict(Budget()), "minutes": 3}},
            "budget: it holds 'minutes'",
        ),
        ({"seed": 3}, "it holds 'seed', which is unknown"),
        ({"source": None, "study": "evil.py"}, r"does not hold the text of 'evil\.py'"),
    ],
)
def test_a_request_that_was_altered_is_refused_by_name(here, tmp_path, change, message):
    run = tmp_path / "run"
    RunFolder(run).write_study(
        {"name": "capacity", "kind": "search", "metric": "val/loss", "direction": "minimize",
         "epochs": 1,
         "repeats": [0], "seed": 0, "n_trials": 1, "request": {**REQUEST, **change}}
    )  # fmt: skip
    (tmp_path / "evil.py").write_text("import os; os.abort()")
    code, _, printed = here(f"resume {run} --study {tmp_path / 'evil.py'}")
    assert code == 1 and "bug in birdtune" not in printed
    assert re.search(message, printed), printed
    assert os.listdir(run) == ["studies"]
