import json
from pathlib import Path

import pytest

from birdnet_core.errors import RunFolderError
from birdnet_core.records.checks import is_name, is_trial_id, local_path
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import SCHEMA, TrialRecord

STUDY = {
    "name": "rates", "kind": "search", "metric": "val/loss", "direction": "minimize", "epochs": 4,
    "repeats": [0], "seed": 0, "n_trials": 3,
}  # fmt: skip
NOW = {"schema": SCHEMA}
TRIAL = {
    "event": "trial", "study": "rates", "trial_id": "ab-r0", "number": 0, "factors": {}, "reused": False,
    "time": 1.0,
}  # fmt: skip
END = {"event": "end", "trial_id": "ab-r0", "status": "failed", "time": 1}
EPOCH = {
    "event": "epoch", "trial_id": "ab-r0", "epoch": 1, "metrics": {"val/loss": 1.0}, "epoch_s": 2.0,
    "time": 2.0,
}  # fmt: skip


def record(trial_id="ab-r0"):
    return TrialRecord(trial_id=trial_id, config_id="ab", repeat=0, seed=0, status="completed", config={})


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.write_study(STUDY)
    run.append({k: v for k, v in TRIAL.items() if k != "time"})
    run.write_record(record())
    return run


OUTSIDE = [
    "../x",
    "a/b",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\0b",
    "a\nb",
    "a\n",
    ".hidden",
    "a b",
    "x" * 101,
    None,
    3,
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_path_is_made_of_a_name_that_leads_out_of_the_folder(name, tmp_path):
    assert not is_name(name) and not is_trial_id(name)
    run = RunFolder(tmp_path)
    for reads in (
        run.read_study,
        run.predictions,
        lambda name: run.predicted_classes(name, 1),
        run.validation,
        run.checkpoint_path,
        lambda name: run.write_study({**STUDY, "name": name}),
        lambda name: run.write_predictions(name, b""),
    ):
        with pytest.raises(RunFolderError, match=r"cannot name a file in \w+/; a name holds letters"):
            reads(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("s3://bucket/run", "s3://bucket/run"),
        (Path("gs://b/r"), "gs://b/r"),
        ("s3:/bucket/run", "s3://bucket/run"),
        ("file:///tmp/x", "file://tmp/x"),
    ],
)
def test_an_address_is_refused_by_name(given, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RunFolderError, match=rf"'{named}' is an address, and birdtune reads and writes folders"
    ):
        RunFolder(given)
    assert list(tmp_path.iterdir()) == []
    assert str(local_path("a:b/c")) == "a:b/c"  # a colon alone is a file's name


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "lacks 'name', 'kind', 'metric', 'direction', 'epochs', 'repeats', 'seed'"),
        (
            {**STUDY, **NOW, "name": "../../x"},
            r"its name is '\.\./\.\./x', and the file's is 'rates'",
        ),
        ({**STUDY, "schema": 9}, "schema = 9; this version reads 7"),
        (STUDY, "schema = None; this version reads 7"),
        ({**STUDY, **NOW, "kind": "poem"}, "kind = 'poem'; it takes 'ablation' or 'search'"),
        (
            {**STUDY, **NOW, "epochs": "four"},
            "epochs = 'four' is not accepted; it takes a whole number",
        ),
        ({**STUDY, **NOW, "repeats": ["a"]}, r"repeats = \['a'\]"),
        (
            {**STUDY, **NOW, "n_trials": None},
            "lacks 'n_trials', which a study of kind 'search' has",
        ),
        (
            {**STUDY, **NOW, "kind": "ablation", "cells": [{}]},
            "a cell: it lacks 'config_id', 'factors'",
        ),
    ],
)
def test_a_foreign_study_is_named_with_what_is_wrong(run, content, expected):
    (run.path / "studies" / "rates.json").write_text(json.dumps(content))
    with pytest.raises(RunFolderError, match=rf"studies/rates\.json' is no study of birdtune.*{expected}"):
        run.read_study("rates")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"trial_id": "../evil-r0"}, r"its trial_id is '\.\./evil-r0', not that of the file"),
        ({"status": "fine"}, "status = 'fine'; it takes completed"),
        ({"config": None}, "config = None is not accepted; it takes an object"),
        ({"seconds": "long"}, "seconds = 'long' is not accepted; it takes a number"),
        ({"metrics": {"val/loss": "low"}}, "'val/loss' = 'low' is not accepted; it takes a number"),
        ({"schema": 0}, "schema = 0; this version reads 7"),
    ],
)
def test_a_foreign_record_is_named_with_what_is_wrong(run, change, expected):
    file = run.path / "trials" / "ab-r0.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(RunFolderError, match=rf"trials/ab-r0\.json' is no trial's record: {expected}"):
        run.records()


def test_what_is_not_named_like_ours_is_left_out_and_counted(run):
    (run.path / "predictions").mkdir()
    for name in (
        "trials/notes.json",
        "trials/ab-r0 (copy).json",
        "trials/x.txt",
        "studies/a b.json",
        "predictions/x.json",
    ):
        (run.path / name).write_text("{}")
    (run.path / "trials" / "._ab-r0.json").write_bytes(b"\0\5")  # what macOS leaves on other file systems
    assert list(run.records()) == ["ab-r0"] and run.study_names() == ["rates"]
    (note,) = run.notes()
    assert note.startswith(
        "5 files are not named like a file of birdtune's, and left out: studies/a b.json, trials/"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[]", "it is a list, not an object"),
        ("3", "it is a whole number, not an object"),
        ({"hello": 1}, "lacks 'event' .text. or 'time'"),
        ({"event": "epoch", "time": 1}, "'epoch',: it lacks 'trial_id', 'epoch', 'metrics', 'epoch_s'"),
        ({**EPOCH, "epoch": "one"}, "epoch = 'one' is not accepted; it takes a whole number"),
        ({**EPOCH, "metrics": {"val/loss": "x"}}, "'val/loss' = 'x' is not accepted"),
        ({**EPOCH, "trial_id": "../../x-r0"}, r"has trial_id = '\.\./\.\./x-r0'"),
        ({**EPOCH, "trial_id": "a/b-r0"}, "has trial_id = 'a/b-r0'"),
        ({**TRIAL, "number": None}, "number = None is not accepted"),
        ({**TRIAL, "gpus": "all"}, "gpus = 'all' is not accepted"),
        ({**END, "status": "odd"}, "status = 'odd'"),
        ({**END, "error": 3}, "error = 3 is not accepted; it takes text"),
        ({**END, "peak_memory_mb": "much"}, "peak_memory_mb = 'much' is not accepted"),
    ],
)
def test_an_event_that_is_none_is_named_with_its_line(run, line, expected):
    with open(run.journal_path, "a") as journal:
        journal.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
        journal.write(json.dumps(EPOCH) + "\n")
    with pytest.raises(RunFolderError, match=rf"journal\.jsonl line 2.*{expected}"):
        list(run.events())


@pytest.mark.parametrize("folder", ["studies", "trials"])
def test_a_file_of_another_version_is_named_as_such_whatever_else_it_lacks(run, folder):
    name = {"studies": "rates", "trials": "ab-r0"}[folder]
    (run.path / folder / f"{name}.json").write_text('{"schema": 1}')
    with pytest.raises(RunFolderError, match="schema = 1; this version reads"):
        run.records() if folder == "trials" else run.read_study(name)


def test_kinds_of_event_of_a_later_version_are_passed_on(run):
    run.append({"event": "applause", "loud": True})
    run.append({k: v for k, v in EPOCH.items() if k != "time"})
    assert [e["event"] for e in run.events()] == ["trial", "applause", "epoch"]


def test_bytes_that_are_no_text_are_refused_with_their_line(run):
    run.journal_path.write_bytes(run.journal_path.read_bytes() + b'{"event": "\xff\xfe\n{}\n')
    with pytest.raises(RunFolderError, match="line 2 is not JSON"):
        list(run.events())


@pytest.mark.parametrize("content", [None, "", '{"event": "session", "pid": 1, "time": 1}\n'])
def test_a_journal_that_is_lost_is_no_run_without_trials(run, content):
    run.journal_path.unlink()
    if content is not None:
        run.journal_path.write_text(content)
    state = "is missing" if content is None else "names no trial"
    with pytest.raises(RunFolderError, match=rf"holds 1 trial record, and journal\.jsonl, .* {state}"):
        RunFolder.existing(run.path)
    with pytest.raises(RunFolderError, match="holds 1 trial record"), run.driven():
        pass


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"species": ["wren"], "truth": [0], "recording": [0]},
        {"species": ["wren"], "truth": [0], "recording": [0, 1], "group": [0, 0]},
        {"species": ["wren"], "truth": [0], "recording": [0], "group": [0, 1]},
        {"species": ["wren"], "truth": [1], "recording": [0], "group": [0]},
        {"species": "wren", "truth": [0], "recording": [0], "group": [0]},
        {"species": ["wren"], "truth": [0], "recording": [0], "group": [0], "seen": [0]},
        {"species": ["wren"], "truth": [0], "recording": [0], "group": [0], "seen": {"h": [0, 1]}},
        {"species": ["wren"], "truth": [0], "recording": [0], "group": [0], "seen": {"h": [3]}},
    ],
)
def test_a_foreign_validation_split_is_named(run, content):
    (run.path / "validation").mkdir()
    (run.path / "validation" / "abc.json").write_text(json.dumps(content))
    with pytest.raises(RunFolderError, match=r"validation/abc\.json': "):
        run.validation("abc")
