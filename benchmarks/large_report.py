"""The time and memory of a report of ten thousand trials.

    python benchmarks/large_report.py [--trials 10000] [--epochs 50] [--keep DIR]

Writes two run folders with invented scores of 89 species, in the form of docs/run-folder.md: a search of N
trials under ASHA, and a grid of N / 20 cells x 20 repeats. Runs `python -m reports` on each. `--keep` keeps
all in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from birdnet_core.config import TrainConfig
from birdnet_core.records.metrics import METRICS
from birdnet_core.records.predictions import N_TOP, Predictions
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord, Validation

N_REPEATS, N_VAL = 20, 1662
SPECIES = [f"species {i:02d}" for i in range(89)]
N_TRAIN = {name: max(1, int(1200 * 0.92**i)) for i, name in enumerate(SPECIES)}
STRATA = {"rare": SPECIES[60:], "medium": SPECIES[20:60], "common": SPECIES[:20]}
RUNGS = (3, 9, 27)

Trial = tuple[dict[str, Any], int]  # factors and repeat


def search(n: int, rng: np.random.Generator) -> tuple[dict[str, Any], list[Trial]]:
    """Return what is particular to the study of a search, and its trials."""
    space = {
        "optim.lr": {"low": 1e-5, "high": 1e-1, "log": True, "integer": False},
        "model.dropout": {"low": 0.0, "high": 0.7, "log": False, "integer": False},
        "loss.name": ["cross_entropy", "focal"],
    }
    trials: list[Trial] = []
    for _ in range(n):
        rate, dropout = float(10 ** rng.uniform(-5, -1)), float(rng.uniform(0, 0.7))
        factors = {
            "optim.lr": rate,
            "model.dropout": dropout,
            "loss.name": str(rng.choice(space["loss.name"])),
        }
        trials.append((factors, 0))
    study = {
        "name": "search",
        "kind": "search",
        "repeats": [0],
        "seed": 0,
        "design": None,
        "factors": None,
        "cells": None,
    }
    return {**study, "baseline": None, "n_trials": n, "scheduler": "asha", "space": space}, trials


def grid(n: int) -> tuple[dict[str, Any], list[Trial]]:
    """Return what is particular to the study of a full factorial with 20 repeats, and its trials."""
    factors: dict[str, list[Any]] = {
        "optim.lr": [float(rate) for rate in np.geomspace(1e-5, 1e-1, max(2, n // N_REPEATS // 25))],
        "loss.gamma": [0.0, 1.0, 2.0, 3.0, 5.0],
        "model.width": [8, 16, 32, 64, 128],
    }
    cells = [dict(zip(factors, values, strict=True)) for values in product(*factors.values())]
    study = {
        "name": "grid", "kind": "ablation", "repeats": list(range(N_REPEATS)), "seed": 0, "factors": factors,
        "design": {"kind": "full factorial", "n_cells": len(cells), "notes": []},
        "cells": [{"factors": cell, "config_id": config_of(cell).config_id} for cell in cells],
        "baseline": cells[0], "n_trials": None, "scheduler": "fifo", "space": None,
    }  # fmt: skip
    return study, [(cell, repeat) for repeat in range(N_REPEATS) for cell in cells]


def config_of(factors: dict[str, Any], repeat: int = 0) -> TrainConfig:
    loss = {"loss.name": "focal"} if "loss.gamma" in factors else {}
    return TrainConfig().override({**loss, **factors, "repeat": repeat, "seed": repeat})


def write_run(folder: Path, particular: dict[str, Any], trials: list[Trial], epochs: int, seed: int) -> None:
    """Write the run folder of a finished study; three in five trials of a search are pruned."""
    rng = np.random.default_rng(seed)
    run = RunFolder(folder)
    data = {
        "name": "invented", "data_id": "d", "split_id": "s", "scored": "recordings", "n_recordings": 11075,
        "n_clips": 11075, "n_species": len(SPECIES), "n_train": 7751, "n_val": N_VAL, "n_test": N_VAL,
        "train_counts": N_TRAIN, "strata": STRATA, "grouped_by": ["recording_id"], "notes": [],
        "durations": {"total_h": 10.0, "min_s": 1.0, "median_s": 5.0, "max_s": 60.0},
    }  # fmt: skip
    run.write_study(
        {
            "question": "How long does a report take?", "metric": "val/f1_macro", "direction": "maximize",
            "epochs": epochs, "base": {}, "gates": [], "also": [], "asha_within": None, "data": data,
            "provenance": {"versions": {}, "git_commit": None, "host": "h", "command": ""}, "request": None,
            "created": "2026-01-01T00:00:00+00:00", **particular,
        }
    )  # fmt: skip
    truth = rng.choice(len(SPECIES), N_VAL, p=np.array(list(N_TRAIN.values())) / sum(N_TRAIN.values()))
    numbers = list(range(N_VAL))
    run.write_validation(
        "s", Validation(species=SPECIES, truth=truth.tolist(), recording=numbers, group=numbers)
    )
    # The same of all trials, whose classes differ.
    top = rng.permuted(np.tile(np.arange(len(SPECIES)), (N_VAL, 1)), axis=1)[:, :N_TOP].astype("uint16")
    probability = np.sort(rng.dirichlet(np.ones(N_TOP), N_VAL), axis=1)[:, ::-1].astype("float16")
    made_from = {
        "versions": {},
        "git_commit": None,
        "host": "h",
        "device": "cpu",
        "data_id": "d",
        "split_id": "s",
    }
    now = 0.0
    with open(run.journal_path, "w", encoding="utf-8") as journal:

        def say(event: str, **values: Any) -> None:
            journal.write(json.dumps({"event": event, **values, "time": now}) + "\n")

        say("session", pid=1, host="h", command="")
        for number, (factors, repeat) in enumerate(trials):
            config = config_of(factors, repeat)
            is_pruned = particular["kind"] == "search" and rng.random() < 0.6
            n = int(rng.choice([rung for rung in RUNGS if rung < epochs])) if is_pruned else epochs
            name, status = config.trial_id, "pruned" if is_pruned else "completed"
            say("trial", study=particular["name"], trial_id=name, number=number, factors=factors, group=None,
                cpus=1.0, gpus=0.0, reused=False)  # fmt: skip
            curves = rng.uniform(0.1, 0.5) * (1 - np.exp(-np.arange(1, n + 1) / 10))[:, None]
            curves = curves + rng.normal(0, 0.01, (n, len(METRICS)))
            for epoch, scores in enumerate(curves.tolist(), start=1):
                now += 1
                say("epoch", trial_id=name, epoch=epoch, metrics=dict(zip(METRICS, scores, strict=True)),
                    epoch_s=1.0)  # fmt: skip
            say("end", trial_id=name, status=status)
            best = int(curves[:, list(METRICS).index("val/f1_macro")].argmax())
            run.write_record(
                TrialRecord(
                    trial_id=name, config_id=config.config_id, repeat=repeat, seed=repeat, status=status,
                    config=config.to_dict(), epochs=n, best_epoch=best + 1, n_params=343801,
                    metrics=dict(zip(METRICS, curves[best].tolist(), strict=True)),
                    f1_per_species=dict(zip(SPECIES, rng.random(len(SPECIES)).tolist(), strict=True)),
                    started="2026-01-01T00:00:00+00:00", seconds=float(n), cpus=1.0, cpu_hours=n / 3600,
                    peak_memory_mb=800.0, provenance=made_from,
                )
            )  # fmt: skip
            if not is_pruned:
                wrong = rng.integers(len(SPECIES), size=(n, N_VAL))
                classes = np.where(rng.random(wrong.shape) < 0.4, truth, wrong).astype("uint16")
                run.write_predictions(name, Predictions(classes, top, probability))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--keep", type=Path, help="a folder for the runs and reports")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        print("| run | trials | epochs | seconds | CPU seconds | peak memory |\n|---|---|---|---|---|---|")
        for name in ("search", "grid"):
            study, trials = (
                search(given.trials, np.random.default_rng(0)) if name == "search" else grid(given.trials)
            )
            if not (folder / name).exists():
                write_run(folder / name, study, trials, given.epochs, seed=1)
            command = [
                sys.executable,
                "-m",
                "reports",
                str(folder / name),
                "--out",
                str(folder / f"{name}-report"),
            ]
            start = time.perf_counter()
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, code, usage = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - start
            if code:
                raise SystemExit(f"{' '.join(command)} failed")
            n_epochs = sum(event["event"] == "epoch" for event in RunFolder(folder / name).events())
            memory, cpu = usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime
            print(
                f"| {name} | {len(trials):,} | {n_epochs:,} | {seconds:.1f} | {cpu:.1f} | {memory:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
