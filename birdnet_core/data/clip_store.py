"""Decoded windows of recordings on disk, as int16, memory-mapped.

There is one store for all recordings whose windows were cut and filtered alike. It grows: a recording is
looked up by its content, and only one that is not there yet is decoded, whatever manifest lists it and in
which order. What worker processes decode is written by one process, under the store's lock; the entry of a
recording comes last, so that a build that was killed continues where it stopped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from birdnet_core.config import DataConfig
from birdnet_core.data.audio import cut, decode, highpass, most_active_windows, resample, response_length
from birdnet_core.data.building import (
    COMMIT_S,
    Progress,
    Workers,
    content_hash,
    content_hashes,
    locked,
    mapped,
    open_at,
    short_hash,
    size_of,
    start_anew,
    to_disk,
)
from birdnet_core.errors import DataError, MachineError, RunFolderError
from birdnet_core.records.files import read_json

FORMAT = 6  # of the files, and of how samples are computed: other roundings are other stores
RESAMPLER_REACH = 200  # samples, at the lower rate, beyond which the resampler's filter is 0
FILES = ("clips.i16", "windows.bin", "recordings.bin", "errors.jsonl")
CHUNK_BYTES = 2**23  # of the clips that a worker hands over at once

# The entries of a recording and of a window. The `clip_id` of a window follows from
# the content of its recording, and its place among the windows of that; it is never 0.
RECORDING = np.dtype(
    [
        ("sha256", "S64"),
        ("first_row", "<i8"),
        ("n_windows", "<i4"),
        ("sample_rate", "<i4"),
        ("duration_s", "<f8"),
    ]
)
WINDOW = np.dtype([("clip_id", "<u8"), ("scale", "<f4"), ("start_s", "<f4")])


@dataclass(frozen=True)
class ClipStore:
    """An open clip store; all arrays are mapped, so that opening it costs the same for any number of rows.

    Args:
        samples: int16 [rows, samples], a row a window; those of a recording follow each other.
        windows: WINDOW, one a row: amplitude = samples * scale, so that quiet recordings keep 16 bits, and
            where in the recording the window starts.
        recordings: RECORDING, one for each content that could be decoded.
    """

    folder: Path
    sample_rate: int
    samples: np.ndarray
    windows: np.ndarray
    recordings: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> ClipStore:
        """Map the store in `folder`; raises DataError where it is not whole."""
        try:
            meta = read_json(folder / "store.json")
            # Entries first: a concurrent builder writes them last.
            n_recordings = size_of(folder / "recordings.bin") // RECORDING.itemsize
            recordings = mapped(folder / "recordings.bin", RECORDING, (n_recordings,))
            size_of(folder / "errors.jsonl")
            n = int(recordings["first_row"][-1] + recordings["n_windows"][-1]) if n_recordings else 0
            clip_bytes, window_bytes = 2 * n * meta["n_samples"], n * WINDOW.itemsize
            if size_of(folder / "clips.i16") < clip_bytes or size_of(folder / "windows.bin") < window_bytes:
                raise ValueError
            return cls(
                folder,
                meta["sample_rate"],
                mapped(folder / "clips.i16", np.int16, (n, meta["n_samples"])),
                mapped(folder / "windows.bin", WINDOW, (n,)),
                recordings,
            )
        except (RunFolderError, OSError, KeyError, ValueError):
            raise DataError(
                f"the clip store {str(folder)!r} is damaged or not there; prepare the recordings again"
            ) from None

    @property
    def key(self) -> str:
        """The hash of all settings that a clip of this store depends on."""
        return self.folder.name

    def find(self, hashes: Sequence[str]) -> np.ndarray:
        """Return the index in `recordings` of each content, -1 where it is not there."""
        known, wanted = self.recordings["sha256"], np.array(hashes, dtype="S64")
        if not len(known):
            return np.full(len(wanted), -1)
        order = np.argsort(known)
        found = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
        return np.where(known[found] == wanted, found, -1)

    def holds(self, rows: np.ndarray, clip_ids: np.ndarray) -> bool:
        """Return whether these clips are in these rows."""
        return is_there(self.windows["clip_id"], rows, clip_ids)

    def errors(self) -> dict[str, str]:
        """Return the reason for each content that this version of the decoder could not decode."""
        errors = {}
        for line in (self.folder / "errors.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # of a line that a kill has cut short
                sha, decoder, why = json.loads(line)
                if decoder == soundfile.__libsndfile_version__:
                    errors[sha] = why
        return errors

    def read(self, rows: np.ndarray) -> torch.Tensor:
        """Return the clips of `rows` with their amplitudes, float32 [rows, samples]."""
        return torch.from_numpy(self.samples[rows].astype(np.float32) * self.windows["scale"][rows, None])


def is_there(known: np.ndarray, rows: np.ndarray, clip_ids: np.ndarray) -> bool:
    """Return whether `known` has these `clip_ids` in these `rows`."""
    return bool(rows.max(initial=-1) < len(known)) and bool((known[rows] == clip_ids).all())


@dataclass(frozen=True)
class Clips:
    """The recordings of a manifest in a clip store.

    Args:
        sha256: the content of each recording's file; "" for one that could not be read.
        found: the index of each in `store.recordings`, -1 where it could not be decoded.
        errors: the reason, for each recording that could not be decoded.
    """

    store: ClipStore
    sha256: list[str]
    found: np.ndarray
    errors: dict[int, str]

    @property
    def is_usable(self) -> np.ndarray:
        """Whether each recording was decoded."""
        is_usable: np.ndarray = self.found >= 0
        return is_usable

    @property
    def recordings(self) -> np.ndarray:
        """The entries of the recordings that were decoded, in their order."""
        recordings: np.ndarray = self.store.recordings[self.found[self.is_usable]]
        return recordings

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the row of every clip in the store, and the recording that each belongs to."""
        n_windows = self.recordings["n_windows"]
        recording = np.repeat(np.flatnonzero(self.is_usable), n_windows)
        nth = np.arange(len(recording)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
        return np.repeat(self.recordings["first_row"], n_windows) + nth, recording


def build_clips(
    paths: Sequence[str], config: DataConfig, cache: Path, *, workers: Workers, progress: Progress
) -> Clips:
    """Return the clips of the recordings in `paths`, decoding those that are not in the store yet.

    A recording that cannot be decoded keeps its place with the reason among the `errors`; so does one that
    does not fit into memory or ends its process, which the next call decodes again. Raises DataError when not
    one of them can be decoded.
    """
    hashes = content_hashes(paths, cache, workers=workers.n, progress=progress)
    options = {
        "format": FORMAT,
        "sample_rate": config.sample_rate,
        "window_s": config.window_s,
        "windows_per_recording": config.windows_per_recording,
        "highpass_hz": config.highpass_hz,
    }
    folder = cache / "clips" / short_hash(options)
    why: dict[str, str] = {}
    try:
        store = ClipStore.open(folder)
        is_whole = not _missing(store, hashes)
    except DataError:
        is_whole = False
    if not is_whole:
        with locked(folder):
            why = _fill(folder, dict(zip(hashes, paths, strict=True)), config, options, workers, progress)
        store = ClipStore.open(folder)
    found = store.find(hashes)
    why |= store.errors()
    undecoded = np.flatnonzero(found < 0).tolist()
    errors = {i: why.get(hashes[i]) or _why_not_read(paths[i]) for i in undecoded}
    if len(errors) == len(paths):
        reasons = "\n".join(f"  {paths[i]}: {error}" for i, error in list(errors.items())[:20])
        kind = DataError if any(hashes) else MachineError  # none can be read: a disk that is not mounted
        raise kind(f"not one of {len(paths)} recordings can be decoded:\n{reasons[:2000]}")
    return Clips(store, hashes, found, errors)


def _missing(store: ClipStore, hashes: Sequence[str]) -> list[str]:
    """Return the contents that the store lacks and that may be decoded, each once."""
    absent = [hashes[i] for i in np.flatnonzero(store.find(hashes) < 0).tolist()]
    known = {"", *store.errors()} if absent else set()
    return [sha for sha in dict.fromkeys(absent) if sha not in known]


def _why_not_read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            while file.read(2**20):
                pass
    except OSError as error:
        return f"cannot read the file: {error.strerror}"
    return "the file could not be read before, and can be now; prepare again"


def _fill(
    folder: Path,
    path_of: dict[str, str],
    config: DataConfig,
    options: dict[str, Any],
    workers: Workers,
    progress: Progress,
) -> dict[str, str]:
    """Decode the contents of `path_of` that the store lacks; return the reasons where this fails."""
    try:
        store = ClipStore.open(folder)
    except DataError:
        start_anew(folder, FILES, {**options, "n_samples": config.n_samples})
        store = ClipStore.open(folder)
    tasks = [(sha, path_of[sha]) for sha in _missing(store, list(path_of))]
    clip_bytes = 2 * config.n_samples * config.windows_per_recording
    chunk = max(1, min(16, 4 + len(tasks) // 2000, CHUNK_BYTES // clip_bytes))
    decoded = workers.map_each(
        functools.partial(_decode, config=config), tasks, chunk=chunk, ended=_ended_its_process
    )
    why: dict[str, str] = {}
    with _Additions(store) as additions:
        for n_done, result in enumerate(decoded, start=1):
            if result.error:
                why[result.sha256] = result.error
            if result.is_final:
                additions.add(result)
            if additions.is_due or n_done in (1, len(tasks)):
                additions.commit()
                progress("decoding recordings", n_done, len(tasks))
    return why


class _Additions:
    """Additions to a clip store; those before a `commit` survive a kill and a power failure."""

    def __init__(self, store: ClipStore) -> None:
        self.folder = store.folder
        self.n_rows = len(store.samples)
        self.clips = open_at(store.folder / "clips.i16", 2 * self.n_rows * store.samples.shape[1])
        self.windows = open_at(store.folder / "windows.bin", self.n_rows * WINDOW.itemsize)
        self.recordings = open_at(store.folder / "recordings.bin", len(store.recordings) * RECORDING.itemsize)
        self.entries: list[tuple[Any, ...]] = []
        self.errors: list[list[str]] = []
        self.committed = time.monotonic()

    def __enter__(self) -> _Additions:
        return self

    def __exit__(self, *_: object) -> None:
        with self.clips, self.windows, self.recordings:
            self.commit()

    def add(self, result: _Decoded) -> None:
        if result.error:
            self.errors.append([result.sha256, soundfile.__libsndfile_version__, result.error])
            return
        n = len(result.windows)
        self.clips.write(result.samples.astype("<i2").tobytes())
        self.windows.write(result.windows.tobytes())
        self.entries.append((result.sha256, self.n_rows, n, result.sample_rate, result.duration_s))
        self.n_rows += n

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self.committed >= COMMIT_S

    def commit(self) -> None:
        if self.entries:
            to_disk(self.clips)
            to_disk(self.windows)
            self.recordings.write(np.array(self.entries, dtype=RECORDING).tobytes())
            to_disk(self.recordings)
            # Its time says when the store last grew.
            os.utime(self.folder / "store.json")
        if self.errors:
            with open(self.folder / "errors.jsonl", "a", encoding="utf-8") as file:
                file.writelines("\n" + json.dumps(entry) for entry in self.errors)
        self.entries, self.errors = [], []
        self.committed = time.monotonic()


@dataclass(frozen=True)
class _Decoded:
    """The windows of a content: WINDOW [windows] and int16 [windows, samples]; or the reason for none.

    A result that is not `is_final` may differ the next time.
    """

    sha256: str
    sample_rate: int = 0
    duration_s: float = 0.0
    windows: np.ndarray = field(default_factory=lambda: np.empty(0, WINDOW))
    samples: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int16))
    error: str = ""
    is_final: bool = True


def _decode(task: tuple[str, str], *, config: DataConfig) -> _Decoded:
    """Return the most active windows of the recording (SHA-256, path)."""
    sha256, path = task
    try:
        samples, sample_rate = decode(path)
        starts_s, windows = active_windows(samples, sample_rate, config)
    except DataError as error:
        # Unless the file has changed or cannot be read any more, its content is at fault.
        return _Decoded(sha256, error=str(error), is_final=content_hash(path) == sha256)
    except MemoryError as error:
        why = f"it does not fit into memory: {error}" if str(error) else "it does not fit into memory"
        return _Decoded(sha256, error=why, is_final=False)
    scales = np.abs(windows).max(axis=1) / np.float32(32767)
    scales[scales == 0] = 1
    of_windows = np.empty(len(windows), WINDOW)
    of_windows["clip_id"] = int(sha256[:15], 16) + 1 + np.arange(len(windows), dtype=np.uint64)
    of_windows["scale"], of_windows["start_s"] = scales, starts_s
    rounded = np.round(windows / scales[:, None]).astype(np.int16)
    return _Decoded(sha256, sample_rate, len(samples) / sample_rate, of_windows, rounded)


def _ended_its_process(task: tuple[str, str], how: str) -> _Decoded:
    why = f"decoding it ends the process ({how}); convert the file, or leave it out"
    return _Decoded(task[0], error=why, is_final=False)


def active_windows(
    samples: np.ndarray, sample_rate: int, config: DataConfig
) -> tuple[tuple[float, ...], np.ndarray]:
    """Return where the most active windows of a recording start, in seconds, and the windows.

    `samples` are those of `decode`; the windows, float32 [windows, samples], are resampled, high-passed and
    padded with zeros where the recording is shorter. Only what a window needs is resampled and
    filtered.
    """
    recording = torch.from_numpy(samples)
    target, corner_hz = config.sample_rate, config.highpass_hz
    ratio = Fraction(target, sample_rate)
    # Where samples before and after resampling coincide, so that a cut is resampled as the whole is. For an
    # odd rate such as 8,012 Hz that is far between, and the cut lies up to half a sample off.
    grid = ratio.denominator if ratio.denominator <= 1000 else 1
    starts = most_active_windows(
        recording, sample_rate, config.window_s, config.windows_per_recording, band_hz=(corner_hz, target / 2)
    )
    n_window = round(config.window_s * target)
    # How far the filters reach back and, for the resampler, ahead.
    reach_s = RESAMPLER_REACH / min(sample_rate, target)
    if corner_hz:
        reach_s += response_length(target, corner_hz) / target
    n_reach = round(reach_s * sample_rate)
    windows, starts_s = [], []
    for start in starts:
        start -= start % grid
        first = max(0, start - n_reach)
        first -= first % grid
        clip = resample(recording[first : start + math.ceil(n_window / ratio) + n_reach], sample_rate, target)
        if corner_hz:
            clip = highpass(clip, target, corner_hz)
        windows.append(cut(clip, round((start - first) * ratio), n_window))
        starts_s.append(round(start / sample_rate, 3))
    return tuple(starts_s), torch.stack(windows).numpy()
