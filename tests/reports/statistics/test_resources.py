from __future__ import annotations

import pytest

from reports import load
from reports.figures.resources import resource_figure
from reports.page import sentences
from reports.page.tables import resource_table
from reports.statistics.aggregate import cells
from reports.statistics.resources import against_budget, by_arm

CE, FOCAL = {"loss.name": "ce"}, {"loss.name": "focal"}


def arms_of(path):
    runs = load([path])
    study = runs.studies[0]
    trials = runs.trials_of(study)
    return by_arm(trials, runs.epochs_of(study), study, cells(trials, study))


def ended(status, epochs, seconds, gpus=0.5):
    return {
        "status": status, "epochs": epochs, "best_epoch": 1, "seconds": seconds, "gpus": gpus, "cpus": 2.0,
        "metrics": {"val/f1_macro": 0.1}, "peak_memory_mb": seconds / 10,
    }  # fmt: skip


def test_an_arm_of_an_ablation_is_a_cell_with_its_failed_trials(make_run):
    path = make_run([
        (CE, {0: ended("completed", 4, 3600.0), 1: ended("failed", 1, 1800.0)}),
        (FOCAL, {0: ended("completed", 4, 7200.0), 1: "missing"}),
    ])  # fmt: skip
    ce, focal = arms_of(path).to_dict("records")
    assert (ce["arm"], ce["n_trials"], ce["n_completed"], ce["epochs"]) == ("ce", 2, 1, 5)
    assert (ce["hours"], ce["lost_hours"], ce["gpu_hours"], ce["cpu_hours"]) == (1.5, 0.5, 0.75, 3.0)
    assert ce["peak_memory_mb"] == 360
    assert ce["full_epochs"] == focal["full_epochs"] == 8, "two repeats of four epochs each are planned"


def test_arms_of_a_search_are_how_its_trials_ended_or_what_they_compete_within(make_run):
    configs = [({"model.name": m, "optim.lr": lr}, {0: ended(status, n, 360.0)})
               for m, lr, status, n in (("a", 1.0, "completed", 4), ("a", 2.0, "pruned", 1), ("b", 3.0, "pruned", 2))]  # fmt: skip  # noqa: E501
    by_status = arms_of(make_run(configs, kind="search")).set_index("arm")
    assert by_status["epochs"].to_dict() == {"completed": 4, "pruned": 3}
    assert by_status["full_epochs"].to_dict() == {"completed": 4, "pruned": 8}
    by_model = arms_of(make_run(configs, kind="search", asha_within="model.name", folder="two")).set_index(
        "arm"
    )
    assert by_model["epochs"].to_dict() == {"a": 5, "b": 2}
    assert by_model["lost_hours"].to_dict() == pytest.approx({"a": 0.1, "b": 0.1})


def test_a_trial_without_a_record_used_the_time_of_its_epochs(make_run):
    (arm,) = arms_of(make_run([(CE, {0: "running"})])).to_dict("records")
    assert arm["epochs"] == 2 and arm["hours"] == pytest.approx(2 * 1.5 / 3600)


def test_the_figure_shows_gpu_hours_and_without_a_gpu_cpu_hours(make_run):
    for gpus, title in ((1.0, "GPU-hours"), (0.0, "CPU-hours")):
        ends = (ended("completed", 4, 3600.0, gpus), ended("failed", 1, 3600.0, gpus))
        path = make_run([(CE, {0: ends[0]}), (FOCAL, {0: ends[1]})], folder=title)
        drawn = resource_figure(arms_of(path), "")
        assert drawn.spec["layer"][0]["encoding"]["x"]["title"] == title
        parts = [(row["arm"], row["part"].startswith("of trials")) for row in drawn.spec["datasets"]["arms"]]
        assert parts == [("ce", False), ("focal", False), ("ce", True), ("focal", True)]


def test_usage_of_the_run_is_compared_with_its_budget(make_run):
    request = {"budget": {"hours": None, "gpu_hours": 2.0, "until": None}}
    path = make_run([(CE, {0: 0.1, 1: 0.2})], request=request)
    runs = load([path])
    runs.usage[str(path)].gpu_hours = 0.5
    runs.usage[str(path)].hours = 1.25
    costs = against_budget(runs, runs.studies[0])
    assert costs["budget_gpu_hours"] == 2.0 and costs["budget_hours"] is None
    assert sentences.usage(costs) == (
        "All studies of the run folder together used 1.25 hours of wall time, 0.5 of 2 GPU-hours (25% of the "
        "budget)."
    )
    assert sentences.usage({**costs, "budget_gpu_hours": None}).endswith("0.5 GPU-hours; no budget was set.")


@pytest.mark.parametrize(
    ("seconds", "unit", "value"),
    [(7200.0, "hours", "2.00"), (120.0, "minutes", "2.00"), (10.0, "seconds", "10.00")],
)
def test_the_unit_of_time_is_one_in_which_the_largest_can_be_read(make_run, seconds, unit, value):
    arms = arms_of(make_run([(CE, {0: ended("completed", 4, seconds)})]))
    table = resource_table(arms)
    assert table[unit].tolist() == [value] and f"GPU-{unit}" in table
    assert resource_figure(arms, "").spec["layer"][0]["encoding"]["x"]["title"] == f"GPU-{unit}"


def test_the_last_row_of_the_table_is_the_sum(make_run):
    path = make_run([(CE, {0: ended("completed", 4, 3600.0)}), (FOCAL, {0: ended("failed", 1, 1800.0)})])
    table = resource_table(arms_of(path)).set_index("arm")
    assert table.loc["all"].to_dict() == {
        "trials": "2", "completed": "1", "epochs": "5", "at full length": "8", "hours": "1.50",
        "not completed": "0.50", "GPU-hours": "0.75", "CPU-hours": "3.00", "peak memory": "360 MB",
    }  # fmt: skip
    assert "all" not in list(resource_table(arms_of(path).iloc[:1])["arm"])
