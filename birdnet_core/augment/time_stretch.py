"""Time stretch: faster or slower clips of the same pitch."""

from __future__ import annotations

import math

import torch
import torchaudio
from torch import nn

from birdnet_core.augment.draws import chosen
from birdnet_core.errors import check_range
from birdnet_core.registry import augmentations


@augmentations.register("time_stretch")
class TimeStretch(nn.Module):
    """Play a clip faster or slower with its pitch kept, by a phase vocoder. Usual p: 0.3.

    Whether a clip is changed is drawn for each; the rate is one for all of them, because the
    vocoder takes one, and drawn for each batch, uniform in its logarithm from `min_rate` to `max_rate`. A
    slower clip loses its end, and a faster one has zeros there.
    """

    domain = "waveform"

    def __init__(
        self, sample_rate: int, *, p: float = 0.0, min_rate: float = 0.8, max_rate: float = 1.25
    ) -> None:
        super().__init__()
        check_range("augment.time_stretch.p", p, 0, 1)
        check_range("augment.time_stretch.min_rate", min_rate, 0.25, 4)
        check_range("augment.time_stretch.max_rate", max_rate, min_rate, 4)
        self.sample_rate = sample_rate
        self.p = p
        self.min_rate = min_rate
        self.max_rate = max_rate

    def forward(self, waveforms: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return `waveforms` [batch, samples], some of them faster or slower."""
        index = chosen(waveforms, self.p, generator).nonzero().squeeze(1)
        share = torch.rand((), generator=generator, device=waveforms.device).item()
        rate = self.min_rate * (self.max_rate / self.min_rate) ** share
        if len(index) == 0:
            return waveforms
        return waveforms.index_copy(
            0, index, fitted(stretched(waveforms[index], rate, self.sample_rate), waveforms.shape[1])
        )


def stretched(waveforms: torch.Tensor, rate: float, sample_rate: int) -> torch.Tensor:
    """Return `waveforms` [batch, samples] played `rate` times as fast: [batch, round(samples / rate)]."""
    # Windows of about 46 ms: long enough to part the partials of a call, short enough for its onset.
    n_fft = 2 ** round(math.log2(0.046 * sample_rate))
    hop = n_fft // 4
    window = torch.hann_window(n_fft, device=waveforms.device)
    phase_advance = torch.linspace(0, math.pi * hop, n_fft // 2 + 1, device=waveforms.device)[:, None]
    # Zeros around the clip, because a reflection must be shorter than the clip.
    spectrum = torch.stft(waveforms, n_fft, hop, window=window, pad_mode="constant", return_complex=True)
    spectrum = torchaudio.functional.phase_vocoder(spectrum, rate, phase_advance)
    return torch.istft(spectrum, n_fft, hop, window=window, length=round(waveforms.shape[1] / rate))


def fitted(waveforms: torch.Tensor, n_samples: int) -> torch.Tensor:
    """Return `waveforms` [batch, any] cut, or continued with zeros, to [batch, n_samples]."""
    return torch.nn.functional.pad(waveforms[:, :n_samples], (0, max(0, n_samples - waveforms.shape[1])))
