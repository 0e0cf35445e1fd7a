"""Spaces run with the settings of a config."""

import pytest

from birdnet_core.config import TrainConfig
from search_spaces.loading import load_study
from search_spaces.replay import OutsideSpaceError, parameters_of
from search_spaces.space import sample
from search_spaces.study import base_config, trial_config


def space(trial):
    choices = {"optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)}
    if trial.suggest_categorical("loss.name", ["cross_entropy", "focal"]) == "focal":
        choices |= {"loss.name": "focal", "loss.gamma": trial.suggest_float("loss.gamma", 0.5, 5.0)}
    return choices


@pytest.mark.parametrize("name", ["learning-rate", "probe", "joint"])
def test_every_config_of_a_built_in_search_leads_back_to_its_parameters(name):
    """Also where a parameter is no setting, such as a way to balance classes."""
    study = load_study(name)
    base = base_config(study, TrainConfig())
    for each in sample(study.space, 10):
        config = trial_config(base, {}, each.settings)
        parameters, given = parameters_of(study.space, config.flat())
        assert trial_config(base, {}, given).config_id == config.config_id
        assert parameters == pytest.approx(each.parameters)


def test_a_config_outside_of_the_space_is_refused_with_the_setting_and_the_range():
    settings = TrainConfig().override({"optim.lr": 0.1}).flat()
    with pytest.raises(
        OutsideSpaceError, match=r"optim.lr = 0.1 is outside of the search space \(0.0001 to 0.01\)"
    ):
        parameters_of(space, settings)
