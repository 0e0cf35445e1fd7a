"""Folders that verbs are given: addresses, and run folders that were altered or copied in part."""

import typing
from pathlib import Path

import pytest

from birdnet_core.errors import RunFolderError
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from tuning import cli
from tuning.cli import data, studies
from tuning.cli.options import local, local_folder
from tuning.engine.launch import _checkpoints

COMMANDS = [
    *cli.VERBS.values(), data.data_index, data.data_prepare, data.data_describe,
    studies.study_show, studies.study_schema_command,
]  # fmt: skip


def paths_of(command):
    """Return the parameters of a command that are paths, each with what checks it."""
    hints = typing.get_type_hints(command, include_extras=True)
    return {
        name: hint.__metadata__[0].callback
        for name, hint in hints.items()
        if hasattr(hint, "__metadata__") and Path in (hint.__origin__, *typing.get_args(hint.__origin__))
    }


def test_every_path_of_every_verb_refuses_an_address():
    found = {
        (command.__name__, name): check for command in COMMANDS for name, check in paths_of(command).items()
    }
    assert len(found) > 20
    assert {where for where, check in found.items() if check not in (local, local_folder)} == set()


@pytest.mark.parametrize(
    "line",
    [
        "sweep capacity --out s3://bucket/run", "plan capacity --out s3://bucket/run", "resume s3://bucket/run",
        "status s3://bucket/run", "report runs/x s3://bucket/run", "best s3://bucket/run",
        "train --out s3://bucket/run", "demo --out s3://bucket/run", "export s3://bucket/run",
    ],
)  # fmt: skip
def test_an_address_is_an_error_that_names_it_and_no_folder(birdtune, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    code, _, err = birdtune(line)
    assert code == 1
    assert err.startswith("error: 's3://bucket/run' is an address, and birdtune reads and writes folders")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run(tmp_path):
    """A search with one completed trial."""
    run = RunFolder(tmp_path / "run")
    run.write_study(
        {"name": "rates", "kind": "search", "metric": "val/loss", "direction": "minimize", "epochs": 1,
         "question": "?", "n_trials": 1, "repeats": [0], "seed": 0, "cells": None, "data": {}}
    )  # fmt: skip
    trial = {"study": "rates", "trial_id": "a-r0", "number": 0, "factors": {}, "reused": False}
    run.append({"event": "trial", **trial})
    run.write_record(
        TrialRecord(
            trial_id="a-r0", config_id="a", repeat=0, seed=0, status="completed", config={}, epochs=1,
            best_epoch=1, metrics={"val/loss": 0.3},
        )
    )  # fmt: skip
    return run


VERBS = ("status", "report", "best", "resume", "rerun --failed", "extend --trials 3")


@pytest.mark.parametrize("verb", VERBS)
def test_a_lost_journal_is_an_error_of_every_verb_that_reads_a_run(birdtune, run, verb):
    run.journal_path.unlink()
    word, *more = verb.split()
    code, _, err = birdtune(" ".join([word, str(run.path), *more]))
    assert code == 1
    assert "holds 1 trial record, and journal.jsonl, which says what they belong to, is missing" in err


FOREIGN = [
    ("studies/rates.json", '{"hello": 1}'),
    ("studies/poem.json", '{"hello": 1}'),
    ("journal.jsonl", '{"event": "epoch", "time": 1}\n'),
    ("journal.jsonl", "[]\n"),
    ("trials/a-r0.json", '{"hello": 1}'),
]


@pytest.mark.parametrize(
    ("verb", "file", "text"),
    [
        *((verb, *foreign) for verb in ("report", "best") for foreign in FOREIGN),
        *(("status", *foreign) for foreign in FOREIGN[:-1]),  # which reads no records
    ],
)
def test_a_foreign_file_is_an_error_that_names_it(birdtune, run, verb, file, text):
    (run.path / file).write_text(text)
    code, _, err = birdtune(f"{verb} {run.path}")
    assert code == 1
    assert str(run.path / file) in err and "bug in birdtune" not in err


def test_stray_files_are_counted_and_left_out(birdtune, run):
    (run.path / "trials" / "notes.json").write_text("{}")
    note = "note: 1 file is not named like a file of birdtune's, and left out: trials/notes.json"
    code, out, _ = birdtune(f"status {run.path}")
    assert code == 0 and note in out
    code, _, err = birdtune(f"best {run.path}")
    assert code == 0 and note in err
    code, _, err = birdtune(f"report {run.path}")
    assert code == 0 and note.removeprefix("note: ") in err


def test_the_id_of_a_run_leads_no_worker_out_of_its_cache(run):
    (run.checkpoints_path).mkdir()
    (run.checkpoints_path / "run_id").write_text("../../elsewhere")
    with pytest.raises(RunFolderError, match=r"holds '\.\./\.\./elsewhere', which is no id of a run"):
        _checkpoints(run)
