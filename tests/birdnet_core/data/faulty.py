"""Decoders that fail as real ones do, in the place of `clip_store._decode`; worker processes import them."""

import os
import signal
import time
from pathlib import Path

from birdnet_core.data import clip_store

_decode = clip_store._decode
SLOW = "TEST_PIDS"


def by_name(task, *, config):
    """Fail where the name of a recording says how."""
    kind = Path(task[1]).name.partition("-")[0]
    if kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "exit":
        os._exit(3)
    if kind == "memory":
        clip_store.decode = out_of_memory
    try:
        return _decode(task, config=config)
    finally:
        clip_store.decode = _real_decode


_real_decode = clip_store.decode


def out_of_memory(path):
    raise MemoryError("Unable to allocate 9.31 GiB")


def slowly(task, *, config):
    """Take a while, and write down the process and the recording in the file that the environment names."""
    time.sleep(0.05)
    with open(os.environ[SLOW], "a") as file:
        file.write(f"{os.getpid()} {task[1]}\n")
    return _decode(task, config=config)
