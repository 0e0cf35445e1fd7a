"""NVIDIA's Multi-Process Service (MPS), under which several processes compute on a GPU at the same time.

Without it the GPU gives each process its turn, so that small networks in four processes take four times as
long as in one.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from tuning.engine.cluster import scratch_folder
from tuning.engine.packing import Gpus

log = logging.getLogger(__name__)

FOLDERS = ("/usr/bin", "/usr/local/nvidia/bin", "/usr/local/cuda*/bin")
"""Where the driver or the toolkit keeps the control program, besides PATH."""

ANSWER_S = 20.0
# Exits with 0 where a process of this environment gets a context on the first GPU.
_CONTEXT = """
import ctypes, sys
cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
sys.exit(
    cuda.cuInit(0)
    or cuda.cuDeviceGet(ctypes.byref(device), 0)
    or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
)
"""
_PIPES, _LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"


def control_program() -> str | None:
    """Return the path of ``nvidia-cuda-mps-control``, None where there is none."""
    found = [place for pattern in FOLDERS for place in glob.glob(pattern)]
    path = os.pathsep.join([os.environ.get("PATH", ""), *found])
    return shutil.which("nvidia-cuda-mps-control", path=path)


def is_running() -> bool:
    """Return whether a daemon answers that processes started from here would use."""
    program = control_program()
    return program is not None and _asked(program, "get_server_list")


@contextlib.contextmanager
def shared_gpus(gpus: Gpus, address: str | None) -> Iterator[str | None]:
    """Run MPS within the block where trials that take `gpus` each share GPUs of this machine.

    Yields what `mps` does, and None where they share none: on a cluster at `address`, MPS is its owner's.
    """
    is_shared = gpus == "auto" or 0 < (gpus or 0) < 1
    if address or not is_shared or not torch.cuda.is_available():
        yield None
        return
    with scratch_folder() as folder, mps(folder) as words:
        yield words


@contextlib.contextmanager
def mps(folder: Path) -> Iterator[str]:
    """Run the daemon within the block, and yield in words whether processes started there share the GPU.

    `folder` gets its pipes and logs, and its path must be short. A daemon that runs already is used, and left
    as it is. Where none can be started, trials take turns: that is slower, and nothing else.
    """
    if is_running():
        yield "MPS: the daemon that runs already"
        return
    program = control_program()
    if program is None:
        yield "no MPS: there is no nvidia-cuda-mps-control"
        return
    before = {name: os.environ.get(name) for name in (_PIPES, _LOGS)}
    for name, kind in ((_PIPES, "mps"), (_LOGS, "mps-log")):
        (folder / kind).mkdir()
        os.environ[name] = str(folder / kind)
    fault = _start(program)
    try:
        if fault:
            _end(program, before)
        yield f"no MPS: {fault}" if fault else "MPS"
    finally:
        if not fault:
            _end(program, before)


def _start(program: str) -> str | None:
    """Start the daemon; return why it could not be."""
    try:
        done = subprocess.run([program, "-d"], capture_output=True, text=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program} -d: {error}"
    if done.returncode:
        return f"{program} -d: {(done.stdout + done.stderr).strip() or f'exit code {done.returncode}'}"
    if not _asked(program, "get_server_list"):
        return f"the daemon of {program} does not answer"
    try:
        code = subprocess.run(
            [sys.executable, "-c", _CONTEXT], capture_output=True, timeout=ANSWER_S
        ).returncode
    except subprocess.TimeoutExpired:
        return "a process under it waits for ever"
    return f"a process under it gets no GPU: CUDA's error {code}" if code else None


def _asked(program: str, command: str) -> bool:
    """Return whether the daemon takes a command."""
    try:
        done = subprocess.run(
            [program], input=f"{command}\n", capture_output=True, text=True, timeout=ANSWER_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _end(program: str, before: dict[str, str | None]) -> None:
    """End the daemon, and restore the variables of the environment to `before`."""
    if not _asked(program, "quit -t 5"):
        log.debug("the MPS daemon had ended before")
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
