"""Training speed of the CNNs on the CPU: birdtune's Session against the loop that people write by hand.

    python benchmarks/throughput.py [THREADS]

By hand: fp32, NCHW, AdamW, fed by a torch DataLoader of one .npy file a clip, by whichever is faster of 0
and 2 workers. birdtune: the `Session` of a trial with its defaults. The same clips (3 x 40 x 130, batches of
32, synthetic birds), the same network and loss; one epoch of training without validation each, alternating,
the median of 5. The threads are torch's, 2 if left out.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from birdnet_core.build import build_model
from birdnet_core.config import TrainConfig
from birdnet_core.data.building import default_cache
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.data.synthetic import cached_synthetic_birds
from birdnet_core.training import Session

REPEATS = 5


class NpyFiles(TorchDataset[tuple[torch.Tensor, int]]):
    """One .npy file a clip."""

    def __init__(self, paths: list[Path], labels: list[int]) -> None:
        self.paths = paths
        self.labels = labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(np.load(self.paths[i])), self.labels[i]


def by_hand(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader) -> float:
    """Train one epoch as people do by hand, and return clips a second."""
    start, n, total = time.perf_counter(), 0, 0.0
    model.train()
    for clips, classes in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(clips), classes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        n += len(clips)
    return n / (time.perf_counter() - start)


def birdtune(session: Session) -> float:
    start = time.perf_counter()
    session._learn()
    return len(session.train_clips) / (time.perf_counter() - start)


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    config = TrainConfig().override({"data.windows_per_recording": 5, "runtime.threads": threads})
    manifest = read_manifest(cached_synthetic_birds(default_cache()))
    dataset = Dataset.open(prepare(manifest, config))
    rows = dataset.rows("train")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.npy" for i in range(len(rows))]
        mean, deviation = (x[:, None, None] for x in (dataset.mean, dataset.deviation))
        for path, row in zip(paths, rows, strict=True):
            np.save(path, (dataset.features.read(np.array([row]))[0] - mean) / deviation)
        files = NpyFiles(paths, dataset.labels[rows].tolist())
        for name in ("audio_cnn", "audio_cnn_v2"):
            session = Session(config.override({"model.name": name}), dataset)
            model = build_model(session.config.model, dataset.input_shape, len(dataset.species))
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
            loaders = [DataLoader(files, 32, shuffle=True, num_workers=n) for n in (0, 2)]
            rates: dict[str, list[float]] = {"0 workers": [], "2 workers": [], "birdtune": []}
            for _ in range(REPEATS):
                rates["0 workers"].append(by_hand(model, optimizer, loaders[0]))
                rates["2 workers"].append(by_hand(model, optimizer, loaders[1]))
                rates["birdtune"].append(birdtune(session))
            a, b, ours = (statistics.median(r) for r in rates.values())
            print(
                f"{name:12} {len(rows)} clips  fp32 NCHW, .npy files {a:6.1f} clips/s (0 workers) "
                f"{b:6.1f} (2 workers)   birdtune ({session.precision}) {ours:6.1f}   "
                f"ratio {ours / max(a, b):.2f}"
            )


if __name__ == "__main__":
    main()
