"""The embeddings of all windows of audio files, for whoever wants only vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from birdnet_core.backbones.base import Backbone
from birdnet_core.config import DataConfig
from birdnet_core.inference.streaming import Ended, Place, batches_of_windows, collected

BATCH_SIZE = 8


@dataclass(frozen=True)
class WindowEmbeddings:
    """Embeddings float32 [windows, dim] of some windows, and the file, start and end of each.

    `n_read` counts the files that were read so far, with the present one as its share.
    """

    files: list[str]
    start_s: np.ndarray
    end_s: np.ndarray
    values: np.ndarray
    n_read: float


def embed(
    paths: Place | Iterable[Place],
    backbone: Backbone,
    *,
    overlap_s: float = 0.0,
    batch_size: int = BATCH_SIZE,
    on_end: Callable[[Ended], None] | None = None,
) -> Iterator[WindowEmbeddings]:
    """Yield the embeddings of all windows of `paths` in order, a batch at a time, however long they are.

    Windows are cut, resampled and filtered by the backbone's convention; those of digital silence are left
    out. `on_end` is called after each file, before the batch that holds its last windows comes; without it,
    faults are logged.
    """
    stated = backbone.convention
    data = DataConfig(
        sample_rate=stated.sample_rate, window_s=stated.window_s, highpass_hz=stated.highpass_hz
    )
    on_end = on_end or collected([])
    for batch, n_read in batches_of_windows(paths, data, overlap_s, batch_size, on_end):
        windows = [window for _, window in batch]
        yield WindowEmbeddings(
            files=[file for file, _ in batch],
            start_s=np.array([window.start_s for window in windows]),
            end_s=np.array([window.end_s for window in windows]),
            values=backbone.embed(np.stack([window.samples.numpy() for window in windows])),
            n_read=n_read,
        )
