"""Memory of a process and of the GPU: its peak, giving it back, and errors that mean there is none left."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

# Libraries other than torch's allocator have a status each. Statuses with other causes too, such as
# CUDNN_STATUS_NOT_SUPPORTED or CUBLAS_STATUS_NOT_INITIALIZED, are left out: training with half the clips
# would hide the fault.
_STATUS = re.compile(
    r"\b(CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_(DEVICE|HOST)_ALLOCATION_FAILED|CUSOLVER_STATUS_ALLOC_FAILED)\b"
)
_CUDA = re.compile(r"CUDA (driver )?error: out of memory\b")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means that the GPU has no memory left.

    Its spellings are torch.OutOfMemoryError of torch's allocator; cudaErrorMemoryAllocation, which torch
    raises as AcceleratorError (older versions as RuntimeError) where CUDA itself allocates, for a kernel or a
    context; and RuntimeError with the status of cuBLAS, cuDNN, cuFFT or cuSOLVER. None of them breaks the
    process's CUDA context, so that the work can be repeated with less. Any other AcceleratorError may: then
    every later call raises, and a new process has to continue.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # Not anywhere in the text, which may quote another error: where torch begins it.
    return isinstance(error, RuntimeError) and bool(
        _CUDA.match(str(error)) or _STATUS.search(str(error).partition("\n")[0])
    )


def may_run_out(device: torch.device) -> bool:
    """Return whether `is_out_of_memory` can be true of work on `device`: on a GPU."""
    return device.type == "cuda"


def give_back_memory() -> None:
    """Return to the system and to the GPU what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        # cuBLAS keeps a workspace of megabytes from the first product of matrices on.
        if clear := getattr(torch._C, "_cuda_clearCublasWorkspaces", None):
            clear()
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc keeps freed memory, see `device.keep_freed_memory`
        trim(0)


def forget_peak_rss() -> int | None:
    """Reset the peak of resident memory, and return the bytes resident now; None where the system cannot.

    Otherwise the peak of earlier work would count for later work.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return None
    return _proc_status("VmRSS")


def peak_rss() -> int:
    """Return the most bytes resident since `forget_peak_rss`, where that could be done."""
    return _proc_status("VmHWM")


class PeakMemory:
    """The most memory since it was made: torch's on a GPU, else the process's.

    `before` is the peak in bytes of the same run in other processes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = 0
        self.is_known = forget_peak_rss() is not None or device.type == "cuda"
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def bytes(self) -> int | None:
        """Return the peak so far in bytes, None where the system does not measure it (other than Linux)."""
        if not self.is_known:
            return None
        now = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else peak_rss()
        return max(now, self.before)


def _proc_status(name: str) -> int:
    """Return a value of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")
