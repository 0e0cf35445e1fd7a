"""Gain: louder or softer clips, as of a nearer or farther bird."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.augment.draws import along_batch, chosen, keep_others, uniform
from birdnet_core.errors import check_range
from birdnet_core.registry import augmentations


@augmentations.register("gain")
class Gain(nn.Module):
    """Make a clip louder or softer by up to `max_db`, uniform in dB. Usual p: 0.5.

    It changes no features that are standardised per clip, or in dB below the clip's own maximum, as log_mel
    is. Nothing is clipped.
    """

    domain = "waveform"

    def __init__(self, sample_rate: int, *, p: float = 0.0, max_db: float = 6.0) -> None:
        super().__init__()
        check_range("augment.gain.p", p, 0, 1)
        check_range("augment.gain.max_db", max_db, 0, 60)
        self.p = p
        self.max_db = max_db

    def forward(self, waveforms: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return `waveforms` [batch, samples], some of them louder or softer."""
        is_chosen = chosen(waveforms, self.p, generator)
        gain_db = uniform(waveforms, -self.max_db, self.max_db, generator)
        louder = waveforms * along_batch(10 ** (gain_db / 20), waveforms)
        return keep_others(is_chosen, louder, waveforms)
