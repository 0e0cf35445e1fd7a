from __future__ import annotations

import math

import numpy as np
import optuna
import pandas as pd
import pytest

from reports import load
from reports.page import sentences
from reports.statistics.importance import COLUMNS, importances, same_epoch

SPACE = {
    "optim.lr": {"low": 1e-5, "high": 1e-1, "log": True},
    "model.dropout": {"low": 0.0, "high": 0.8},
    "loss.name": ["ce", "focal"],
}


def sampled(n, seed=0):
    """Return the configs of a search and values that the learning rate alone decides: best at 1e-3."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        lr = float(10 ** rng.uniform(-5, -1))
        choices = {"optim.lr": lr, "model.dropout": float(rng.uniform(0, 0.8))}
        choices["loss.name"] = ["ce", "focal"][rng.integers(2)]
        out.append((choices, float(0.5 - 0.1 * (math.log10(lr) + 3) ** 2 + 0.01 * rng.normal())))
    return out


def of_run(path):
    runs = load([path])
    study = runs.studies[0]
    return importances(runs.trials_of(study), runs.epochs_of(study), study)


def search(make_run, configs, **changes):
    changes = {"kind": "search", "space": SPACE, **changes}
    return of_run(make_run([(choices, {0: value}) for choices, value in configs], **changes))


def test_the_parameter_that_decides_is_more_important_than_those_that_do_nothing(make_run):
    frame = search(make_run, sampled(80))
    assert list(frame.columns) == list(COLUMNS)
    assert frame["parameter"].iloc[0] == "optim.lr" and frame["importance"].iloc[0] > 0.7
    assert frame["low"].iloc[0] > frame["high"].iloc[1:].max()
    assert frame["importance"].sum() == pytest.approx(1)
    assert set(frame["note"]) == {""} and set(frame["n"]) == {80}
    assert set(frame["n_top"]) == {8}


def test_importance_is_that_of_optuna(make_run):
    configs = sampled(40)
    frame = search(make_run, configs).set_index("parameter")["importance"]
    study = optuna.create_study(direction="maximize")
    distributions = {
        "optim.lr": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True),
        "model.dropout": optuna.distributions.FloatDistribution(0.0, 0.8),
        "loss.name": optuna.distributions.CategoricalDistribution(["ce", "focal"]),
    }
    for choices, value in configs:
        study.add_trial(optuna.create_trial(params=choices, distributions=distributions, value=value))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=5 / 40)
    expected = optuna.importance.get_param_importances(study, evaluator=evaluator)
    assert dict(frame) == pytest.approx(expected)


def test_a_metric_that_is_minimized_is_turned(make_run):
    up = search(make_run, sampled(40))
    losses = [(choices, -value) for choices, value in sampled(40)]
    down = search(make_run, losses, direction="minimize", folder="down")
    pd.testing.assert_frame_equal(up, down)


def test_all_trials_are_compared_at_the_latest_epoch_that_half_and_ten_reached():
    lengths = [2] * 8 + [4] * 9 + [9] * 3
    rows = [(f"t{i}", e, 0.1 * i) for i, length in enumerate(lengths) for e in range(1, length + 1)]
    epochs = pd.DataFrame(rows, columns=["trial_id", "epoch", "val/f1_macro"])
    epoch, values = same_epoch(epochs, "val/f1_macro")
    assert epoch == 4 and list(values.index) == [f"t{i}" for i in range(8, 20)]
    fewer = epochs[epochs["trial_id"].isin([f"t{i}" for i in range(17)])]
    assert same_epoch(fewer, "val/f1_macro")[0] == 2, "nine of seventeen reached epoch 4: half, but too few"
    assert same_epoch(fewer[fewer["epoch"] > 2], "val/f1_macro")[0] is None
    assert same_epoch(epochs, "val/loss")[0] is None


def test_a_parameter_that_only_lets_trials_live_long_is_not_important():
    """Dropout decides how long a trial is trained, and values rise with every epoch."""
    trials, rows = [], []
    for i, (choices, value) in enumerate(sampled(80)):
        trials.append({"trial_id": f"t{i}", "factors": choices})
        length = 6 if choices["model.dropout"] > 0.5 else 2
        rows += [(f"t{i}", epoch, value + 0.2 * epoch) for epoch in range(1, length + 1)]
    epochs = pd.DataFrame(rows, columns=["trial_id", "epoch", "val/f1_macro"])
    study = {
        "kind": "search",
        "repeats": [0],
        "metric": "val/f1_macro",
        "direction": "maximize",
        "space": SPACE,
    }
    frame = importances(pd.DataFrame(trials), epochs, study).set_index("parameter")
    assert set(frame["epoch"]) == {2} and set(frame["n_left_out"]) == {0}
    assert frame.loc["optim.lr", "importance"] > 0.7 and frame.loc["model.dropout", "importance"] < 0.2
    mixed = epochs.groupby("trial_id")["val/f1_macro"].max().reset_index().assign(epoch=1)
    of_mixed = importances(pd.DataFrame(trials), mixed, study).set_index("parameter")["importance"]
    assert of_mixed["model.dropout"] > 0.4, "the importance from each trial's last epoch"


def test_of_few_trials_there_is_no_importance_and_the_note_is_the_reason(make_run):
    frame = search(make_run, sampled(9))
    assert frame["importance"].isna().all() and len(frame) == 3
    assert set(frame["note"]) == {"fewer than 10 trials, or than half of them, have a value at one epoch"}


def test_trials_that_are_all_alike_have_no_importance(make_run):
    frame = search(make_run, [(choices, 0.5) for choices, _ in sampled(20)])
    assert set(frame["note"]) == {"no 5 of these trials are better than the others at that epoch"}


def test_a_parameter_of_few_trials_or_one_value_or_no_range_is_left_out_with_a_note(make_run):
    configs = sampled(40)
    for i, (choices, _) in enumerate(configs):
        choices["optim.weight_decay"] = 0.01
        choices["model.width"] = 16 * (i % 3)
        if i % 5 == 0:
            choices["loss.gamma"] = 0.1 * i
        if i % 2 == 0:
            choices["class_balance"] = [None, ["a", "b"]][i % 4 // 2]
    space = {**SPACE, "loss.gamma": {"low": 0.0, "high": 4.0}, "optim.weight_decay": [0.01]}
    frame = search(make_run, configs, space=space).set_index("parameter")
    notes = dict(frame.loc[frame["importance"].isna(), "note"])
    assert notes == {
        "optim.weight_decay": "it has one value only",
        "model.width": "the study's file lacks the range of its values",
        "loss.gamma": "fewer than 10 of these trials have it",
    }
    assert frame.loc["class_balance", "n"] == 20, "computed, no number: its choices are those taken"
    assert frame["importance"].sum() == pytest.approx(1)


def test_one_parameter_alone_has_no_share(make_run):
    frame = search(make_run, [({"optim.lr": c["optim.lr"]}, value) for c, value in sampled(20)])
    assert frame["importance"].isna().all()
    assert list(frame["note"]) == ["no other parameter to compare it with"]


def test_one_parameter_may_be_sampled_from_several_ranges(make_run):
    configs = sampled(40)
    for i, (choices, _) in enumerate(configs):
        choices["model.depth"] = 2 + i % 3 if choices["loss.name"] == "ce" else 5 + i % 3
    forms = [{"low": 2, "high": 4}, {"low": 5, "high": 7}]
    space = {**SPACE, "model.depth": {"distributions": forms, "share": 1.0}}
    frame = search(make_run, configs, space=space).set_index("parameter")
    assert 0 < frame.loc["model.depth", "importance"] < 0.3


def test_of_many_trials_five_hundred_enter(make_run):
    rng = np.random.default_rng(0)
    n = 600
    trials = pd.DataFrame({"trial_id": [f"t{i}" for i in range(n)]})
    trials["factors"] = [{"a": float(a), "b": float(b)} for a, b in rng.uniform(size=(n, 2))]
    epochs = trials.assign(epoch=1, **{"val/f1_macro": [f["a"] for f in trials["factors"]]})
    range_of_all = {"low": 0.0, "high": 1.0}
    study = {"kind": "search", "repeats": [0], "metric": "val/f1_macro", "direction": "maximize"}
    frame = importances(trials, epochs, study | {"space": {"a": range_of_all, "b": range_of_all}})
    assert set(frame["n"]) == {500} and set(frame["n_trials"]) == {600} and set(frame["n_top"]) == {50}
    assert frame["parameter"].iloc[0] == "a" and frame["low"].iloc[0] > 0.9


def test_where_nothing_matters_no_importance_is_shown_in_most_cases():
    """Of 24 searches of noise one is expected; five or more have a chance of half a percent."""
    range_of_all = {"low": 0.0, "high": 1.0}
    space = dict.fromkeys("abcd", range_of_all)
    study = {
        "kind": "search",
        "repeats": [0],
        "metric": "val/f1_macro",
        "direction": "maximize",
        "space": space,
    }
    n_shown = 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        trials = pd.DataFrame({"trial_id": [f"t{i}" for i in range(30)]})
        trials["factors"] = [
            dict(zip("abcd", map(float, row), strict=True)) for row in rng.uniform(size=(30, 4))
        ]
        epochs = trials.assign(epoch=1, **{"val/f1_macro": rng.normal(size=30)})
        frame = importances(trials, epochs, study)
        n_shown += frame["importance"].notna().any()
        assert frame["p"].between(0, 1).all()
    assert n_shown < 5


def test_noise_has_one_line_that_says_why_nothing_is_shown(make_run):
    rng = np.random.default_rng(3)
    frame = search(make_run, [(choices, float(rng.uniform())) for choices, _ in sampled(30)])
    assert frame["importance"].isna().all() and frame["p"].min() > 0.05
    (note,) = set(frame["note"])
    assert note.startswith("it may be chance: permuted values look alike (p = 0.")


@pytest.mark.parametrize("seed", range(5))
def test_a_parameter_that_decides_is_found_among_thirty_trials(make_run, seed):
    frame = search(make_run, sampled(30, seed)).set_index("parameter")
    assert frame.loc["optim.lr", "p"] <= 0.05 and frame["importance"].idxmax() == "optim.lr"


def test_an_ablation_has_none(make_run):
    assert of_run(make_run([({"loss.name": "ce"}, {0: 0.1})])).empty


def test_the_sentence_has_the_first_above_all_others_only_where_no_interval_overlaps():
    rows = [("a", 0.7, 0.5, 0.9), ("b", 0.2, 0.1, 0.4), ("c", 0.1, 0.0, 0.2)]
    frame = pd.DataFrame(rows, columns=["parameter", "importance", "low", "high"])
    frame = frame.assign(metric="val/f1_macro", epoch=3.0)
    assert sentences.importance(frame) == (
        "Most important of 3 parameters for val/f1_macro at epoch 3: a, importance 0.70 (0.50 to 0.90 over "
        "resamples), above all others."
    )
    frame.loc[1, "high"] = 0.6
    assert "but the intervals of 1 of 2 others overlap its own" in sentences.importance(frame)
    assert sentences.importance(frame.assign(importance=math.nan)) == ""
