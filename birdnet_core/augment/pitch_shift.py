"""Pitch shift: higher or lower clips of the same length."""

from __future__ import annotations

from fractions import Fraction

import torch
import torchaudio
from torch import nn

from birdnet_core.augment.draws import chosen
from birdnet_core.augment.time_stretch import fitted, stretched
from birdnet_core.errors import check_range
from birdnet_core.registry import augmentations

# Resampling by n / m takes a filter bank of about n x m values, which is gigantic for an odd ratio. Up to 100
# it is 70 kB, and ratios lie at most 17 cents apart, that much only next to 1.
MAX_DENOMINATOR = 100


@augmentations.register("pitch_shift")
class PitchShift(nn.Module):
    """Raise or lower a clip by up to `max_semitones` with its length kept. Usual p: 0.3.

    Whether a clip is changed is drawn for each; the shift is one for all of them, drawn for each batch,
    uniform in semitones and rounded to a ratio of frequencies with a denominator up to 100. Shifts
    of less than 0.086 semitones are rounded to none.
    """

    domain = "waveform"

    def __init__(self, sample_rate: int, *, p: float = 0.0, max_semitones: float = 2.0) -> None:
        super().__init__()
        check_range("augment.pitch_shift.p", p, 0, 1)
        check_range("augment.pitch_shift.max_semitones", max_semitones, 0, 12)
        self.sample_rate = sample_rate
        self.p = p
        self.max_semitones = max_semitones

    def forward(self, waveforms: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return `waveforms` [batch, samples], some of them higher or lower."""
        index = chosen(waveforms, self.p, generator).nonzero().squeeze(1)
        share = torch.rand((), generator=generator, device=waveforms.device).item()
        semitones = self.max_semitones * (2 * share - 1)
        ratio = Fraction(2 ** (semitones / 12)).limit_denominator(MAX_DENOMINATOR)
        if len(index) == 0 or ratio == 1:
            return waveforms
        return waveforms.index_copy(0, index, pitch_shifted(waveforms[index], ratio, self.sample_rate))


def pitch_shifted(waveforms: torch.Tensor, ratio: Fraction, sample_rate: int) -> torch.Tensor:
    """Return `waveforms` [batch, samples] with every frequency times `ratio`, at the same length."""
    slower = stretched(waveforms, float(1 / ratio), sample_rate)
    # Read `ratio` times as fast, the stretched clip has its old length and a new pitch.
    faster = torchaudio.functional.resample(
        slower,
        ratio.numerator,
        ratio.denominator,
        # The defaults would let what rises above half the sample rate through to the band below it.
        lowpass_filter_width=32,
        rolloff=0.95,
        resampling_method="sinc_interp_kaiser",
        beta=9.0,
    )
    return fitted(faster, waveforms.shape[1])
