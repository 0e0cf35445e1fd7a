"""Sweeps on GPUs that are not there: what Ray and the driver make of memory that runs short or is kept."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from birdnet_core.records.run_folder import RunFolder
from tests.tuning.engine.fake_gpu import FITS, LEAVES, NEEDS_ALL, NEVER_FITS, RATES, SPELLINGS

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[3]


def swept(scene, run, birds):
    """Run a scene to its end; return its records by learning rate, and the events of its journal."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tuning.engine.fake_gpu", scene, run, birds],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    folder = RunFolder(run)
    return {r.config["optim"]["lr"]: r for r in folder.records().values()}, list(folder.events())


def test_a_sweep_ends_on_a_gpu_that_is_kept_small_and_runs_out_in_three_spellings(birds, tmp_path):
    """On a whole GPU of which others hold six tenths, and where cuBLAS never gives its workspace back."""
    start = time.monotonic()
    records, events = swept("little", tmp_path / "run", birds)
    assert time.monotonic() - start < 200  # and not a minute of waiting at every trial
    assert {rate: r.status for rate, r in records.items()} == {
        **dict.fromkeys((*RATES, FITS), "completed"),
        NEVER_FITS: "failed",
    }
    for rate in RATES:
        provenance = records[rate].provenance
        assert (provenance["n_out_of_memory"], provenance["micro_batch_size"]) == (1, 4)
        assert "micro-batches of 4 clips" in provenance["not_comparable"]
    assert records[FITS].provenance["not_comparable"] is None
    assert records[NEVER_FITS].error.endswith(SPELLINGS[1][1])
    # One process trained them all: it is used again, with what is true of its memory.
    actors = sorted((r.provenance["actor"] for r in records.values()), key=lambda a: a["nth_trial"])
    assert [a["nth_trial"] for a in actors] == [1, 2, 3, 4, 5]
    assert actors[0]["gpu_memory"] == "3.5 GiB were free of the 8.5 GiB of its share"
    for actor in actors[1:]:
        assert actor["gpu_memory"] == (
            "8.0 MiB of the trials before were still held; 3.5 GiB were free of the 8.5 GiB of its share"
        )
    assert not [e for e in events if e["event"] == "restart"]


def test_what_a_trial_leaves_behind_costs_the_next_one_a_fresh_process_and_nothing_else(birds, tmp_path):
    """On half a GPU: one trial leaves three GiB, the next one fits into a whole GPU only."""
    records, events = swept("shared", tmp_path / "run", birds)
    assert {rate: r.status for rate, r in records.items()} == dict.fromkeys(
        (LEAVES, NEEDS_ALL, FITS), "completed"
    )
    assert {rate: r.gpus for rate, r in records.items()} == {LEAVES: 0.5, NEEDS_ALL: 1.0, FITS: 0.5}
    why = [(e["trial_id"], e["error"]) for e in events if e["event"] == "restart"]
    assert any("it still holds 3.0 GiB of the trials before" in error for _, error in why)
    assert (records[NEEDS_ALL].trial_id, "out of memory; now with a whole GPU") in why
    for record in records.values():
        trained = [e["epoch"] for e in events if e.get("trial_id") == record.trial_id and "epoch" in e]
        assert trained == [1, 2]
