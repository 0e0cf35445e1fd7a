"""Folders with run folders in them, and the rows that are found there."""

import json
import time

import pytest

from birdnet_core.errors import RunFolderError
from tests.journals import ABLATION, MIXED, SEARCH, begin, end, epoch, hold_the_lock, write_run
from tuning.views import runs
from tuning.views.runs import list_runs

RATES = {**SEARCH, "provenance": {"versions": {"birdtune": "0.3.1"}}}
DONE = [
    begin("a-r0", 0, "losses"), epoch("a-r0", 1, 0.9), end("a-r0", "completed"),
    begin("b-r0", 1, "losses"), end("b-r0", "failed"),
]  # fmt: skip


def at(seconds, events):
    """Return events at that time, a minute apart."""
    return [{"event": "session", "pid": 1, "host": "vm", "command": "", "time": seconds}] + [
        {**event, "time": seconds + 60 * i} for i, event in enumerate(events, start=1)
    ]


def write_at(path, studies, seconds, events):
    run = write_run(path, studies, [])
    run.journal_path.write_text("".join(json.dumps(event) + "\n" for event in at(seconds, events)))
    return run


def test_studies_are_listed_newest_first_with_state_trials_and_best(tmp_path):
    write_at(tmp_path / "old" / "rates", [RATES], 1_000_000, MIXED)
    short = {**ABLATION, "repeats": [0]}
    write_at(tmp_path / "new", [short], 2_000_000, DONE)
    (tmp_path / "notes").mkdir()
    rows, unreadable = list_runs(tmp_path)
    assert unreadable == []
    assert [(row.run, row.study, row.kind, row.state) for row in rows] == [
        (str(tmp_path / "new"), "losses", "ablation", "finished"),
        (str(tmp_path / "old" / "rates"), "rates", "search", "interrupted"),
    ]
    new, old = rows
    assert (new.n_trials, new.n_ended, new.n_failed, new.version) == (2, 2, 1, None)
    assert (old.n_trials, old.n_ended, old.n_failed, old.version) == (6, 3, 1, "0.3.1")
    assert (new.metric, new.best.value, new.best.label) == ("val/f1_macro", 0.9, "optim.lr=0, repeat 0")
    assert (old.metric, old.best.value) == ("val/loss", 0.4)
    assert new.begun == "1970-01-24T03:33:20+00:00"
    assert new.hours == pytest.approx(5 / 60)


def test_a_run_that_is_driven_is_running(tmp_path):
    run = write_run(tmp_path / "run", [RATES], MIXED)
    driver = hold_the_lock(run)
    try:
        assert [row.state for row in list_runs(tmp_path)[0]] == ["running"]
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()


def test_the_folder_itself_may_be_a_run_and_links_and_hidden_folders_are_left_out(tmp_path):
    write_run(tmp_path / "run", [RATES], MIXED)
    write_run(tmp_path / ".hidden", [RATES], MIXED)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "run" / "more").symlink_to(tmp_path)
    assert [row.run for row in list_runs(tmp_path)[0]] == [str(tmp_path / "run")]
    assert [row.run for row in list_runs(tmp_path / "run")[0]] == [str(tmp_path / "run")]


def broken(tmp_path):
    """Write folders that cannot be read, by the reason."""
    write_run(tmp_path / "older", [{**RATES, "schema": 1}], MIXED)
    write_run(tmp_path / "altered", [RATES], MIXED).journal_path.write_text("not JSON\n")
    write_run(tmp_path / "bare", [], MIXED)
    lost = write_run(tmp_path / "lost", [RATES], [])
    (lost.path / "trials").mkdir()
    (lost.path / "trials" / "a-r0.json").write_text("{}")
    return {"altered": "line 1 is not JSON", "bare": "no studies/*.json", "lost": "journal.jsonl",
            "older": "schema = 1; this version reads"}  # fmt: skip


def test_a_folder_that_cannot_be_read_is_named_with_the_reason(tmp_path):
    reasons = broken(tmp_path)
    write_run(tmp_path / "run", [RATES], MIXED)
    rows, unreadable = list_runs(tmp_path)
    assert [row.run for row in rows] == [str(tmp_path / "run")]
    assert [each.run for each in unreadable] == [str(tmp_path / name) for name in reasons]
    for each, reason in zip(unreadable, reasons.values(), strict=True):
        assert reason in each.error


def test_no_folder_and_no_run_are_errors(tmp_path):
    with pytest.raises(RunFolderError, match="there is no folder"):
        list_runs(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="no run folder of `birdtune sweep` is at or below"):
        list_runs(tmp_path)


def test_the_verb_fails_only_where_nothing_can_be_read(birdtune, tmp_path):
    broken(tmp_path)
    code, out, err = birdtune(f"runs {tmp_path}")
    assert (code, out.strip()) == (1, "") and err.count("cannot be read") == 4
    write_run(tmp_path / "run", [RATES], MIXED)
    code, out, err = birdtune(f"runs {tmp_path}")
    assert code == 0 and err.count("cannot be read") == 4
    assert "run  rates  search  interrupted, 1 failed  3/6" in " ".join(out.split("\n")[1:]).replace(
        "  ", "  "
    )
    code, out, _ = birdtune(f"runs {tmp_path} --json")
    found = json.loads(out)
    assert code == 0 and [row["study"] for row in found["runs"]] == ["rates"]
    assert found["runs"][0]["best"]["factors"] == {"optim.lr": 0.0}
    assert [each["run"] for each in found["unreadable"]][-1].endswith("older")


def test_many_folders_are_read_by_several_processes_to_the_same_rows(tmp_path, monkeypatch):
    for i in range(300):
        write_at(tmp_path / f"group{i % 7}" / f"run{i}", [RATES], 1000 * i, MIXED)
    start = time.perf_counter()
    many = list_runs(tmp_path)
    assert time.perf_counter() - start < 10
    assert [row.begun for row in many[0]] == sorted((row.begun for row in many[0]), reverse=True)
    monkeypatch.setattr(runs, "N_ALONE", 1000)
    assert list_runs(tmp_path) == many
