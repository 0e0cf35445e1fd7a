"""Ray: started quietly on this machine, or joined where a cluster runs."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray
from ruamel.yaml import YAML

from birdnet_core.errors import ConfigError
from tuning.engine.nodes import living_nodes
from tuning.engine.packing import Node

# What keeps Ray quiet and writes nothing but our journal. Its metric check is off, because the result of a
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
    with contextlib.suppress(FileNotFoundError):  # the next one has begun, and was faster
        for child in folder.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child, ignore_errors=True)
            elif child.name != "alive":
                child.unlink(missing_ok=True)
        if [child.name for child in folder.iterdir()] == ["alive"]:
            shutil.rmtree(folder, ignore_errors=True)


class _LogFile(logging.FileHandler):
    """A file whose folder may not be there yet, or whose disk is full: what cannot be written is dropped."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True)

    def emit(self, record: logging.LogRecord) -> None:
        if Path(self.baseFilename).parent.exists():
            super().emit(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what is left of the last lines has no room either
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Be silent about a full disk, which the sweep itself reports."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


@contextlib.contextmanager
def ray_session(log: Path, address: str | None = None) -> Iterator[list[Node]]:
    """Start Ray on this machine, or join the cluster at `address`, and yield its nodes.

    Started here, it is without dashboard, without usage statistics, bound to localhost, stopped at the end,
    and its temporary files are removed. What Ray has to say goes to the file `log`. A session of this process
    that runs already is used as it is. Raises ConfigError where no cluster answers at `address`.
    """
    # Also where the caller has started Ray: Tune reads its own when it runs, and would else take Ctrl-C.
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    if ray.is_initialized():
        yield live_nodes()
        return
    logger = logging.getLogger("ray")
    handler = _LogFile(log)
    logger.handlers, terminal = [handler], logger.handlers
    try:
        with contextlib.ExitStack() as stack:
            if address:
                _join(address)
            else:
                _start(stack.enter_context(scratch_folder()))
            stack.callback(ray.shutdown)
            yield live_nodes()
    finally:
        logger.handlers = terminal
        handler.close()


def _start(folder: Path) -> None:
    ray.init(
        address="local",  # never attach to a cluster that happens to be there, such as a dying one
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=128 * 2**20,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder),
    )


def _join(address: str) -> None:
    if "://" in address:
        raise ConfigError(
            f"--address {address!r} is not HOST:PORT or auto; Ray Client (ray://) is not supported: start "
            "birdtune on a machine of the cluster, with --address auto"
        )
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            # Ray itself waits for a minute at a time, and tries for many of them.
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--address {address!r}: no Ray cluster answers ({error}); it takes HOST:PORT of a cluster that "
            "`ray start --head` started, or auto on one of its machines"
        ) from error


def live_nodes() -> list[Node]:
    """Return the nodes of the cluster that are there now."""
    return [
        Node(cpus=node["Resources"].get("CPU", 0.0), gpus=node["Resources"].get("GPU", 0.0))
        for node in living_nodes()
    ]


def nodes_to_come(n_workers: int, file: Path = Path("~/ray_bootstrap_config.yaml")) -> list[Node]:
    """Return the nodes that Ray's autoscaler may start in addition to the `n_workers` that are there.

    None where Ray's cluster launcher did not make this machine: `file` is what it leaves on the head of a
    cluster, and by which Ray Tune knows one too. Kinds of nodes of which it does not say what they have are
    left out.
    """
    path = file.expanduser()
    if not path.exists():
        return []
    launcher = YAML(typ="safe").load(path)
    most = launcher.get("max_workers", 0)
    nodes: list[Node] = []
    for kind in launcher.get("available_node_types", {}).values():
        has = kind.get("resources") or {}
        node = Node(cpus=float(has.get("CPU", 0)), gpus=float(has.get("GPU", 0)))
        if node.cpus or node.gpus:
            nodes += [node] * min(kind.get("max_workers", most), most)
    return nodes[n_workers:most]
