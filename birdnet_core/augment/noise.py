"""Noise: white, pink or brown, or from a folder of recordings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from birdnet_core.augment.draws import along_batch, chosen, integers, keep_others, uniform
from birdnet_core.data.audio import decode, resample
from birdnet_core.data.manifest import EXTENSIONS
from birdnet_core.errors import ConfigError, DataError, check_range
from birdnet_core.registry import augmentations

MAX_RECORDINGS_S = 600
# How fast the amplitude falls with the frequency; the power falls twice as fast in dB.
EXPONENTS = {"white": 0.0, "pink": 0.5, "brown": 1.0}
# Below the lowest audible frequency the spectrum is flat: brown noise down to 1 Hz would hold nearly all of
# its power where there are no birds, and which no features cover.
FLAT_BELOW_HZ = 20.0

_logger = logging.getLogger(__name__)


@augmentations.register("noise")
class Noise(nn.Module):
    """Add noise at a signal-to-noise ratio uniform in `min_snr_db` to `max_snr_db`. Usual p: 0.5.

    The ratio is of mean power over the clip; a silent clip stays silent. `color` says how the power falls
    with the frequency: not ("white"), 3 dB ("pink") or 6 dB ("brown") an octave, above 20 Hz. With a `folder`
    the noise is random cuts of the recordings found in it and below, laid end to end, and `color` does
    not count; the first 10 minutes of them, by path, are held in memory (53 MB at 22,050 Hz).
    """

    domain = "waveform"
    recordings: torch.Tensor | None

    def __init__(
        self,
        sample_rate: int,
        *,
        p: float = 0.0,
        min_snr_db: float = 3.0,
        max_snr_db: float = 30.0,
        color: Literal["white", "pink", "brown"] = "pink",
        folder: str | None = None,
    ) -> None:
        super().__init__()
        check_range("augment.noise.p", p, 0, 1)
        check_range("augment.noise.min_snr_db", min_snr_db, -30, 100)
        check_range("augment.noise.max_snr_db", max_snr_db, min_snr_db, 100)
        self.sample_rate = sample_rate
        self.p = p
        self.min_snr_db = min_snr_db
        self.max_snr_db = max_snr_db
        self.exponent = EXPONENTS[color]
        recordings = None if folder is None else _recordings(folder, sample_rate)
        self.register_buffer("recordings", recordings, persistent=False)

    def forward(self, waveforms: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return `waveforms` [batch, samples], some of them with noise."""
        is_chosen = chosen(waveforms, self.p, generator)
        snr_db = uniform(waveforms, self.min_snr_db, self.max_snr_db, generator)
        if self.recordings is None:
            noise = self._coloured(waveforms, generator)
        else:
            noise = _cuts(self.recordings, waveforms, generator)
        power = waveforms.square().mean(dim=1)
        # The floor is for recordings with silence in them.
        noise_power = noise.square().mean(dim=1).clamp(min=1e-20)
        scale = (power / noise_power * 10 ** (-snr_db / 10)).sqrt()
        return keep_others(is_chosen, waveforms + along_batch(scale, noise) * noise, waveforms)

    def _coloured(self, waveforms: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        n_samples = waveforms.shape[1]
        white = torch.randn(waveforms.shape, generator=generator, device=waveforms.device)
        hz = torch.fft.rfftfreq(n_samples, 1 / self.sample_rate, device=waveforms.device)
        amplitude = hz.clamp(min=FLAT_BELOW_HZ) ** -self.exponent
        noise: torch.Tensor = torch.fft.irfft(torch.fft.rfft(white) * amplitude, n=n_samples)
        return noise


def _cuts(recordings: torch.Tensor, waveforms: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a random cut of `recordings` [samples] for each clip; the end continues at the beginning."""
    start = integers(waveforms, len(recordings), generator)
    position = torch.arange(waveforms.shape[1], device=waveforms.device)
    return recordings[(start[:, None] + position) % len(recordings)]


def _recordings(folder: str, sample_rate: int) -> torch.Tensor:
    """Return up to MAX_RECORDINGS_S of the recordings under `folder`, end to end, float32 [samples]."""
    paths = sorted(
        path
        for path in Path(folder).expanduser().rglob("*")
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
    )
    if not paths:
        raise ConfigError(
            f"augment.noise.folder = {folder!r} holds no audio; it takes a folder with recordings in it or "
            f"below ({', '.join(EXTENSIONS)})"
        )
    pieces: list[torch.Tensor] = []
    n_missing = MAX_RECORDINGS_S * sample_rate
    for path in paths:
        if n_missing == 0:
            _logger.warning(
                "augment.noise.folder = %r holds %d recordings; the first %d fill %d s and are taken",
                folder, len(paths), len(pieces), MAX_RECORDINGS_S,
            )  # fmt: skip
            break
        try:
            samples, rate = decode(path)
        except DataError as error:
            raise ConfigError(
                f"augment.noise.folder = {folder!r}: {path.name} cannot be used: {error}; mend or remove it"
            ) from error
        pieces.append(resample(torch.from_numpy(samples), rate, sample_rate)[:n_missing])
        n_missing -= len(pieces[-1])
    return torch.cat(pieces)
