"""Ray, started quietly on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray

# What keeps Ray quiet and writes nothing beside our journal. Its metric check is off, because the result of a
# trial that failed has no metrics.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
}


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a temporary folder that is gone when the block ends, or, after a kill, when the next one is made.

    Each is locked by its process, so that those of dead ones are known even where process ids are not shared.
    """
    for lock_file in Path(tempfile.gettempdir()).glob("bt-*/alive"):
        with contextlib.suppress(OSError), open(lock_file) as lock:  # another user's, or just being removed
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(lock_file.parent)
    folder = Path(tempfile.mkdtemp(prefix="bt-"))  # short: Ray keeps sockets there, whose paths must be
    try:
        with open(folder / "new", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "new").rename(folder / "alive")
            yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a scratch folder, but for what processes that are still dying write there: the next one will."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        elif child.name != "alive":
            child.unlink(missing_ok=True)
    if [child.name for child in folder.iterdir()] == ["alive"]:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ray_session(log: Path) -> Iterator[dict[str, float]]:
    """Start Ray on this machine if it is not running, and yield its CPUs and GPUs.

    Without dashboard, without usage statistics, bound to localhost; what it started is stopped at the end and
    its temporary files are removed. What Ray has to say goes to the file `log`.
    """
    if ray.is_initialized():
        yield _totals()
        return
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    logger = logging.getLogger("ray")
    handler = logging.FileHandler(log, delay=True)
    logger.handlers, terminal = [handler], logger.handlers
    with scratch_folder() as folder:
        try:
            ray.init(
                address="local",  # never attach to a cluster that happens to be there, such as a dying one
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=128 * 2**20,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder),
            )
            yield _totals()
        finally:
            ray.shutdown()
            logger.handlers = terminal
            handler.close()


def _totals() -> dict[str, float]:
    resources = ray.cluster_resources()
    return {"cpu": resources.get("CPU", 0.0), "gpu": resources.get("GPU", 0.0)}
