"""The copy that optuna-dashboard shows, and the server itself where it is installed."""

import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest

from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.run_folder import RunFolder
from search_spaces.study import Search
from tuning.engine.searcher import open_study
from tuning.views.dashboard import copy_storage, serve

ROOT = Path(__file__).parents[3]


RATES = {"name": "rates", "kind": "search", "metric": "val/loss", "direction": "minimize", "epochs": 4,
         "repeats": [0], "seed": 0, "n_trials": 3}  # fmt: skip


def space(trial):
    return {"optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2)}


def searched(path, storage="journal"):
    """Return a run folder whose search has a finished and a running trial, and its study."""
    run = RunFolder(path)
    run.write_study(RATES)
    study = open_study(run, Search(name="rates", space=space, n_trials=3), seed=0, storage=storage)
    for _ in range(2):
        trial = study.ask()
        space(trial)
        trial.report(0.25, 1)
    study.tell(0, 0.5)
    return run, study


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_the_copy_holds_every_trial_and_changes_in_it_stay_there(tmp_path, storage):
    run, study = searched(tmp_path / "run", storage)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    copy = optuna.load_study(study_name="rates", storage=copy_storage(run, scratch))
    assert [t.state.name for t in copy.trials] == ["COMPLETE", "RUNNING"]
    assert [t.params for t in copy.trials] == [t.params for t in study.get_trials()]
    copy.tell(1, 0.9)
    assert [t.state.name for t in study.get_trials()] == ["COMPLETE", "RUNNING"]


def test_a_driver_in_the_middle_of_a_transaction_is_not_disturbed_and_not_half_copied(tmp_path):
    run, _ = searched(tmp_path / "run", "sqlite")
    driver = sqlite3.connect(run.storage_path, isolation_level=None)
    driver.execute("BEGIN IMMEDIATE")
    driver.execute("UPDATE trials SET state = 'FAIL'")
    copied = copy_storage(run, tmp_path)
    driver.execute("COMMIT")
    driver.close()
    study = optuna.load_study(study_name="rates", storage=copied)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "RUNNING"]


def test_a_run_without_searches_is_refused(tmp_path):
    run = RunFolder(tmp_path)
    run.write_study({**RATES, "name": "losses", "kind": "ablation", "cells": []})
    with pytest.raises(RunFolderError, match="holds no searches, only ablations: losses"):
        copy_storage(run, tmp_path)


def test_searches_kept_elsewhere_are_named(tmp_path):
    run = RunFolder(tmp_path)
    run.write_study(RATES)
    with pytest.raises(RunFolderError, match="searches rates, and no Optuna storage.*database's URL"):
        copy_storage(run, tmp_path)


def test_without_its_package_the_dashboard_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'birdtune\[dashboard\]'"):
        serve(optuna.storages.InMemoryStorage(), 8080)


def test_the_dashboard_shows_the_searches_on_this_machine_alone(tmp_path):
    pytest.importorskip("optuna_dashboard", reason="the extra 'dashboard' is not installed")
    import socket

    run, _ = searched(tmp_path / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Ctrl-C ends it, also where these tests run as a background job, whose children ignore that.
    code = "import signal; signal.signal(2, signal.default_int_handler); from tuning.cli import main; main()"
    command = [sys.executable, "-c", code, "dashboard", str(run.path), "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        answer = ask(f"http://127.0.0.1:{port}/api/studies")
        assert b'"rates"' in answer
        listening = {
            line.split()[1]
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
        }
        assert listening == {f"0100007F:{port:04X}"}  # 127.0.0.1, and no other address
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert second.returncode == 1
        assert f"cannot listen on port {port}: Address already in use; give another --port" in second.stderr
    finally:
        server.send_signal(2)
        server.wait(30)
        server.stderr.close()
    assert server.returncode == 0


def ask(url):
    for _ in range(450):
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read()
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"{url} did not answer within 90 s")
