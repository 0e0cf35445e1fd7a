"""The features of every clip on disk, memory-mapped and shared by all trials of a machine.

A value is an int16 with the scale and offset of its clip and channel. That is as small as float16 and, over
the range of one clip's features, a dozen times as exact.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from birdnet_core.build import build_feature, feature_shape
from birdnet_core.config import Component
from birdnet_core.data.building import (
    COMMIT_S,
    Progress,
    Workers,
    locked,
    mapped,
    short_hash,
    size_of,
    start_anew,
    to_disk,
)
from birdnet_core.data.clip_store import ClipStore, is_there
from birdnet_core.errors import DataError, RunFolderError
from birdnet_core.records.files import read_json

FORMAT = 3
CHUNK = 32
LEVELS = 65_534
FILES = ("features.i16", "scales.f32", "clips.u8")


@dataclass(frozen=True)
class FeatureStore:
    """An open feature store: a row for every row of a clip store, filled where a dataset has needed it.

    Args:
        values: int16 [rows, channels, bins, frames] or [rows, dim], mapped; feature = values * scale +
            offset.
        scale, offset: float32 [rows, channels], or [rows, 1].
        clip_ids: the clip whose features are in a row, 0 where there are none.
    """

    folder: Path
    values: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    clip_ids: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """Map the store in `folder`; raises DataError where it is not whole."""
        try:
            meta = read_json(folder / "store.json")
            n_rows, shape = size_of(folder / "clips.u8") // 8, tuple(meta["shape"])
            values, scales = folder / "features.i16", folder / "scales.f32"
            shape_of_scales = (n_rows, n_scales(shape), 2)
            if size_of(values) < 2 * n_rows * math.prod(shape) or size_of(scales) < 4 * math.prod(
                shape_of_scales
            ):
                raise ValueError
            scale_and_offset = mapped(scales, np.float32, shape_of_scales)
            return cls(
                folder,
                mapped(values, np.int16, (n_rows, *shape)),
                scale_and_offset[..., 0],
                scale_and_offset[..., 1],
                mapped(folder / "clips.u8", np.uint64, (n_rows,)),
            )
        except (RunFolderError, OSError, KeyError, ValueError):
            raise DataError(
                f"the feature store {str(folder)!r} is damaged or not there; prepare the recordings again"
            ) from None

    def holds(self, rows: np.ndarray, clip_ids: np.ndarray) -> bool:
        """Return whether the features of these clips are in these rows."""
        return is_there(self.clip_ids, rows, clip_ids)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the features of `rows`, float32 [rows, channels, bins, frames] or [rows, dim]."""
        values = self.values[rows]
        scale, offset = (
            x[rows].reshape(len(rows), -1, *[1] * (values.ndim - 2)) for x in (self.scale, self.offset)
        )
        features: np.ndarray = values * scale + offset
        return features


def n_scales(shape: tuple[int, ...]) -> int:
    """Return how many scales a clip's features have: one a channel, and one for all of an embedding."""
    return shape[0] if len(shape) == 3 else 1


def store_folder(clips: ClipStore, feature: Component, cache: Path) -> Path:
    """Return where the features of `clips` are kept, whether they are there or not."""
    # Of weights, the content counts (`weights_hash`), and not their place.
    options = [option for option in feature.options if option[0] != "weights"]
    return cache / "features" / short_hash([FORMAT, clips.key, feature.name, options])


def is_worth_storing(clips: ClipStore, feature: Component) -> bool:
    """Return whether features take no more room than their clip; reading larger ones costs too much."""
    n_samples: int = clips.samples.shape[1]
    return math.prod(feature_shape(feature, clips.sample_rate, n_samples)) <= n_samples


def build_feature_store(
    clips: ClipStore,
    rows: np.ndarray,
    feature: Component,
    cache: Path,
    *,
    workers: Workers,
    progress: Progress,
) -> FeatureStore:
    """Return the store with the features of these rows of `clips`, computing those that it lacks."""
    folder = store_folder(clips, feature, cache)
    try:
        store = FeatureStore.open(folder)
        is_whole = store.holds(rows, clips.windows["clip_id"][rows])
    except DataError:
        is_whole = False
    if not is_whole:
        with locked(folder):
            _fill(folder, clips, rows, feature, workers, progress)
        store = FeatureStore.open(folder)
    return store


def _fill(
    folder: Path, clips: ClipStore, rows: np.ndarray, feature: Component, workers: Workers, progress: Progress
) -> None:
    """Compute the `rows` that the store lacks. A row counts as filled once it is on the disk."""
    shape = feature_shape(feature, clips.sample_rate, clips.samples.shape[1])
    wanted = clips.windows["clip_id"]
    try:
        store = FeatureStore.open(folder)
        there = store.clip_ids[: len(wanted)]
        is_of_these = bool(((there == 0) | (there == wanted[: len(there)])).all())
    except DataError:
        is_of_these = False
    if not is_of_these:
        of_feature = {"name": feature.name, **feature.kwargs}
        start_anew(folder, FILES, {"format": FORMAT, "shape": shape, "feature": of_feature})
        store = FeatureStore.open(folder)
    n_rows = max(len(wanted), len(store.clip_ids))
    clip_ids = np.zeros(n_rows, np.uint64)
    clip_ids[: len(store.clip_ids)] = store.clip_ids
    missing = np.unique(rows[clip_ids[rows] == 0])
    tasks = [
        _Chunk(missing[first : first + CHUNK], clips.folder, feature, folder, (n_rows, *shape))
        for first in range(0, len(missing), CHUNK)
    ]
    with (
        open(folder / "features.i16", "r+b") as values,
        open(folder / "scales.f32", "r+b") as scales,
        open(folder / "clips.u8", "r+b") as filled,
    ):
        values.truncate(2 * n_rows * math.prod(shape))
        scales.truncate(8 * n_rows * n_scales(shape))
        filled.truncate(8 * n_rows)  # last: its size says how many rows there are
        waiting: list[np.ndarray] = []
        n_done, committed = 0, time.monotonic()
        try:
            for done in workers.map(_compute, tasks, chunk=1):
                waiting.append(done)
                is_first, n_done = n_done == 0, n_done + len(done)
                if is_first or time.monotonic() - committed >= COMMIT_S or n_done == len(missing):
                    _commit(waiting, wanted, values, scales, filled)
                    committed = time.monotonic()
                    progress(f"computing {feature.name}", n_done, len(missing))
        finally:
            _commit(waiting, wanted, values, scales, filled)
    # Its time says when the store last grew.
    os.utime(folder / "store.json")


def _commit(
    waiting: list[np.ndarray], clip_ids: np.ndarray, values: BinaryIO, scales: BinaryIO, filled: BinaryIO
) -> None:
    """Enter the clips of the rows in `waiting`, after their features are on the disk."""
    if waiting:
        to_disk(values)
        to_disk(scales)
        rows = np.concatenate(waiting)
        np.memmap(filled, np.uint64, "r+")[rows] = clip_ids[rows]
        to_disk(filled)
        waiting.clear()


def quantised(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return int16 values, scale and offset [clips, channels] of `features` [clips, channels, bins, frames].

    The range of each clip's channel is spread over the 16 bits: no value moves by more than half of
    range / 65,534. Embeddings [clips, dim] have one scale and offset a clip, [clips, 1].
    """
    flat = features.reshape(len(features), n_scales(tuple(features.shape[1:])), -1)
    low, high = flat.amin(dim=2), flat.amax(dim=2)
    offset = (low + high) / 2
    scale = (high - low) / LEVELS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    values = ((flat - offset[:, :, None]) / scale[:, :, None]).round().clamp(-LEVELS // 2, LEVELS // 2)
    return values.to(torch.int16).reshape(features.shape), scale, offset


@dataclass(frozen=True)
class _Chunk:
    rows: np.ndarray
    clips: Path
    feature: Component
    folder: Path
    shape: tuple[int, ...]


def _compute(task: _Chunk) -> np.ndarray:
    # Opened for every chunk, which costs little: pages stay in a process's memory as long as they are mapped.
    clips = ClipStore.open(task.clips)
    feature = _built(task.feature, clips.sample_rate, clips.samples.shape[1])
    with torch.inference_mode():
        values, scale, offset = quantised(feature(clips.read(task.rows)))
    for name, dtype, shape, what in (
        ("features.i16", np.int16, task.shape, values),
        (
            "scales.f32",
            np.float32,
            (task.shape[0], *scale.shape[1:], 2),
            torch.stack([scale, offset], dim=-1),
        ),
    ):
        np.memmap(task.folder / name, dtype, "r+", shape=shape)[task.rows] = what.numpy()
    return task.rows


_built = functools.lru_cache(maxsize=1)(build_feature)


def channel_statistics(features: Iterable[np.ndarray]) -> tuple[list[float], list[float]]:
    """Return mean and std, in float64, of every channel over batches [clips, channels, bins, frames].

    Of embeddings, batches [clips, dim], every value counts as a channel.
    """
    n, total, squares = 0, np.zeros(()), np.zeros(())
    for some in features:
        exact = some.astype(np.float64)
        n += exact.size // exact.shape[1]
        axes = tuple(axis for axis in range(exact.ndim) if axis != 1)
        total = total + exact.sum(axis=axes)
        squares = squares + np.square(exact).sum(axis=axes)
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - np.square(mean), 1e-12))
    return np.atleast_1d(mean).tolist(), np.atleast_1d(std).tolist()
