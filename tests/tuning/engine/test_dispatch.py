"""What becomes of a trial whose process, node or data fails; without Ray, whose calls are made here."""

import json
import pickle
import time

import optuna
import pytest
from ray.exceptions import ActorUnschedulableError, OutOfMemoryError, RayActorError

from birdnet_core.config import TrainConfig
from birdnet_core.errors import DataError, MachineError
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from tuning.engine.dispatch import Dispatcher
from tuning.engine.halt import Budget, Halt
from tuning.engine.journal import Journal
from tuning.engine.nodes import Nodes, TrialFault
from tuning.engine.placement import Placement
from tuning.engine.searcher import PlannedSearcher

FINISHED = Dispatcher.FINISHED


def node(name, cpu=1.0):
    return {"NodeID": name, "NodeManagerHostname": f"host-{name}", "Resources": {"CPU": cpu}}


class Sweep:
    """A sweep of trials that Ray would run: `fail` and `train` say what happens to one."""

    def __init__(self, run, n=3, restarts=3, nodes=("a", "b"), prepare=lambda payload: True):
        self.run = RunFolder(run)
        study = {"kind": "ablation", "metric": "val/f1_macro", "direction": "maximize", "epochs": 1}
        self.run.write_study({"name": "s", "question": "?", "repeats": [0], "seed": 0, "cells": [], **study})
        self.seen = []
        self.journal = Journal(self.run, self.seen.append, Halt())
        self.nodes = [node(name) for name in nodes]
        payloads = []
        for seed in range(n):
            config = TrainConfig().override({"seed": seed})
            line = {"study": "s", "trial_id": config.trial_id, "number": seed, "factors": {}}
            payloads.append({"config": config.to_dict(), "journal": line})
        self.dispatcher = Dispatcher(
            PlannedSearcher(payloads),
            self.journal,
            Placement(cpus=1, gpus=0.0, concurrent=2),
            prepare,
            concurrent=2,
            restarts=restarts,
            nodes=Nodes(lambda: self.nodes),
        )
        self.n_suggested = 0
        self.payloads = {}

    def suggest(self):
        self.n_suggested += 1
        key = f"ray{self.n_suggested}"
        payload = self.dispatcher.suggest(key)
        if not isinstance(payload, dict):
            return payload
        self.payloads[key] = payload
        self.journal.enter(key, payload)
        return key

    def result(self, key, status=None, epoch=1, on="a"):
        config = TrainConfig.from_dict(self.payloads[key]["config"])
        record = TrialRecord(
            trial_id=config.trial_id,
            config_id=config.config_id,
            repeat=config.repeat,
            seed=config.seed,
            status=status or "killed",
            config=config.to_dict(),
            epochs=epoch,
        )
        return {
            "record": json.dumps(record.to_dict()), "status": status, "replayed": False, "epoch": epoch,
            "earlier": "[]", "node": on, "out_of_memory": False, "done": status is not None,
        }  # fmt: skip

    def train(self, key, on="a", epoch=1):
        self.dispatcher.on_trial_result(key, self.result(key, epoch=epoch, on=on))

    def complete(self, key, on="a"):
        result = self.result(key, "completed", on=on)
        self.journal.settle(TrialRecord.from_dict(json.loads(result["record"])), self.payloads[key])
        self.dispatcher.on_trial_complete(key, result)

    def fail(self, key, error):
        self.journal._errors[key] = error
        self.dispatcher.on_trial_complete(key, error=True)

    def fault(self, key, on="a", cause="chance"):
        record = self.result(key, "failed", epoch=0, on=on)["record"]
        self.fail(key, TrialFault("OSError: strange", cause, on, f"host-{on}", record))

    def statuses(self):
        return [r.status for r in self.run.records().values()]

    def notes(self):
        return [e["text"] for e in self.seen if e["event"] == "note"]


def test_a_trial_that_fails_at_once_is_retried_once_on_another_node_and_then_has_failed(tmp_path):
    sweep = Sweep(tmp_path, n=1)
    key = sweep.suggest()
    assert sweep.payloads[key]["avoid"] == []
    sweep.fault(key, on="a")
    assert sweep.statuses() == []
    key = sweep.suggest()
    assert sweep.payloads[key]["avoid"] == ["a"]
    sweep.fault(key, on="b")
    assert sweep.statuses() == ["failed"]
    assert sweep.suggest() == FINISHED
    assert sweep.notes() == []  # the trial's own fault: no node is put aside for it


def test_where_there_is_one_node_the_second_try_is_there_in_another_process(tmp_path):
    sweep = Sweep(tmp_path, n=1, nodes=("a",))
    sweep.fault(sweep.suggest(), on="a")
    key = sweep.suggest()
    assert sweep.payloads[key]["avoid"] == []
    sweep.complete(key)
    assert sweep.statuses() == ["completed"]


def test_a_process_that_cannot_have_a_trial_costs_the_trial_nothing(tmp_path):
    sweep = Sweep(tmp_path, n=1, restarts=0)
    for _ in range(4):  # four processes that were used before
        sweep.fault(sweep.suggest(), on="a", cause="process")
    sweep.complete(sweep.suggest())
    assert (sweep.statuses(), sweep.notes()) == (["completed"], [])


def test_a_sick_node_is_put_aside_after_three_faults_and_takes_no_trial_with_it(tmp_path):
    sweep = Sweep(tmp_path, n=6)
    for _ in range(3):
        sweep.fault(sweep.suggest(), on="a", cause="node")
    assert sweep.notes() == ["host-a is given no more trials: OSError: strange"]
    while (key := sweep.suggest()) != FINISHED:
        assert sweep.payloads[key]["avoid"] == ["a"]
        sweep.complete(key, on="b")
    assert sweep.statuses() == ["completed"] * 6


def test_a_node_on_which_trials_fail_that_train_elsewhere_is_put_aside_too(tmp_path):
    sweep = Sweep(tmp_path, n=6)
    for _ in range(3):
        sweep.fault(sweep.suggest(), on="a")
        sweep.complete(sweep.suggest(), on="b")
    assert len(sweep.notes()) == 1
    assert sweep.payloads[sweep.suggest()]["avoid"] == ["a"]


def test_an_epoch_on_a_node_forgives_its_faults(tmp_path):
    sweep = Sweep(tmp_path, n=6)
    for _ in range(4):
        sweep.fault(sweep.suggest(), on="a", cause="node")
        sweep.complete(sweep.suggest(), on="a")
    assert sweep.notes() == []


def test_where_every_node_is_put_aside_the_sweep_halts_and_no_trial_has_failed(tmp_path):
    sweep = Sweep(tmp_path, n=6, nodes=("a",))
    for _ in range(3):
        sweep.fault(sweep.suggest(), on="a", cause="node")
    assert sweep.suggest() == FINISHED
    assert sweep.journal.halt.is_fault
    assert sweep.journal.halt.reason == "no machine is left to train on: put aside are host-a"
    assert "failed" not in sweep.statuses()


def test_progress_resets_the_count_of_deaths(tmp_path):
    sweep = Sweep(tmp_path, n=1, restarts=2)
    for epoch in range(1, 8):
        key = sweep.suggest()
        sweep.train(key, epoch=epoch)
        sweep.fail(key, RayActorError())
    assert sweep.statuses() == []
    for _ in range(2):
        sweep.fail(sweep.suggest(), RayActorError())
    (record,) = sweep.run.records().values()
    assert (record.status, record.epochs) == ("killed", 7)
    assert sweep.suggest() == FINISHED


def test_a_preempted_node_is_no_death(tmp_path):
    sweep = Sweep(tmp_path, n=1, restarts=0)
    for _ in range(5):
        sweep.fail(sweep.suggest(), RayActorError(preempted=True))
    assert sweep.statuses() == []
    sweep.fail(sweep.suggest(), RayActorError())
    assert sweep.statuses() == ["killed"]


def test_a_trial_that_is_killed_is_not_settled_at_its_source(tmp_path):
    sweep = Sweep(tmp_path, n=1, restarts=0)
    settled = []
    sweep.dispatcher.source.settle = lambda key, record: settled.append(record.status)
    sweep.fail(sweep.suggest(), RayActorError())
    assert (sweep.statuses(), settled) == (["killed"], [])


def test_a_record_that_cannot_be_written_is_not_settled_at_its_source(tmp_path, monkeypatch):
    sweep = Sweep(tmp_path, n=1)
    settled = []
    sweep.dispatcher.source.settle = lambda key, record: settled.append(record.status)

    def full(record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sweep.run, "write_record", full)
    sweep.complete(sweep.suggest())
    assert settled == []
    assert sweep.journal.halt.is_fault and "No space left" in sweep.journal.halt.reason
    assert sweep.suggest() == FINISHED


def test_a_death_while_the_sweep_halts_leaves_the_trial_to_be_resumed(tmp_path):
    sweep = Sweep(tmp_path, n=1)
    key = sweep.suggest()
    sweep.journal.halt.ask("interrupted (Ctrl-C)")
    sweep.fail(key, RayActorError())
    (record,) = sweep.run.records().values()
    assert record.status == "killed" and "interrupted (Ctrl-C); it can be resumed" in record.error


def test_a_trial_waits_for_its_data_while_others_are_handed_out(tmp_path):
    made = set()
    sweep = Sweep(tmp_path, n=4, prepare=lambda payload: payload["config"]["seed"] in made)
    assert sweep.suggest() is None  # none has its data yet
    made |= {1}
    second = sweep.suggest()
    assert sweep.payloads[second]["config"]["seed"] == 1
    made |= {0, 2, 3}
    assert [sweep.payloads[sweep.suggest()]["config"]["seed"] for _ in range(3)] == [0, 2, 3]
    assert sweep.suggest() is None  # those that run may come back
    for key in list(sweep.payloads):
        sweep.complete(key)
    assert sweep.suggest() == FINISHED


def test_with_one_trial_at_a_time_the_next_starts_while_the_data_of_another_are_made(tmp_path):
    sweep = Sweep(tmp_path, n=2, prepare=lambda payload: payload["config"]["seed"] == 1)
    sweep.dispatcher.concurrent = 1
    assert sweep.payloads[sweep.suggest()]["config"]["seed"] == 1


def test_a_trial_whose_data_cannot_be_made_has_failed_and_the_others_go_on(tmp_path):
    def prepare(payload):
        if payload["config"]["seed"] == 1:
            raise DataError("the windows are longer than every recording")
        return True

    sweep = Sweep(tmp_path, n=3, prepare=prepare)
    while (key := sweep.suggest()) != FINISHED:
        sweep.complete(key)
    by_seed = {r.seed: r for r in sweep.run.records().values()}
    assert [by_seed[seed].status for seed in range(3)] == ["completed", "failed", "completed"]
    assert (
        by_seed[1].error == "its data cannot be made: DataError: the windows are longer than every recording"
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (MachineError("a worker process ended while it prepared data"), "a worker process ended"),
        (MemoryError(), "it does not fit into memory"),
    ],
)
def test_a_machine_that_cannot_make_data_halts_the_sweep_and_fails_no_trial(tmp_path, error, words):
    def prepare(payload):
        raise error

    sweep = Sweep(tmp_path, n=2, prepare=prepare)
    assert sweep.suggest() is None and sweep.suggest() == FINISHED
    assert sweep.journal.halt.is_fault and words in sweep.journal.halt.reason
    assert sweep.statuses() == []


def test_nothing_of_a_dispatcher_is_pickled(tmp_path):
    """Ray pickles it with its own state, and the storage of a search may know a password."""
    assert vars(pickle.loads(pickle.dumps(Sweep(tmp_path).dispatcher))) == {}


@pytest.mark.parametrize("before", ["record", "nothing"])
def test_the_end_of_a_trial_that_a_driver_was_killed_over_is_entered_by_the_next(tmp_path, before):
    sweep = Sweep(tmp_path, n=1)
    key = sweep.suggest()
    if before == "record":
        (tmp_path / "trials").mkdir()
        record = TrialRecord.from_dict(json.loads(sweep.result(key, "completed")["record"]))
        sweep.run.write_record(record)
    again = Sweep(tmp_path, n=1)
    again.journal.begin("birdtune resume")
    ends = [e["status"] for e in again.run.events() if e["event"] == "end"]
    assert ends == (["completed"] if before == "record" else [])


def test_a_trial_that_another_study_pruned_and_that_was_not_begun_is_still_to_be_trained(tmp_path):
    """Ray stops a trial that waits, without a result, when the sweep halts."""
    sweep = Sweep(tmp_path, n=1)
    settled = []
    sweep.dispatcher.source.settle = lambda key, record: settled.append(record.status)
    sweep.n_suggested = 1
    payload = sweep.dispatcher.suggest("ray1")
    sweep.payloads["ray1"] = payload
    record = TrialRecord.from_dict(json.loads(sweep.result("ray1", "pruned")["record"]))
    sweep.journal.settled[record.trial_id] = record  # of another study
    sweep.journal._trained_for[record.trial_id] = "other"
    sweep.journal.halt.ask("interrupted (Ctrl-C)")
    sweep.dispatcher.on_trial_complete("ray1", None)
    assert settled == []


def test_where_the_node_that_a_trial_failed_on_is_gone_the_sweep_waits_for_others(tmp_path):
    sweep = Sweep(tmp_path, n=1, nodes=("a",))
    sweep.fault(sweep.suggest(), on="a")
    sweep.nodes.clear()
    key = sweep.suggest()
    assert sweep.payloads[key]["avoid"] == [] and sweep.journal.halt.reason is None


def test_a_trial_waits_in_vain_where_every_other_node_is_gone_and_is_handed_out_anew(tmp_path):
    sweep = Sweep(tmp_path, n=1)
    sweep.fault(sweep.suggest(), on="a")
    key = sweep.suggest()
    payload = sweep.payloads[key]
    assert not sweep.dispatcher.nodes.is_stranded(payload["resources"], payload["avoid"])
    del sweep.nodes[1]
    assert sweep.dispatcher.nodes.is_stranded(payload["resources"], payload["avoid"])
    sweep.dispatcher.on_trial_complete(key)  # as Ray tells that it was stopped before it began
    again = sweep.suggest()
    assert sweep.payloads[again]["avoid"] == []
    sweep.complete(again)
    assert sweep.statuses() == ["completed"]


def test_a_trial_that_keeps_off_the_only_nodes_put_aside_ends_the_sweep_that_would_wait(tmp_path):
    sweep = Sweep(tmp_path, n=4)
    for _ in range(3):
        sweep.fault(sweep.suggest(), on="a", cause="node")
    key = sweep.suggest()
    del sweep.nodes[1]
    assert sweep.dispatcher.nodes.is_stranded({"cpu": 1.0, "gpu": 0.0}, sweep.payloads[key]["avoid"])
    sweep.dispatcher.on_trial_complete(key)
    assert sweep.suggest() == FINISHED
    assert sweep.journal.halt.reason == "no machine is left to train on: put aside are host-a"


@pytest.mark.parametrize("error", [OutOfMemoryError("Ray's monitor"), ActorUnschedulableError("?"), None])
def test_whatever_ray_says_but_what_the_trial_raised_is_a_death_and_not_the_trials_fault(tmp_path, error):
    sweep = Sweep(tmp_path, n=1, restarts=1)
    sweep.fail(sweep.suggest(), error)
    assert sweep.statuses() == []
    sweep.fail(sweep.suggest(), error)
    assert sweep.statuses() == ["killed"]


def test_what_optunas_lock_raises_halts_the_sweep_and_what_a_space_raises_does_not(tmp_path):
    sweep = Sweep(tmp_path, n=1)
    lock = optuna.storages.journal.JournalFileOpenLock(str(tmp_path / "optuna.log"))
    with sweep.dispatcher._storage():
        lock.release()  # of nobody
    assert sweep.journal.halt.is_fault and "did not possess lock" in sweep.journal.halt.reason
    with pytest.raises(ZeroDivisionError), sweep.dispatcher._storage():
        1 / 0  # noqa: B018


def test_a_full_disk_after_ctrl_c_is_a_fault_and_no_epoch_is_entered_twice(tmp_path):
    halt = Halt()
    halt.ask("interrupted (Ctrl-C)")
    halt.ask("cannot write session.pt", is_fault=True)
    assert (halt.reason, halt.is_fault) == ("cannot write session.pt", True)
    halt.ask("cannot write the journal", is_fault=True)
    assert halt.reason == "cannot write session.pt"


def test_a_budget_ends_a_sweep_that_waits_for_data_only(tmp_path):
    sweep = Sweep(tmp_path, n=1, prepare=lambda payload: False)
    sweep.journal.halt.budget = Budget(hours=1e-9)
    sweep.journal.begin("birdtune sweep")
    time.sleep(0.01)
    assert sweep.suggest() == FINISHED
    assert "hours is used up" in sweep.journal.halt.reason
