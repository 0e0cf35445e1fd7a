"""Log-mel spectrogram: power on a mel scale in dB, the picture most bird classifiers look at."""

from __future__ import annotations

from typing import Literal

import torch
import torchaudio
from torch import nn

from birdnet_core.registry import features


@features.register("log_mel")
class LogMel(nn.Module):
    """Log-mel spectrogram in dB, one channel; 128 x 173 for 4 s at 22,050 Hz.

    Slaney's mel scale and normalisation, as librosa has them; power to dB with the clip's maximum as
    reference, 80 dB of range. `standardise` is "clip" (zero mean and unit variance per clip), "train" (with
    the training split's mean and deviation, applied to batches) or "none".
    """

    def __init__(
        self,
        sample_rate: int,
        n_samples: int,
        *,
        n_mels: int = 128,
        n_fft: int = 2048,
        hop: int = 512,
        fmin_hz: float = 0.0,
        fmax_hz: float | None = None,
        standardise: Literal["clip", "train", "none"] = "clip",
    ) -> None:
        super().__init__()
        self.standardise = standardise
        self.shape = (1, n_mels, n_samples // hop + 1)
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate, n_fft, hop_length=hop, n_mels=n_mels, f_min=fmin_hz, f_max=fmax_hz,
            norm="slaney", mel_scale="slaney",
        )  # fmt: skip

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return [batch, 1, mels, frames] for `waveform` [batch, samples]."""
        db = power_to_db(self.mel(waveform))
        return (standardised(db) if self.standardise == "clip" else db).unsqueeze(1)


def power_to_db(power: torch.Tensor, range_db: float = 80.0) -> torch.Tensor:
    """Return `power` [batch, bins, frames] in dB below each clip's maximum, cut off at `range_db`."""
    power = power.clamp(min=1e-10)
    peak = power.amax(dim=(-2, -1), keepdim=True)
    return (10 * torch.log10(power / peak)).clamp(min=-range_db)


def standardised(picture: torch.Tensor) -> torch.Tensor:
    """Return `picture` [batch, bins, frames] with zero mean and unit variance per clip; silence stays 0."""
    mean = picture.mean(dim=(-2, -1), keepdim=True)
    deviation = picture.std(dim=(-2, -1), keepdim=True, correction=0)
    return (picture - mean) / deviation.clamp(min=1e-6)
