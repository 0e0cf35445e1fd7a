"""Cut a recording of any length into the windows that a network takes, without holding all of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from birdnet_core.config import DataConfig
from birdnet_core.data.audio import BLOCK_VALUES, MIN_DURATION_S, Recording, cut, highpassed, resampled


@dataclass(frozen=True)
class Window:
    """The samples [samples] of a part of a recording, resampled and high-passed, and where it lies.

    `end_s` is at most the end of the recording; the samples beyond it are zeros.
    """

    samples: torch.Tensor
    start_s: float
    end_s: float


def windows(recording: Recording, config: DataConfig, overlap_s: float = 0.0) -> Iterator[Window]:
    """Yield all windows of a recording in order, each `overlap_s` into the one before.

    Their samples are those of the whole recording, resampled and high-passed at once. The last one is padded
    with zeros at its end, as in training; where it would add less than 0.05 s to the one before, it is left
    out. Raises DataError as `decode` does, after the windows before the fault.
    """
    n_window = config.n_samples
    hop = n_window - round(overlap_s * config.sample_rate)
    rate = config.sample_rate
    held, first = torch.empty(0), 0
    for block in _prepared(recording, config):
        held = torch.cat([held, block])
        while len(held) >= n_window:
            yield Window(held[:n_window], first / rate, (first + n_window) / rate)
            held, first = held[hop:], first + hop
    n_new = len(held) - (n_window - hop if first else 0)
    if not first or n_new >= MIN_DURATION_S * config.sample_rate:
        yield Window(cut(held, 0, n_window), first / rate, (first + len(held)) / rate)


def _prepared(recording: Recording, config: DataConfig) -> Iterable[torch.Tensor]:
    decoded = map(torch.from_numpy, recording.blocks(BLOCK_VALUES))
    blocks = resampled(decoded, recording.sample_rate, config.sample_rate)
    return highpassed(blocks, config.sample_rate, config.highpass_hz) if config.highpass_hz else blocks
