"""The features of every clip on disk, as float16, memory-mapped and shared by all trials of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from birdnet_core.build import build_feature, picture_shape
from birdnet_core.config import Component
from birdnet_core.data.building import Progress, locked, parallel_map, short_hash
from birdnet_core.data.clip_store import ClipStore
from birdnet_core.errors import DataError
from birdnet_core.records import read_json, write_json

FORMAT = 1
CHUNK = 32


def open_features(folder: Path) -> np.ndarray:
    """Map the features in `folder`, float16 [clips, channels, bins, frames]; DataError if not whole."""
    shape = tuple(read_json(folder / "store.json")["shape"])
    path = folder / "features.f16"
    if path.stat().st_size != 2 * int(np.prod(shape)):
        raise DataError(f"the feature store {str(folder)!r} is damaged; delete it and prepare again")
    return np.memmap(path, np.float16, "r", shape=shape)


def build_feature_store(
    clips: ClipStore, feature: Component, cache: Path, *, workers: int, progress: Progress
) -> Path:
    """Return the folder of `feature` over the filled rows of `clips`, computing what is not there yet."""
    key = short_hash([FORMAT, clips.key, feature.name, feature.options])
    folder = cache / "features" / key
    with locked(folder):
        if not (folder / "store.json").exists():
            partial = folder.with_suffix(".partial")
            partial.mkdir(parents=True, exist_ok=True)
            rows, _ = clips.rows()
            shape = (len(rows), *picture_shape(feature, clips.sample_rate, clips.samples.shape[1]))
            path = partial / "features.f16"
            with open(path, "wb") as file:
                file.truncate(2 * int(np.prod(shape)))
            todo = [
                _Chunk(first, rows[first : first + CHUNK], clips.folder, feature, path, shape)
                for first in range(0, len(rows), CHUNK)
            ]
            done = 0
            for n in parallel_map(_compute, todo, workers=workers, chunk=1):
                done += n
                progress(f"computing {feature.name}", done, len(rows))
            write_json(
                partial / "store.json",
                {"format": FORMAT, "shape": shape, "feature": {"name": feature.name, **feature.kwargs}},
            )
            partial.rename(folder)
    return folder


@dataclass(frozen=True)
class _Chunk:
    first: int
    rows: np.ndarray
    clips: Path
    feature: Component
    path: Path
    shape: tuple[int, ...]


def _compute(task: _Chunk) -> int:
    clips = ClipStore.open(task.clips)
    feature = build_feature(task.feature, clips.sample_rate, clips.samples.shape[1])
    with torch.inference_mode():
        values = feature(clips.read(task.rows))
    out = np.memmap(task.path, np.float16, "r+", shape=task.shape)
    out[task.first : task.first + len(task.rows)] = values.numpy()
    out.flush()
    return len(task.rows)


def channel_statistics(features: np.ndarray, rows: np.ndarray) -> tuple[list[float], list[float]]:
    """Return mean and deviation of every channel over `rows`, in float64, a chunk at a time."""
    n, total, squares = 0, 0.0, 0.0
    for first in range(0, len(rows), CHUNK):
        some = features[rows[first : first + CHUNK]].astype(np.float64)
        n += some.size // some.shape[1]
        total = total + some.sum(axis=(0, 2, 3))
        squares = squares + np.square(some).sum(axis=(0, 2, 3))
    mean = total / n
    deviation = np.sqrt(np.maximum(squares / n - np.square(mean), 1e-12))
    return np.atleast_1d(mean).tolist(), np.atleast_1d(deviation).tolist()
