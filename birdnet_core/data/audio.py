"""From a file of any format to mono samples and its most active windows.

Decoding is libsndfile's, through soundfile; torchaudio does the signal processing. libsndfile reads many
truncated files without an error, so what came is held against what the header promised.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

from birdnet_core.errors import DataError

EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
MIN_DURATION_S = 0.05
# Some mp3 headers promise up to 2 % more than any decoder gives.
MIN_SHARE_OF_PROMISED = 0.95
_UNKNOWN_LENGTH = 0x7FFF_FF00  # streamed WAV files carry such sizes when their length was not known


def decode(path: str | Path) -> tuple[np.ndarray, int]:
    """Return the mono samples of a recording, float32 [samples], and its sample rate in Hz.

    Channels are averaged. Amplitudes are kept as they are, also above 1. Raises DataError that says what
    is wrong with the file: absent, empty, not audio, truncated, broken inside, or shorter than 0.05 s.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read the file: {error.strerror}") from None
    if size == 0:
        raise DataError("the file is empty (0 bytes)")
    try:
        with quiet_decoders(), soundfile.SoundFile(path) as file:
            promised, sample_rate, log = file.frames, file.samplerate, file.extra_info
            samples = file.read(dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise DataError(_why_unreadable(path, error)) from None
    _check_complete(len(samples), promised, log)
    if len(samples) < MIN_DURATION_S * sample_rate:
        raise DataError(
            "the file holds no audio (0 frames)"
            if len(samples) == 0
            else f"the file holds {len(samples)} frames ({len(samples) / sample_rate:.4f} s); "
            f"at least {MIN_DURATION_S} s is needed"
        )
    mono = samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        raise DataError("the file holds samples that are not finite")
    return mono, sample_rate


def resample(samples: torch.Tensor, sample_rate: int, target_rate: int) -> torch.Tensor:
    """Return `samples` [..., samples] at `target_rate` Hz, by windowed-sinc interpolation (torchaudio).

    The ratio is rounded to a fraction with denominator up to 1000, because the filter bank of an odd rate
    such as 8,012 Hz would take hundreds of megabytes. The common rates are exact; pitch is never off by more
    than 0.05 %, less than a cent.
    """
    ratio = Fraction(target_rate, sample_rate).limit_denominator(1000)
    if ratio == 1:
        return samples
    filter_bank: torch.Tensor = _resampler(ratio.denominator, ratio.numerator)(samples)
    return filter_bank


@functools.lru_cache(maxsize=16)
def _resampler(old: int, new: int) -> torch.nn.Module:
    resampler: torch.nn.Module = torchaudio.transforms.Resample(old, new)
    return resampler


def most_active_windows(samples: torch.Tensor, sample_rate: int, window_s: float, n: int) -> list[int]:
    """Return the start samples of up to `n` windows with the most bird-like activity, best first.

    Activity is how far the level of 50 ms frames, in dB, rises above the recording's own 20th percentile,
    summed over the window; a loud click counts for one frame only. Windows may overlap by at most half.
    A recording no longer than one window gives the single start 0.
    """
    n_window = round(window_s * sample_rate)
    hop = max(1, round(0.05 * sample_rate))
    n_frames = len(samples) // hop
    if len(samples) <= n_window or n_frames == 0:
        return [0]
    level_db = 10 * torch.log10(samples[: n_frames * hop].reshape(n_frames, hop).square().mean(1) + 1e-12)
    activity = (level_db - torch.quantile(level_db[:: max(1, n_frames // 100_000)], 0.2)).clamp(min=0)
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
    return starts


def cut(samples: torch.Tensor, start: int, n_window: int) -> torch.Tensor:
    """Return `n_window` samples from `start`; what the recording lacks is zeros at the end."""
    window = samples[start : start + n_window]
    return torch.nn.functional.pad(window, (0, n_window - len(window)))


@contextlib.contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep what decoders print to the process's standard error off the terminal.

    libmpg123 writes its complaints straight to file descriptor 2, hundreds of lines over a progress bar.
    What is worth knowing of them comes back as a DataError. The descriptor belongs to the whole process:
    decode in worker processes where other threads print.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as sink:
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
            f"the file is truncated: {n_frames:,} of the {promised:,} frames that its header promises came"
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
