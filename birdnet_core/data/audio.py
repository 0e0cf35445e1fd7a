"""Decode, resample and filter recordings of any format, and find their most active windows.

libsndfile decodes, through soundfile. It reads many truncated files without an error, so the number of frames
is compared with the header's. soxr resamples. The high-pass equals torchaudio's filter and is several times
as fast.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from birdnet_core.errors import ConfigError, DataError

MIN_DURATION_S = 0.05
# Some mp3 headers state up to 2 % more frames than any decoder returns.
MIN_SHARE_OF_PROMISED = 0.95
BLOCK_VALUES = 2**19  # samples over all channels that are decoded at once: 2 MiB
QUALITY = "HQ"  # of soxr: 20 bits
_UNKNOWN_LENGTH = 0x7FFF_FF00  # streamed WAV files carry such sizes when their length was not known


def decode(path: str | Path) -> tuple[np.ndarray, int]:
    """Return the mono samples of a recording, float32 [samples], and its sample rate in Hz.

    Channels are averaged. Amplitudes are kept as they are, also above 1. Raises DataError with the fault
    of the file: absent, empty, not audio, truncated, damaged, or shorter than 0.05 s.
    """
    with opened(path) as recording:
        # Never as much at once as the header states, which may be far too much.
        return np.concatenate(list(recording.blocks(BLOCK_VALUES))), recording.sample_rate


@dataclass
class Recording:
    """An open recording: `promised` frames by its header, of which `n_read` were read so far."""

    path: Path
    sample_rate: int
    promised: int
    file: soundfile.SoundFile
    n_read: int = 0

    def blocks(self, n_values: int) -> Iterator[np.ndarray]:
        """Yield its mono samples, float32, in blocks of `n_values` over all channels.

        Raises DataError as `decode` does, after the blocks before the fault.
        """
        n_frames = max(1, n_values // self.file.channels)
        while True:
            try:
                with quiet_decoders():
                    samples = self.file.read(n_frames, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise DataError(_why_unreadable(self.path, error)) from None
            self.n_read += len(samples)
            mono = samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]
            _check_finite(mono)
            if len(mono):
                yield mono
            if len(samples) < n_frames:
                self._check_whole()
                return

    def _check_whole(self) -> None:
        n_frames = self.n_read
        _check_complete(n_frames, self.promised, self.file.extra_info)
        if n_frames < MIN_DURATION_S * self.sample_rate:
            raise DataError(
                "the file holds no audio (0 frames)"
                if n_frames == 0
                else f"the file holds {n_frames} frames ({n_frames / self.sample_rate:.4f} s); "
                f"at least {MIN_DURATION_S} s is needed"
            )


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Recording]:
    """Open a recording; raises DataError where it is absent, empty or not audio."""
    path = Path(path)
    try:
        with open(path, "rb") as content:
            size = os.fstat(content.fileno()).st_size
    except OSError as error:
        raise DataError(f"cannot read the file: {error.strerror}") from None
    if size == 0:
        raise DataError("the file is empty (0 bytes)")
    try:
        with quiet_decoders():
            file = soundfile.SoundFile(path)
    except soundfile.SoundFileError as error:
        raise DataError(_why_unreadable(path, error)) from None
    with file:
        yield Recording(path, file.samplerate, file.frames, file)


def _check_finite(mono: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        # Quick, and not finite if one of the samples is not; the sum alone may also have overflowed.
        is_suspect = not np.isfinite(mono.sum())
    if is_suspect and not np.isfinite(mono).all():
        raise DataError("the file holds samples that are not finite")


def load_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """Return a recording as mono float32 [samples] at `sample_rate` Hz.

    It is decoded as in training and prediction: channels are averaged, and amplitudes kept as they are. The
    high-pass of a config is not applied. Raises DataError as `decode` does.
    """
    if sample_rate < 1:
        raise ConfigError(f"sample_rate = {sample_rate!r} is out of range; it takes 1 Hz or more")
    with opened(path) as recording:
        blocks = map(torch.from_numpy, recording.blocks(BLOCK_VALUES))
        return torch.cat(list(resampled(blocks, recording.sample_rate, sample_rate))).numpy()


def resample(samples: torch.Tensor, sample_rate: int, target_rate: int) -> torch.Tensor:
    """Return `samples` [samples] at `target_rate` Hz: as many as last equally long, rounded.

    soxr's HQ filter: flat up to 0.9 of the lower Nyquist frequency, and more than 100 dB down above it.
    """
    if sample_rate == target_rate:
        return samples
    return torch.from_numpy(soxr.resample(samples.numpy(), sample_rate, target_rate, quality=QUALITY))


def resampled(blocks: Iterable[torch.Tensor], sample_rate: int, target_rate: int) -> Iterator[torch.Tensor]:
    """Yield, block by block, the result of `resample` for all `blocks` [samples] together."""
    if sample_rate == target_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(sample_rate, target_rate, 1, dtype="float32", quality=QUALITY)
    for block in blocks:
        yield torch.from_numpy(stream.resample_chunk(block.numpy()))
    yield torch.from_numpy(stream.resample_chunk(np.empty(0, np.float32), last=True))


def highpass(samples: torch.Tensor, sample_rate: int, corner_hz: float) -> torch.Tensor:
    """Return `samples` [samples] through a Butterworth high-pass of second order (12 dB an octave).

    The biquad of the Audio EQ Cookbook with Q = 0.707, from silence, and unclipped. It is applied as the
    convolution with its own response, cut where that has fallen by 160 dB, block by block in the frequency
    domain: 4 ns a sample, against 6.5 of scipy's sosfilt and many times that of torchaudio's lfilter.
    """
    n_response = min(response_length(sample_rate, corner_hz), len(samples))
    return torch.cat(list(_highpassed([samples], sample_rate, corner_hz, n_response)))


def highpassed(blocks: Iterable[torch.Tensor], sample_rate: int, corner_hz: float) -> Iterator[torch.Tensor]:
    """Yield, block by block, the result of `highpass` for all `blocks` [samples] together."""
    yield from _highpassed(blocks, sample_rate, corner_hz, response_length(sample_rate, corner_hz))


def _highpassed(
    blocks: Iterable[torch.Tensor], sample_rate: int, corner_hz: float, n_response: int
) -> Iterator[torch.Tensor]:
    n_fft, response = _highpass_response(sample_rate, corner_hz, n_response)
    hop = n_fft - n_response
    held = torch.zeros(n_response)
    for block in blocks:
        held = torch.cat([held, block])
        n_ready = (len(held) - n_response) // hop
        if n_ready > 0:
            yield _convolved(held, n_fft, hop, response, n_ready)
            held = held[n_ready * hop :]
    n_left = len(held) - n_response
    if n_left > 0:
        held = torch.nn.functional.pad(held, (0, hop - n_left))
        yield _convolved(held, n_fft, hop, response, 1)[:n_left]


def _convolved(
    samples: torch.Tensor, n_fft: int, hop: int, response: torch.Tensor, n_blocks: int
) -> torch.Tensor:
    """Return `n_blocks` times `hop` samples of the convolution, each block with what comes before it."""
    blocks = samples.unfold(0, n_fft, hop)
    out = torch.empty(n_blocks, hop)
    at_once = max(1, 2**18 // n_fft)  # as much as stays in the processor's cache
    for first in range(0, n_blocks, at_once):
        some = slice(first, min(first + at_once, n_blocks))
        spectra = torch.fft.rfft(blocks[some]) * response
        out[some] = torch.fft.irfft(spectra, n=n_fft)[:, -hop:]
    return out.view(-1)


def _biquad(sample_rate: int, corner_hz: float) -> tuple[float, float, float]:
    """Return radius and angle of the poles of the high-pass, and its gain; the zeros are two at 1."""
    angle = 2 * math.pi * corner_hz / sample_rate
    alpha = math.sin(angle) / (2 * 0.707)
    radius = math.sqrt((1 - alpha) / (1 + alpha))
    return radius, math.acos(math.cos(angle) / (1 + alpha) / radius), (1 + math.cos(angle)) / 2 / (1 + alpha)


def response_length(sample_rate: int, corner_hz: float) -> int:
    """Return the samples after which the response of `highpass` has fallen by 160 dB."""
    radius, _, _ = _biquad(sample_rate, corner_hz)
    return math.ceil(math.log(1e-8) / math.log(radius)) + 3


@functools.lru_cache(maxsize=16)
def _highpass_response(sample_rate: int, corner_hz: float, n: int) -> tuple[int, torch.Tensor]:
    """Return a length of FFT, and the spectrum at that length of the first `n` samples of the response."""
    radius, angle, gain = _biquad(sample_rate, corner_hz)
    k = np.arange(n)
    poles = radius**k * np.sin((k + 1) * angle) / np.sin(angle)
    response = gain * np.convolve(poles, [1, -2, 1])[:n]
    n_fft = max(4096, 2 ** math.ceil(math.log2(4 * n)))
    return n_fft, torch.from_numpy(np.fft.rfft(response, n_fft).astype(np.complex64))


def most_active_windows(
    samples: torch.Tensor,
    sample_rate: int,
    window_s: float,
    n: int,
    *,
    band_hz: tuple[float, float] = (0.0, math.inf),
) -> list[int]:
    """Return the start samples of up to `n` windows with the most bird-like activity, best first.

    Activity is how far the level within `band_hz`, in dB, measured every 50 ms, rises above the recording's
    own 20th percentile, summed over the window; a loud click counts once. Windows may overlap by at most
    half. A recording no longer than one window gives the single start 0.
    """
    n_window = round(window_s * sample_rate)
    hop = max(2, round(0.05 * sample_rate))
    if len(samples) <= max(n_window, hop):
        return [0]
    level_db = 10 * torch.log10(_band_power(samples, sample_rate, hop, band_hz) + 1e-12)
    activity = (level_db - level_db.kthvalue(math.ceil(0.2 * len(level_db))).values).clamp(min=0)
    frames_a_window = max(1, round(n_window / hop))
    total = torch.cat([torch.zeros(1), activity.cumsum(0)])
    score = (total[frames_a_window:] - total[:-frames_a_window]).numpy().copy()
    starts: list[int] = []
    while len(starts) < n and len(score):
        best = int(score.argmax())
        if score[best] == -np.inf:
            break
        starts.append(min(best * hop, len(samples) - n_window))
        half = (frames_a_window + 1) // 2
        score[max(0, best - half + 1) : best + half] = -np.inf
    return starts or [0]


def _band_power(
    samples: torch.Tensor, sample_rate: int, hop: int, band_hz: tuple[float, float]
) -> torch.Tensor:
    """Return the mean power within a band (low, high) in Hz at the beginning of every `hop` samples.

    Of about 16 ms, which is what takes the time: on real recordings the windows chosen so have on average
    99.6 % of the activity of the best, measured throughout. The spectrum is that of the differences of
    neighbouring samples, and their gain, 2 sin(pi f / rate), is taken out again: a frame is cut out without a
    window, and strong rumble would leak into the band.
    """
    n_fft = min(2 ** round(math.log2(0.016 * sample_rate)), hop)
    weight = _band_weight(sample_rate, n_fft, band_hz)
    power = torch.empty((len(samples) - n_fft - 1) // hop + 1)
    at_once = max(1, 2**17 // hop)  # as much as stays in the processor's cache
    for first in range(0, len(power), at_once):
        last = min(first + at_once, len(power))
        some = samples[first * hop : (last - 1) * hop + n_fft + 1]
        frames = (some[1:] - some[:-1]).unfold(0, n_fft, hop)
        power[first:last] = torch.view_as_real(torch.fft.rfft(frames)).flatten(1).square_() @ weight
    return power


@functools.lru_cache(maxsize=16)
def _band_weight(sample_rate: int, n_fft: int, band_hz: tuple[float, float]) -> torch.Tensor:
    """Return the weight in `_band_power` of each squared real and imaginary part of a frame's spectrum."""
    hz = torch.fft.rfftfreq(n_fft, 1 / sample_rate)
    gain = 4 * torch.sin(math.pi * hz / sample_rate) ** 2
    is_inside = (hz > 0) & (hz >= band_hz[0]) & (hz <= band_hz[1])
    # Parseval: both halves of the spectrum, over n_fft samples of n_fft values each
    return torch.where(is_inside, 2 / (gain * n_fft**2), 0).repeat_interleave(2)


def cut(samples: torch.Tensor, start: int, n_window: int) -> torch.Tensor:
    """Return `n_window` samples from `start`; zeros follow the end of the recording."""
    window = samples[start : start + n_window]
    return torch.nn.functional.pad(window, (0, n_window - len(window)))


@contextlib.contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep messages of decoders on the process's standard error off the terminal.

    libmpg123 writes straight to file descriptor 2, hundreds of lines over a progress bar. Faults that matter
    are raised as DataError. The descriptor belongs to the whole process:
    decode in worker processes where other threads print.
    """
    sys.stderr.flush()
    with open(os.devnull, "wb") as sink:
        kept = os.dup(2)
        try:
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _why_unreadable(path: Path, error: soundfile.SoundFileError) -> str:
    with open(path, "rb") as file:
        head = file.read(64)
    text = head.decode("ascii", errors="ignore")
    if text.startswith("version https://git-lfs"):
        return "the file is a git-lfs pointer, not audio; fetch it with `git lfs pull`"
    if re.match(r"\s*<(!doctype|html|\?xml)", text, re.IGNORECASE):
        return "the file is a web page or XML, not audio; download the recording again"
    if len(text) == len(head) and all(c.isprintable() or c.isspace() for c in text):
        return f"the file is text, not audio: it begins {text[:24]!r}"
    reason = str(error).rsplit(": ", 1)[-1].strip().rstrip(".")
    return f"the decoder gave up: {reason}; the file is damaged or cut short, or not audio"


def _check_complete(n_frames: int, promised: int, log: str) -> None:
    """Raise DataError for a file that was cut short, by its frames and by libsndfile's parsing log."""
    if n_frames < MIN_SHARE_OF_PROMISED * promised:
        raise DataError(
            f"the file is truncated: it holds {n_frames:,} of the {promised:,} frames that its header states"
        )
    if "lacks an end-of-stream bit" in log:
        raise DataError("the file is truncated: the Ogg stream ends without its end mark")
    chunk = re.search(r"^data : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if chunk:
        announced, found = int(chunk[1]), int(chunk[2])
        if announced < _UNKNOWN_LENGTH and found < MIN_SHARE_OF_PROMISED * announced:
            raise DataError(
                f"the file is truncated: {found:,} of the {announced:,} bytes of audio announced are there"
            )
