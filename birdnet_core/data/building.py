"""Locks, hashes and worker processes for building stores, one builder at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from birdnet_core import plugins, registry
from birdnet_core.errors import MachineError
from birdnet_core.processes import end_with_parent, without_main
from birdnet_core.records.files import write_json

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

HASHES_A_COMMIT = 1000  # as many are lost at most when the process is killed
COMMIT_S = 0.5  # how often finished work is forced to the disk, against kills and power failures
NICENESS = 5  # trials that train on the same cores get three times the share of those that prepare
WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) during long work; `done` counts from 1 the items of this call."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def default_cache() -> Path:
    """Return ``$BIRDTUNE_CACHE``, else ``birdtune`` below the user's cache folder; always an absolute path.

    A relative one counts from the working directory of the first call, which writes it back into the
    environment: processes that are started later work elsewhere, and must find the same folder.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("BIRDTUNE_CACHE") or Path(home) / "birdtune").expanduser()
    if not folder.is_absolute():
        folder = folder.absolute()
        os.environ["BIRDTUNE_CACHE"] = str(folder)
    return folder


def n_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def short_hash(value: Any) -> str:
    """Return 16 hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` so that no two processes build it at once; a dead holder's is free.

    Raises MachineError where the file system has no locks.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            raise MachineError(
                f"the file system of {str(folder.parent)!r} cannot lock files ({error.strerror}); without "
                "locks two processes could write there at once. Set BIRDTUNE_CACHE to a folder on one that "
                "can, such as a local disk"
            ) from None
        yield


def mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Map the beginning of a file for reading as an array of `shape`, which may be empty."""
    return np.memmap(path, dtype, "r", shape=shape) if math.prod(shape) else np.empty(shape, dtype)


def size_of(path: Path) -> int:
    """Return the bytes of a file; opened for it, because network file systems may remember an older size."""
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_size


def open_at(path: Path, size: int) -> BinaryIO:
    """Open a file for writing after its first `size` bytes, cutting off the bytes of a killed process."""
    file = open(path, "r+b")  # noqa: SIM115
    file.truncate(size)
    file.seek(size)
    return file


def start_anew(folder: Path, files: Sequence[str], meta: dict[str, Any]) -> None:
    """Make a store of empty `files`, with `meta` as store.json, in the place of one that cannot be used."""
    if folder.exists():
        log.warning("the store %s is damaged or does not fit its clips, and is made anew", folder)
        shutil.rmtree(folder)
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name in files:
        (new / name).touch()
    write_json(new / "store.json", meta)
    new.rename(folder)


def to_disk(file: BinaryIO) -> None:
    """Return when everything written to a file, by any process, is on the disk."""
    file.flush()
    os.fdatasync(file.fileno())


class Workers:
    """Processes that share the work of preparing; they start when they are first needed, and stay until exit.

    They have a low priority, so that there may be one for every core while trials train. As a context
    manager it ends when the work is done, after an error as soon as possible.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def map(self, function: Callable[[T], R], tasks: Sequence[T], *, chunk: int) -> Iterator[R]:
        """Yield the results of `function` over `tasks` as they come.

        `function` must be importable. At most a few chunks per worker are in flight, so memory does not grow
        with the number of tasks. Little work is done here, where starting processes would take longer. Raises
        MachineError where a worker process is ended from outside.
        """
        if self.n <= 1 or (self._pool is None and len(tasks) <= 2 * chunk):
            yield from map(function, tasks)
            return
        lost = yield from self._through(function, _chunks(tasks, chunk), 3 * self.n)
        if lost:
            raise MachineError(
                "a worker process ended while it prepared data, as the system ends one when memory runs out; "
                f"free some, or use fewer than {self.n} workers"
            )

    def map_each(
        self, function: Callable[[T], R], tasks: Sequence[T], *, chunk: int, ended: Callable[[T, str], R]
    ) -> Iterator[R]:
        """Yield results as `map` does, also where a task ends its process, as a crashing decoder does.

        The result of such a task is `ended(task, how)`, where `how` is the signal or exit code; all other
        tasks are done. Nothing is done in this process.
        """
        chunks = _chunks(tasks, chunk)
        # Which task ended its process is not known: all in flight run again, and in the end each alone.
        while lost := (yield from self._through(function, chunks, 3 * self.n)):
            again = _chunks(lost, 1)
            while suspects := (yield from self._through(function, again, self.n)):
                for task in suspects:
                    yield _alone(function, task, ended)

    def _through(
        self, function: Callable[[T], R], chunks: Iterator[list[T]], width: int
    ) -> Generator[R, None, list[T]]:
        """Yield results with `width` chunks in flight; return the tasks in flight when a process ended."""
        running: dict[Future[list[R]], list[T]] = {}
        lost: list[T] = []
        is_more = True
        while is_more or running:
            while is_more and not lost and len(running) < width:
                some = next(chunks, None)
                is_more = some is not None
                if some is not None:
                    try:
                        running[self._submit(function, some)] = some
                    except BrokenProcessPool:
                        lost += some
            is_more = is_more and not lost
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                some = running.pop(future)
                try:
                    results = future.result()
                except BrokenProcessPool:
                    lost += some
                else:
                    yield from results
        if lost and self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        return lost

    def _submit(self, function: Callable[[T], R], tasks: list[T]) -> Future[list[R]]:
        with without_main():
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    max(1, self.n),
                    mp_context=_fork_server(),
                    initializer=_worker_started,
                    initargs=(_shipped(),),
                )
            return self._pool.submit(_map_chunk, function, tasks)


def _chunks(tasks: Sequence[T], size: int) -> Iterator[list[T]]:
    return (list(tasks[i : i + size]) for i in range(0, len(tasks), size))


def _alone(function: Callable[[T], R], task: T, ended: Callable[[T, str], R]) -> R:
    """Return the result of one task from a process of its own, or of `ended` where that ends early."""
    context = _fork_server()
    receiver, sender = context.Pipe(duplex=False)
    with without_main():
        process = context.Process(target=_send_result, args=(sender, _shipped(), function, task), daemon=True)
        process.start()
    sender.close()
    try:
        result: R = receiver.recv()
    except EOFError:
        process.join()
        return ended(task, _how_it_ended(process.exitcode or 0))
    process.join()
    return result


def _send_result(
    sender: Connection, shipped: list[dict[str, Any]], function: Callable[[T], R], task: T
) -> None:
    _worker_started(shipped)
    sender.send(function(task))


def _how_it_ended(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


def start_workers() -> None:
    """Start the import of worker processes in the background, a few seconds before they are needed."""
    _fork_server()
    multiprocessing.forkserver.ensure_running()


def _fork_server() -> ForkServerContext:
    # Workers start in milliseconds, and never inherit the threads of this process.
    context = multiprocessing.get_context("forkserver")
    # torchaudio is the features', which are found by name only when they are needed.
    context.set_forkserver_preload(["birdnet_core.data.dataset", "torchaudio"])
    return context


def _shipped() -> list[dict[str, Any]]:
    """Return the plugins that a worker has to load, as plain values."""
    return [plugin.to_dict() for plugin in plugins.loaded()]


def _worker_started(shipped: list[dict[str, Any]]) -> None:
    import torch

    os.nice(NICENESS)
    torch.set_num_threads(1)
    end_with_parent()
    registry.load_shipped(shipped)


def _map_chunk(function: Callable[[T], R], tasks: list[T]) -> list[R]:
    return [function(task) for task in tasks]


def content_hashes(
    paths: Sequence[str], cache: Path, *, workers: int, progress: Progress = no_progress
) -> list[str]:
    """Return the SHA-256 of every file ("" for one that cannot be read), remembered by size and time.

    When several processes need the same files at once, one reads them. Raises MachineError where the database
    of the hashes cannot be used.
    """
    cache.mkdir(parents=True, exist_ok=True)
    remembered = cache / "hashes.sqlite"
    stamps = [_stamp(path) for path in paths]
    try:
        with contextlib.closing(sqlite3.connect(remembered, timeout=60)) as database:
            hashes = _remembered(database, paths, stamps)
            if any(stamp and not sha for stamp, sha in zip(stamps, hashes, strict=True)):
                with locked(remembered):
                    hashes = _remembered(database, paths, stamps)
                    _hash_others(database, paths, stamps, hashes, workers, progress)
    except sqlite3.Error as error:
        raise MachineError(
            f"the hashes in {str(remembered)!r} cannot be used: {error}; delete that "
            "file, or set BIRDTUNE_CACHE to a folder on a disk that this machine may write and lock"
        ) from None
    return hashes


def _remembered(
    database: sqlite3.Connection, paths: Sequence[str], stamps: Sequence[tuple[int, ...]]
) -> list[str]:
    with database:
        database.execute(
            "create table if not exists hashes (path text primary key, size int, mtime_ns int, sha256 text)"
        )
    hashes = []
    for path, stamp in zip(paths, stamps, strict=True):
        found = database.execute("select size, mtime_ns, sha256 from hashes where path = ?", [path])
        known = found.fetchone()
        hashes.append(known[2] if stamp and known and known[:2] == stamp else "")
    return hashes


def _hash_others(
    database: sqlite3.Connection,
    paths: Sequence[str],
    stamps: Sequence[tuple[int, ...]],
    hashes: list[str],
    workers: int,
    progress: Progress,
) -> None:
    """Fill in the `hashes` that are still "" of the files that are there, and remember them."""
    todo = [i for i, stamp in enumerate(stamps) if stamp and not hashes[i]]
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for first in range(0, len(todo), HASHES_A_COMMIT):
            some = todo[first : first + HASHES_A_COMMIT]
            for n, sha in enumerate(pool.map(content_hash, [paths[i] for i in some])):
                hashes[some[n]] = sha
                progress("hashing recordings", first + n + 1, len(todo))
            with database:
                database.executemany(
                    "insert or replace into hashes values (?, ?, ?, ?)",
                    [(paths[i], *stamps[i], hashes[i]) for i in some if hashes[i]],
                )


def _stamp(path: str) -> tuple[int, ...]:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns


def content_hash(path: str) -> str:
    """Return the SHA-256 of a file; "" for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
