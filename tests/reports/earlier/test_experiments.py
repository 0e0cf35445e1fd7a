from __future__ import annotations

import json
import math
import re

import pandas as pd
import pytest
from scipy import stats

from birdnet_core.errors import RunFolderError
from birdnet_core.records.run_folder import RunFolder
from reports import load, write_report
from reports.__main__ import main
from reports.earlier.experiments import contradictions, warnings
from reports.page.tables import cell_table
from reports.study_report import study_report

CE, FOCAL = {"loss.name": "cross_entropy"}, {"loss.name": "focal"}


@pytest.fixture
def earlier(tmp_path):
    """Return a function that writes a folder of histories: train and val accuracies in percents, by name."""

    def write(histories, **others):
        path = tmp_path / "earlier"
        path.mkdir()
        for name, (train, val) in histories.items():
            losses = {"train_loss": [1.0] * len(val), "val_loss": [1.0] * len(val)}
            content = {**losses, "train_acc": train, "val_acc": val}
            (path / f"{name}_history.json").write_text(json.dumps(content))
        for name, content in others.items():
            (path / f"{name}.json").write_text(json.dumps(content))
        return path

    return write


def new_rows(run, earlier, tmp_path):
    """Return the rows of the cells of a run, in a report with an imported experiment."""
    content = write_report([run], tmp_path / "out", imports=earlier({"old": ([50.0], [40.0])}))
    return [row for row in content["earlier_work"]["experiments"] if not row["imported"]]


def test_a_cell_costs_parameters_per_species_hours_and_gpu_hours(make_run, earlier, tmp_path):
    ending = {"status": "completed", "metrics": {"val/f1_macro": 0.1}, "seconds": 7200.0, "gpus": 0.25}
    run = make_run([(CE, {0: ending})], data={"n_species": 100})
    row = new_rows(run, earlier, tmp_path)[0]
    assert (row["n_params_per_species"], row["hours"], row["gpu_hours"]) == (3438.01, 2.0, 0.5)
    runs = load([run])
    of_study = study_report(runs, runs.studies[0])
    shown = cell_table(of_study.cells, of_study.study, None).iloc[0]
    assert (shown["parameters per species"], shown["hours"], shown["GPU-hours"]) == ("3,438", "2", "0.5")


def doubtful(val, test, n):
    row = {"experiment": "a", "accuracy": val, "test_accuracy": test, "n_test": n}
    return pd.DataFrame([{**row, "file": "a.json", "test_files": ["t.json"], "epochs_to_best": 3.0}])


def test_a_difference_beyond_noise_is_given_in_standard_errors():
    row = contradictions(doubtful(0.40, 0.15, 1000)).iloc[0]
    p, q = 401 / 1002, 151 / 1002
    assert row["z"] == pytest.approx((q - p) / math.sqrt((p * (1 - p) + q * (1 - q)) / 1002))
    (text,) = warnings(doubtful(0.40, 0.15, 1000))
    assert "validation accuracy 40.00 % (a.json, epoch 3)" in text
    assert "test accuracy 15.00 % of 1,000 predictions (t.json)" in text and "−25.0 points" in text


@pytest.mark.parametrize(
    ("val", "test", "n", "is_contradiction"),
    [
        (0.40, 0.38, 1000, False),
        (0.40, 0.15, 20, False),  # few predictions are little evidence
        (0.15, 0.40, 1000, True),  # a test that is much better contradicts as well
        (1.0, 1.0, 1000, False),  # shares without spread
        (1.0, 0.0, 1000, True),
        (0.40, 0.35, math.nan, False),  # an unknown size: only what is far apart
        (0.60, 0.10, math.nan, True),
        (0.40, math.nan, math.nan, False),
    ],
)
def test_a_contradiction_depends_on_the_number_of_predictions(val, test, n, is_contradiction):
    assert len(contradictions(doubtful(val, test, n))) == is_contradiction


def test_hardly_any_honest_experiment_is_a_contradiction():
    draws = stats.binom.rvs(400, 0.4, size=(4000, 2), random_state=0) / 400
    frame = pd.DataFrame({"accuracy": draws.max(axis=1), "test_accuracy": draws.min(axis=1), "n_test": 400.0})
    assert len(contradictions(frame)) <= 2


def test_new_rows_are_means_over_repeats_by_the_same_rule(make_run, earlier, tmp_path):
    run = make_run([(CE, {0: 0.4, 1: 0.8})])
    trials = load([run]).trials["trial_id"].tolist()
    for trial_id, best in zip(trials, (0.5, 0.7), strict=True):
        for epoch, (train, val) in enumerate([(0.3, 0.2), (0.8, best), (0.9, 0.4), (1.0, 0.3)], 1):
            metrics = {"train/accuracy": train, "val/accuracy": val, "val/f1_macro": 0.1}
            event = {
                "event": "epoch",
                "trial_id": trial_id,
                "epoch": epoch,
                "metrics": metrics,
                "epoch_s": 1.0,
            }
            RunFolder(run).append(event)
    row = new_rows(run, earlier, tmp_path)[0]
    low, high = stats.t.interval(0.95, 1, loc=0.6, scale=stats.sem([0.5, 0.7]))
    assert (row["n"], row["source"], row["trial_ids"]) == (2, "capacity", trials)
    assert (row["accuracy"], row["low"], row["high"]) == pytest.approx((0.6, low, high))
    assert (row["epochs_to_best"], row["epochs"]) == (2, 4)
    assert (row["gap_best"], row["gap_last"]) == pytest.approx((0.2, 0.7))


def test_of_a_search_only_the_best_config_has_a_row(make_run, earlier, tmp_path):
    run = make_run([({"optim.lr": lr}, {0: lr}) for lr in (0.1, 0.3, 0.2)], kind="search")
    content = write_report([run], tmp_path / "out", imports=earlier({"a": ([50], [40])}))
    rows = content["earlier_work"]["experiments"]
    assert [(row["experiment"], row["source"]) for row in rows] == [("a", "imported"), ("#1", "capacity")]


# the report


def test_old_and_new_stand_in_one_table(make_run, earlier, tmp_path):
    run = make_run([(CE, {0: 0.1, 1: 0.2}), (FOCAL, {0: 0.3, 1: 0.4})])
    path = earlier({"old": ([50.05, 60.0], [39.35, 39.0])})
    content = write_report([run], tmp_path / "out", imports=path)
    rows = content["earlier_work"]["experiments"]
    assert [(r["experiment"], r["source"], r["n"]) for r in rows] == [
        ("old", "imported", 1),
        ("cross_entropy", "capacity", 2),
        ("focal", "capacity", 2),
    ]
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert re.search(
        r"\| old \| imported \| 1 \| 0 \| 0 \| 39.35 % \| none: one run \| 1 \| 2 "
        r"(\| – ){4}\| \+10.7 \| \+21.0 ",
        markdown,
    )
    assert "An imported experiment is one run (n = 1)" in markdown
    assert rows[0]["file"] == "old_history.json" and (path / rows[0]["file"]).is_file()
    assert (tmp_path / "out" / "tables" / "experiments.tex").is_file()


def test_an_import_changes_no_test_and_no_choice(make_run, earlier, tmp_path):
    run = make_run([(CE, {0: 0.1, 1: 0.2}), (FOCAL, {0: 0.3, 1: 0.5})])
    alone = write_report([run], tmp_path / "alone")
    both = write_report([run], tmp_path / "both", imports=earlier({"old": ([99.0], [99.0])}))
    assert alone["earlier_work"] is None
    assert both["studies"] == alone["studies"]


def test_lost_trials_are_counted_and_a_leak_stands_before_the_table(make_run, earlier, tmp_path):
    leaky = {"data.split": "random-windows"}
    leak = "LEAKAGE: clips were split at random"
    run = make_run([(CE, {0: 0.1, 1: "failed"}), (leaky, {0: 0.9, 1: 0.8})], data={"notes": [leak]})
    write_report([run], tmp_path / "out", imports=earlier({"old": ([50.0], [40.0])}))
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.index(leak) < text.index("best val/accuracy")
    assert "| cross_entropy | capacity | 1 | 1 | 0 |" in text
    assert "| random-windows (leaky split) | capacity | 2 | 0 | 0 |" in text.replace("split=", "")


def test_a_study_called_imported_is_not_taken_for_one(make_run, earlier, tmp_path):
    run = make_run([(CE, {0: 0.1, 1: 0.2})], name="imported")
    content = write_report([run], tmp_path / "out", imports=earlier({"old": ([50.0], [40.0])}))
    assert [row["imported"] for row in content["earlier_work"]["experiments"]] == [True, False]
    assert content["earlier_work"]["answer"].startswith(
        "Highest validation accuracy of 1 imported experiment:"
    )


def test_contradictions_and_faults_come_before_the_table(earlier, tmp_path):
    predictions = {"accuracy": 0.0, "predictions": [0] * 500, "labels": [1] * 500}
    path = earlier({"old": ([50.0], [40.0])}, old_test_predictions=predictions, bad_history={"val_acc": []})
    write_report([], tmp_path / "out", imports=path)
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text().replace("\\", "")
        table = text.index("best val/accuracy")
        assert text.index("old contradicts itself") < table
        assert text.index("bad_history.json: has no list train_loss") < table
        assert "old (see the warning)" in text


def test_where_no_file_can_be_used_the_report_says_why(earlier, tmp_path):
    content = write_report([], tmp_path / "out", imports=earlier({}, bad_history={"val_acc": []}))
    assert content["earlier_work"]["experiments"] == []
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No imported experiment could be read." in page and "bad_history.json" in page


def test_names_of_files_stay_text(earlier, tmp_path):
    write_report([], tmp_path / "out", imports=earlier({"<script>alert(1)": ([50.0, 60.0], [40.0, 41.0])}))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


def test_command_takes_an_import_alone(earlier, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--import", str(earlier({"a": ([50], [40])})), "--out", str(out)]) == 0
    assert (out / "report.html").is_file()
    assert main(["--out", str(out)]) == 1
    assert "no run folder given" in capsys.readouterr().err


def test_nothing_is_written_for_a_folder_without_earlier_work(tmp_path):
    with pytest.raises(RunFolderError, match="it is empty"):
        (tmp_path / "none").mkdir()
        write_report([], tmp_path / "out", imports=tmp_path / "none")
    assert not (tmp_path / "out").exists()


# the earlier work that birdtune's presets repeat


@pytest.fixture
def seed_results(shared, tmp_path):
    content = write_report([], tmp_path / "out", imports=shared / "seed_results")["earlier_work"]
    return content, {row["experiment"]: row for row in content["experiments"]}


def test_the_comparison_of_the_earlier_work_is_made_again(seed_results):
    content, rows = seed_results
    # As printed by that work: best validation accuracy in percent, and the epoch it was reached.
    printed = {
        "phase0_audiocnn_ce": (39.35, 22), "phase1_audiocnn_balanced": (6.44, 16),
        "phase1_audiocnn_sqrt": (25.63, 19), "phase2a_audiocnn_focal": (33.03, 16),
        "phase2b_audiocnnv2_focal": (42.24, 26), "phase3_ast_baseline": (54.87, 4),
        "phase3_ast_full": (57.46, 10),
    }  # fmt: skip
    found = {name: (round(100 * rows[name]["accuracy"], 2), rows[name]["epochs_to_best"]) for name in printed}
    assert found == printed
    assert content["faults"] == [] and all(row["n"] == 1 for row in rows.values())
    assert content["unread"] == ["class_counts.csv", "class_weights.json"]


def test_the_gap_of_the_earlier_work_did_not_shrink_at_the_best_epoch(seed_results, shared):
    _, rows = seed_results
    gaps = {}
    for name in ("phase3_ast_baseline", "phase3_ast_full"):
        stored = json.loads((shared / "seed_results" / f"{name}_history.json").read_text())
        best = stored["val_acc"].index(max(stored["val_acc"]))
        gaps[name] = [stored["train_acc"][i] - stored["val_acc"][i] for i in (best, -1)]
        assert [100 * rows[name][key] for key in ("gap_best", "gap_last")] == pytest.approx(gaps[name])
    (base_best, base_last), (full_best, full_last) = gaps.values()
    assert full_best > base_best and full_last < base_last


def test_the_contradictions_of_the_earlier_work_come_first(seed_results, tmp_path):
    content, _ = seed_results
    names = [text.split()[0] for text in content["warnings"]]
    assert names == ["phase0_audiocnn_ce", "phase0_audiovit_ce"]
    assert "39.35 %" in content["warnings"][0] and "13.84 % of 1,662" in content["warnings"][0]
