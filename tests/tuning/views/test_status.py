"""Journals written by hand, and what they say."""

import io
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from birdnet_core.errors import RunFolderError
from birdnet_core.records.run_folder import RunFolder
from tests.journals import ABLATION, MIXED, SEARCH, begin, end, epoch
from tuning.views.status import StatusReader, as_text, run_status

ROOT = Path(__file__).parents[3]


def text(status):
    out = io.StringIO()
    Console(file=out, width=160).print(as_text(status))
    return out.getvalue()


def test_a_search_in_progress(write, driven):
    run = write([SEARCH], MIXED)
    driven(run)
    status = run_status(run)
    (study,) = status.studies
    assert study.counts == {"completed": 1, "pruned": 1, "diverged": 1, "running": 2}
    assert (study.n_trials, study.n_left) == (6, 1)
    assert [(t.trial_id, t.epoch, t.value, t.epoch_s) for t in study.running] == [
        ("d-r0", 1, 0.95, 20.0),
        ("e-r0", 0, None, None),
    ]
    # The diverged trial's 0.1 is not a result.
    assert (study.best.value, study.best.trial_id, study.best.epoch) == (0.4, "a-r0", 2)
    assert study.best.factors == {"optim.lr": 0.0}
    # 8 epochs in 90 s. To train: 3 of d, 4 of e, and one trial of (4 + 2) / 2 epochs; two side by side.
    assert (study.n_epochs, study.epoch_s) == (8, 90 / 8)
    assert study.eta_s == pytest.approx((3 + 4 + 3) * 90 / 8 / 2)
    assert status.gpu_hours == pytest.approx(0.5 * 90 / 3600)
    assert status.cpu_hours == pytest.approx(2 * 90 / 3600)
    shown = text(status)
    assert "rates (search): 6 trials, 1 completed, 1 diverged, 1 pruned, 2 running, 1 left" in shown
    assert "best val/loss 0.4000 at epoch 2: optim.lr=0" in shown
    assert "8 epochs, 11.2 s/epoch, about 56 s left" in shown
    assert "starting" in shown and "is driven by process" in shown


def test_trials_that_ran_when_the_driver_died_are_interrupted_and_have_no_time_left(write, driven):
    run = write([SEARCH], MIXED)
    driver = driven(run)
    assert run_status(run).driver.is_alive is True
    driver.kill()
    driver.wait()
    status = run_status(run)
    assert status.driver.is_alive is False
    assert status.driver.pid == driver.pid
    (study,) = status.studies
    assert study.counts == {"completed": 1, "pruned": 1, "diverged": 1, "interrupted": 2}
    assert (study.running, study.eta_s) == ([], None)
    assert f"no driver runs; the last was process {driver.pid} on {platform.node()}" in text(status)


def test_a_run_without_a_lock_has_no_driver(write):
    status = run_status(write([SEARCH], MIXED))
    assert status.driver is None
    assert status.studies[0].counts["interrupted"] == 2


def test_a_lock_that_is_free_is_a_dead_driver_even_if_its_number_lives_on(write):
    run = write([SEARCH], [])
    held = {"pid": os.getpid(), "host": platform.node(), "started": "then", "command": ""}
    (run.path / "driver.lock").write_text(json.dumps(held))
    assert run_status(run).driver.is_alive is False


def test_whether_a_driver_on_another_host_lives_is_unknown(write):
    run = write([SEARCH], MIXED)
    held = {"pid": 1, "host": "elsewhere", "started": "then", "command": "birdtune sweep"}
    (run.path / "driver.lock").write_text(json.dumps(held))
    status = run_status(run)
    assert status.driver.is_alive is None
    assert status.studies[0].counts["running"] == 2
    assert "may be driven by process 1 on elsewhere, started then (only elsewhere knows)" in text(status)


def test_a_lock_without_a_name_yet_is_a_driver_that_starts(write, driven):
    run = write([SEARCH], [])
    driven(run)
    (run.path / "driver.lock").write_text("")
    status = run_status(run)
    assert (status.driver.is_alive, status.driver.pid) == (True, None)
    assert "a driver has only just started" in text(status)


def test_cells_with_equal_configs_are_one_trial_and_reused_ones_cost_nothing(write):
    events = [
        begin("a-r0", 0, "earlier"), epoch("a-r0", 1, 0.3), epoch("a-r0", 2, 0.5), end("a-r0", "completed"),
        begin("a-r0", 0, "losses", reused=True),
        begin("b-r0", 1, "losses"), epoch("b-r0", 1, 0.4), end("b-r0", "failed"),
    ]  # fmt: skip
    (study,) = run_status(write([ABLATION], events)).studies
    assert study.n_trials == 4  # a and b by two repeats; the third cell is the second
    assert study.counts == {"completed": 1, "failed": 1}
    assert (study.n_reused, study.n_left, study.n_epochs) == (1, 2, 1)
    assert study.best.value == 0.5


@pytest.mark.parametrize(
    ("repeats", "seed", "trial_id"), [([3, 4], 3, "b-r4"), ([0, 1], 5, "b-r1-s6"), ([2, 2], 2, "b-r2-s3")]
)
def test_the_planned_trials_have_the_repeats_and_seeds_of_the_study(write, repeats, seed, trial_id):
    run = write([{**ABLATION, "repeats": repeats, "seed": seed}], [begin(trial_id, 0, "losses")])
    (study,) = run_status(run).studies
    assert (study.n_trials, study.n_left) == (4, 3)


def test_a_trial_trained_again_is_counted_once_and_its_first_hours_are_not_forgotten(write):
    events = [
        begin("a-r0", 0, "losses"), epoch("a-r0", 1, 0.9), end("a-r0", "killed"),
        begin("a-r0", 0, "losses"), epoch("a-r0", 1, 0.2), epoch("a-r0", 2, 0.3), end("a-r0", "completed"),
    ]  # fmt: skip
    status = run_status(write([ABLATION], events))
    (study,) = status.studies
    assert (study.counts, study.n_epochs) == ({"completed": 1}, 2)
    assert study.best.value == 0.3  # of what counts: the first attempt's 0.9 was overwritten
    assert status.cpu_hours == pytest.approx(2 * 30 / 3600)


def test_a_retry_takes_the_place_of_the_failed_trial_and_a_config_drawn_twice_is_two(write):
    events = [
        begin("a-r0", 0), end("a-r0", "failed"),
        begin("b-r0", 1), end("b-r0", "completed"),
        begin("a-r0", 2), end("a-r0", "completed"),
        begin("b-r0", 3, reused=True),
    ]  # fmt: skip
    (study,) = run_status(write([SEARCH], events)).studies
    assert study.counts == {"completed": 3}
    assert (study.n_reused, study.n_left) == (1, 3)


def test_metrics_that_are_not_numbers_are_passed_over(write):
    events = [begin("a-r0", 0), epoch("a-r0", 1, None), epoch("a-r0", 2, 0.7), end("a-r0", "completed")]
    (study,) = run_status(write([SEARCH], events)).studies
    assert study.best.value == 0.7


def test_a_study_that_has_not_begun_is_all_left(write):
    status = run_status(write([SEARCH, ABLATION], []))
    assert [(s.name, s.n_left, s.best, s.epoch_s) for s in status.studies] == [
        ("losses", 4, None, None),
        ("rates", 6, None, None),
    ]
    assert "rates (search): 6 trials, 6 left" in text(status)


def test_nothing_in_the_run_folder_is_written(write, driven):
    run = write([SEARCH], MIXED)
    driven(run)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.path.rglob("*") if p.is_file()}
    with open(run.journal_path, "ab") as journal:
        journal.write(b'{"event": "epo')
    before[run.journal_path] = (run.journal_path.stat().st_mtime_ns, run.journal_path.read_bytes())
    run_status(run)
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.path.rglob("*") if p.is_file()}


def test_the_reader_reads_only_what_was_appended_and_gives_what_a_new_one_gives(write, driven, monkeypatch):
    run = write([SEARCH], MIXED[:5])
    driven(run)
    reader = StatusReader(run)
    seen = []
    events = RunFolder.events

    def counted(folder, position):
        for event in events(folder, position):
            seen.append(event)
            yield event

    monkeypatch.setattr(RunFolder, "events", counted)
    reader.status()
    assert len(seen) == 5
    for event in MIXED[5:]:
        with open(run.journal_path, "ab") as journal:
            journal.write(b'{"event": "epo')  # the driver is in the middle of a line
        half = reader.status()
        run.append(event)
        assert half.studies[0].n_epochs <= reader.status().studies[0].n_epochs
    assert len(seen) == len(MIXED)
    assert reader.status() == StatusReader(run).status()


def test_a_journal_that_was_replaced_is_read_from_its_start(write):
    run = write([SEARCH], MIXED)
    reader = StatusReader(run)
    reader.status()
    run.journal_path.unlink()
    assert reader.status().studies[0].counts == {}
    run.append(begin("a-r0", 0))
    assert reader.status().studies[0].counts == {"interrupted": 1}


def test_failures_have_their_errors_the_newest_first_and_memory_is_the_most_of_a_trial(write):
    events = [
        begin("a-r0", 0), epoch("a-r0", 1, 0.9), {**end("a-r0", "failed"), "error": "CUDA error: 2\nmore"},
        begin("b-r0", 1), {**end("b-r0", "completed"), "peak_memory_mb": 512.5},
        begin("c-r0", 2), {**end("c-r0", "diverged"), "peak_memory_mb": 100.0},
    ]  # fmt: skip
    (study,) = run_status(write([SEARCH], events)).studies
    assert [(f.trial_id, f.status, f.epoch, f.error) for f in study.failures] == [
        ("c-r0", "diverged", 0, None),
        ("a-r0", "failed", 1, "CUDA error: 2"),
    ]
    assert study.peak_memory_mb == 512.5


def test_curves_are_of_running_trials_the_newest_ended_ones_and_the_best(write, driven):
    run = write([{**SEARCH, "n_trials": 60, "epochs": 500}], [])
    run.append(begin("best-r0", 0), epoch("best-r0", 1, 0.001), end("best-r0", "completed"))
    for number in range(1, 51):
        name = f"{number}-r0"
        run.append(begin(name, number), epoch(name, 1, 0.5), end(name, "completed"))
        time.sleep(0.002)  # the journal's times have milliseconds
    run.append(begin("long-r0", 51), *(epoch("long-r0", n, 1 / n) for n in range(1, 501)))
    driven(run)
    (study,) = run_status(run).studies
    names = [curve.trial_id for curve in study.curves]
    assert names == ["long-r0", *(f"{n}-r0" for n in range(50, 10, -1)), "best-r0"]
    long = study.curves[0]
    assert (long.status, long.epochs[0], long.epochs[-1], long.values[-1]) == ("running", 1, 500, 1 / 500)
    assert len(long.epochs) <= 121


def test_the_state_of_a_study(write, driven):
    run = write([SEARCH, {**ABLATION, "cells": ABLATION["cells"][:1], "repeats": [0]}], [])
    states = lambda: {s.name: s.state for s in run_status(run).studies}  # noqa: E731
    assert states() == {"losses": "interrupted", "rates": "interrupted"}
    run.append(begin("a-r0", 0, "losses"), end("a-r0", "failed"))
    assert states()["losses"] == "finished"  # a failed trial is over
    run.append({"event": "session", "pid": 1, "host": "vm", "command": "birdtune sweep rates"})
    driver = driven(run)
    assert states() == {"losses": "finished", "rates": "running"}
    run.append(begin("b-r0", 0), {"event": "halt", "reason": "the budget of 1 h is used up"})
    assert run_status(run).halted is None
    driver.kill()
    driver.wait()
    assert states()["rates"] == "interrupted"
    assert run_status(run).halted == "the budget of 1 h is used up"


def test_a_lock_of_another_process_is_not_the_drivers(write, driven):
    run = write([SEARCH], MIXED)
    driven(run)
    held = {"pid": os.getpid(), "host": platform.node(), "started": "then", "command": ""}
    (run.path / "driver.lock").write_text(json.dumps(held))
    assert run_status(run).driver.is_alive is False


def test_a_driver_can_start_while_others_read_its_status(write):
    run = write([SEARCH], MIXED)
    code = (
        "import sys; from birdnet_core.records.run_folder import RunFolder\n"
        "from tuning.views.status import run_status\n"
        "print('ready', flush=True)\n"
        f"while True: run_status(RunFolder({str(run.path)!r}))"
    )
    reader = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert reader.stdout.readline() == b"ready\n"
        for _ in range(200):
            with run.driven():
                pass
    finally:
        reader.kill()
        reader.wait()
        reader.stdout.close()


def test_an_altered_journal_is_refused(write):
    run = write([SEARCH], MIXED[:2])
    run.journal_path.write_text("not JSON\n" + run.journal_path.read_text())
    with pytest.raises(RunFolderError, match="line 1 is not JSON"):
        run_status(run)


def test_a_journal_of_a_hundred_thousand_epochs_is_read_in_seconds(write):
    run = write([{**SEARCH, "n_trials": 2000, "epochs": 50}], [])
    with open(run.journal_path, "w") as journal:
        for number in range(2000):
            name = f"{number}-r0"
            lines = [
                begin(name, number),
                *(epoch(name, n, 0.5) for n in range(1, 51)),
                end(name, "completed"),
            ]
            journal.writelines(json.dumps({**line, "time": 0}) + "\n" for line in lines)
    start = time.perf_counter()
    (study,) = run_status(run).studies
    assert time.perf_counter() - start < 10
    assert (study.n_epochs, study.counts) == (100_000, {"completed": 2000})


def test_status_imports_none_of_the_heavy_libraries():
    code = (
        "import sys, tuning.cli, tuning.views.status\n"
        "print([m for m in ('ray', 'torch', 'optuna', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_config_of_a_search_by_folds_is_one_trial_with_the_epochs_of_all_its_folds(write, driven):
    study = {**SEARCH, "repeats": [0, 1, 2], "n_trials": 3}
    next_fold = {"event": "next_fold", "study": "rates", "number": 0}
    events = [
        begin("a-r0", 0), epoch("a-r0", 1, 0.9), end("a-r0", "completed"), {**next_fold, "trial_id": "a-r0"},
        begin("b-r0", 1), epoch("b-r0", 1, 0.8), end("b-r0", "completed"),
        {**begin("a-r1", 0), "fold": 1}, epoch("a-r1", 1, 0.2), end("a-r1", "completed"),
        {**next_fold, "trial_id": "a-r1"},
    ]  # fmt: skip
    run = write([study], events)
    driven(run)
    (status,) = run_status(run).studies
    assert status.counts == {"completed": 1, "waiting": 1} and status.n_left == 1
    assert status.n_epochs == 3 and status.best is None  # none has all folds
    for event in ({**begin("a-r2", 0), "fold": 2}, epoch("a-r2", 1, 0.1), end("a-r2", "completed")):
        run.append(event)
    (status,) = run_status(run).studies
    assert status.counts == {"completed": 2} and status.n_epochs == 4
    assert status.best.value == pytest.approx((0.9 + 0.2 + 0.1) / 3) and status.best.epoch is None
    assert "best val/loss 0.4000 over all folds: " in text(run_status(run))


def test_a_config_that_waits_for_its_next_fold_is_not_over(write):
    study = {**SEARCH, "repeats": [0, 1], "n_trials": 1}
    next_fold = {"event": "next_fold", "study": "rates", "trial_id": "a-r0", "number": 0}
    (status,) = run_status(write([study], [begin("a-r0", 0), end("a-r0", "completed"), next_fold])).studies
    assert status.counts == {"interrupted": 1} and status.state == "interrupted"
