import json
from types import SimpleNamespace

import pytest

from birdnet_core.config import TrainConfig
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from tuning.engine.dispatch import Dispatcher
from tuning.engine.halt import Budget, Halt
from tuning.engine.journal import Journal
from tuning.engine.placement import Placement
from tuning.engine.searcher import PlannedSearcher


def test_a_trial_whose_process_never_started_is_entered_and_recorded(tmp_path):
    config = TrainConfig()
    line = {"study": "x", "trial_id": config.trial_id, "number": 0, "factors": {}}
    trial = SimpleNamespace(
        trial_id="ray-1",
        config={"config": config.to_dict(), "journal": line, "resources": {"cpu": 1.0, "gpu": 0.0}},
        last_result=None,
        pickled_error_file=None,
    )
    seen = []
    journal = Journal(RunFolder(tmp_path), seen.append)
    dispatcher = Dispatcher(
        PlannedSearcher([trial.config]), journal, Placement(cpus=1, gpus=0.0, concurrent=1), restarts=0
    )
    dispatcher.suggest("ray-1")
    journal.keep_error(trial)
    dispatcher.on_trial_complete("ray-1", error=True)
    assert [e["event"] for e in seen] == ["trial", "end"]
    assert (seen[0]["cpus"], seen[0]["gpus"]) == (1.0, 0.0)
    assert journal.members("x") == {config.trial_id}
    record = RunFolder(tmp_path).records()[config.trial_id]
    assert (record.status, record.epochs) == ("killed", 0)
    assert (seen[1]["status"], seen[1]["error"]) == ("killed", record.error)
    assert record.config == config.to_dict()


def record_of(name, status, **metrics):
    return TrialRecord(
        trial_id=name, config_id=name[:-3], repeat=0, seed=0, status=status, config={}, metrics=metrics
    )


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path)
    study = {"kind": "ablation", "metric": "val/loss", "direction": "minimize", "epochs": 1}
    run.write_study({"name": "s", "question": "?", "repeats": [0], "seed": 0, "cells": [], **study})
    return run


def end(journal, name, status, n_bytes, **metrics):
    """Let a trial end that has a checkpoint of `n_bytes`."""
    folder = journal.run.checkpoints_path / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "session.pt").write_bytes(bytes(n_bytes))
    payload = {"journal": {"study": "s", "trial_id": name, "number": 0, "factors": {}}}
    payload["resources"] = {"cpu": 1.0, "gpu": 0.0}
    journal.enter(name, payload)
    journal.settle(record_of(name, status, **metrics), payload)


def kept(run):
    return sorted(path.parent.name for path in run.checkpoints_path.glob("*/session.pt"))


def test_checkpoints_of_pruned_trials_are_kept_while_there_is_room_the_newest_first(run, monkeypatch):
    monkeypatch.setattr("tuning.engine.journal.PRUNED_CHECKPOINT_BYTES", 250)
    journal = Journal(run, lambda event: None)
    for name in ("a-r0", "b-r0", "c-r0"):
        end(journal, name, "pruned", 100)
    assert kept(run) == ["b-r0", "c-r0"]
    resumed = Journal(run, lambda event: None)  # which counts what it finds
    end(resumed, "d-r0", "pruned", 100)
    assert len(kept(run)) == 2 and "d-r0" in kept(run)


def test_the_best_completed_trials_keep_their_checkpoints_over_sessions(run):
    losses = {"a-r0": 0.5, "b-r0": 0.3, "c-r0": 0.4, "d-r0": 0.6}
    journal = Journal(run, lambda event: None, keep=2)
    for name, loss in list(losses.items())[:2]:
        end(journal, name, "completed", 10, **{"val/loss": loss})
    resumed = Journal(run, lambda event: None, keep=2)
    for name, loss in list(losses.items())[2:]:
        end(resumed, name, "completed", 10, **{"val/loss": loss})
    assert kept(run) == ["b-r0", "c-r0"]
    end(resumed, "e-r0", "failed", 10)
    assert kept(run) == ["b-r0", "c-r0"]


def test_a_failed_trial_that_is_run_again_is_not_over_should_the_driver_die(run):
    journal = Journal(run, lambda event: None)
    end(journal, "a-r0", "failed", 10)
    assert journal.failed("s") == {"a-r0"}
    journal.rerun("a-r0")
    assert Journal(run, lambda event: None).settled == {}
    assert run.records()["a-r0"].error == "the trial is trained again"


def test_a_disk_without_room_for_the_predictions_halts_the_sweep_and_leaves_the_trial_unfinished(
    run, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    journal = Journal(run, lambda event: None)
    monkeypatch.setattr("birdnet_core.records.files.os.replace", full)
    payload = {"journal": {"study": "s"}, "resources": {"cpu": 1.0, "gpu": 0.0}}
    journal.settle(record_of("a-r0", "completed"), payload, b"predictions")
    assert journal.halt.is_fault and "No space left" in journal.halt.reason
    assert journal.settled == run.records() == {}
    assert list((run.path / "predictions").iterdir()) == []


def test_a_pruned_trial_is_over_for_its_own_study_and_to_be_trained_on_for_another(run):
    journal = Journal(run, lambda event: None)
    end(journal, "a-r0", "pruned", 10)
    assert journal.outcome("a-r0", "s").status == "pruned"
    assert journal.outcome("a-r0", "other") is None


def test_every_epoch_of_a_step_is_entered_once_and_counts_for_a_goal(run):
    journal = Journal(run, lambda event: None, Halt(Budget(until="val/f1_macro>=0.5")))
    trial = SimpleNamespace(trial_id="ray-1", config={"journal": {"trial_id": "a-r0"}})
    values = [0.1, 0.6, 0.2]
    made = [
        {"epoch": n, "val/f1_macro": value, "epoch_s": 0.01, "replayed": False}
        for n, value in enumerate(values, start=1)
    ]
    facts = {"status": None, "fault": None, "training_iteration": 1}
    result = {**made[-1], "earlier": json.dumps(made[:-1]), **facts}
    for _ in range(2):  # before the scheduler decides, and by Ray
        journal.enter_epochs(trial, result)
    entered = [event for event in run.events() if event["event"] == "epoch"]
    assert [(e["epoch"], e["metrics"]["val/f1_macro"]) for e in entered] == [*enumerate(values, start=1)]
    assert journal.usage.n_epochs == 3
    assert journal.halt.reason == "val/f1_macro >= 0.5 is reached: 0.6000"
    # A driver that was killed in the middle of the lines enters the rest when the trial replays them.
    lines = run.journal_path.read_text().splitlines(keepends=True)
    run.journal_path.write_text("".join(lines[:-2]) + lines[-2][:20])
    resumed = Journal(run, lambda event: None)
    again = [{**epoch, "replayed": True} for epoch in made]
    resumed.enter_epochs(trial, {**again[-1], "earlier": json.dumps(again[:-1]), **facts})
    assert [e["epoch"] for e in run.events() if e["event"] == "epoch"] == [1, 2, 3]
