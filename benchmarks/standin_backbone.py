"""A backbone without weights, for `probe_trials.py`: a random projection of very short windows."""

from __future__ import annotations

import numpy as np

from birdnet_core.backbones.base import Backbone, Convention
from birdnet_core.registry import backbones

SAMPLE_RATE = 8000
WINDOW_S = 0.2  # of more samples than an embedding has values, or it would not be stored


@backbones.register("stand-in")
class StandIn(Backbone):
    """The samples of a window times a fixed random matrix, rectified."""

    convention = Convention(
        sample_rate=SAMPLE_RATE,
        window_s=WINDOW_S,
        dim=1024,
        inputs="samples",
        output="a random projection",
        licence="none",
        source="drawn",
        trained_on="nothing",
    )
    weights_hash = "0" * 16

    def __init__(self, weights: str) -> None:
        n_samples = round(WINDOW_S * SAMPLE_RATE)
        self.matrix = np.random.default_rng(0).standard_normal((n_samples, 1024), dtype=np.float32)

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        embedded: np.ndarray = np.maximum(waveforms @ self.matrix, 0)
        return embedded
