"""Recordings of any length as batches of windows, for whatever scores or embeds them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from birdnet_core.config import DataConfig
from birdnet_core.data.audio import opened
from birdnet_core.data.manifest import EXTENSIONS
from birdnet_core.data.windows import Window, windows
from birdnet_core.errors import ConfigError, DataError

log = logging.getLogger(__name__)

MIN_HOP_S = 0.05
SILENT_SHARE = 1e-6  # of the loudest sample so far: the filters leave no exact zeros next to sound

READ_AHEAD = 3  # batches and ends of files that are decoded while one is scored

Place = str | Path
T = TypeVar("T")


@dataclass(frozen=True)
class Ended:
    """One file that was read: the seconds of it that were read, and its fault, "" where it has none."""

    file: str
    seconds: float
    fault: str


def batches_of_windows(
    paths: Place | Iterable[Place],
    data: DataConfig,
    overlap_s: float,
    batch_size: int,
    on_end: Callable[[Ended], None],
) -> Iterator[tuple[list[tuple[str, Window]], float]]:
    """Yield the windows of `paths` that hold sound, in order and with their files, `batch_size` at a time.

    The number with them counts the files that were read so far, with the present one as its share. `on_end`
    is called after each file, before the batch with its last windows comes. The next batches are decoded
    while one is worked on.
    """
    for item in read_ahead(_batches(paths, data, overlap_s, batch_size), READ_AHEAD):
        if isinstance(item, Ended):
            on_end(item)
        else:
            yield item


def read_ahead(items: Generator[T], n: int) -> Iterator[T]:
    """Yield `items`, of which a thread makes up to `n` before they are asked for; then close them."""
    done = object()
    with ThreadPoolExecutor(1) as reader:
        waiting = deque(reader.submit(next, items, done) for _ in range(n))
        try:
            while (item := waiting.popleft().result()) is not done:
                waiting.append(reader.submit(next, items, done))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
            reader.submit(items.close)


def _batches(
    paths: Place | Iterable[Place], data: DataConfig, overlap_s: float, batch_size: int
) -> Generator[Ended | tuple[list[tuple[str, Window]], float]]:
    """Yield the batches of `batches_of_windows`, and the end of each file where `on_end` is called."""
    if not 0 <= overlap_s <= data.window_s - MIN_HOP_S:
        raise ConfigError(
            f"overlap_s = {overlap_s:g} is not accepted; it takes 0 to {data.window_s - MIN_HOP_S:g} "
            f"seconds, {MIN_HOP_S:g} less than a window"
        )
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size} is not accepted; it takes 1 or more")
    waiting: list[tuple[str, Window]] = []
    n_read = 0.0
    files = audio_files(paths)
    for n_before, path in enumerate(files):
        for item in _windows(path, data, overlap_s):
            if isinstance(item, Ended):
                yield item
                continue
            window, share = item
            n_read = n_before + share
            waiting.append((str(path), window))
            if len(waiting) == batch_size:
                yield waiting, n_read
                waiting = []
    if waiting:
        yield waiting, float(len(files))


def _windows(path: Path, data: DataConfig, overlap_s: float) -> Iterator[Ended | tuple[Window, float]]:
    """Yield the windows of one file that hold sound, with the share of the file read, and its end."""
    seconds, fault, loudest = 0.0, "", 0.0
    try:
        with opened(path) as recording:
            for window in windows(recording, data, overlap_s):
                seconds = recording.n_read / recording.sample_rate
                peak = float(window.samples.abs().max())
                loudest = max(loudest, peak)
                if peak > SILENT_SHARE * loudest:
                    yield window, min(1.0, recording.n_read / max(1, recording.promised))
        if loudest == 0:
            fault = "the recording is silent: every sample is 0"
    except DataError as error:
        fault = str(error)
    yield Ended(str(path), seconds, fault)


def audio_files(places: Place | Iterable[Place]) -> list[Path]:
    """Return the files among `places`, and all audio in the folders among them at any depth, sorted.

    Audio in folders is recognised by its extension; hidden files are left out. A file that is named is
    taken as it is; where it cannot be read, prediction reports it. Raises DataError for a folder without
    audio.
    """
    found = []
    for place in [places] if isinstance(places, (str, Path)) else places:
        place = Path(place)
        if not place.is_dir():
            found.append(place)
            continue
        inside = [
            file
            for file in sorted(place.rglob("*"))
            if file.suffix.lower() in EXTENSIONS
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(place).parts)
        ]
        if not inside:
            raise DataError(
                f"the folder {str(place)!r} holds no audio; expected files with an extension of "
                f"{' '.join(EXTENSIONS)}"
            )
        found += inside
    return found


def no_recording_read(faults: Sequence[Ended]) -> str:
    """Return the message for the case that not one file gave a window, with the first reasons."""
    reasons = "".join(f"\n  {ended.file}: {ended.fault}" for ended in faults[:20])
    return f"not one of {len(faults)} recordings can be scored:{reasons}"


def collected(faults: list[Ended]) -> Callable[[Ended], None]:
    """Return a function that logs each fault and appends it to `faults`."""

    def collect(ended: Ended) -> None:
        if ended.fault:
            log.warning("%s: %s", ended.file, ended.fault)
            faults.append(ended)

    return collect
