"""Run folders with a journal written by hand."""

import subprocess
import sys

from birdnet_core.records.run_folder import RunFolder

SEARCH = {
    "name": "rates", "kind": "search", "metric": "val/loss", "direction": "minimize", "epochs": 4,
    "n_trials": 6, "cells": None, "repeats": [0], "seed": 0,
}  # fmt: skip
ABLATION = {
    "name": "losses", "kind": "ablation", "metric": "val/f1_macro", "direction": "maximize", "epochs": 2,
    "n_trials": None, "cells": [{"factors": {"x": i}, "config_id": c} for i, c in enumerate("abb")],
    "repeats": [0, 1], "seed": 0,
}  # fmt: skip


def begin(trial_id, number, study="rates", *, reused=False, cpus=2, gpus=0.5):
    factors = {"optim.lr": number / 1000}
    line = {"study": study, "trial_id": trial_id, "number": number, "factors": factors, "reused": reused}
    line |= {"status": "completed"} if reused else {}
    return {"event": "trial", **line, "cpus": cpus, "gpus": gpus}


def epoch(trial_id, n, value, epoch_s=10.0):
    metrics = {"val/loss": value, "val/f1_macro": value}
    return {"event": "epoch", "trial_id": trial_id, "epoch": n, "metrics": metrics, "epoch_s": epoch_s}


def end(trial_id, status):
    return {"event": "end", "trial_id": trial_id, "status": status}


def hold_the_lock(run):
    """Start a process that drives `run` as far as its lock goes."""
    code = (
        "import fcntl, json, os, platform, sys, time\n"
        f"lock = open({str(run.path / 'driver.lock')!r}, 'a+')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "lock.write(json.dumps({'pid': os.getpid(), 'host': platform.node(), 'started': 'now',"
        " 'command': 'birdtune sweep rates'}) + '\\n')\n"
        "lock.flush()\n"
        "print('held', flush=True)\n"
        "time.sleep(120)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


MIXED = [
    begin("a-r0", 0), epoch("a-r0", 1, 0.9), epoch("a-r0", 2, 0.4), epoch("a-r0", 3, 0.5),
    epoch("a-r0", 4, 0.6), end("a-r0", "completed"),
    begin("b-r0", 1), epoch("b-r0", 1, 0.8), epoch("b-r0", 2, 0.7), end("b-r0", "pruned"),
    begin("c-r0", 2), epoch("c-r0", 1, 0.1), end("c-r0", "diverged"),
    begin("d-r0", 3), epoch("d-r0", 1, 0.95, 20.0),
    begin("e-r0", 4),
]  # fmt: skip


def write_run(path, studies, events):
    """Write studies and events; return the run folder."""
    run = RunFolder(path)
    for study in studies:
        run.write_study(study)
    for event in events:
        run.append(event)
    return run
