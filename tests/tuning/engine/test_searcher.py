"""Samplers, storages and the states of trials, without Ray: the searcher is called as Ray Tune calls it."""

import json
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.bounds import Bound
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from search_spaces.study import Search
from tuning.engine.searcher import (
    SAMPLERS,
    OptunaSearcher,
    is_of_storage,
    open_storage,
    open_study,
    sampler_of,
)


def space(trial):
    """A space with a choice of names and a setting that only some trials have."""
    choices = {
        "optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True),
        "optim.warmup_epochs": trial.suggest_int("optim.warmup_epochs", 0, 5),
        "loss.name": trial.suggest_categorical("loss.name", ["cross_entropy", "focal"]),
    }
    if choices["loss.name"] == "focal":
        choices["loss.gamma"] = trial.suggest_float("loss.gamma", 0.5, 5.0)
    return choices


SEARCH = Search(name="rates", space=space, metric="val/loss")
FRONT = Search(name="front", space=space, metric="val/f1_macro", also=("n_params", "hours"))


class Entered:
    """What the searcher asks of a journal, all of whose records are on disk."""

    def __init__(self):
        self.settled = {}
        self.finalists = []  # the numbers of trials that get further folds
        self.reused = []  # the numbers of trials that ended as another one of their config did

    def reuse(self, line):
        self.reused.append(line["number"])

    def next_fold(self, study, trial_id, number):
        self.finalists.append(number)

    def members(self, study):
        return set(self.settled)

    def outcome(self, trial_id, study):
        return self.settled.get(trial_id)

    def curve(self, trial_id, metric):
        return {1: 0.9, 2: 0.8}


class Driver:
    """What a sweep does with a searcher, without Ray and without training."""

    def __init__(self, run, search=SEARCH, n_trials=6, **options):
        self.asked = []  # (number, choices) of every trial for which a payload was made
        self.path = run
        self.search = search = replace(search, n_trials=n_trials)
        study = open_study(RunFolder(run), search, seed=3, **options)
        self.journal = Entered()
        self.searcher = OptunaSearcher(study, search, self.make_payload, self.journal)
        self.n_suggested = 0

    def make_payload(self, trial, fold=0):
        choices = self.search.space(trial)
        self.asked.append((trial.number, choices))
        return {"journal": {"trial_id": TrainConfig().override(choices).trial_id, "number": trial.number}}

    @property
    def trials(self):
        return self.searcher.study.get_trials()

    def suggest(self):
        """Return a key of the next trial, or None when there is none left."""
        self.n_suggested += 1
        name = f"trial{self.n_suggested}"
        return name if self.searcher.suggest(name) else None

    def end(self, name, status, values=(0.5,), *, metrics=None, n_params=10, seconds=36.0):
        """Report `values`, one an epoch from 1, and end the trial with `status`."""
        metric = self.search.metric
        for epoch, value in enumerate(values, start=1):
            self.searcher.report(name, {metric: value, "epoch": epoch})
        record = TrialRecord(
            trial_id=self.searcher._trials[name][1]["journal"]["trial_id"],
            config_id="x",
            repeat=0,
            seed=0,
            status=status,
            config={},
            metrics=metrics or {metric: min(values, default=0.0)},
            n_params=n_params,
            seconds=seconds,
        )
        self.journal.settled[record.trial_id] = record
        self.searcher.settle(name, record)

    def run(self, value=lambda choices: choices["optim.lr"]):
        """Complete every trial that is left."""
        while name := self.suggest():
            self.end(name, "completed", [value(self.asked[-1][1])])
        return self


def states(driver):
    return [trial.state.name for trial in driver.trials]


# ------------------------------------------------------------------------------------------- samplers


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_completes_a_search_of_a_space_with_conditions(name, tmp_path):
    if name == "cmaes":
        pytest.importorskip("cmaes", reason="the extra 'cmaes' is not installed")
    driver = Driver(tmp_path / "run", sampler=name, n_trials=14).run()
    assert states(driver) == ["COMPLETE"] * 14
    assert all(1e-4 <= choices["optim.lr"] <= 1e-2 for _, choices in driver.asked)
    # Each is what its name says: no fallback to another one.
    assert type(driver.searcher.study.sampler).__name__ == {
        "tpe": "TPESampler",
        "random": "NumberedRandomSampler",
        "gp": "GPSampler",
        "cmaes": "CmaEsSampler",
        "nsga2": "NSGAIISampler",
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("random", "cmaes")])
def test_a_sampler_that_learns_draws_better_than_at_random(name, tmp_path):
    """On lr alone, of which less is better: the median of the second half of the draws tells."""

    def narrow(trial):
        return {"optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)}

    search = Search(name="rates", space=narrow, metric="val/loss")
    driver = Driver(tmp_path / "run", search, sampler=name, n_trials=24).run()
    late = [choices["optim.lr"] for _, choices in driver.asked[12:]]
    assert sorted(late)[6] < 1e-3  # where random draws have their median


def test_the_options_of_tpe_do_not_follow_the_defaults_of_optuna(monkeypatch):
    taken = {}
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda **options: taken.update(options))
    sampler_of(SEARCH, "tpe", 0)
    assert taken == {
        "seed": 0, "n_startup_trials": 10, "multivariate": True, "group": True, "constant_liar": True,
        "n_ei_candidates": 24,
    }  # fmt: skip


def test_an_unknown_sampler_is_refused_with_the_near_one():
    with pytest.raises(
        ConfigError, match=r"unknown sampler 'tep'; did you mean 'tpe'\? \(known: tpe, random"
    ):
        sampler_of(SEARCH, "tep", 0)


def test_cmaes_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'birdtune\[cmaes\]'"):
        sampler_of(SEARCH, "cmaes", 0)


def test_cmaes_refuses_several_objectives():
    with pytest.raises(ConfigError, match="takes one objective, and the study has 3; take nsga2"):
        sampler_of(FRONT, "cmaes", 0)


def test_nsga2_reaches_later_generations_in_a_small_search(tmp_path):
    driver = Driver(tmp_path / "run", FRONT, sampler="nsga2", n_trials=14)
    while name := driver.suggest():
        driver.end(name, "completed")
    keys = {key: value for t in driver.trials for key, value in t.system_attrs.items() if "generation" in key}
    assert max(keys.values()) >= 2


def test_a_resumed_random_search_does_not_repeat_its_draws(tmp_path):
    first = Driver(tmp_path / "run", sampler="random", n_trials=4).run()
    second = Driver(tmp_path / "run", sampler="random", n_trials=8).run()
    rates = [choices["optim.lr"] for _, choices in first.asked + second.asked]
    assert len(set(rates)) == len(rates) == 8
    # The same seed does give the same draws, so that the claim above could fail.
    again = Driver(tmp_path / "other", sampler="random", n_trials=4).run()
    assert again.asked == first.asked


# --------------------------------------------------------------------------------- several objectives


def test_several_objectives_are_reported_and_nothing_dominates_the_front(tmp_path):
    driver = Driver(tmp_path / "run", FRONT, n_trials=5)
    reported = [  # F1, parameters, hours; by hand: the first dominates the second, the third the last
        (0.50, 100, 1.0),
        (0.40, 100, 1.5),
        (0.60, 400, 3.0),
        (0.30, 50, 1.0),
        (0.60, 400, 3.5),
    ]
    for f1, n_params, hours in reported:
        name = driver.suggest()
        driver.end(
            name,
            "completed",
            [0.1, f1],
            metrics={"val/f1_macro": f1},
            n_params=n_params,
            seconds=hours * 3600,
        )
    assert [tuple(trial.values) for trial in driver.trials] == reported
    assert [d.name for d in driver.searcher.study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    trial_ids = [TrainConfig().override(choices).trial_id for _, choices in driver.asked]
    front = {trial.user_attrs["trial_id"] for trial in driver.searcher.study.best_trials}
    assert front == {trial_ids[0], trial_ids[2], trial_ids[3]}


def test_the_front_of_one_objective_is_the_best_trial(tmp_path):
    driver = Driver(tmp_path / "run", n_trials=5).run()
    best = min(driver.asked, key=lambda asked: asked[1]["optim.lr"])
    front = {trial.user_attrs["trial_id"] for trial in driver.searcher.study.best_trials}
    assert front == {TrainConfig().override(best[1]).trial_id}


def test_a_study_of_other_objectives_is_refused(tmp_path):
    Driver(tmp_path / "run", FRONT, n_trials=2).run()
    fewer = Search(name="front", space=space, metric="val/f1_macro", also=("n_params",))
    others = Search(name="front", space=space, metric="val/f1_macro", also=("hours", "n_params"))
    for search in (fewer, others):
        with pytest.raises(RunFolderError, match="'front' with other objectives: it has .*n_params.*hours"):
            Driver(tmp_path / "run", search)


# ------------------------------------------------------------------------------------------ constraints

SMALL_ONES = replace(SEARCH, constraints=(Bound("n_params", "<=", 100), Bound("val/f1_rare", ">=", 0.2)))


def test_the_excess_over_each_constraint_is_in_the_storage(tmp_path):
    driver = Driver(tmp_path / "run", SMALL_ONES, n_trials=4)
    for status, n_params, f1_rare in (
        ("completed", 50, 0.3),
        ("completed", 50, 0.1),
        ("pruned", 50, 0.1),  # what its last epoch would have been is not known
        ("infeasible", 150, None),
    ):
        metrics = {"val/loss": 0.5} | ({"val/f1_rare": f1_rare} if f1_rare else {})
        driver.end(driver.suggest(), status, metrics=metrics, n_params=n_params)
    assert states(driver) == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert [t.constraints for t in driver.trials] == [
        {"n_params<=100": -0.5, "val/f1_rare>=0.2": pytest.approx(-0.5)},
        {"n_params<=100": -0.5, "val/f1_rare>=0.2": pytest.approx(0.5)},
        {"n_params<=100": -0.5},
        {"n_params<=100": 0.5},
    ]
    assert [t.number for t in driver.searcher.study.best_trials] == [0]


def test_a_constrained_value_that_is_unknown_is_a_failed_trial(tmp_path, caplog):
    driver = Driver(tmp_path / "run", SMALL_ONES, n_trials=1)
    driver.end(driver.suggest(), "completed", metrics={"val/loss": 0.5})
    assert states(driver) == ["FAIL"]
    assert "val/f1_rare" in caplog.text and driver.trials[0].constraints == {}


def test_a_gaussian_process_learns_to_keep_a_constraint(tmp_path):
    """Of the rate alone, of which less is better, and at least 1e-3 is allowed."""

    def narrow(trial):
        return {"optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)}

    search = replace(SEARCH, space=narrow, constraints=(Bound("val/f1_rare", ">=", 1e-3),))
    driver = Driver(tmp_path / "run", search, sampler="gp", n_trials=24)
    while name := driver.suggest():
        rate = driver.asked[-1][1]["optim.lr"]
        driver.end(name, "completed", [rate], metrics={"val/loss": rate, "val/f1_rare": rate})
    late = [choices["optim.lr"] for _, choices in driver.asked[12:]]
    # At the limit, and barely beyond. At random it would be half of them.
    assert sum(rate >= 9e-4 for rate in late) > 8


def test_tpe_learns_from_configs_that_were_not_trained(tmp_path):
    def narrow(trial):
        return {"optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)}

    search = replace(SEARCH, space=narrow, constraints=(Bound("n_params", "<=", 100),))
    driver = Driver(tmp_path / "run", search, n_trials=40)
    while name := driver.suggest():
        rate = driver.asked[-1][1]["optim.lr"]
        if rate < 1e-3:
            driver.end(name, "infeasible", [], metrics={"val/loss": 0.0}, n_params=200)
        else:
            driver.end(name, "completed", [rate])
    late = [choices["optim.lr"] for _, choices in driver.asked[20:]]
    assert sum(rate >= 1e-3 for rate in late) > 12


@pytest.mark.parametrize(
    ("sampler", "words"),
    [("cmaes", "'cmaes' takes no constraints, .*n_params<=100"), ("gp", "'gp' learns from trained configs")],
)
def test_a_sampler_that_could_not_learn_a_constraint_refuses_it(sampler, words):
    with pytest.raises(ConfigError, match=words):
        sampler_of(SMALL_ONES, sampler, 0)


def test_a_value_that_is_not_a_number_is_a_failed_trial_and_no_crash(tmp_path, caplog):
    driver = Driver(tmp_path / "run", FRONT, n_trials=1)
    driver.end(driver.suggest(), "completed", n_params=None, metrics={"val/f1_macro": 0.5})
    assert states(driver) == ["FAIL"]
    assert "nan" in caplog.text
    assert driver.suggest() is None


# ------------------------------------------------------------------------------- ends, kills, retries


def test_trials_end_as_their_status_says(tmp_path):
    driver = Driver(tmp_path / "run", n_trials=4)
    for status in ("completed", "pruned", "failed", "diverged"):
        driver.end(driver.suggest(), status, [0.9, 0.4, 0.6])
    assert states(driver) == ["COMPLETE", "PRUNED", "FAIL", "FAIL"]
    assert driver.trials[0].value == 0.4  # of the best epoch
    for trial in driver.trials:
        assert trial.intermediate_values == {1: 0.9, 2: 0.4, 3: 0.6}


def test_a_config_trained_before_has_its_value_and_costs_no_training(tmp_path):
    driver = Driver(tmp_path / "run", n_trials=3)
    there = TrialRecord(
        trial_id="abc-r0",
        config_id="abc",
        repeat=0,
        seed=0,
        status="completed",
        config={},
        metrics={"val/loss": 0.25},
    )
    driver.journal.settled["abc-r0"] = there
    payloads = iter([there, {"journal": {"trial_id": "new-r0"}}, there])
    driver.searcher.make_payload = lambda trial, fold: next(payloads)
    driver.end(driver.suggest(), "completed", [0.5])
    assert driver.suggest() is None
    assert [(t.value, t.user_attrs["trial_id"]) for t in driver.trials] == [
        (0.25, "abc-r0"),
        (0.5, "new-r0"),
        (0.25, "abc-r0"),
    ]


@pytest.mark.parametrize("search", [SEARCH, FRONT], ids=["one", "several"])
@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_trials_that_ran_when_the_driver_died_are_taken_up_first_as_they_were(tmp_path, storage, search):
    dead = Driver(tmp_path / "run", search, n_trials=4, storage=storage)
    names = [dead.suggest() for _ in range(3)]
    dead.end(names[1], "completed", [0.5])
    for epoch, value in ((1, 0.9), (2, 0.8)):
        dead.searcher.report(names[0], {search.metric: value, "epoch": epoch})
    before = dead.trials

    alive = Driver(tmp_path / "run", search, n_trials=4, storage=storage)
    assert states(alive) == ["RUNNING", "COMPLETE", "RUNNING"]
    assert alive.searcher.n_left() == 3  # two to continue, one that is new
    name = alive.suggest()
    assert alive.asked == [dead.asked[0]]  # the same number and the same choices
    assert alive.searcher.n_left() == 2
    # The trainable tells its old epochs again, then new ones. A second report of an epoch would be a warning,
    # which is an error here.
    alive.end(name, "completed", [0.9, 0.8, 0.7])
    alive.run()
    assert states(alive) == ["COMPLETE"] * 4
    assert alive.asked[1] == dead.asked[2]
    assert [t.params for t in alive.trials[:3]] == [t.params for t in before]
    if search is SEARCH:
        assert alive.trials[0].intermediate_values == {1: 0.9, 2: 0.8, 3: 0.7}
        assert alive.trials[0].value == 0.7


def test_a_trial_whose_driver_died_half_way_through_its_space_is_given_the_rest(tmp_path):
    dead = Driver(tmp_path / "run", n_trials=1)
    trial = dead.searcher.study.ask()
    lr = trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)
    alive = Driver(tmp_path / "run", n_trials=1).run()
    ((number, choices),) = alive.asked
    assert (number, choices["optim.lr"]) == (0, lr)
    assert set(choices) >= {"optim.warmup_epochs", "loss.name"}
    assert states(alive) == ["COMPLETE"]


def test_a_study_in_which_everything_fails_ends(tmp_path):
    driver = Driver(tmp_path / "run", n_trials=3)
    for _ in range(3):
        driver.end(driver.suggest(), "failed")
    assert (driver.searcher.n_left(), driver.suggest()) == (0, None)
    assert Driver(tmp_path / "run", n_trials=3).suggest() is None
    assert Driver(tmp_path / "run", n_trials=4).searcher.n_left() == 1


def test_failed_trials_are_retried_once_each_with_their_choices(tmp_path):
    first = Driver(tmp_path / "run", n_trials=4)
    for status in ("completed", "failed", "diverged", "completed"):
        first.end(first.suggest(), status)
    second = Driver(tmp_path / "run", n_trials=4)
    assert second.searcher.retry_failed() == 2
    assert second.searcher.retry_failed() == 0  # they wait already
    assert second.searcher.n_left() == 2
    second.end(second.suggest(), "completed")
    second.end(second.suggest(), "failed")
    assert second.suggest() is None
    assert [choices for _, choices in second.asked] == [choices for _, choices in first.asked[1:3]]
    third = Driver(tmp_path / "run", n_trials=4)
    assert third.searcher.n_left() == 0
    assert third.searcher.retry_failed() == 1  # the one that failed again
    third.run()
    assert third.asked == [(6, first.asked[2][1])]


def test_errors_of_the_storage_while_a_space_draws_differ_from_those_of_the_space(tmp_path, monkeypatch):
    driver = Driver(tmp_path / "run", storage="journal", n_trials=1)
    trial = driver.searcher.study.ask()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(driver.searcher.study._storage._backend), "append_logs", full)
        with pytest.raises(OSError) as caught:
            space(trial)
    assert is_of_storage(caught.value)

    def missing(trial):
        trial.suggest_float("optim.lr", 1e-4, 1e-2)
        return Path("/nowhere/rates.txt").read_text()

    with pytest.raises(OSError) as caught:
        missing(trial)
    assert not is_of_storage(caught.value)


def record_of(name, status):
    return TrialRecord(
        trial_id=name, config_id=name, repeat=0, seed=0, status=status, config={}, metrics={"val/loss": 0.5}
    )


def test_a_trial_whose_record_cannot_be_written_stays_running_and_comes_first_in_the_next_session(tmp_path):
    driver = Driver(tmp_path / "run", n_trials=2)
    driver.searcher.make_payload = lambda trial, fold: record_of("unfit-r0", "failed")
    assert driver.suggest() is None  # the journal does not hold it, so the sweep halts
    assert states(driver) == ["RUNNING"]
    again = Driver(tmp_path / "run", n_trials=2)
    again.run()
    assert [number for number, _ in again.asked] == [0, 1]


def test_a_config_that_fails_before_it_is_trained_is_one_failed_trial(tmp_path):
    driver = Driver(tmp_path / "run", n_trials=3)
    asked = driver.searcher.make_payload

    def fail_the_second(trial, fold):
        if trial.number != 1:
            return asked(trial)
        driver.journal.settled["unfit-r0"] = record_of("unfit-r0", "failed")
        return driver.journal.settled["unfit-r0"]

    driver.searcher.make_payload = fail_the_second
    driver.run()
    assert states(driver) == ["COMPLETE", "FAIL", "COMPLETE"]


def test_twins_of_a_running_trial_end_as_it_does_and_are_entered(tmp_path):
    """A space of one config: whatever is drawn is what is being trained."""

    def one(trial):
        return {"loss.name": trial.suggest_categorical("loss.name", ["focal"])}

    for status, state in (("completed", "COMPLETE"), ("pruned", "PRUNED"), ("failed", "FAIL")):
        driver = Driver(tmp_path / status, Search(name="one", space=one, metric="val/loss"), n_trials=3)
        name = driver.suggest()
        assert driver.suggest() is None  # the two others wait for it
        assert states(driver) == ["RUNNING"] * 3
        driver.end(name, status, [0.9, 0.7])
        assert states(driver) == [state] * 3
        assert driver.journal.reused == [1, 2]
        if status == "pruned":
            assert [t.intermediate_values for t in driver.trials] == [{1: 0.9, 2: 0.7}] * 3


def test_a_pruned_trial_whose_driver_died_before_optuna_knew_is_reported_with_its_curve(tmp_path):
    dead = Driver(tmp_path / "run", n_trials=1)
    dead.searcher.report(dead.suggest(), {"val/loss": 0.9, "epoch": 1})
    alive = Driver(tmp_path / "run", n_trials=1)
    alive.journal.settled["x"] = record_of("x", "pruned")
    alive.searcher.make_payload = lambda trial, fold: alive.journal.settled["x"]
    assert alive.suggest() is None
    assert states(alive) == ["PRUNED"]
    assert alive.trials[0].intermediate_values == {1: 0.9, 2: 0.8}


def test_random_draws_depend_on_the_number_of_the_trial_and_not_on_what_happened_before(tmp_path):
    whole = Driver(tmp_path / "whole", sampler="random", n_trials=6).run()
    cut = Driver(tmp_path / "cut", sampler="random", n_trials=6)
    for _ in range(2):
        cut.end(cut.suggest(), "completed")
    cut.suggest()  # and the driver dies
    resumed = Driver(tmp_path / "cut", sampler="random", n_trials=6).run()
    assert [t.params for t in resumed.trials] == [t.params for t in whole.trials]


# ------------------------------------------------------------------------------------------- storages


def test_each_storage_has_its_file_and_keeps_the_study(tmp_path):
    for storage, file in (("sqlite", "optuna.db"), ("journal", "optuna.jsonl")):
        run = tmp_path / storage
        Driver(run, storage=storage, n_trials=2).run()
        assert [p.name for p in run.iterdir()] == [file]
        again = Driver(run, storage=storage, n_trials=3)
        assert again.searcher.n_left() == 1
        assert again.searcher.study.study_name == "rates"


def test_a_journal_goes_on_after_a_kill_in_the_middle_of_a_line_and_of_the_lock(tmp_path):
    Driver(tmp_path, storage="journal", n_trials=2).run()
    file = tmp_path / "optuna.jsonl"
    with open(file, "a") as journal:
        journal.write('{"op_code": 6, "tri')
    (tmp_path / "optuna.jsonl.lock").touch()
    start = time.monotonic()
    Driver(tmp_path, storage="journal", n_trials=4).run()
    assert time.monotonic() - start < 20  # Optuna waits for 30 s
    assert states(Driver(tmp_path, storage="journal", n_trials=4)) == ["COMPLETE"] * 4


def test_a_journal_on_a_full_disk_keeps_whole_lines_and_goes_on_where_there_is_room(tmp_path):
    driver = Driver(tmp_path, storage="journal", n_trials=2)
    driver.end(driver.suggest(), "completed", [0.5])
    file = tmp_path / "optuna.jsonl"
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))  # ten bytes of the line fit
    try:
        with pytest.raises(OSError, match="File too large"):
            driver.suggest()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    driver.run()
    assert states(Driver(tmp_path, storage="journal", n_trials=2)) == ["COMPLETE"] * 2


@pytest.mark.parametrize("content", ["this is no journal\n" * 9, '{"event": "trial"}\n', "[1]\n"])
def test_a_damaged_journal_is_named(tmp_path, content):
    (tmp_path / "optuna.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=r"cannot read .*optuna.jsonl, which is no journal of Optuna's"):
        open_storage("journal", RunFolder(tmp_path))


def test_two_runs_in_one_database_do_not_meet(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    one, other = (Driver(tmp_path / name, storage=url, n_trials=2) for name in ("one", "other"))
    one.run()
    assert (len(one.trials), len(other.trials)) == (2, 0)
    assert len(optuna.get_all_study_names(url)) == 2
    assert Driver(tmp_path / "one", storage=url, n_trials=2).searcher.n_left() == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sqlit", r"unknown storage 'sqlit'; did you mean 'sqlite'\? \(known: journal, sqlite, env"),
        ("nonsense://", r"cannot be read|cannot open"),
        ("nosuch://u@h/d", "cannot open the storage, nosuch database 'd' on h: Can't load plugin"),
        ("env", "BIRDTUNE_STORAGE, which is not set"),
        ("sqlite:////nowhere/at/all.db", "cannot open the storage, sqlite database '/nowhere/at/all.db': "),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused(tmp_path, monkeypatch, spec, words):
    monkeypatch.delenv("BIRDTUNE_STORAGE", raising=False)
    with pytest.raises(ConfigError, match=words):
        open_storage(spec, RunFolder(tmp_path / "run"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://bird:s3cret@host/tune",
        "postgresql+psycopg://bird@host/tune?password=s3cret",
        "postgresql+psycopg://bird:s3cret@host:port:port/tune",
    ],
)
def test_a_url_with_a_password_is_refused_and_not_repeated(tmp_path, url):
    with pytest.raises(ConfigError) as caught:
        open_storage(url, RunFolder(tmp_path / "run"))
    assert "s3cret" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_damaged_sqlite_file_is_named(tmp_path):
    (tmp_path / "optuna.db").write_text("this is not a database" * 100)
    with pytest.raises(ConfigError, match=r"optuna.db'.*not a database"):
        open_storage("sqlite", RunFolder(tmp_path))


@pytest.fixture(scope="module")
def postgres():
    """The URL, with its password, of a PostgreSQL server of our own, on a free port of this machine."""
    pytest.importorskip("psycopg", reason="the extra 'postgresql' is not installed")
    where = shutil.which("initdb", path=os.pathsep.join(
        [os.environ["PATH"], *(str(p) for p in sorted(Path("/usr/lib/postgresql").glob("*/bin")))]
    ))  # fmt: skip
    if where is None:
        pytest.skip("no PostgreSQL server is installed (initdb is not found)")
    # The server refuses to run as root, and its folder must belong to who runs it.
    nobody = pwd.getpwnam("nobody")
    is_root = os.geteuid() == 0
    user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []} if is_root else {}
    folder = Path(tempfile.mkdtemp(prefix="birdtune-postgres-"))
    server = None
    try:
        (folder / "password").write_text("s3cret")
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, user["user"], user["group"])
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
        subprocess.run(
            [where, "-D", folder / "data", "-U", "bird", "--auth=scram-sha-256", "--no-sync",
             f"--pwfile={folder / 'password'}"], check=True, **quiet
        )  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [Path(where).resolve().parent / "postgres", "-D", folder / "data", "-p", str(port),
             "-h", "127.0.0.1", "-k", folder], **quiet
        )  # fmt: skip
        url = f"postgresql+psycopg://bird:s3cret@127.0.0.1:{port}/postgres"
        wait_for(url)
        yield url
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # it does not wait for those who are still connected
            server.wait(30)
        shutil.rmtree(folder)


def wait_for(url):
    import psycopg

    for _ in range(150):
        try:
            psycopg.connect(url.replace("+psycopg", "")).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.2)
    raise TimeoutError("the PostgreSQL server did not answer within 30 s")


def test_postgresql_keeps_a_search_through_a_kill_and_no_file_knows_the_password(
    tmp_path, postgres, monkeypatch
):
    monkeypatch.setenv("BIRDTUNE_STORAGE", postgres)
    run = tmp_path / "run"
    dead = Driver(run, storage="env", n_trials=4)
    dead.end(dead.suggest(), "pruned", [0.9, 0.8])
    dead.searcher.report(dead.suggest(), {"val/loss": 0.7, "epoch": 1})
    alive = Driver(run, storage="env", n_trials=4)
    assert states(alive) == ["PRUNED", "RUNNING"]
    alive.end(alive.suggest(), "completed", [0.7, 0.6])
    assert alive.asked == [dead.asked[1]]
    alive.run()
    assert states(alive) == ["PRUNED", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert alive.trials[1].intermediate_values == {1: 0.7, 2: 0.6}
    for driver in (dead, alive):
        driver.searcher.study._storage._backend.engine.dispose()
    files = [p for p in run.rglob("*") if p.is_file()]
    assert files and all("s3cret" not in p.read_text() for p in files)


def test_a_wrong_password_is_an_error_without_it(tmp_path, postgres, monkeypatch):
    monkeypatch.setenv("BIRDTUNE_STORAGE", postgres.replace("s3cret", "guessed"))
    with pytest.raises(
        ConfigError, match=r"cannot open the storage, postgresql\+psycopg .* on 127"
    ) as caught:
        open_storage("env", RunFolder(tmp_path))
    assert "guessed" not in str(caught.value)


def test_a_database_without_its_driver_says_what_to_install(tmp_path):
    with pytest.raises(ConfigError, match=r"needs a Python driver .* pip install 'birdtune\[postgresql\]'"):
        open_storage("postgresql+pg8000://u@h/d", RunFolder(tmp_path))


def test_a_waiting_trial_is_suggested_even_where_the_number_of_trials_is_reached(tmp_path):
    Driver(tmp_path / "run", n_trials=1).run().searcher.study.enqueue_trial({"optim.lr": 5e-3})
    driver = Driver(tmp_path / "run", n_trials=1)
    assert driver.searcher.n_left() == 1
    driver.run()
    assert driver.asked[0][1]["optim.lr"] == 5e-3
    assert driver.trials[1].state == TrialState.COMPLETE


def test_a_config_that_is_being_trained_is_not_trained_twice_at_once(tmp_path):
    def one_config(trial):
        return {"loss.name": trial.suggest_categorical("loss.name", ["focal"])}

    driver = Driver(tmp_path / "run", replace(SEARCH, space=one_config), n_trials=3)
    first = driver.suggest()
    assert driver.suggest() is None  # the two others wait for it
    assert states(driver) == ["RUNNING"] * 3
    driver.end(first, "completed", [0.5])
    assert states(driver) == ["COMPLETE"] * 3
    assert [trial.value for trial in driver.trials] == [0.5] * 3


def test_the_epochs_of_a_step_reach_the_journal_with_one_wait_for_the_disk(tmp_path, monkeypatch):
    driver = Driver(tmp_path)
    name = driver.suggest()
    waits = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: waits.append(file) or sync(file))
    earlier = json.dumps([{"epoch": epoch, "val/loss": 1 / epoch} for epoch in range(1, 50)])
    driver.searcher.report(name, {"epoch": 50, "val/loss": 0.01, "earlier": earlier})
    assert len(waits) == 1
    values = {**{epoch: 1 / epoch for epoch in range(1, 50)}, 50: 0.01}
    assert driver.trials[0].intermediate_values == values
    assert Driver(tmp_path).trials[0].intermediate_values == values  # as the next driver reads it
    driver.suggest()  # which finds its place in the file without reading it from the start
    backend = driver.searcher.study._storage._backend
    assert max(backend._log_number_offset.values()) == os.path.getsize(tmp_path / "optuna.jsonl")


def test_a_disk_that_is_full_in_the_middle_of_a_step_leaves_whole_lines(tmp_path, monkeypatch):
    driver = Driver(tmp_path)
    name = driver.suggest()
    before = (tmp_path / "optuna.jsonl").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left")))
    earlier = json.dumps([{"epoch": 1, "val/loss": 0.5}])
    with pytest.raises(OSError) as caught:
        driver.searcher.report(name, {"epoch": 2, "val/loss": 0.4, "earlier": earlier})
    assert is_of_storage(caught.value)
    assert (tmp_path / "optuna.jsonl").read_bytes() == before
