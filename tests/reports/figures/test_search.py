from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from reports import load
from reports.figures.search import (
    ABSENT,
    N_LINES,
    parallel_axes,
    parallel_figures,
    parallel_rows,
    parameter_effect,
    parameter_points,
    rung_figures,
    rungs,
    some_trials,
    trial_figures,
)
from reports.study_report import study_report


def ended(*pairs):
    return pd.DataFrame(pairs, columns=["status", "epochs"])


def test_a_rung_counts_who_reached_it_and_what_became_of_them():
    trials = ended(
        *[("pruned", 1)] * 4, *[("pruned", 3)] * 2, ("completed", 3), ("failed", 2), ("completed", 9)
    )
    table = rungs(trials).set_index("epoch")
    assert table.loc[1].to_dict() == {"n_reached": 9, "n_stopped": 4, "n_on": 5, "n_ended": 0}
    assert table.loc[3].to_dict() == {"n_reached": 4, "n_stopped": 2, "n_on": 1, "n_ended": 1}
    assert list(table.index) == [1, 3], "nobody was stopped after epoch 2 or 9"


def report_of(path):
    runs = load([path])
    return study_report(runs, runs.studies[0])


PRUNED = {"status": "pruned", "epochs": 1, "best_epoch": 1, "metrics": {"val/f1_macro": 0.1}}


def test_bars_of_a_rung_add_up_to_those_that_reached_it(make_run):
    cells = [({"optim.lr": 10.0**-i}, {0: PRUNED if i < 4 else 0.4}) for i in range(9)]
    bars, lengths = rung_figures(
        report_of(make_run([*cells, ({"optim.lr": 3.0}, {0: "missing"})], kind="search"))
    )
    found = {row["name"]: row["n"] for row in bars.spec["datasets"]["rungs"]}
    assert found == {"trained on": 5, "stopped there": 4}
    assert (bars.name, lengths.name) == ("rungs", "lengths")
    assert [row["epochs"] for row in lengths.spec["datasets"]["trials"]] == [1] * 4 + [4] * 5


def test_the_curves_of_a_search_mark_its_rungs_and_the_best(make_run):
    run = make_run([({"optim.lr": 1e-4}, {0: 0.4}), ({"optim.lr": 1e-1}, {0: PRUNED})], kind="search")
    (drawn,) = trial_figures(report_of(run))
    data = drawn.spec["datasets"]
    assert data["rungs"] == [{"epoch": 1}]
    assert {row["cell"] for row in data["best"]} == {"#0"} and len(data["best"]) == 4
    assert sorted((row["cell"], row["status"], row["epoch"]) for row in data["ends"]) == [
        ("#0", "completed", 4), ("#1", "pruned", 1),
    ]  # fmt: skip


def trials_of(make_run):
    ends = {"status": "completed", "metrics": {"val/f1_macro": 0.4}}
    pruned = {"status": "pruned", "epochs": 1, "best_epoch": 1, "metrics": {"val/f1_macro": 0.1}}
    cells = [
        ({"optim.lr": 1e-4, "loss.name": "ce"}, {0: ends | {"metrics": {"val/f1_macro": 0.2}}}),
        ({"optim.lr": 1e-3, "loss.name": "focal", "loss.gamma": 2.0}, {0: ends}),
        ({"optim.lr": 1e-2, "loss.name": "ce"}, {0: pruned}),
        ({"optim.lr": 1e-2, "loss.name": "focal", "loss.gamma": 4.0}, {0: "failed"}),
    ]
    return load([make_run(cells, kind="search")]).trials


def test_axes_are_logarithmic_where_the_space_is_and_choices_are_ticks(make_run):
    space = {"optim.lr": {"low": 1e-5, "high": 1e-1, "log": True}, "loss.name": ["ce", "focal"]}
    names = ["optim.lr", "loss.name", "loss.gamma"]
    places, ticks = parallel_axes(trials_of(make_run), names, space, "val/f1_macro")
    assert len(places) == 3, "the failed trial has no value"
    assert places["optim.lr"].tolist() == pytest.approx([0, 0.5, 1])
    assert places["loss.name"].tolist() == [0, 1, 0]
    assert places["loss.gamma"].tolist() == [ABSENT, 0.5, ABSENT]
    assert places["val/f1_macro"].tolist() == pytest.approx([1 / 3, 1, 0])
    assert ticks["loss.name"] == [(0.0, "ce"), (1.0, "focal")]
    assert [label for _, label in ticks["optim.lr"]] == ["0.0001", "0.001", "0.01"]
    assert ticks["loss.gamma"] == [(ABSENT, "not set"), (0.5, "2")]
    linear, _ = parallel_axes(trials_of(make_run), names, None, "val/f1_macro")
    assert linear["optim.lr"].iloc[1] == pytest.approx(0.0009 / 0.0099)


@pytest.mark.parametrize(("direction", "order"), [("maximize", ["#0", "#1"]), ("minimize", ["#1", "#0"])])
def test_the_best_lie_on_top_and_trials_that_did_not_complete_are_grey(make_run, direction, order):
    trials = trials_of(make_run)
    scored = trials[trials["val/f1_macro"].notna()]
    places, ticks = parallel_axes(scored, ["optim.lr", "loss.name"], None, "val/f1_macro")
    lines, at = parallel_rows(scored, places, ticks, direction)
    of_lines = lines[lines["axis"] == "val/f1_macro"]
    completed = of_lines.dropna(subset="worth")
    assert completed["worth"].tolist() == [0, 1] and completed["cell"].tolist() == order, "in this order"
    assert of_lines.loc[of_lines["worth"].isna(), "cell"].tolist() == ["#2"]
    assert set(at["axis"]) == {"optim.lr", "loss.name", "val/f1_macro"}


def test_parameters_are_called_the_most_important_only_where_that_is_known(make_run):
    names = [f"model.p{i}" for i in range(9)]
    rng = np.random.default_rng(0)
    for n, words in ((4, "8 of 9 parameters: the first."), (40, "8 of 9 parameters: the most important.")):
        drawn = [dict(zip(names, map(float, rng.uniform(size=9)), strict=True)) for _ in range(n)]
        cells = [(config, {0: config["model.p3"]}) for config in drawn]
        space = {name: {"low": 0.0, "high": 1.0} for name in names}
        (drawn,) = parallel_figures(report_of(make_run(cells, kind="search", space=space, folder=str(n))))
        assert drawn.caption.endswith(words)


def test_pruned_trials_have_another_mark(make_run):
    run = make_run([({"optim.lr": 1e-4}, {0: 0.4}), ({"optim.lr": 1e-1}, {0: PRUNED})], kind="search")
    report = report_of(run)
    points = parameter_points(report.trials, "optim.lr", "val/f1_macro")
    assert points[["status", "x"]].to_numpy().tolist() == [["completed", 1e-4], ["pruned", 1e-1]]
    encoding = parameter_effect(points, "optim.lr", report).spec["layer"][0]["encoding"]
    assert encoding["shape"]["scale"]["domain"] == ["completed", "pruned"]
    assert len(set(encoding["shape"]["scale"]["range"])) == 2
    assert encoding["x"]["scale"]["type"] == "log"


@pytest.mark.parametrize(("is_log", "scale"), [(True, "log"), (False, "linear")])
def test_a_parameter_has_the_scale_that_it_was_sampled_by(make_run, is_log, scale):
    space = {"model.dropout": {"low": 0.001, "high": 0.9, "log": is_log}}
    run = make_run([({"model.dropout": p}, {0: 0.4}) for p in (0.001, 0.9)], kind="search", space=space)
    report = report_of(run)
    points = parameter_points(report.trials, "model.dropout", "val/f1_macro")
    encoding = parameter_effect(points, "model.dropout", report).spec["layer"][0]["encoding"]
    assert encoding["x"]["scale"]["type"] == scale


def test_parameter_with_mixed_types_becomes_levels(make_run):
    run = make_run([({"loss.alpha": None}, {0: 0.4}), ({"loss.alpha": 0.25}, {0: 0.3})], kind="search")
    points = parameter_points(load([run]).trials, "loss.alpha", "val/f1_macro")
    assert sorted(points["x"]) == ["0.25", "none"]


def test_of_many_trials_the_best_half_is_drawn_and_as_many_others():
    study = {"kind": "search", "repeats": [0], "metric": "val/f1_macro", "direction": "maximize"}
    few = pd.DataFrame({"val/f1_macro": np.linspace(0, 1, N_LINES)})
    assert some_trials(few, study, N_LINES)[1] == ""
    many = pd.DataFrame({"val/f1_macro": np.linspace(0, 1, 1000)})
    chosen, sentence = some_trials(many, study, N_LINES)
    assert len(chosen) == N_LINES and not chosen.index.duplicated().any()
    assert set(range(900, 1000)) <= set(chosen.index) and (chosen.index < 900).sum() == 100
    assert sentence == " Of 1,000 trials, the best 100 and 100 others, drawn from a fixed seed."


@pytest.mark.parametrize(("values", "step"), [((1, 2, 4), 1), ((0.1, 0.2, 0.4), None)])
def test_a_parameter_of_whole_numbers_has_no_ticks_between_them(values, step):
    points = pd.DataFrame({"x": values, "value": 0.5, "status": "completed", "cell": list("abc")})
    report = SimpleNamespace(
        metric="val/f1_macro", study={"kind": "search", "repeats": [0], "direction": "maximize"}
    )
    spec = parameter_effect(points, "data.windows_per_recording", report).spec
    for layer in spec.get("layer", [spec]):
        assert layer["encoding"]["x"]["axis"].get("tickMinStep") == step
