"""Mel-frequency cepstral coefficients with their first and second differences over time."""

from __future__ import annotations

from typing import Literal

import torch
import torchaudio
from torch import nn

from birdnet_core.errors import check_range
from birdnet_core.features.log_mel import MelPower, check_mel, standardised
from birdnet_core.registry import features


@features.register("mfcc")
class Mfcc(nn.Module):
    """MFCC, delta and delta-delta as three channels; 3 x 40 x 130, the middle 3 s of a 4 s clip.

    DCT-II (orthonormal) of the log-mel spectrogram in dB (reference 1, 80 dB of range), Slaney's mel scale;
    deltas are regressions over 9 frames, taken twice for the second. `n_frames` keeps that many frames from
    the middle of the clip; none keeps all. `standardise` is "train" (each channel with the training
    split's mean and std, applied to batches), "clip" or "none".
    """

    def __init__(
        self,
        sample_rate: int,
        n_samples: int,
        *,
        n_mfcc: int = 40,
        n_frames: int | None = 130,
        n_mels: int = 128,
        n_fft: int = 2048,
        hop: int = 512,
        fmin_hz: float = 0.0,
        fmax_hz: float | None = None,
        standardise: Literal["clip", "train", "none"] = "train",
    ) -> None:
        super().__init__()
        check_mel(sample_rate, n_samples, n_mels, n_fft, hop, fmin_hz, fmax_hz)
        check_range("features.n_mfcc", n_mfcc, 1, n_mels, "which is features.n_mels")
        available = n_samples // hop + 1
        n_frames = available if n_frames is None else n_frames
        why = f"the frames of a clip of {n_samples / sample_rate:g} s"
        check_range("features.n_frames", n_frames, 1, available, why)
        self.standardise = standardise
        self.shape = (3, n_mfcc, n_frames)
        self.first_frame = (available - n_frames) // 2
        self.mel = MelPower(sample_rate, n_mels, n_fft, hop, fmin_hz, fmax_hz)
        self.cosines: torch.Tensor
        cosines = torchaudio.functional.create_dct(n_mfcc, n_mels, norm="ortho")
        self.register_buffer("cosines", cosines, persistent=False)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return [batch, 3, coefficients, frames] for `waveform` [batch, samples]."""
        db = 10 * torch.log10(self.mel(waveform).clamp(min=1e-10))
        db = torch.maximum(db, db.amax(dim=(-2, -1), keepdim=True) - 80)
        coefficients = (db.transpose(1, 2) @ self.cosines).transpose(1, 2)
        delta = torchaudio.functional.compute_deltas(coefficients, win_length=9)
        delta_delta = torchaudio.functional.compute_deltas(delta, win_length=9)
        stack = torch.stack([coefficients, delta, delta_delta], dim=1)
        stack = stack[..., self.first_frame : self.first_frame + self.shape[-1]]
        return standardised(stack) if self.standardise == "clip" else stack
