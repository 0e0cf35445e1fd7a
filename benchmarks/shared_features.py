"""How much memory the features cost when trials train side by side: one copy, however many trials.

    python benchmarks/shared_features.py [clips.csv]

Every process opens a `Session`, trains one epoch over the mapped feature file, and stays. Then the kernel is
asked (smaps): Rss is what a process has touched of the file, Pss its share when pages are split among those
who map them, Private what is its own. Linux only.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from birdnet_core.config import TrainConfig
from birdnet_core.data.building import default_cache
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.demo.synthetic import cached_synthetic_birds
from birdnet_core.training.session import Session

FIELDS = ("Rss", "Pss", "Private_Clean", "Private_Dirty")


def mapped_memory(file: Path) -> dict[str, int]:
    """Return the kB of FIELDS that this process has of `file`, summed over its mappings."""
    totals = dict.fromkeys(FIELDS, 0)
    is_ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name = line.split(":", 1)[0]
        if "-" in name.split(" ")[0] and not name[0].isupper():
            is_ours = line.endswith(str(file))
        elif is_ours and name in totals:
            totals[name] += int(line.split()[1])
    return totals


def trial(config: TrainConfig, folder: Path, together: Barrier, results: Any) -> None:
    dataset = Dataset.open(folder)
    Session(config, dataset).step()
    together.wait()
    results.put(mapped_memory(Path(str(dataset.features.values.filename))))
    together.wait()


def measure(n_trials: int, folder: Path, config: TrainConfig) -> list[dict[str, int]]:
    """Return the mapped memory of each of `n_trials` processes that train side by side."""
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(n_trials), context.Queue()
    processes = [
        context.Process(target=trial, args=(config.override({"seed": seed}), folder, together, results))
        for seed in range(n_trials)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return found


def main() -> None:
    config = TrainConfig()
    if len(sys.argv) > 1:
        manifest = read_manifest(sys.argv[1])
    else:
        manifest = read_manifest(cached_synthetic_birds(default_cache()))
    folder = prepare(manifest, config)
    size = Dataset.open(folder).features.values.nbytes
    print(f"feature file: {size / 1024:,.0f} kB")
    for n_trials in (1, 2):
        for number, memory in enumerate(measure(n_trials, folder, config), start=1):
            shown = "  ".join(f"{name} {memory[name]:>7,} kB" for name in FIELDS)
            print(f"{n_trials} side by side, trial {number}:  {shown}")


if __name__ == "__main__":
    main()
