"""The best configs of an earlier search and given ones are trained first, without Ray and training."""

from dataclasses import replace

import pytest

from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.records.bounds import Bound
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from search_spaces.study import Search
from tests.tuning.engine.test_searcher import SEARCH, Driver, space
from tuning.engine.searcher import OptunaSearcher
from tuning.engine.warm_start import best_of_earlier, enqueue, enqueued


def choices(lr, warmup=0):
    return {"optim.lr": lr, "optim.warmup_epochs": warmup, "loss.name": "cross_entropy"}


LOSSES = {1e-3: [0.5], 2e-3: [0.4], 3e-3: [0.3], 4e-3: [0.2], 5e-3: [0.1], 6e-3: [float("nan")]}


def write_search(path, losses, n_folds=1):
    """Write a search whose trials have learning rates and, by fold, validation losses."""
    run = RunFolder(path)
    run.write_study(
        {"name": "rates", "question": "?", "kind": "search", "metric": "val/loss", "direction": "minimize",
         "epochs": 3, "repeats": list(range(n_folds)), "seed": 0, "n_trials": len(losses)}
    )  # fmt: skip
    for number, (lr, of_folds) in enumerate(losses.items()):
        for fold, loss in enumerate(of_folds):
            config = TrainConfig().override({**choices(lr), "repeat": fold, "seed": fold})
            name = {"trial_id": config.trial_id, "number": number, "factors": {"optim.lr": lr}}
            run.append({"event": "trial", "study": "rates", "reused": False, **name})
            run.write_record(
                TrialRecord(
                    trial_id=config.trial_id, config_id=config.config_id, repeat=fold, seed=fold,
                    status="pruned" if lr == 5e-3 else "completed", config=config.to_dict(),
                    metrics={"val/loss": loss}, n_params=round(1e5 * lr),
                )
            )  # fmt: skip
    return path


@pytest.fixture
def earlier(tmp_path):
    """The run folder of a search whose best config was pruned, and another one has no value."""
    return write_search(tmp_path / "earlier", LOSSES)


def rates(facts):
    return [parameters["optim.lr"] for parameters in facts["configs"]]


def test_the_best_three_completed_configs_of_an_earlier_search_are_trained_first(earlier, tmp_path):
    facts = best_of_earlier(earlier, SEARCH)
    assert facts["configs"] == [choices(lr) for lr in (4e-3, 3e-3, 2e-3)]
    assert (facts["run"], facts["study"], facts["n_outside"]) == (str(earlier), "rates", 0)
    driver = Driver(tmp_path / "run", n_trials=5)
    for _ in range(2):  # as when a driver dies
        enqueue(driver.searcher.study, facts["configs"])
    driver.searcher = OptunaSearcher(
        driver.searcher.study, driver.search, driver.make_payload, driver.journal
    )
    assert driver.searcher.n_left() == 5
    driver.run()
    assert [each for _, each in driver.asked[:3]] == facts["configs"] and len(driver.asked) == 5


def test_of_a_search_by_folds_the_best_mean_of_the_configs_with_most_folds_comes_first(tmp_path):
    run = write_search(tmp_path / "run", {1e-3: [0.1], 2e-3: [0.2, 0.5], 3e-3: [0.3, 0.3]}, n_folds=2)
    assert rates(best_of_earlier(run, SEARCH)) == [3e-3, 2e-3, 1e-3]


def test_configs_outside_of_the_space_are_passed_over_and_counted(earlier):
    def narrower(trial):
        return {"optim.lr": trial.suggest_float("optim.lr", 1e-4, 2e-3, log=True)}

    facts = best_of_earlier(earlier, replace(SEARCH, space=narrower))
    assert (rates(facts), facts["n_outside"]) == ([2e-3, 1e-3], 2)


def test_a_setting_that_the_earlier_search_did_not_sample_has_the_value_that_it_had_there(earlier):
    def wider(trial):
        return {**space(trial), "model.dropout": trial.suggest_float("model.dropout", 0.0, 0.5)}

    first, *_ = best_of_earlier(earlier, replace(SEARCH, space=wider))["configs"]
    assert first["model.dropout"] == TrainConfig().flat()["model.dropout"]


def test_a_config_that_breaks_a_constraint_or_whose_constrained_value_is_unknown_is_not_among_them(earlier):
    small = replace(SEARCH, constraints=(Bound("n_params", "<=", 250),))
    assert rates(best_of_earlier(earlier, small)) == [2e-3, 1e-3]
    with pytest.raises(ConfigError, match="none of the 0 configs of its search 'rates'"):
        best_of_earlier(earlier, replace(SEARCH, constraints=(Bound("val/f1_rare", ">=", 0.1),)))


def test_a_search_by_another_metric_is_refused(earlier):
    with pytest.raises(ConfigError, match="is by val/loss, and this one by val/f1_macro"):
        best_of_earlier(earlier, replace(SEARCH, metric="val/f1_macro"))


def test_a_folder_without_a_search_is_refused(tmp_path):
    RunFolder(tmp_path / "run").write_study(
        {"name": "losses", "question": "?", "kind": "ablation", "metric": "val/loss", "cells": [],
         "direction": "minimize", "epochs": 3, "repeats": [0], "seed": 0}
    )  # fmt: skip
    with pytest.raises(ConfigError, match="holds no search 'rates'; its searches are none"):
        best_of_earlier(tmp_path / "run", SEARCH)


def test_configs_are_trained_first_each_once(tmp_path):
    driver = Driver(tmp_path / "run", n_trials=4)
    settings = [{"optim.lr": 3e-3, "optim.warmup_epochs": w, "loss.name": "cross_entropy"} for w in (0, 4)]
    configs = [TrainConfig().override(each) for each in settings]
    study = driver.searcher.study
    for _ in range(2):  # also when the search is resumed
        enqueue(study, [each.parameters for each in enqueued(configs, driver.search)])
    driver.searcher = OptunaSearcher(study, driver.search, driver.make_payload, driver.journal)
    assert driver.searcher.n_left() == 4
    driver.run()
    assert [choices for _, choices in driver.asked[:2]] == settings and len(driver.asked) == 4


def test_a_config_outside_of_the_space_is_refused_by_name():
    config = TrainConfig().override({"optim.lr": 0.1})
    with pytest.raises(ConfigError, match="--enqueue, config 2: optim.lr = 0.1 is outside"):
        enqueued([TrainConfig().override({"optim.lr": 1e-3}), config], Search(name="rates", space=space))
