"""Log-mel spectrogram: power on a mel scale in dB, the usual features of bird classifiers."""

from __future__ import annotations

from typing import Literal

import torch
import torchaudio
from torch import nn
from torchaudio.compliance.kaldi import get_mel_banks

from birdnet_core import conventions
from birdnet_core.errors import ConfigError, check_range
from birdnet_core.registry import features

BAND_GROUPS = 4
PREEMPHASIS = 0.97  # Kaldi's
MOST_FRAMES = 100_000


@features.register("log_mel")
class LogMel(nn.Module):
    """Log-mel spectrogram, one channel; in dB and 128 x 173 for 4 s at 22,050 Hz.

    By default as in librosa: Slaney's mel scale and normalisation, power in dB with the clip's maximum as
    reference, 80 dB of range. `standardise` is "clip" (zero mean and unit variance per clip), "train" (with
    the training split's mean and std, applied to batches) or "none".

    A pretrained network takes the filter bank of its checkpoint: `convention` names it, and the options below
    and the format of the clips follow. It is found by itself for the checkpoints in docs/backbones.md and for
    folders with the preprocessor_config.json of AST or Bird-MAE. "as_given" takes the options as they are,
    whatever the checkpoint; "images" is for networks of photographs, which have no filter bank.

    `mel_scale` is "slaney", "htk", or "kaldi": HTK's, with filters that are triangles over mel. `norm` is
    "slaney", filters of unit area, or "none", of unit height. The Hann window has `win_length` samples, none
    for `n_fft`. `frames` are "centred" on multiples of `hop`, the clip reflected at its ends, or "kaldi":
    within the clip, each less its mean and with a preemphasis of 0.97. `log` is "db" or "natural". The
    `reference` of dB is "clip", its maximum, or "one", and they are cut off `top_db` below the maximum; none
    keeps all. A clip is cut off at `n_frames`, or padded to them with "zero" or its lowest value, "min", by
    `pad_with`; none leaves its frames. In the end `mean` is subtracted, and `std` divides.
    """

    def __init__(
        self,
        sample_rate: int,
        n_samples: int,
        *,
        convention: str | None = None,
        n_mels: int = 128,
        n_fft: int = 2048,
        win_length: int | None = None,
        hop: int = 512,
        fmin_hz: float = 0.0,
        fmax_hz: float | None = None,
        mel_scale: Literal["slaney", "htk", "kaldi"] = "slaney",
        norm: Literal["slaney", "none"] = "slaney",
        frames: Literal["centred", "kaldi"] = "centred",
        log: Literal["db", "natural"] = "db",
        reference: Literal["clip", "one"] = "clip",
        top_db: float | None = 80.0,
        n_frames: int | None = None,
        pad_with: Literal["zero", "min"] = "zero",
        standardise: Literal["clip", "train", "none"] = "clip",
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        options = {name: value for name, value in locals().items() if name in conventions.OPTIONS}
        super().__init__()
        if bank := conventions.named(convention):
            bank.check(str(convention), options, sample_rate, n_samples / sample_rate)
        check_mel(sample_rate, n_samples, n_mels, n_fft, hop, fmin_hz, fmax_hz)
        win_length = n_fft if win_length is None else win_length
        check_range("features.win_length", win_length, 2, n_fft, "which is features.n_fft")
        if n_frames is not None:
            check_range("features.n_frames", n_frames, 1, MOST_FRAMES)
        if mel_scale == "kaldi" and norm != "none":
            raise ConfigError(
                "features.norm = 'slaney' is not for features.mel_scale = 'kaldi'; set it to 'none'"
            )
        for name, value in (("top_db", top_db), ("std", std)):
            if value is not None and value <= 0:
                raise ConfigError(f"features.{name} = {value:g} is out of range; it takes numbers above 0")
        if frames == "kaldi":
            check_range("features.win_length", win_length, 2, n_samples, "the samples of a clip")
        self.standardise = standardise
        self.log, self.reference, self.top_db = log, reference, top_db
        self.n_frames, self.pad_with, self.mean, self.std = n_frames, pad_with, mean, std
        self.mel = MelPower(
            sample_rate,
            n_mels,
            n_fft,
            hop,
            fmin_hz,
            fmax_hz,
            win_length=win_length,
            scale=mel_scale,
            norm=norm,
            frames=frames,
        )
        of_clip = n_samples // hop + 1 if frames == "centred" else (n_samples - win_length) // hop + 1
        self.shape = (1, n_mels, n_frames or of_clip)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return [batch, 1, mels, frames] for `waveform` [batch, samples]."""
        level = self._fitted(self._level(self.mel(waveform)))
        if self.standardise == "clip":
            level = standardised(level)
        if (self.mean, self.std) != (0.0, 1.0):
            level = (level - self.mean) / self.std
        return level.unsqueeze(1)

    def _level(self, power: torch.Tensor) -> torch.Tensor:
        if self.log == "natural":
            return power.clamp(min=torch.finfo(torch.float32).eps).log()  # as Kaldi
        if self.reference == "clip":
            return power_to_db(power, self.top_db)
        db = 10 * torch.log10(power.clamp(min=1e-10))
        return db if self.top_db is None else torch.maximum(db, db.amax((-2, -1), keepdim=True) - self.top_db)

    def _fitted(self, level: torch.Tensor) -> torch.Tensor:
        """Return `level` [batch, mels, frames] cut off at, or padded to `n_frames`."""
        missing = 0 if self.n_frames is None else self.n_frames - level.shape[-1]
        if missing <= 0:
            return level[..., : self.n_frames]
        lowest = level.amin((-2, -1), keepdim=True) if self.pad_with == "min" else level.new_zeros(1, 1, 1)
        return torch.cat([level, lowest.expand(*level.shape[:-1], missing)], dim=-1)


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
    """Power of each band of a mel scale, in frames under a Hann window; see `LogMel` for the options.

    The same values as torchaudio's MelSpectrogram, or with Kaldi's frames and scale as its fbank, computed
    twice as fast on a CPU.
    """

    def __init__(
        self,
        sample_rate: int,
        n_mels: int,
        n_fft: int,
        hop: int,
        fmin_hz: float,
        fmax_hz: float | None,
        *,
        win_length: int | None = None,
        scale: str = "slaney",
        norm: str = "slaney",
        frames: str = "centred",
    ) -> None:
        super().__init__()
        self.n_fft, self.hop, self.is_centred = n_fft, hop, frames == "centred"
        win_length = n_fft if win_length is None else win_length
        window = torch.hann_window(win_length, periodic=self.is_centred)
        if self.is_centred and win_length < n_fft:
            before = (n_fft - win_length) // 2
            window = torch.nn.functional.pad(window, (before, n_fft - win_length - before))
        self.window: torch.Tensor
        self.register_buffer("window", window, persistent=False)
        fmax_hz = sample_rate / 2 if fmax_hz is None else fmax_hz
        filters = mel_filters(sample_rate, n_mels, n_fft, fmin_hz, fmax_hz, scale, norm)
        # Neighbouring bands weigh few bins: groups of them, over their own bins alone, are less to multiply.
        self.bins: list[slice] = []
        for n, group in enumerate(filters.tensor_split(BAND_GROUPS, dim=1)):
            used = group.any(dim=1).nonzero()
            self.bins.append(slice(int(used.min()), int(used.max()) + 1) if len(used) else slice(0, 1))
            self.register_buffer(f"filters_{n}", group[self.bins[n]].contiguous(), persistent=False)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return [batch, mels, frames] for `waveform` [batch, samples].

        A centred frame i has its centre at i * hop; one of Kaldi's begins there.
        """
        if self.is_centred:
            half = self.n_fft // 2
            waveform = torch.nn.functional.pad(waveform, (half, half), mode="reflect")
        # One clip at a time stays in a CPU's cache, which halves the time.
        at_once = 1 if waveform.device.type == "cpu" else len(waveform)
        return torch.cat([self._power(some) for some in waveform.split(at_once)]).transpose(1, 2)

    def _power(self, waveform: torch.Tensor) -> torch.Tensor:
        frames = waveform.unfold(-1, len(self.window), self.hop)
        if not self.is_centred:
            frames = frames - frames.mean(-1, keepdim=True)
            frames = frames - PREEMPHASIS * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        spectrum = torch.fft.rfft(frames * self.window, self.n_fft)
        power = spectrum.real.square() + spectrum.imag.square()
        parts = [power[..., bins] @ getattr(self, f"filters_{n}") for n, bins in enumerate(self.bins)]
        return torch.cat(parts, dim=-1)


def mel_filters(
    sample_rate: int, n_mels: int, n_fft: int, fmin_hz: float, fmax_hz: float, scale: str, norm: str
) -> torch.Tensor:
    """Return the weights [bins of the spectrum, mels] of a filter bank."""
    if scale == "kaldi":
        # The last two are the warping of vocal tracts, which is off.
        banks, _ = get_mel_banks(n_mels, n_fft, float(sample_rate), fmin_hz, fmax_hz, 100.0, -500.0, 1.0)
        return torch.nn.functional.pad(banks.T, (0, 0, 0, 1))
    filters: torch.Tensor = torchaudio.functional.melscale_fbanks(
        n_fft // 2 + 1,
        fmin_hz,
        fmax_hz,
        n_mels,
        sample_rate,
        norm=None if norm == "none" else norm,
        mel_scale=scale,
    )
    return filters


def power_to_db(power: torch.Tensor, range_db: float | None = 80.0) -> torch.Tensor:
    """Return `power` [batch, bins, frames] in dB below each clip's maximum, cut off at `range_db`."""
    power = power.clamp(min=1e-10)
    peak = power.amax(dim=(-2, -1), keepdim=True)
    db = 10 * torch.log10(power / peak)
    return db if range_db is None else db.clamp(min=-range_db)


def standardised(spectrogram: torch.Tensor) -> torch.Tensor:
    """Return a spectrogram [batch, bins, frames] with zero mean, unit variance per clip; silence stays 0."""
    mean = spectrogram.mean(dim=(-2, -1), keepdim=True)
    std = spectrogram.std(dim=(-2, -1), keepdim=True, correction=0)
    return (spectrogram - mean) / std.clamp(min=1e-6)
