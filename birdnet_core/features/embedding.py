"""Embeddings: what a frozen, pretrained backbone makes of a window."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from birdnet_core.backbones.base import Backbone
from birdnet_core.errors import ConfigError
from birdnet_core.registry import backbones, features


@features.register("embedding")
class Embedding(nn.Module):
    """The embedding of a frozen backbone, [dim]; see `birdtune list backbones`.

    `backbone` is a registered name; `weights` a file, a folder or a hub id, by backbone, none for the weights
    that come with a package. The sample rate, window and high-pass of the data, and `weights_hash`, which
    names the content of the weights, follow from these two. Each value is standardised with the training
    split's mean and std, applied to batches.
    """

    standardise = "train"

    def __init__(
        self,
        sample_rate: int,
        n_samples: int,
        *,
        backbone: str = "birdnet",
        weights: str | None = None,
        weights_hash: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = opened(backbone, weights)
        stated = self.backbone.convention
        if weights_hash not in (None, self.backbone.weights_hash):
            raise ConfigError(
                f"features.weights_hash = {weights_hash!r}, and the weights of the backbone {backbone!r} "
                f"have {self.backbone.weights_hash!r}: they are other weights than those of this config; put "
                "the old ones back, or train anew with these"
            )
        if (sample_rate, n_samples) != (stated.sample_rate, round(stated.window_s * stated.sample_rate)):
            raise ConfigError(
                f"the backbone {backbone!r} takes data.sample_rate = {stated.sample_rate} and data.window_s "
                f"= {stated.window_s:g}, not {sample_rate} and {n_samples / sample_rate:g}; leave both out, "
                "and they follow the backbone"
            )
        self.shape = (stated.dim,)
        self.highpass_hz = stated.highpass_hz

    @staticmethod
    def follows(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings, under their dotted keys, that the backbone of `options` decides."""
        backbone = opened(options["backbone"], options["weights"])
        stated = backbone.convention
        return {
            "features.weights_hash": backbone.weights_hash,
            "data.sample_rate": stated.sample_rate,
            "data.window_s": stated.window_s,
            "data.highpass_hz": stated.highpass_hz,
        }

    @torch.no_grad()
    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return [batch, dim] for `waveform` [batch, samples], computed on the CPU."""
        return torch.from_numpy(self.backbone.embed(waveform.cpu().numpy())).to(waveform.device)


def opened(backbone: str, weights: str | None) -> Backbone:
    """Return a backbone with its weights; ConfigError where they or a package are missing.

    It is loaded once in a process, and anew where a file of the weights has changed.
    """
    return _opened(backbone, weights, _stamps(weights))


@functools.lru_cache(maxsize=4)
def _opened(backbone: str, weights: str | None, stamps: tuple[Any, ...]) -> Backbone:
    made: Backbone = backbones[backbone].make(weights or "")
    return made


def _stamps(weights: str | None) -> tuple[Any, ...]:
    """Return path, size and time of a file of weights and those beside it, or of all files in a folder."""
    if not weights or not Path(weights).exists():
        return ()
    path = Path(weights)
    files = sorted(path.iterdir()) if path.is_dir() else [path, path.with_suffix(".json")]
    found = [(file, file.stat()) for file in files if file.is_file()]
    return tuple((str(file), facts.st_size, facts.st_mtime_ns) for file, facts in found)
