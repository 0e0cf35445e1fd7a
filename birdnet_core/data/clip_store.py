"""Decoded windows of every recording on disk, as int16, memory-mapped.

A store is keyed by the content of the recordings and the options that shape a clip, so that a second call
finds it and a changed option makes another. It is filled by worker processes that write their windows in
place; a build that is killed goes on where it stopped.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from birdnet_core.config import DataConfig
from birdnet_core.data.audio import (
    cut,
    decode,
    highpass,
    most_active_windows,
    resample,
    resampling_ratio,
    response_length,
)
from birdnet_core.data.building import Progress, Workers, content_hashes, locked, short_hash
from birdnet_core.errors import DataError
from birdnet_core.records import read_json, write_json

FORMAT = 5  # of the files, and of how samples are computed: other roundings are other stores


# What is known of a recording, and of each of its windows: a row each, written in place and mapped.
RECORDING = np.dtype(
    [("is_done", "?"), ("n_windows", "<i4"), ("sample_rate", "<i4"), ("duration_s", "<f8"), ("sha256", "S64")]
)
WINDOW = np.dtype([("scale", "<f4"), ("start_s", "<f4")])


@dataclass(frozen=True)
class ClipStore:
    """An open clip store; all arrays are mapped, so that opening it costs the same for any number of rows.

    Args:
        samples: int16 [recordings * windows_per_recording, samples]; recording i owns the rows from
            i * windows_per_recording, of which the first `n_windows[i]` are filled.
        windows: WINDOW, one a row: amplitude = samples * scale, so that quiet recordings keep 16 bits, and
            where in the recording the window starts.
        recordings: RECORDING, one a recording; without windows where it could not be decoded.
        errors: why, for each recording that could not be decoded.
    """

    folder: Path
    key: str
    sample_rate: int
    windows_per_recording: int
    samples: np.ndarray
    windows: np.ndarray
    recordings: np.ndarray
    errors: dict[int, str]

    @classmethod
    def open(cls, folder: Path) -> ClipStore:
        """Map the store in `folder`; raises DataError where it is not whole."""
        meta = read_json(folder / "store.json")
        recordings = np.load(folder / "recordings.npy", mmap_mode="r")
        shape = (len(recordings) * meta["windows_per_recording"], meta["n_samples"])
        path = folder / "clips.i16"
        if path.stat().st_size != 2 * shape[0] * shape[1]:
            raise DataError(f"the clip store {str(folder)!r} is damaged; delete it and prepare again")
        return cls(
            folder,
            folder.name,
            meta["sample_rate"],
            meta["windows_per_recording"],
            np.memmap(path, np.int16, "r", shape=shape),
            np.load(folder / "windows.npy", mmap_mode="r"),
            recordings,
            {int(i): error for i, error in meta["errors"].items()},
        )

    @property
    def n_windows(self) -> np.ndarray:
        """The number of filled rows of each recording."""
        n_windows: np.ndarray = self.recordings["n_windows"]
        return n_windows

    @property
    def sha256(self) -> list[str]:
        """The content of each recording's file; "" for one that could not be read."""
        return [sha.decode() for sha in self.recordings["sha256"]]

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the filled rows, and the recording that each belongs to."""
        recording = np.repeat(np.arange(len(self.recordings)), self.n_windows)
        first = np.cumsum(self.n_windows) - self.n_windows
        nth = np.arange(len(recording)) - first[recording]
        return recording * self.windows_per_recording + nth, recording

    def read(self, rows: np.ndarray) -> torch.Tensor:
        """Return the clips of `rows` with their amplitudes, float32 [rows, samples]."""
        return torch.from_numpy(self.samples[rows].astype(np.float32) * self.windows["scale"][rows, None])


def build_clip_store(
    paths: Sequence[str], config: DataConfig, cache: Path, *, workers: Workers, progress: Progress
) -> ClipStore:
    """Return the store of the recordings in `paths`, building what is not there yet.

    A recording that cannot be decoded keeps its place with the reason as its `error`. Raises DataError when
    not one of them can.
    """
    hashes = content_hashes(paths, cache, workers=workers.n, progress=progress)
    options = {
        "format": FORMAT,
        "sample_rate": config.sample_rate,
        "window_s": config.window_s,
        "windows_per_recording": config.windows_per_recording,
        "highpass_hz": config.highpass_hz,
    }
    key = short_hash([options, hashes])
    folder = cache / "clips" / key
    with locked(folder):
        if not (folder / "store.json").exists():
            _fill(folder, paths, hashes, config, workers, progress)
    store = ClipStore.open(folder)
    if not store.n_windows.any():
        reasons = "\n".join(f"  {paths[i]}: {error}" for i, error in list(store.errors.items())[:20])
        raise DataError(f"not one of {len(paths)} recordings can be decoded:\n{reasons[:2000]}")
    return store


def _fill(
    folder: Path,
    paths: Sequence[str],
    hashes: list[str],
    config: DataConfig,
    workers: Workers,
    progress: Progress,
) -> None:
    """Decode into ``folder.partial``, then rename; `is_done` says what an earlier call has finished."""
    partial = folder.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    n_samples = config.n_samples
    clips = partial / "clips.i16"
    with open(clips, "ab") as file:
        file.truncate(2 * n_samples * config.windows_per_recording * len(paths))
    recordings = _table(partial / "recordings.npy", RECORDING, len(paths))
    windows = _table(partial / "windows.npy", WINDOW, config.windows_per_recording * len(paths))
    recordings["sha256"] = hashes
    log = partial / "errors.jsonl"
    todo = [(i, paths[i]) for i in np.flatnonzero(~recordings["is_done"]).tolist()]
    work = functools.partial(_decode_into_store, clips=clips, config=config)
    with open(log, "a") as journal:
        decoded = workers.map(work, todo, chunk=min(16, 4 + len(todo) // 2000))
        for n_done, result in enumerate(decoded, start=1):
            recording, row = recordings[result.i], result.i * config.windows_per_recording
            if result.error:
                journal.write(json.dumps([result.i, result.error]) + "\n")
                journal.flush()
            n = len(result.scales)
            windows["scale"][row : row + n] = result.scales
            windows["start_s"][row : row + n] = result.starts_s
            recording["n_windows"], recording["sample_rate"] = n, result.sample_rate
            recording["duration_s"] = result.duration_s
            # Last: a kill before this line decodes the recording once more.
            recording["is_done"] = True
            progress("decoding recordings", n_done, len(todo))
    del recordings, windows
    lines = log.read_text().splitlines(keepends=True)
    errors = dict(json.loads(line) for line in lines if line.endswith("\n"))
    write_json(
        partial / "store.json",
        {
            "format": FORMAT,
            "sample_rate": config.sample_rate,
            "n_samples": n_samples,
            "windows_per_recording": config.windows_per_recording,
            "errors": errors,
        },
    )
    log.unlink()
    partial.rename(folder)


def _table(path: Path, dtype: np.dtype[Any], n: int) -> np.ndarray:
    """Map a table of `n` rows for writing, made of zeros where it does not exist."""
    if not path.exists():
        new = path.with_suffix(".new")
        np.lib.format.open_memmap(new, "w+", dtype=dtype, shape=(n,)).flush()
        new.rename(path)
    table: np.ndarray = np.lib.format.open_memmap(path, "r+")
    return table


@dataclass(frozen=True)
class _Decoded:
    i: int
    sample_rate: int = 0
    duration_s: float = 0.0
    scales: tuple[float, ...] = ()
    starts_s: tuple[float, ...] = ()
    error: str = ""


def _decode_into_store(task: tuple[int, str], *, clips: Path, config: DataConfig) -> _Decoded:
    """Write the windows of recording (i, path) to its rows of `clips`."""
    i, path = task
    try:
        samples, sample_rate = decode(path)
    except DataError as error:
        return _Decoded(i, error=str(error))
    starts_s, windows = active_windows(samples, sample_rate, config)
    scales = np.abs(windows).max(axis=1) / np.float32(32767)
    scales[scales == 0] = 1
    with open(clips, "r+b") as file:
        file.seek(2 * windows.shape[1] * i * config.windows_per_recording)
        file.write(np.round(windows / scales[:, None]).astype("<i2").tobytes())
    return _Decoded(i, sample_rate, len(samples) / sample_rate, tuple(scales.tolist()), starts_s)


def active_windows(
    samples: np.ndarray, sample_rate: int, config: DataConfig
) -> tuple[tuple[float, ...], np.ndarray]:
    """Return where the most active windows of a recording start, in seconds, and the windows.

    `samples` are those of `decode`; the windows, float32 [windows, samples], are resampled, high-passed and
    padded with zeros where the recording is shorter. Only what a window needs is resampled and filtered.
    """
    recording = torch.from_numpy(samples)
    target, corner_hz = config.sample_rate, config.highpass_hz
    ratio = resampling_ratio(sample_rate, target)
    starts = most_active_windows(
        recording,
        sample_rate,
        config.window_s,
        config.windows_per_recording,
        band_hz=(corner_hz, target / 2),
    )
    n_window = round(config.window_s * target)
    # What the filters reach back to and, for the resampler, ahead to, which is far less than 20 ms.
    reach_s = 0.02 + (response_length(target, corner_hz) / target if corner_hz else 0)
    n_reach = round(reach_s * sample_rate)
    windows, starts_s = [], []
    for start in starts:
        # Where samples before and after resampling coincide, so that a cut is resampled as the whole is.
        start -= start % ratio.denominator
        first = max(0, start - n_reach)
        first -= first % ratio.denominator
        clip = resample(recording[first : start + math.ceil(n_window / ratio) + n_reach], sample_rate, target)
        if corner_hz:
            clip = highpass(clip, target, corner_hz)
        windows.append(cut(clip, int((start - first) * ratio), n_window))
        starts_s.append(round(start / sample_rate, 3))
    return tuple(starts_s), torch.stack(windows).numpy()
