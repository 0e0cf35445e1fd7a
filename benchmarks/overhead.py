"""What a trial costs beyond its training: birdtune against plain Ray Tune, in one run.

    python benchmarks/overhead.py [N_TRIALS]

Both run N trials on the CPUs of this machine, one CPU a trial. Plain Ray Tune is a `Tuner` with a function
trainable that imports torch and reports once, as in Ray's own guide; it trains nothing at all. birdtune's
trials each train a real epoch over a few small synthetic birds, and write journal, record and checkpoint.
Seconds are wall time over N: birdtune's from the first trial's start to the last one's end.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import ray
from ray import tune

from birdnet_core.data.manifest import read_manifest
from birdnet_core.demo.synthetic import SyntheticBirds, write_synthetic_birds
from birdnet_core.records.run_folder import RunFolder
from search_spaces.study import Ablation
from tuning.engine.cluster import ray_session
from tuning.engine.launch import sweep
from tuning.engine.preparation import Data

TINY = {
    "data.window_s": 1.0,
    "features.n_mfcc": 16,
    "features.n_frames": 24,
    "training.epochs": 1,
    "training.batch_size": 16,
    "optim.warmup_epochs": 0,
}


def plain_trial(config: dict[str, float]) -> None:
    import torch

    tune.report({"score": float(torch.tensor(config["lr"]) * 2)})


def plain(n: int, folder: Path) -> float:
    """Return the seconds a trial of plain Ray Tune."""
    start = time.perf_counter()
    tune.Tuner(
        tune.with_resources(plain_trial, {"cpu": 1}),
        param_space={"lr": tune.grid_search([i / n for i in range(n)])},
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    ).fit()
    return (time.perf_counter() - start) / n


def ours(n: int, folder: Path) -> float:
    """Return the seconds a trial of a birdtune sweep, its training included."""
    birds = write_synthetic_birds(
        folder / "birds", SyntheticBirds(n_species=4, n_recordings=40, n_recordists=12)
    )
    data = Data(name="few", manifest=read_manifest(birds), cache=folder / "cache")
    study = Ablation(
        name="many",
        question="How long does a trial take?",
        factors={"optim.lr": tuple(1e-4 + i * 1e-6 for i in range(n))},
    )
    sweep(study, data, folder / "run", settings=TINY, n_repeats=1)
    times = {"trial": [], "end": []}
    for event in RunFolder(folder / "run").events():
        if event["event"] in times:
            times[event["event"]].append(event["time"])
    assert len(times["end"]) == n
    return (max(times["end"]) - min(times["trial"])) / n


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with ray_session(folder / "ray.log") as (node,):
            mine = ours(n, folder)
            theirs = plain(n, folder / "plain")
        assert not ray.is_initialized()
    print(f"{n} trials on {node.cpus:.0f} CPUs")
    print(f"birdtune           {mine:.2f} s a trial")
    print(f"plain Ray Tune     {theirs:.2f} s a trial")
    print(f"ratio              {theirs / mine:.1f}")


if __name__ == "__main__":
    main()
