"""Decoded windows of every recording on disk, as int16, memory-mapped.

A store is keyed by the content of the recordings and the options that shape a clip, so that a second call
finds it and a changed option makes another. It is filled by worker processes that write their windows in
place; a build that is killed goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio

from birdnet_core.config import DataConfig
from birdnet_core.data.audio import cut, decode, most_active_windows, resample
from birdnet_core.data.building import Progress, content_hashes, locked, parallel_map, short_hash
from birdnet_core.errors import DataError
from birdnet_core.records import read_json, write_json

FORMAT = 1


@dataclass(frozen=True)
class ClipStore:
    """An open clip store.

    Args:
        samples: int16 [recordings * windows_per_recording, samples], mapped; recording i owns the rows from
            i * windows_per_recording, of which the first `n_windows[i]` are filled.
        scale: float32, one a row: amplitude = samples * scale, so that quiet recordings keep 16 bits.
        recordings: what is known of each recording: duration_s, sample_rate, starts_s, or error.
    """

    folder: Path
    key: str
    sample_rate: int
    windows_per_recording: int
    samples: np.ndarray
    scale: np.ndarray
    n_windows: np.ndarray
    recordings: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> ClipStore:
        """Map the store in `folder`; raises DataError where it is not whole."""
        meta = read_json(folder / "store.json")
        shape = (len(meta["recordings"]) * meta["windows_per_recording"], meta["n_samples"])
        path = folder / "clips.i16"
        if path.stat().st_size != 2 * shape[0] * shape[1]:
            raise DataError(f"the clip store {str(folder)!r} is damaged; delete it and prepare again")
        recordings = meta["recordings"]
        scale = np.zeros(shape[0], dtype=np.float32)
        for i, recording in enumerate(recordings):
            first = i * meta["windows_per_recording"]
            scale[first : first + len(recording["scales"])] = recording["scales"]
        n_windows = np.array([len(r["scales"]) for r in recordings])
        samples = np.memmap(path, np.int16, "r", shape=shape)
        return cls(
            folder, folder.name, meta["sample_rate"], meta["windows_per_recording"],
            samples, scale, n_windows, recordings,
        )  # fmt: skip

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the filled rows, and the recording that each belongs to."""
        recording = np.repeat(np.arange(len(self.recordings)), self.n_windows)
        nth = np.concatenate([np.arange(n) for n in self.n_windows]) if len(recording) else recording
        return recording * self.windows_per_recording + nth, recording

    def read(self, rows: np.ndarray) -> torch.Tensor:
        """Return the clips of `rows` with their amplitudes, float32 [rows, samples]."""
        return torch.from_numpy(self.samples[rows].astype(np.float32) * self.scale[rows, None])


def build_clip_store(
    paths: Sequence[str], config: DataConfig, cache: Path, *, workers: int, progress: Progress
) -> ClipStore:
    """Return the store of the recordings in `paths`, building what is not there yet.

    A recording that cannot be decoded keeps its place with the reason as its `error`. Raises DataError when
    not one of them can.
    """
    hashes = content_hashes(paths, cache, workers=workers, progress=progress)
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
        reasons = "\n".join(f"  {p}: {r['error']}" for p, r in zip(paths, store.recordings, strict=True))
        raise DataError(f"not one of {len(paths)} recordings can be decoded:\n{reasons[:2000]}")
    return store


def _fill(
    folder: Path,
    paths: Sequence[str],
    hashes: list[str],
    config: DataConfig,
    workers: int,
    progress: Progress,
) -> None:
    """Decode into ``folder.partial``, then rename; ``done.jsonl`` says what an earlier call has finished."""
    partial = folder.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    n_samples = round(config.window_s * config.sample_rate)
    clips = partial / "clips.i16"
    with open(clips, "ab") as file:
        file.truncate(2 * n_samples * config.windows_per_recording * len(paths))
    done: dict[int, dict[str, Any]] = {}
    log = partial / "done.jsonl"
    if log.exists():
        lines = log.read_text().splitlines(keepends=True)
        done = {r["i"]: r for r in (json.loads(line) for line in lines if line.endswith("\n"))}
    log.write_text("".join(json.dumps(r) + "\n" for r in done.values()))
    todo = [_Recording(i, path, str(clips), config) for i, path in enumerate(paths) if i not in done]
    with open(log, "a") as journal:
        for result in parallel_map(_decode_into_store, todo, workers=workers, chunk=4):
            done[result["i"]] = result
            journal.write(json.dumps(result) + "\n")
            journal.flush()
            progress("decoding recordings", len(done), len(paths))
    write_json(
        partial / "store.json",
        {
            "format": FORMAT,
            "sample_rate": config.sample_rate,
            "n_samples": n_samples,
            "windows_per_recording": config.windows_per_recording,
            "recordings": [{**done[i], "sha256": hashes[i]} for i in range(len(paths))],
        },
    )
    log.unlink()
    partial.rename(folder)


@dataclass(frozen=True)
class _Recording:
    i: int
    path: str
    clips: str
    config: DataConfig


def _decode_into_store(task: _Recording) -> dict[str, Any]:
    config = task.config
    result: dict[str, Any] = {"i": task.i, "scales": [], "starts_s": [], "error": None}
    try:
        samples, sample_rate = decode(task.path)
    except DataError as error:
        return {**result, "error": str(error)}
    result.update(duration_s=len(samples) / sample_rate, sample_rate=sample_rate)
    clip = resample(torch.from_numpy(samples), sample_rate, config.sample_rate)
    if config.highpass_hz:
        # torchaudio clips what a filter returns to [-1, 1]; recordings and overshoots go beyond that.
        headroom = 4 * clip.abs().max() or 1.0
        clip = headroom * torchaudio.functional.highpass_biquad(
            clip / headroom, config.sample_rate, config.highpass_hz
        )
    n_window = round(config.window_s * config.sample_rate)
    row = task.i * config.windows_per_recording
    with open(task.clips, "r+b") as file:
        for start in most_active_windows(
            clip, config.sample_rate, config.window_s, config.windows_per_recording
        ):
            window = cut(clip, start, n_window).numpy()
            scale = float(np.abs(window).max()) / 32767 or 1.0
            file.seek(2 * n_window * (row + len(result["scales"])))
            file.write(np.round(window / scale).astype("<i2").tobytes())
            result["scales"].append(scale)
            result["starts_s"].append(round(start / config.sample_rate, 3))
    return result
