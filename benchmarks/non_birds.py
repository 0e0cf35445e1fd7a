"""What heads on a frozen backbone say of sounds that are no birds: a classifier without a class for them.

    python benchmarks/non_birds.py clips.csv [SOUND ...] [--epochs 50] [--seeds 0 1 2]

Trains a `linear` and a `prototype` head on BirdNET embeddings of the recordings, and predicts windows of
silence, of noise, of tones, of sounds like rain and engines (drawn by a seeded generator), and of any SOUND
files. The mean of the top probability, and the share of windows in which it is above 0.5, are compared with
those of the test split's birds. A head is the ensemble of its seeds, calibrated on the validation split, as
`birdtune train --seeds` makes it. Every window counts, also those that `birdtune predict` leaves out as
silent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from birdnet_core.build import build_model
from birdnet_core.config import TrainConfig
from birdnet_core.data.audio import load_audio
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.features.embedding import opened
from birdnet_core.inference.calibration import fit_temperature, tempered
from birdnet_core.training.run import train

HEADS = ("linear", "prototype")
N_WINDOWS = 30  # of each kind
LOUDNESS = 0.1  # RMS, -20 dBFS
BIRDS = "birds of the test split"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("sounds", nargs="*", type=Path, help="files of sounds that are no birds")
    parser.add_argument("--backbone", default="birdnet")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    config = TrainConfig().override(
        {
            "features.name": "embedding", "features.backbone": arguments.backbone, "model.name": "linear",
            "data.windows_per_recording": 4, "training.epochs": arguments.epochs,
            "training.batch_size": 64, "training.patience": 0, "optim.warmup_epochs": 0,
        }
    )  # fmt: skip
    dataset = Dataset.open(prepare(read_manifest(arguments.manifest), config))
    backbone = opened(arguments.backbone, None)
    rate, n_samples = config.data.sample_rate, config.data.n_samples
    rng = np.random.default_rng(0)
    embedded = {BIRDS: dataset.stored_features(dataset.rows("test"))}
    for name, make in KINDS.items():
        windows = np.stack([make(rng, rate, n_samples) for _ in range(N_WINDOWS)])
        embedded[name] = backbone.embed(windows)
    for file in arguments.sounds:
        embedded[file.stem] = backbone.embed(cut(load_audio(file, rate), n_samples))

    probabilities = {head: predicted(config, head, arguments.seeds, dataset, embedded) for head in HEADS}
    columns = " | ".join(f"{head}: top probability | above 0.5" for head in HEADS)
    print(f"{len(dataset.species)} species, {dataset.facts['n_train']} training {dataset.facts['scored']}\n")
    print(f"| sound | windows | {columns} |\n|---|---|{'---|---|' * len(HEADS)}")
    top = {head: {name: p.max(axis=1) for name, p in each.items()} for head, each in probabilities.items()}
    for name, windows in embedded.items():
        tops = [top[head][name] for head in HEADS]
        cells = " | ".join(f"{top.mean():.2f} | {(top > 0.5).mean():.0%}" for top in tops)
        print(f"| {name} | {len(windows)} | {cells} |")
    for head, each in top.items():
        others = np.concatenate([each[name] for name in embedded if name != BIRDS])
        threshold = np.quantile(others, 0.95)
        print(
            f"\n{head}: a threshold of {threshold:.2f} leaves out 95 % of the windows without birds, and "
            f"{(each[BIRDS] < threshold).mean():.0%} of those of the test split"
        )


def predicted(
    config: TrainConfig, head: str, seeds: list[int], dataset: Dataset, embedded: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the calibrated probabilities [windows, classes] of every kind of sound by an ensemble."""
    validated = []
    found: dict[str, list[np.ndarray]] = {name: [] for name in embedded}
    for seed in seeds:
        session = train(config.override({"model.name": head, "seed": seed}), dataset)
        probabilities, truth = session.predict("val")
        validated.append(probabilities)
        network = build_model(session.config.model, dataset.input_shape, len(dataset.species)).eval()
        network.load_state_dict(session.progress.best_weights)
        for name, values in embedded.items():
            features = torch.from_numpy((values - dataset.mean) / dataset.std).float()
            with torch.inference_mode():
                found[name].append(torch.softmax(network(features).double(), dim=1).numpy())
    temperature = fit_temperature(np.mean(validated, axis=0), truth)
    print(f"{head}: temperature {temperature:.2f}")
    return {name: tempered(np.mean(each, axis=0), temperature) for name, each in found.items()}


def cut(samples: np.ndarray, n_samples: int) -> np.ndarray:
    """Return whole windows of a sound; of a shorter one, a single window with zeros at its end."""
    n_windows = max(1, len(samples) // n_samples)
    padded = np.pad(samples, (0, max(0, n_samples - len(samples))))
    return padded[: n_windows * n_samples].reshape(n_windows, n_samples)


def silence(rng: np.random.Generator, rate: int, n: int) -> np.ndarray:
    return np.zeros(n, np.float32)


def faint_noise(rng: np.random.Generator, rate: int, n: int) -> np.ndarray:
    """White noise at -80 dBFS, which a quiet recorder has."""
    return white_noise(rng, rate, n) / 1000


def white_noise(rng: np.random.Generator, rate: int, n: int) -> np.ndarray:
    return scaled(rng.normal(size=n))


def pink_noise(rng: np.random.Generator, rate: int, n: int) -> np.ndarray:
    """Noise whose power falls with 1/f, as wind and distant traffic have it."""
    spectrum = np.fft.rfft(rng.normal(size=n))
    return scaled(np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1), n))


def tone(rng: np.random.Generator, rate: int, n: int) -> np.ndarray:
    """A sine between 200 and 8,000 Hz."""
    return scaled(np.sin(2 * np.pi * np.exp(rng.uniform(np.log(200), np.log(8000))) * np.arange(n) / rate))


def rain(rng: np.random.Generator, rate: int, n: int) -> np.ndarray:
    """Drops, 100 to 1,000 a second, each a decaying burst of noise, over pink noise."""
    drops = np.zeros(n)
    places = rng.integers(0, n, rng.poisson(rng.uniform(100, 1000) * n / rate))
    np.add.at(drops, places, rng.exponential(size=len(places)))
    length = rate // 200
    burst = rng.normal(size=length) * np.exp(-np.arange(length) / (length / 5))
    heard = np.convolve(drops, burst)[:n]
    return scaled(heard / heard.std() + 3 * pink_noise(rng, rate, n))


def engine(rng: np.random.Generator, rate: int, n: int) -> np.ndarray:
    """Forty harmonics of 30 to 120 Hz, wavering in pitch and loudness, over pink noise."""
    t = np.arange(n) / rate
    pitch = rng.uniform(30, 120) * (1 + 0.02 * np.sin(2 * np.pi * rng.uniform(0.2, 1) * t))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    heard = sum(np.sin(k * phase + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 41))
    heard = heard * (1 + 0.3 * np.sin(2 * np.pi * rng.uniform(2, 8) * t))
    return scaled(heard / heard.std() + 3 * pink_noise(rng, rate, n))


def scaled(samples: np.ndarray) -> np.ndarray:
    found: np.ndarray = (samples * (LOUDNESS / samples.std())).clip(-1, 1).astype(np.float32)
    return found


KINDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "silence": silence,
    "white noise, -80 dBFS": faint_noise,
    "white noise": white_noise,
    "pink noise": pink_noise,
    "tone": tone,
    "rain-like": rain,
    "engine-like": engine,
}


if __name__ == "__main__":
    main()
