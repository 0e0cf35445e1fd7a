"""Run folders written with the writer of `birdnet_core.records`, so that a change of the files is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from birdnet_core.records.metrics import METRICS
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from reports.figures import charts

Ending = float | str | dict[str, Any]
MakeRun = Callable[..., Path]


def config_id_of(factors: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(factors, sort_keys=True).encode()).hexdigest()[:10]


@pytest.fixture(autouse=True)
def charts_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold every chart that a test draws against the schema of Vega-Lite."""
    monkeypatch.setattr(charts, "VALIDATES", True)


@pytest.fixture
def make_run(tmp_path: Path, write_run: MakeRun) -> MakeRun:
    """Return `write_run` for folders under tmp_path; the folder is "run" by default."""

    def write(cells: Any, *, folder: str = "run", **changes: Any) -> Path:
        return write_run(tmp_path / folder, cells, **changes)

    return write


@pytest.fixture(scope="session")
def write_run() -> MakeRun:
    """Return a function that writes a study with its trials and returns the run folder.

    `cells` pairs the factors of a cell with how each repeat ended: a number is the value of a completed
    trial, a word its status ("running" leaves no record, "missing" no trace), a dict changes fields of the
    record.
    """

    def write(path: Path, cells: list[tuple[dict[str, Any], dict[int, Ending]]], **changes: Any) -> Path:
        run = RunFolder(path)
        repeats = sorted({repeat for _, endings in cells for repeat in endings})
        study = {
            "name": "capacity", "question": "Is it the capacity or the loss?", "kind": "ablation",
            "metric": "val/f1_macro", "direction": "maximize", "epochs": 4, "n_trials": None,
            "repeats": repeats, "seed": repeats[0],
            "base": {}, "factors": None, "baseline": cells[0][0], "scheduler": "fifo",
            "cells": [{"factors": f, "config_id": config_id_of(f)} for f, _ in cells],
            "data": {
                "name": "clips", "split_id": "s1", "train_counts": {"wren": 9, "owl": 1},
                "strata": {"rare": ["owl"], "medium": [], "common": ["wren"]},
                "folds": {"n": 5, "deal": 0, "fold": 0}, "grouped_by": ["recording_id"],
                "notes": ["the split does not separate recordists"],
            },
            "provenance": {"versions": {"torch": "2.13.0"}, "git_commit": "abc", "command": "birdtune sweep"},
            "created": "2026-01-02T03:04:05Z",
        } | changes  # fmt: skip
        if study["kind"] == "search":
            study |= {"cells": None, "baseline": None, "n_trials": study["n_trials"] or len(cells)}
        run.write_study(study)
        number = 0
        for factors, endings in cells:
            for repeat, ending in endings.items():
                if ending != "missing":
                    write_trial(run, study, number, factors, repeat, ending)
                    number += 1
        return run.path

    return write


def write_trial(
    run: RunFolder, study: dict[str, Any], number: int, factors: dict[str, Any], repeat: int, ending: Ending
) -> None:
    config_id = config_id_of(factors)
    trial_id = f"{config_id}-r{repeat}"
    fields = ending if isinstance(ending, dict) else {"status": ending}
    if isinstance(ending, float):
        fields = {"status": "completed", "metrics": {study["metric"]: ending}}
    if fields["status"] == "completed":
        fields = {"epochs": study["epochs"], "best_epoch": study["epochs"] - 1, **fields}
    values = {
        "config": {"model": dict(factors), "training": {"epochs": study["epochs"]}, "seed": repeat},
        "seconds": 1800.0,
        "n_params": 343_801,
        **fields,
    }
    run.append({"event": "trial", "study": study["name"], "trial_id": trial_id, "number": number,
                "factors": factors, "reused": False})  # fmt: skip
    # Every metric is best, and as the record has it, at the best epoch.
    best = values.get("best_epoch", 2)
    for epoch in range(1, values.get("epochs", 2) + 1):
        metrics = {"train/loss": 4.0 / epoch, "val/loss": 4.5 / epoch, study["metric"]: 0.01 * epoch / best}
        for name, value in values.get("metrics", {}).items():
            worse = 1 if name in METRICS and METRICS[name].direction == "minimize" else -1
            metrics[name] = value * (1 + worse * abs(epoch - best) / 10)
        event = {"event": "epoch", "trial_id": trial_id, "epoch": epoch, "metrics": metrics, "epoch_s": 1.5}
        run.append(event)
    if values["status"] == "running":
        return
    run.append({"event": "end", "trial_id": trial_id, "status": values["status"]})
    run.write_record(
        TrialRecord(trial_id=trial_id, config_id=config_id, repeat=repeat, seed=repeat, **values)
    )
