"""The features of every clip on disk, memory-mapped and shared by all trials of a machine.

A value is an int16 with the scale and offset of its clip and channel. That is as small as float16 and, over
the range of one picture, a dozen times more exact: what is read back is what would be computed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from birdnet_core.build import build_feature, picture_shape
from birdnet_core.config import Component
from birdnet_core.data.building import Progress, Workers, locked, short_hash
from birdnet_core.data.clip_store import ClipStore
from birdnet_core.errors import DataError
from birdnet_core.records import read_json, write_json

FORMAT = 2
CHUNK = 32
LEVELS = 65_534


@dataclass(frozen=True)
class FeatureStore:
    """An open feature store.

    Args:
        values: int16 [clips, channels, bins, frames], mapped; feature = values * scale + offset.
        scale, offset: float32 [clips, channels].
    """

    folder: Path
    values: np.ndarray
    scale: np.ndarray
    offset: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """Map the store in `folder`; raises DataError where it is not whole."""
        shape = tuple(read_json(folder / "store.json")["shape"])
        values, scales = folder / "features.i16", folder / "scales.f32"
        if values.stat().st_size != 2 * math.prod(shape) or scales.stat().st_size != 8 * shape[0] * shape[1]:
            raise DataError(f"the feature store {str(folder)!r} is damaged; delete it and prepare again")
        scale_and_offset = np.memmap(scales, np.float32, "r", shape=(*shape[:2], 2))
        return cls(
            folder,
            np.memmap(values, np.int16, "r", shape=shape),
            scale_and_offset[..., 0],
            scale_and_offset[..., 1],
        )

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of `rows`, float32 [rows, channels, bins, frames]."""
        scale, offset = (x[rows][:, :, None, None] for x in (self.scale, self.offset))
        features: np.ndarray = self.values[rows] * scale + offset
        return features


def store_folder(clips: ClipStore, feature: Component, cache: Path) -> Path:
    """Return where the features of `clips` are kept, whether they are there or not."""
    return cache / "features" / short_hash([FORMAT, clips.key, feature.name, feature.options])


def is_worth_storing(clips: ClipStore, feature: Component) -> bool:
    """Return whether a picture takes no more room than its clip; beyond that reading costs too much."""
    n_samples: int = clips.samples.shape[1]
    return math.prod(picture_shape(feature, clips.sample_rate, n_samples)) <= n_samples


def build_feature_store(
    clips: ClipStore, feature: Component, cache: Path, *, workers: Workers, progress: Progress
) -> FeatureStore:
    """Return the features of the filled rows of `clips`, computing what is not there yet."""
    folder = store_folder(clips, feature, cache)
    with locked(folder):
        if not (folder / "store.json").exists():
            partial = folder.with_suffix(".partial")
            partial.mkdir(parents=True, exist_ok=True)
            rows, _ = clips.rows()
            shape = (len(rows), *picture_shape(feature, clips.sample_rate, clips.samples.shape[1]))
            for name, size in (
                ("features.i16", 2 * math.prod(shape)),
                ("scales.f32", 8 * shape[0] * shape[1]),
            ):
                with open(partial / name, "ab") as file:
                    file.truncate(size)
            log = partial / "done.txt"
            # A kill can cut the last line short; "12" of "123\n" must not pass for chunk 12.
            lines = log.read_text().splitlines(keepends=True) if log.exists() else []
            finished = {int(line) for line in lines if line.endswith("\n")}
            log.write_text("".join(f"{first}\n" for first in sorted(finished)))
            todo = [
                _Chunk(first, rows[first : first + CHUNK], clips.folder, feature, partial, shape)
                for first in range(0, len(rows), CHUNK)
                if first not in finished
            ]
            done, total = 0, sum(len(chunk.rows) for chunk in todo)
            with open(log, "a") as journal:
                for first, n in workers.map(_compute, todo, chunk=1):
                    journal.write(f"{first}\n")
                    journal.flush()
                    done += n
                    progress(f"computing {feature.name}", done, total)
            write_json(
                partial / "store.json",
                {"format": FORMAT, "shape": shape, "feature": {"name": feature.name, **feature.kwargs}},
            )
            log.unlink()
            partial.rename(folder)
    return FeatureStore.open(folder)


def quantised(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return int16 values, scale and offset [clips, channels] of `features` [clips, channels, bins, frames].

    The range of each clip's channel is spread over the 16 bits: no value moves by more than half of
    range / 65,534.
    """
    low, high = features.amin(dim=(2, 3)), features.amax(dim=(2, 3))
    offset = (low + high) / 2
    scale = (high - low) / LEVELS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    values = ((features - offset[:, :, None, None]) / scale[:, :, None, None]).round()
    return values.clamp(-LEVELS // 2, LEVELS // 2).to(torch.int16), scale, offset


@dataclass(frozen=True)
class _Chunk:
    first: int
    rows: np.ndarray
    clips: Path
    feature: Component
    folder: Path
    shape: tuple[int, ...]


def _compute(task: _Chunk) -> tuple[int, int]:
    # Opened for every chunk, which costs little: pages stay in a process's memory as long as they are mapped.
    clips = ClipStore.open(task.clips)
    feature = _built(task.feature, clips.sample_rate, clips.samples.shape[1])
    with torch.inference_mode():
        values, scale, offset = quantised(feature(clips.read(task.rows)))
    some = slice(task.first, task.first + len(task.rows))
    for name, dtype, shape, what in (
        ("features.i16", np.int16, task.shape, values),
        ("scales.f32", np.float32, (*task.shape[:2], 2), torch.stack([scale, offset], dim=-1)),
    ):
        np.memmap(task.folder / name, dtype, "r+", shape=shape)[some] = what.numpy()
    return task.first, len(task.rows)


_built = functools.lru_cache(maxsize=1)(build_feature)


def channel_statistics(pictures: Iterable[np.ndarray]) -> tuple[list[float], list[float]]:
    """Return mean and deviation of every channel over batches [clips, channels, bins, frames], in float64."""
    n, total, squares = 0, np.zeros(()), np.zeros(())
    for some in pictures:
        exact = some.astype(np.float64)
        n += exact.size // exact.shape[1]
        total = total + exact.sum(axis=(0, 2, 3))
        squares = squares + np.square(exact).sum(axis=(0, 2, 3))
    mean = total / n
    deviation = np.sqrt(np.maximum(squares / n - np.square(mean), 1e-12))
    return np.atleast_1d(mean).tolist(), np.atleast_1d(deviation).tolist()
