from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

import reports
import reports.statistics.aggregate
from birdnet_core.errors import RunFolderError
from birdnet_core.records.run_folder import RunFolder
from reports import load

ROOT = Path(reports.__file__).parents[1]
CE, FOCAL = {"loss.name": "cross_entropy"}, {"loss.name": "focal"}


def test_importing_reports_loads_neither_torch_nor_ray_nor_pyplot():
    heavy = {"torch", "ray", "optuna", "tuning", "birdnet_core.config", "matplotlib.pyplot"}
    code = f"import sys, reports; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("status", ["failed", "diverged", "killed", "pruned", "running"])
def test_failed_trial_still_has_a_row(make_run, status):
    trials = load([make_run([(CE, {0: 0.3, 1: status})])]).trials
    assert list(trials["status"]) == ["completed", status]
    assert math.isnan(trials["val/f1_macro"].iloc[1])


def test_killed_trial_without_a_record_keeps_the_journals_word(make_run):
    path = make_run([(CE, {0: "running"})])
    trial_id = load([path]).trials["trial_id"].iloc[0]
    RunFolder(path).append({"event": "end", "trial_id": trial_id, "status": "killed"})
    assert list(load([path]).trials["status"]) == ["killed"]


def test_last_occurrence_of_an_epoch_counts(make_run):
    path = make_run([(CE, {0: 0.4})])
    before = load([path]).epochs
    trial_id = before["trial_id"].iloc[0]
    event = {"event": "epoch", "trial_id": trial_id, "epoch": 2, "epoch_s": 1.0}
    RunFolder(path).append({**event, "metrics": {"val/f1_macro": 0.77}})
    after = load([path]).epochs
    assert list(after["epoch"]) == list(before["epoch"]) == [1, 2, 3, 4]
    assert after.set_index("epoch")["val/f1_macro"][2] == 0.77


def test_a_journal_in_two_stretches_gives_the_same_trials_and_epochs(make_run):
    path = make_run([(CE, {0: 0.4, 1: 0.5}), (FOCAL, {0: "pruned", 1: "running"})])
    whole = load([path])
    again = {"event": "epoch", "trial_id": whole.trials["trial_id"].iloc[1], "epoch": 1, "epoch_s": 2.0}
    RunFolder(path).append({**again, "metrics": {"val/f1_macro": 0.2}})
    whole = load([path])
    with ThreadPoolExecutor(1) as pool:
        halves = load([path], pool.submit)
    pd.testing.assert_frame_equal(halves.trials, whole.trials)
    pd.testing.assert_frame_equal(halves.epochs, whole.epochs)
    assert halves.usage[str(path)].hours == pytest.approx(whole.usage[str(path)].hours)


def test_a_broken_line_in_the_later_half_of_a_journal_is_named(make_run):
    path = make_run([(CE, {0: 0.4, 1: 0.5})])
    with open(path / "journal.jsonl", "ab") as journal:
        n_lines = len((path / "journal.jsonl").read_bytes().splitlines())
        journal.write(b"{\n")
    with (
        ProcessPoolExecutor(1) as pool,
        pytest.raises(RunFolderError, match=f"line {n_lines + 1} is not JSON"),
    ):
        load([path], pool.submit)


def test_epochs_of_an_earlier_longer_attempt_are_left_out(make_run):
    path = make_run([(CE, {0: 0.4})])
    trial_id = load([path]).trials["trial_id"].iloc[0]
    event = {"event": "epoch", "trial_id": trial_id, "epoch": 5, "metrics": {}, "epoch_s": 1.0}
    RunFolder(path).append(event)
    assert load([path]).epochs["epoch"].max() == 4


def test_null_in_the_journal_is_nan_and_not_zero(make_run):
    path = make_run([(CE, {0: 0.4})])
    trial_id = load([path]).trials["trial_id"].iloc[0]
    event = {"event": "epoch", "trial_id": trial_id, "epoch": 4, "epoch_s": 1.0}
    RunFolder(path).append({**event, "metrics": {"val/f1_macro": math.nan}})
    assert math.isnan(load([path]).epochs.set_index("epoch")["val/f1_macro"][4])


def test_trial_announced_again_on_resume_has_one_row(make_run):
    path = make_run([(CE, {0: 0.4})])
    first = load([path]).trials.iloc[0]
    RunFolder(path).append({"event": "trial", "study": "capacity", "trial_id": first["trial_id"],
                            "number": 9, "factors": CE, "reused": True, "status": "completed"})  # fmt: skip
    trials = load([path]).trials
    assert list(trials["number"]) == [0]
    assert not trials["reused"].iloc[0], "the study trained it itself"


def test_trial_shared_by_two_studies_has_a_row_in_each(make_run):
    path = make_run([(CE, {0: 0.4})])
    make_run([(CE, {0: 0.4}), (FOCAL, {0: 0.5})], name="loss")
    runs = load([path])
    assert [len(runs.trials_of(study)) for study in runs.studies] == [1, 2]


def test_same_study_in_two_folders_stays_two_studies(make_run):
    paths = [make_run([(CE, {0: 0.4})], folder="a"), make_run([(CE, {0: 0.6})], folder="b")]
    runs = load(paths)
    assert [runs.trials_of(s)["val/f1_macro"].tolist() for s in runs.studies] == [[0.4], [0.6]]


def test_a_folder_given_twice_is_read_once(make_run):
    path = make_run([(CE, {0: 0.4})])
    assert len(load([path, str(path) + "/"]).trials) == 1


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="nowhere"):
        load([tmp_path / "nowhere"])


def test_no_folder_at_all_is_an_error():
    with pytest.raises(RunFolderError, match="no run folder given"):
        load([])


def altered(path, trial_id, **facts):
    """Let a record say that it is of other data or another split."""
    file = path / "trials" / f"{trial_id}.json"
    content = json.loads(file.read_text())
    content["provenance"] = {**content["provenance"], **facts}
    file.write_text(json.dumps(content))


@pytest.fixture
def of_one_split(make_run):
    """A run of four trials, all on data d1 and split s1."""
    made = {"provenance": {"data_id": "d1", "split_id": "s1"}, "status": "completed"}
    cells = [
        (factors, {seed: {**made, "metrics": {"val/f1_macro": value}} for seed, value in enumerate(values)})
        for factors, values in ((CE, (0.3, 0.4)), (FOCAL, (0.1, 0.2)))
    ]
    return make_run(cells, data={"name": "clips", "data_id": "d1", "split_id": "s1", "notes": []})


@pytest.mark.parametrize(
    ("facts", "words"), [({"data_id": "d9"}, "other recordings"), ({"split_id": "s9"}, "another split")]
)
def test_a_trial_of_other_data_or_split_is_set_aside_by_name(of_one_split, facts, words):
    trial_id = load([of_one_split]).trials["trial_id"].iloc[0]
    altered(of_one_split, trial_id, **facts)
    runs = load([of_one_split])
    assert list(runs.trials["status"]) == ["set aside", "completed", "completed", "completed"]
    assert runs.studies[0]["load_notes"] == [f"1 trial of {words} than the study, set aside: {trial_id}"]
    (mean, _) = reports.statistics.aggregate.cells(runs.trials, runs.studies[0])["val/f1_macro"]
    assert mean == 0.4  # of the other repeat alone
    page = reports.write_report([of_one_split], of_one_split.parent / "out")
    assert runs.studies[0]["load_notes"][0] in page["studies"][0]["warnings"]


def test_each_repeat_has_a_split_of_its_own_and_another_one_in_it_is_set_aside(of_one_split):
    rows = load([of_one_split]).trials
    for trial_id in rows.loc[rows["repeat"] == 1, "trial_id"]:
        altered(of_one_split, trial_id, split_id="s2")
    assert list(load([of_one_split]).trials["status"]) == ["completed"] * 4
    altered(of_one_split, rows["trial_id"].iloc[0], split_id="s2")
    assert list(load([of_one_split]).trials["status"]) == ["set aside", *["completed"] * 3]


def test_an_ablation_over_the_split_has_two_and_sets_nothing_aside(make_run):
    cells = [
        (
            {"data.split": split},
            {
                0: {
                    "status": "completed",
                    "metrics": {"val/f1_macro": 0.5},
                    "config": {"data": {"split": split}},
                    "provenance": {"data_id": "d1", "split_id": split_id},
                }
            },
        )
        for split, split_id in (("grouped", "s1"), ("random-windows", "s2"))
    ]
    path = make_run(cells, data={"name": "clips", "data_id": "d1", "split_id": "s1", "notes": []})
    assert list(load([path]).trials["status"]) == ["completed"] * 2


@pytest.mark.parametrize(("command", "expected"), [("extend", 1), ("resume", 0)])
def test_a_study_that_was_extended_is_counted(make_run, command, expected):
    path = make_run([({"a": 1}, {0: 0.1, 1: 0.2})])
    session = {
        "event": "session",
        "pid": 1,
        "host": "h",
        "command": f"birdtune {command} {path} --repeats +1",
    }
    again = {"event": "trial", "study": "capacity", "number": 0, "factors": {"a": 1}, "reused": False}
    known = next(iter(load([path]).trials["trial_id"]))
    new = known.rpartition("-r")[0] + "-r2"
    RunFolder(path).append(session, {**again, "trial_id": known}, {**again, "trial_id": new, "number": 2})
    assert load([path]).studies[0]["n_extended"] == expected
