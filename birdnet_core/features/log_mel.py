"""Log-mel spectrogram: power on a mel scale in dB, the usual features of bird classifiers."""

from __future__ import annotations

from typing import Literal

import torch
import torchaudio
from torch import nn

from birdnet_core.errors import ConfigError, check_range
from birdnet_core.registry import features

BAND_GROUPS = 4


@features.register("log_mel")
class LogMel(nn.Module):
    """Log-mel spectrogram in dB, one channel; 128 x 173 for 4 s at 22,050 Hz.

    Slaney's mel scale and normalisation, as in librosa; power to dB with the clip's maximum as
    reference, 80 dB of range. `standardise` is "clip" (zero mean and unit variance per clip), "train" (with
    the training split's mean and std, applied to batches) or "none".
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
        check_mel(sample_rate, n_samples, n_mels, n_fft, hop, fmin_hz, fmax_hz)
        self.standardise = standardise
        self.shape = (1, n_mels, n_samples // hop + 1)
        self.mel = MelPower(sample_rate, n_mels, n_fft, hop, fmin_hz, fmax_hz)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return [batch, 1, mels, frames] for `waveform` [batch, samples]."""
        db = power_to_db(self.mel(waveform))
        return (standardised(db) if self.standardise == "clip" else db).unsqueeze(1)


def check_mel(
    sample_rate: int, n_samples: int, n_mels: int, n_fft: int, hop: int, fmin_hz: float, fmax_hz: float | None
) -> None:
    """Raise ConfigError for options that `MelPower` cannot have for clips of `n_samples`."""
    most = 2 * n_samples - 2
    if n_fft % 2 or not 16 <= n_fft <= most:
        raise ConfigError(
            f"features.n_fft = {n_fft} is out of range; it takes even numbers from 16 to {most}, "
            f"up to which a clip of {n_samples} samples can be reflected at its ends"
        )
    check_range("features.hop", hop, 1, n_samples, "the samples of a clip")
    check_range("features.n_mels", n_mels, 1, n_fft // 2 + 1, f"the frequencies of n_fft = {n_fft}")
    nyquist_hz = sample_rate / 2
    half_the_rate = f"half of data.sample_rate = {sample_rate}"
    highest_hz = nyquist_hz if fmax_hz is None else fmax_hz
    if fmax_hz is not None:
        check_range("features.fmax_hz", fmax_hz, 1, nyquist_hz, half_the_rate)
    if not 0 <= fmin_hz < highest_hz:
        why = half_the_rate if fmax_hz is None else "features.fmax_hz"
        raise ConfigError(
            f"features.fmin_hz = {fmin_hz:g} is out of range; it takes 0 to below {highest_hz:g}, {why}"
        )


class MelPower(nn.Module):
    """Power of each band of Slaney's mel scale, each of unit area, in frames under a Hann window.

    The same values as torchaudio's MelSpectrogram, computed twice as fast on a CPU.
    """

    def __init__(
        self, sample_rate: int, n_mels: int, n_fft: int, hop: int, fmin_hz: float, fmax_hz: float | None
    ) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        fmax_hz = sample_rate / 2 if fmax_hz is None else fmax_hz
        filters = torchaudio.functional.melscale_fbanks(
            n_fft // 2 + 1, fmin_hz, fmax_hz, n_mels, sample_rate, norm="slaney", mel_scale="slaney"
        )
        self.window: torch.Tensor
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        # Neighbouring bands weigh few bins: groups of them, over their own bins alone, are less to multiply.
        self.bins: list[slice] = []
        for n, group in enumerate(filters.tensor_split(BAND_GROUPS, dim=1)):
            used = group.any(dim=1).nonzero()
            self.bins.append(slice(int(used.min()), int(used.max()) + 1) if len(used) else slice(0, 1))
            self.register_buffer(f"filters_{n}", group[self.bins[n]].contiguous(), persistent=False)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return [batch, mels, frames] for `waveform` [batch, samples]; frame i is centred on i * hop."""
        padded = torch.nn.functional.pad(waveform, (self.n_fft // 2, self.n_fft // 2), mode="reflect")
        # One clip at a time stays in a CPU's cache, which halves the time.
        at_once = 1 if waveform.device.type == "cpu" else len(waveform)
        return torch.cat([self._power(some) for some in padded.split(at_once)]).transpose(1, 2)

    def _power(self, padded: torch.Tensor) -> torch.Tensor:
        frames = padded.unfold(-1, self.n_fft, self.hop) * self.window
        spectrum = torch.fft.rfft(frames)
        power = spectrum.real.square() + spectrum.imag.square()
        parts = [power[..., bins] @ getattr(self, f"filters_{n}") for n, bins in enumerate(self.bins)]
        return torch.cat(parts, dim=-1)


def power_to_db(power: torch.Tensor, range_db: float = 80.0) -> torch.Tensor:
    """Return `power` [batch, bins, frames] in dB below each clip's maximum, cut off at `range_db`."""
    power = power.clamp(min=1e-10)
    peak = power.amax(dim=(-2, -1), keepdim=True)
    return (10 * torch.log10(power / peak)).clamp(min=-range_db)


def standardised(spectrogram: torch.Tensor) -> torch.Tensor:
    """Return a spectrogram [batch, bins, frames] with zero mean, unit variance per clip; silence stays 0."""
    mean = spectrogram.mean(dim=(-2, -1), keepdim=True)
    std = spectrogram.std(dim=(-2, -1), keepdim=True, correction=0)
    return (spectrogram - mean) / std.clamp(min=1e-6)
