"""A study as plain values."""

from pathlib import Path

import pytest

from birdnet_core.errors import ConfigError
from search_spaces.designs import Design
from search_spaces.files.study_plain import space_facts, to_plain, to_yaml
from search_spaces.files.study_yaml import parse_study
from search_spaces.study import Ablation, Search


def test_settings_that_are_none_are_written():
    study = Ablation(
        name="mine",
        question="Is it?",
        factors={"optim.backbone_lr": (None, 1e-4)},
        base={"training.stop_on": None},
        quick={"training.micro_batch_size": None},
    )
    again = parse_study(to_yaml(study), Path("f.yaml"))
    assert (again.base, again.factors, again.quick) == (study.base, study.factors, study.quick)


def test_a_design_of_ones_own_has_no_name_in_a_file():
    class Mine(Design):
        kind = "mine"

        def cells(self, levels, baseline):
            return [baseline]

    with pytest.raises(ConfigError, match="Mine is no design of study files, which are full, one-at-a-time,"):
        to_plain(Ablation(factors={"optim.lr": (1, 2)}, design=Mine()))


def test_a_search_is_described_even_where_it_has_no_form_in_a_file():
    def decoded(trial):
        way = trial.suggest_categorical("way", ["weights", "sampling"])
        if way == "weights":
            return {
                "loss.class_weights": trial.suggest_categorical("loss.class_weights", ["sqrt", "inverse"])
            }
        return {"training.sampling": "class_balanced", "optim.lr": trial.suggest_float("lr", 0.1, 0.2)}

    facts = space_facts(Search(space=decoded).space)
    assert facts["way"] == {"distributions": [["weights", "sampling"]], "share": 1.0}
    assert facts["lr"]["distributions"] == [{"low": 0.1, "high": 0.2}]
    assert facts["lr"]["share"] + facts["loss.class_weights"]["share"] == pytest.approx(1)
