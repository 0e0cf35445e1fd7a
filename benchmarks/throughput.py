"""Training speed of the CNNs on the CPU: birdtune's Session against the loop that people write by hand.

    python benchmarks/throughput.py [THREADS]

By hand: the network as it is drawn (convolution, batch norm, ReLU, pooling) in fp32, NCHW, AdamW, fed by a
torch DataLoader of one .npy file a clip, with 0 and with 2 workers. birdtune: the `Session` of a trial with
its defaults. The same clips (3 x 40 x 130, batches of 32, synthetic birds), the same parameters and loss; one
epoch of training without validation each, alternating, the median of 5. The threads are torch's, 2 if left
out.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from birdnet_core.config import TrainConfig
from birdnet_core.data.building import default_cache
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.demo.synthetic import cached_synthetic_birds
from birdnet_core.training.session import Session

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


def as_drawn(name: str, n_classes: int) -> nn.Sequential:
    """Return AudioCNN or AudioCNNv2 as one writes it down."""
    plan = {"audio_cnn": (32, 32, "P", 64, 64, "P", 128, 128),
            "audio_cnn_v2": (64, "P", 128, "P", 256, "P", 512, "P", 512)}[name]  # fmt: skip
    layers: list[nn.Module] = []
    channels = 3
    for step in plan:
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, step, 3, padding=1), nn.BatchNorm2d(step), nn.ReLU()]
            channels = step
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if name == "audio_cnn":
        layers += [nn.Linear(128, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, n_classes)]
    else:
        layers += [
            nn.Dropout(0.5),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(512, n_classes),
        ]
    return nn.Sequential(*layers)


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
    session.train_epoch()
    return len(session.train_clips) / (time.perf_counter() - start)


def by_hand_in_turns(
    orders: Connection, name: str, n_classes: int, files: NpyFiles, n_params: int, threads: int
) -> None:
    """Train an epoch by hand for each number of workers that comes through `orders`, and send its rate."""
    torch.set_num_threads(threads)
    model = as_drawn(name, n_classes)
    assert sum(p.numel() for p in model.parameters()) == n_params
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    while (n_workers := orders.recv()) is not None:
        fork = "fork" if n_workers else None  # torch's default on Linux, but not below a spawned process
        loader = DataLoader(files, 32, shuffle=True, num_workers=n_workers, multiprocessing_context=fork)
        orders.send(by_hand(model, optimizer, loader))


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    config = TrainConfig().override({"data.windows_per_recording": 5, "runtime.threads": threads})
    manifest = read_manifest(cached_synthetic_birds(default_cache()))
    dataset = Dataset.open(prepare(manifest, config))
    rows = dataset.rows("train")
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.npy" for i in range(len(rows))]
        mean, std = (x[:, None, None] for x in (dataset.mean, dataset.std))
        for path, row in zip(paths, rows, strict=True):
            np.save(path, (dataset.stored_features(np.array([row]))[0] - mean) / std)
        files = NpyFiles(paths, dataset.labels[rows].tolist())
        for name in ("audio_cnn", "audio_cnn_v2"):
            session = Session(config.override({"model.name": name}), dataset)
            # In a process of its own: a session changes how its process allocates memory.
            here, there = context.Pipe()
            given = (there, name, len(dataset.species), files, session.n_params, threads)
            hand = context.Process(target=by_hand_in_turns, args=given)
            hand.start()
            rates: dict[str, list[float]] = {"0 workers": [], "2 workers": [], "birdtune": []}
            for number in range(REPEATS + 1):
                for n_workers in (0, 2):
                    here.send(n_workers)
                    rates[f"{n_workers} workers"].append(here.recv())
                rates["birdtune"].append(birdtune(session))
                if number == 0:  # the first warms up
                    rates = {key: [] for key in rates}
            here.send(None)
            hand.join()
            a, b, ours = (statistics.median(r) for r in rates.values())
            print(
                f"{name:12} by hand {a:6.1f} clips/s (0 workers) {b:6.1f} (2 workers)   "
                f"birdtune ({session.precision}) {ours:6.1f}   ratios {ours / a:.2f} and {ours / b:.2f}"
            )


if __name__ == "__main__":
    main()
