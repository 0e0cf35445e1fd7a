import errno
import json
import math
import os

import pytest

from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.metrics import METRICS, is_better, metric_direction, objective_direction
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from birdnet_core.records.usage import Usage


def record(**changes):
    ids = {"trial_id": "ab-r0", "config_id": "ab", "repeat": 0, "seed": 0}
    return TrialRecord(**{**ids, "status": "completed", "config": {}, **changes})


def test_record_round_trips_with_nan(tmp_path):
    run = RunFolder(tmp_path)
    run.write_record(record(metrics={"val/f1_rare": math.nan, "val/f1_macro": 0.5}))
    text = (tmp_path / "trials" / "ab-r0.json").read_text()
    assert json.loads(text)["metrics"]["val/f1_rare"] is None
    back = run.records()["ab-r0"]
    assert math.isnan(back.metrics["val/f1_rare"])
    assert back.metrics["val/f1_macro"] == 0.5
    assert set(run.records()) == {"ab-r0"}


def test_many_records_are_read_and_a_broken_one_among_them_is_named(tmp_path):
    run = RunFolder(tmp_path)
    names = [f"{n:03d}-r0" for n in range(250)]
    for name in names:
        run.write_record(record(trial_id=name))
    assert list(run.records()) == names
    assert [r.trial_id for r in run.records().values()] == names
    for content, words in (
        ("{", "not JSON"),
        ("[1]", "holds a list"),
        ("", "not JSON"),
        ("{}, {}", "not JSON"),
    ):
        (tmp_path / "trials" / "120-r0.json").write_text(content)
        with pytest.raises(RunFolderError, match=rf"120-r0\.json' .*{words}"):
            run.records()


def test_fields_of_a_later_version_are_left_out():
    assert TrialRecord.from_dict({**record().to_dict(), "mood": "good"}) == record()


def epoch(n, trial_id="ab-r0"):
    return {"event": "epoch", "trial_id": trial_id, "epoch": n, "metrics": {"val/loss": 0.5}, "epoch_s": 1.5}


def test_a_line_cut_off_by_a_kill_is_dropped_and_the_next_event_is_a_line_of_its_own(tmp_path):
    run = RunFolder(tmp_path)
    run.append(epoch(1))
    with open(run.journal_path, "a") as journal:
        journal.write('{"event": "epo')
    assert [e["epoch"] for e in run.events()] == [1]
    run.append(epoch(2))
    assert [e["epoch"] for e in run.events()] == [1, 2]


def test_a_journal_altered_in_the_middle_is_refused_with_its_line(tmp_path):
    run = RunFolder(tmp_path)
    run.append({"event": "a"})
    run.journal_path.write_text(run.journal_path.read_text() + "nonsense\n")
    with pytest.raises(RunFolderError, match="line 2"):
        list(run.events())


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path, there):
    folder = tmp_path / "nowhere"
    if there:
        folder.mkdir()
    with pytest.raises(RunFolderError, match="nowhere"):
        RunFolder.existing(folder)


def test_a_broken_study_file_is_refused_by_name(tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "x.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"x\.json"):
        RunFolder.existing(tmp_path).read_study("x")


def test_direction_is_the_metrics_own():
    assert metric_direction("val/f1_macro") == "maximize"
    assert metric_direction("val/loss") == "minimize"
    with pytest.raises(ConfigError, match="did you mean 'val/accuracy'"):
        metric_direction("val/acuracy")


@pytest.mark.parametrize(
    ("value", "than", "direction", "expected"),
    [
        (0.2, 0.1, "maximize", True),
        (0.1, 0.1, "maximize", False),
        (0.1, 0.2, "minimize", True),
        (math.nan, None, "maximize", False),
        (0.0, None, "minimize", True),
    ],
)
def test_is_better(value, than, direction, expected):
    assert is_better(value, than, direction) is expected


def test_every_metric_has_a_title_and_a_definition():
    assert all(metric.title and metric.definition for metric in METRICS.values())
    assert all(name.split("/")[0] in ("train", "val") for name in METRICS)


def test_objectives_are_metrics_at_the_best_epoch_and_costs():
    known = record(metrics={"val/f1_macro": 0.5}, n_params=1200, seconds=5400.0)
    assert [known.objective(o) for o in ("val/f1_macro", "n_params", "hours")] == [0.5, 1200.0, 1.5]
    unknown = record()
    assert math.isnan(unknown.objective("val/f1_macro")) and math.isnan(unknown.objective("n_params"))
    assert [objective_direction(o) for o in ("val/f1_macro", "val/loss", "n_params", "hours")] == [
        "maximize", "minimize", "minimize", "minimize",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"'hour'; did you mean 'hours'"):
        objective_direction("hour")


def test_the_time_since_the_last_event_counts_while_a_driver_runs():
    assert Usage().hours_until(7200.0) == 0  # no driver has begun
    begun = Usage.of([{"event": "session", "time": 3600.0}])
    assert (begun.hours, begun.hours_until(7200.0)) == (0, 1)
    resumed = Usage.of(
        [
            {"event": "session", "time": 0.0},
            {"event": "halt", "time": 3600.0},
            {"event": "session", "time": 36_000.0},  # in between nobody drove it
        ]
    )
    assert (resumed.hours, resumed.hours_until(37_800.0)) == (1, 1.5)
    assert resumed.hours_until(35_000.0) == 1  # a clock that was set back


def events_of_a_resumed_run():
    """Return the events of a run that was resumed after an hour, of two trials side by side."""
    shares = {"a-r0": {"gpus": 0.5, "cpus": 1.0}, "b-r0": {"gpus": 0.0, "cpus": 2.0}}
    events = [{"event": "session", "pid": 1, "host": "h", "command": ""}]
    for name, share in shares.items():
        events.append({"event": "trial", "study": "s", "trial_id": name, "number": 0, "factors": {},
                       "reused": False, **share})  # fmt: skip
    events += [
        {"event": "epoch", "trial_id": name, "epoch": epoch, "metrics": {}, "epoch_s": 60.0}
        for epoch in (1, 2)
        for name in shares
    ]
    events = [{**event, "time": 10.0 * i} for i, event in enumerate(events)]
    later = [{**events[0], "time": 3600.0}, *({**event, "time": 3660.0} for event in events[-2:])]
    return events + later


def test_usage_of_two_stretches_is_that_of_the_whole():
    events = events_of_a_resumed_run()
    whole = Usage.of(events)
    # three epochs of a trial with half a GPU and one CPU, and three of one with two CPUs
    assert (whole.gpu_hours, whole.cpu_hours, whole.n_epochs) == (0.025, pytest.approx(0.15), 6)
    for place in range(len(events) + 1):
        first = Usage.of(events[:place])
        first.extend(Usage.of(events[place:]))
        for name in ("gpu_hours", "cpu_hours", "hours", "n_epochs"):
            assert getattr(first, name) == pytest.approx(getattr(whole, name)), (name, place)
        assert first.hours_until(7200.0) == pytest.approx(whole.hours_until(7200.0))


def test_a_journal_can_be_read_in_two_stretches_from_any_byte(tmp_path):
    run = RunFolder(tmp_path)
    run.append(*events_of_a_resumed_run())
    lines = run.journal_path.read_bytes().splitlines(keepends=True)
    whole, size = list(run.events()), sum(map(len, lines))
    for offset in range(0, size + 2, 7):
        first, later = list(run.events(until=offset)), run.position_at(offset)
        assert (later.offset, later.line) == (sum(map(len, lines[: len(first)])), len(first) + 1)
        assert first + list(run.events(later)) == whole


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EAGAIN, "is being written by another driver"),
        (errno.EACCES, "is being written by another driver"),
        (errno.ENOSYS, "cannot lock .*this file system has none"),
        (errno.ENOLCK, "cannot lock .*No locks available"),
        (errno.EOPNOTSUPP, "cannot lock .*this file system has none"),
    ],
)
def test_a_file_system_without_locks_is_not_another_driver(tmp_path, monkeypatch, code, expected):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("birdnet_core.records.run_folder.fcntl.flock", flock)
    with pytest.raises(RunFolderError, match=expected), RunFolder(tmp_path).driven():
        pass
