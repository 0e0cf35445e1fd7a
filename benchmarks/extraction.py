"""How fast embeddings of BirdNET are extracted, by one process and by two, and where the time goes.

    python benchmarks/extraction.py clips.csv [N_RECORDINGS] [N_WINDOWS]

N recordings (100), four windows each at most, into empty stores. The speed is that of `prepare` after its
first chunk of windows, without the start of its processes, and needs a free machine. CPU seconds are those of
all processes that it started, and shares those of one process: both hold on a machine at work. Linux only.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from prepare import part_of, processes_below

from birdnet_core.config import TrainConfig
from birdnet_core.data import clip_store, feature_store
from birdnet_core.data.building import Workers, no_progress
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.features.embedding import opened

N_WINDOWS = int(sys.argv[3]) if len(sys.argv) > 3 else 4
SETTINGS = {
    "features.name": "embedding", "model.name": "linear", "data.windows_per_recording": N_WINDOWS,
}  # fmt: skip


def cpu_seconds() -> float:
    """Return the CPU seconds of the processes below this one, ended ones included."""
    ticks = 0
    for pid in processes_below(os.getpid())[1:]:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK") + time.process_time()


def speed(manifest: pd.DataFrame, config: TrainConfig, cache: Path, workers: int) -> str:
    """Return a row of the table: windows/s and CPU seconds of `prepare` with so many processes."""
    steps: list[tuple[int, float]] = []

    def note(stage: str, done: int, total: int) -> None:
        if stage == "computing embedding":
            steps.append((done, time.perf_counter()))

    start, cpu = time.perf_counter(), cpu_seconds()
    prepare(manifest, config, cache=cache, workers=workers, progress=note)
    wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    (first, since), (last, until) = steps[0], steps[-1]
    return (
        f"| {workers} | {last} | {(last - first) / (until - since):.1f} | {wall:.1f} | {cpu:.1f} | "
        f"{1000 * cpu / last:.0f} |"
    )


def shares(manifest: pd.DataFrame, config: TrainConfig, cache: Path) -> dict[str, float]:
    """Return the CPU seconds of each step in one process; `cache` holds the clips."""
    seconds: defaultdict[str, float] = defaultdict(float)

    def timed(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[step] += time.process_time() - start

        return call

    dataset = Dataset.open(prepare(manifest, config, cache=cache))
    steps = {"decode": "decode", "most_active_windows": "choose windows", "resample": "resample"}
    for name, step in steps.items():
        setattr(clip_store, name, timed(step, getattr(clip_store, name)))
    backbone = opened("birdnet", None)
    backbone.embed = timed("backbone", backbone.embed)  # type: ignore[method-assign]
    whole = timed("all of recordings", clip_store._decode)
    for path in manifest["path"]:
        whole((64 * "0", path), config=config.data)
    whole = timed("all of windows", feature_store.build_feature_store)
    with tempfile.TemporaryDirectory() as empty, Workers(1) as workers:
        arguments = dataset.clips, dataset.in_store, config.features, Path(empty)
        whole(*arguments, workers=workers, progress=no_progress)
    inside = sum(seconds[step] for step in steps.values())
    seconds["cut and round windows"] = seconds.pop("all of recordings") - inside
    seconds["read windows, store embeddings"] = seconds.pop("all of windows") - seconds["backbone"]
    return dict(seconds)


def main() -> None:
    torch.set_num_threads(1)  # as a worker process has
    manifest = read_manifest(sys.argv[1])
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    manifest = part_of(manifest.iloc[:: max(1, len(manifest) // n)].head(n))
    config = TrainConfig().override(SETTINGS)
    print("| processes | windows | windows/s | seconds in all | CPU s | CPU ms a window |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for workers in (1, 2):
            print(speed(manifest, config, Path(folder) / str(workers), workers), flush=True)
        found = shares(manifest, config, Path(folder) / "1")
    print("\n| step | CPU s | share |\n|---|---|---|")
    for step, seconds in sorted(found.items(), key=lambda item: -item[1]):
        print(f"| {step} | {seconds:.1f} | {seconds / sum(found.values()):.0%} |")


if __name__ == "__main__":
    main()
