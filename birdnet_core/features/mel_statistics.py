"""Mean and std of a log-mel spectrogram over time: what a simple baseline is trained on."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.features.log_mel import LogMel
from birdnet_core.registry import features


@features.register("mel_statistics")
class MelStatistics(nn.Module):
    """Mean and std over time of every band of a log-mel spectrogram in dB, [2 x n_mels], for heads.

    The spectrogram is that of `log_mel`, not standardised; each value is standardised with the training
    split's mean and std, applied to batches.
    """

    standardise = "train"

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
    ) -> None:
        super().__init__()
        self.log_mel = LogMel(
            sample_rate,
            n_samples,
            n_mels=n_mels,
            n_fft=n_fft,
            hop=hop,
            fmin_hz=fmin_hz,
            fmax_hz=fmax_hz,
            standardise="none",
        )
        self.shape = (2 * n_mels,)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return [batch, 2 x n_mels] for `waveform` [batch, samples]: the means, then the stds."""
        bands = self.log_mel(waveform)[:, 0]
        return torch.cat([bands.mean(dim=-1), bands.std(dim=-1, correction=0)], dim=1)
