"""How stores are built: named by a hash of what goes in, by several processes, by one builder at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import sqlite3
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, TypeVar

from birdnet_core import plugins, registry

T = TypeVar("T")
R = TypeVar("R")

HASHES_A_COMMIT = 1000  # what a kill can cost

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) while something long is made: of what this call has to do, from 1 on."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""


def default_cache() -> Path:
    """Return ``$BIRDTUNE_CACHE``, else ``birdtune`` below the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BIRDTUNE_CACHE") or Path(home) / "birdtune")


def short_hash(value: Any) -> str:
    """Return 16 hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` so that no two processes build it at once; a dead holder's is free."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Workers:
    """Processes that share the work of preparing; they start when they are first needed, and stay until exit.

    As a context manager: without an error it ends when the work is done, with one as soon as can be.
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
        with the number of tasks. Little work is done here, where starting processes would take longer.
        """
        if self.n <= 1 or (self._pool is None and len(tasks) <= 2 * chunk):
            yield from map(function, tasks)
            return
        chunks = (list(tasks[i : i + chunk]) for i in range(0, len(tasks), chunk))
        running: set[Future[list[R]]] = set()
        for some in chunks:
            running.add(self._submit(function, some))
            if len(running) >= 3 * self.n:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield from future.result()
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield from future.result()

    def _submit(self, function: Callable[[T], R], tasks: list[T]) -> Future[list[R]]:
        with without_main():
            if self._pool is None:
                shipped = [plugin.to_dict() for plugin in plugins.loaded()]
                self._pool = ProcessPoolExecutor(
                    self.n, mp_context=_fork_server(), initializer=_worker_started, initargs=(shipped,)
                )
            return self._pool.submit(_map_chunk, function, tasks)


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Start processes that do not import the script that runs.

    multiprocessing imports it into each of them for functions defined there, which is slow, and starts the
    script again where it lacks an ``if __name__ == "__main__"``. Ours are in modules.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def start_workers() -> None:
    """Let worker processes import what they need while this process goes on; a few seconds ahead."""
    _fork_server()
    multiprocessing.forkserver.ensure_running()


def _fork_server() -> ForkServerContext:
    # Workers start in milliseconds, and never inherit the threads of this process.
    context = multiprocessing.get_context("forkserver")
    # torchaudio is the features', which are found by name only when they are needed.
    context.set_forkserver_preload(["birdnet_core.data.dataset", "torchaudio"])
    return context


def _worker_started(shipped: list[dict[str, Any]]) -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    registry.load_shipped(shipped)


def _end_with_parent() -> None:
    """End a worker whose parent was killed; it would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _map_chunk(function: Callable[[T], R], tasks: list[T]) -> list[R]:
    return [function(task) for task in tasks]


def content_hashes(
    paths: Sequence[str], cache: Path, *, workers: int, progress: Progress = no_progress
) -> list[str]:
    """Return the SHA-256 of every file ("" for one that cannot be read), remembered by size and time."""
    cache.mkdir(parents=True, exist_ok=True)
    hashes = ["" for _ in paths]
    todo = []
    with contextlib.closing(sqlite3.connect(cache / "hashes.sqlite", timeout=60)) as database:
        with database:
            database.execute(
                "create table if not exists hashes "
                "(path text primary key, size int, mtime_ns int, sha256 text)"
            )
        for i, path in enumerate(paths):
            stamp = _stamp(path)
            found = database.execute("select size, mtime_ns, sha256 from hashes where path = ?", [path])
            known = found.fetchone()
            if stamp and known and known[:2] == stamp:
                hashes[i] = known[2]
            elif stamp:
                todo.append((i, path, stamp))
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            for first in range(0, len(todo), HASHES_A_COMMIT):
                some = todo[first : first + HASHES_A_COMMIT]
                for n, sha in enumerate(pool.map(_sha256, [path for _, path, _ in some])):
                    hashes[some[n][0]] = sha
                    progress("hashing recordings", first + n + 1, len(todo))
                with database:
                    database.executemany(
                        "insert or replace into hashes values (?, ?, ?, ?)",
                        [(path, *stamp, hashes[i]) for i, path, stamp in some if hashes[i]],
                    )
    return hashes


def _stamp(path: str) -> tuple[int, ...]:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
