"""Observations of an earlier search and configs that are trained first, without Ray and without training."""

from dataclasses import replace

import pytest

from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.records.bounds import Bound
from birdnet_core.records.run_folder import RunFolder
from search_spaces.study import Search
from tests.tuning.engine.test_searcher import FRONT, SEARCH, Driver, space, states
from tuning.engine.searcher import OptunaSearcher
from tuning.engine.warm_start import add_observations, enqueue, enqueued, observations


def narrower(trial):
    """Without warm-up, and with lower rates."""
    choices = {"optim.lr": trial.suggest_float("optim.lr", 1e-4, 2e-3, log=True)}
    choices["loss.name"] = trial.suggest_categorical("loss.name", ["cross_entropy", "focal"])
    if choices["loss.name"] == "focal":
        choices["loss.gamma"] = trial.suggest_float("loss.gamma", 0.5, 5.0)
    return choices


@pytest.fixture
def earlier(tmp_path):
    """The run folder of a search of twelve trials, of which one was pruned and one failed."""
    path = tmp_path / "earlier"
    driver = Driver(path, n_trials=12)
    driver.end(driver.suggest(), "pruned", [0.9, 0.4])
    driver.end(driver.suggest(), "failed")
    driver.run()
    RunFolder(path).write_study(
        {"name": "rates", "question": "?", "kind": "search", "metric": "val/loss", "direction": "minimize",
         "epochs": 3, "repeats": [0], "seed": 0, "n_trials": 12, "storage": "journal", "also": []}
    )  # fmt: skip
    return path


def begin(driver, found, configs=()):
    """Let a driver's search begin with observations and configs, as a sweep does."""
    study = driver.searcher.study
    add_observations(study, found)
    enqueue(study, enqueued(configs, driver.search))
    driver.searcher = OptunaSearcher(study, driver.search, driver.make_payload, driver.journal)


def test_the_sampler_learns_from_observations_that_are_no_trials_of_the_search(earlier, tmp_path):
    found = observations(earlier, SEARCH, "tpe")
    assert [t.state.name for t in found.trials] == ["PRUNED"] + ["COMPLETE"] * 10
    assert found.trials[0].intermediate_values == {1: 0.9, 2: 0.4}
    assert (found.facts["n"], found.facts["n_outside"], found.facts["left_out"]) == (11, 0, [])
    driver = Driver(tmp_path / "run", n_trials=6)
    begin(driver, found)
    begin(driver, found)  # as when a driver dies between the two
    assert driver.searcher.n_left() == 6
    driver.run()
    assert states(driver) == ["PRUNED"] + ["COMPLETE"] * 16
    rates = sorted(choices["optim.lr"] for _, choices in driver.asked)
    assert len(rates) == 6 and rates[3] < 1e-3  # of which less is better: the median of random draws
    # What a later search takes from this one is its own.
    facts = observations(tmp_path / "run", SEARCH, "tpe").facts if _as_run(earlier, tmp_path / "run") else {}
    assert facts["n"] == 6


def _as_run(earlier, path):
    content = RunFolder(earlier).read_study("rates")
    RunFolder(path).write_study({key: value for key, value in content.items() if key != "schema"})
    return True


def test_what_is_outside_of_the_new_space_is_counted_and_left_out(earlier):
    search = replace(SEARCH, space=narrower)
    found = observations(earlier, search, "tpe")
    assert found.facts["left_out"] == ["optim.warmup_epochs"]
    assert 0 < found.facts["n_outside"] < 11 and found.facts["n"] + found.facts["n_outside"] == 11
    assert all(t.params["optim.lr"] <= 2e-3 and "optim.warmup_epochs" not in t.params for t in found.trials)


def test_a_gaussian_process_takes_whole_observations_alone(earlier):
    def wider(trial):
        return {**space(trial), "model.dropout": trial.suggest_float("model.dropout", 0.0, 0.5)}

    search = replace(SEARCH, space=wider)
    assert observations(earlier, search, "tpe").facts["n"] == 11
    assert observations(earlier, search, "gp").facts["n"] == 0
    assert observations(earlier, SEARCH, "gp").facts["n"] == 11


def test_an_observation_whose_constrained_value_is_unknown_is_left_out(earlier):
    search = replace(SEARCH, constraints=(Bound("val/f1_rare", ">=", 0.1),))
    found = observations(earlier, search, "tpe")
    assert [t.state.name for t in found.trials] == ["PRUNED"]  # of which no score counts
    assert found.facts["n_outside"] == 10


@pytest.mark.parametrize(
    ("search", "sampler", "words"),
    [
        (replace(SEARCH, metric="val/f1_macro"), "tpe", "is by val/loss, and this one by val/f1_macro"),
        (FRONT, "tpe", "this one by val/f1_macro, n_params, hours"),
        (SEARCH, "cmaes", "'cmaes' does not learn from observations.*take tpe or gp"),
        (SEARCH, "random", "'random' does not learn"),
    ],
)
def test_observations_that_teach_nothing_are_refused(earlier, search, sampler, words):
    with pytest.raises(ConfigError, match=words):
        observations(earlier, search, sampler)


def test_a_folder_without_a_search_is_refused(tmp_path):
    RunFolder(tmp_path / "run").write_study(
        {"name": "losses", "question": "?", "kind": "ablation", "metric": "val/loss", "cells": [],
         "direction": "minimize", "epochs": 3, "repeats": [0], "seed": 0}
    )  # fmt: skip
    with pytest.raises(ConfigError, match="holds no search 'rates'; its searches are none"):
        observations(tmp_path / "run", SEARCH, "tpe")


def test_configs_are_tried_first_each_once(tmp_path):
    driver = Driver(tmp_path / "run", n_trials=4)
    settings = [{"optim.lr": 3e-3, "optim.warmup_epochs": w, "loss.name": "cross_entropy"} for w in (0, 4)]
    configs = [TrainConfig().override(each) for each in settings]
    study = driver.searcher.study
    for _ in range(2):  # also when the search is resumed
        enqueue(study, enqueued(configs, driver.search))
    driver.searcher = OptunaSearcher(study, driver.search, driver.make_payload, driver.journal)
    assert driver.searcher.n_left() == 4
    driver.run()
    assert [choices for _, choices in driver.asked[:2]] == settings and len(driver.asked) == 4


def test_a_config_outside_of_the_space_is_refused_by_name():
    config = TrainConfig().override({"optim.lr": 0.1})
    with pytest.raises(ConfigError, match="--enqueue, config 2: optim.lr = 0.1 is outside"):
        enqueued([TrainConfig().override({"optim.lr": 1e-3}), config], Search(name="rates", space=space))
