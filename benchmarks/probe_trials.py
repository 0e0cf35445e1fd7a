"""How fast heads on embeddings are searched: minutes, milliseconds an epoch, where the time goes, memory.

    python benchmarks/probe_trials.py [N_TRIALS] [clips.csv] [random | tpe] [fifo | asha]

A search over heads, dropout, loss, balance and MixUp: N trials of 50 epochs, fp32, one CPU each, two side by
side. The MLP has 128 hidden units: at 512 its products of matrices alone take twice the time of all the rest.
With a manifest, embeddings are BirdNET's; without one, a stand-in makes those of 10,000 windows of 200
species. The stores are kept in the cache ($BIRDTUNE_CACHE).
Wall times need a free machine; CPU times, read from /proc, stand for themselves. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import soundfile
from optuna.trial import BaseTrial
from standin_backbone import SAMPLE_RATE, WINDOW_S

from birdnet_core import plugins
from birdnet_core.data.building import default_cache
from birdnet_core.data.manifest import read_manifest
from birdnet_core.records.run_folder import RunFolder
from search_spaces.study import Overrides, Search
from tuning.engine.launch import Resources, sweep
from tuning.engine.preparation import Data

EPOCHS, SLOTS = 50, 2
FIXED = {
    "features.name": "embedding",
    "data.windows_per_recording": 4,
    "training.epochs": EPOCHS,
    "training.batch_size": 128,
    "training.patience": 0,
    "training.precision": "fp32",
    "optim.warmup_epochs": 0,
}
HIDDEN = 128


def space(trial: BaseTrial) -> Overrides:
    model = trial.suggest_categorical("model.name", ["linear", "mlp", "prototype"])
    return {
        "model.name": model,
        **({"model.hidden": HIDDEN} if model == "mlp" else {}),
        "model.dropout": trial.suggest_float("model.dropout", 0.0, 0.7),
        "optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True),
        "optim.weight_decay": trial.suggest_float("optim.weight_decay", 1e-4, 1e-1, log=True),
        "loss.name": trial.suggest_categorical("loss.name", ["cross_entropy", "focal", "logit_adjusted"]),
        "training.sampling": trial.suggest_categorical(
            "training.sampling", ["instance", "square_root", "class_balanced"]
        ),
        "augment.mixup.p": trial.suggest_categorical("augment.mixup.p", [0.0, 0.5]),
    }


def synthetic(folder: Path, n_species: int = 200, n_recordings: int = 2500) -> pd.DataFrame:
    """Return the manifest of recordings of four windows: noise and the tones of their species."""
    table = folder / "manifest.csv"
    if not table.exists():
        rng = np.random.default_rng(0)
        n_samples = round(4 * WINDOW_S * SAMPLE_RATE)
        time_s = np.arange(n_samples) / SAMPLE_RATE
        hz = rng.uniform(200, 3800, (n_species, 3, 1))
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for i in range(n_recordings):
            name = f"{i:05}.wav"
            tones = np.sin(2 * np.pi * hz[i % n_species] * time_s + rng.uniform(0, 6, (3, 1))).sum(axis=0)
            samples = 0.05 * (tones + 2 * rng.standard_normal(n_samples))
            soundfile.write(folder / name, samples, SAMPLE_RATE)
            rows.append({"path": name, "species": f"species {i % n_species:03}"})
        pd.DataFrame(rows).to_csv(table, index=False)
    return read_manifest(table)


def resident_mb(pid: int | str = "self") -> float:
    """Return the resident memory of a process, 0 of one that is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024 if "VmRSS" in fields else 0.0


def descendants() -> list[str]:
    """Return the processes that this one started, and those that they did."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[stat.parent.name] = stat.read_text().rpartition(")")[2].split()[1]
    found, new = [], [str(os.getpid())]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new]
        found += new
    return found


def usage_of_children() -> tuple[float, float]:
    """Return the CPU seconds of Ray's processes, actors included, and the MB of the largest that trains."""
    cpu, largest = 0.0, 0.0
    for pid in descendants():
        with contextlib.suppress(OSError):
            ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            cpu += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
            if "TrainTrial" in Path(f"/proc/{pid}/cmdline").read_text():
                largest = max(largest, resident_mb(pid))
    return cpu, largest


def measured(data: Data, name: str, n: int, sampler: str, scheduler: str) -> str:
    """Return a row of the table: what a sweep of `n` trials took."""
    settings = {**FIXED, **({"features.backbone": "stand-in"} if name == "synthetic" else {})}
    study = Search(
        name="probe", question="How fast?", space=space, n_trials=n, scheduler=scheduler, grace_epochs=5
    )
    marks = sorted({min(n, 10), n // 4, n // 2, n})
    seen: dict[int, tuple[float, float, float]] = {}  # time, CPU of the driver and of Ray
    memory: list[str] = []
    n_ended = 0

    def watch(event: dict[str, Any]) -> None:
        nonlocal n_ended
        n_ended += event["event"] == "end"
        if event["event"] == "end" and n_ended in marks:
            cpu, mb = usage_of_children()
            seen[n_ended] = time.time(), time.process_time(), cpu
            memory.append(f"{resident_mb():.0f} and {mb:.0f}")

    with tempfile.TemporaryDirectory() as scratch:
        started = time.time()
        summary = sweep(
            study,
            data,
            Path(scratch) / "run",
            settings=settings,
            resources=Resources(concurrent=SLOTS, gpus=0),
            sampler=sampler,
            observer=watch,
        )
        events = list(RunFolder(Path(scratch) / "run").events())
        records = RunFolder(Path(scratch) / "run").records().values()
    ends = [event["time"] for event in events if event["event"] == "end"]
    wall = max(ends) - min(event["time"] for event in events if event["event"] == "trial")
    epochs = [event["epoch_s"] for event in events if event["event"] == "epoch"]
    model_of = {record.trial_id: record.config["model"]["name"] for record in records}
    by_model: dict[str, list[float]] = {}
    for event in events:
        if event["event"] == "epoch":
            by_model.setdefault(model_of[event["trial_id"]], []).append(1000 * event["epoch_s"])
    heads = ", ".join(f"{model} {np.median(ms):.1f}" for model, ms in sorted(by_model.items()))
    # Without the first trials, in which processes start and import torch.
    (t0, driver0, rays0), (t1, driver1, rays1) = seen[marks[0]], seen[marks[-1]]
    n_timed = marks[-1] - marks[0]
    steady, driver, rays = ((b - a) / n_timed for a, b in ((t0, t1), (driver0, driver1), (rays0, rays1)))
    return (
        f"{name}, {sampler}, {scheduler}: {summary.counts}, {len(epochs)} epochs\n"
        f"  first to last trial {wall / 60:.2f} min, whole command {(time.time() - started) / 60:.2f} min; "
        f"{steady:.3f} s a trial from trial {marks[0]} on: 1,000 in {1000 * steady / 60:.1f} min\n"
        f"  CPU s a trial: {driver + rays:.3f}, of these the driver {driver:.3f}; on {SLOTS} free cores "
        f"1,000 trials take at least {1000 * (driver + rays) / SLOTS / 60:.1f} min\n"
        f"  ms an epoch: {1000 * SLOTS * wall / len(epochs):.1f} of a slot, of these training "
        f"{1000 * np.mean(epochs):.1f} (median {heads}), {sum(epochs) / SLOTS / wall:.0%}\n"
        f"  MB resident, driver and actor, after trials {marks}: {'; '.join(memory)}"
    )


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    words = sys.argv[1:]
    n = next((int(word) for word in words if word.isdigit()), 1000)
    sampler = next((word for word in words if word in ("random", "tpe")), "tpe")
    scheduler = next((word for word in words if word in ("fifo", "asha")), "fifo")
    clips = next((word for word in words if word.endswith(".csv")), None)
    if clips is None:
        name = "synthetic"
        plugins.load_module("standin_backbone")
        manifest = synthetic(default_cache() / "probe_trials")
    else:
        name, manifest = "birds", read_manifest(clips)
    print(measured(Data(name=name, manifest=manifest), name, n, sampler, scheduler))


if __name__ == "__main__":
    main()
