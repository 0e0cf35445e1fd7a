"""Memory of a process and of the GPU: the most that was taken, giving it back, and when there is no more."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

# The libraries beside torch's own allocator, each with its own word for it. Not among them are statuses with
# other causes too, such as CUDNN_STATUS_NOT_SUPPORTED or CUBLAS_STATUS_NOT_INITIALIZED: training on with half
# the clips would hide what is wrong.
_STATUS = re.compile(
    r"\b(CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_(DEVICE|HOST)_ALLOCATION_FAILED|CUSOLVER_STATUS_ALLOC_FAILED)\b"
)
_CUDA = re.compile(r"CUDA (driver )?error: out of memory\b")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that the GPU has no memory left, in any of its spellings.

    That is torch.OutOfMemoryError of torch's allocator; cudaErrorMemoryAllocation, which torch raises as
    AcceleratorError (older versions as RuntimeError) where CUDA itself allocates, for a kernel or a context;
    and RuntimeError with the status of cuBLAS, cuDNN, cuFFT or cuSOLVER. None of them breaks the process's
    CUDA context, so that it can try again with less. Any other AcceleratorError may: then every later call
    raises, and a fresh process has to go on.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # Not anywhere in the text, which may quote another error: where torch begins it.
    return isinstance(error, RuntimeError) and bool(
        _CUDA.match(str(error)) or _STATUS.search(str(error).partition("\n")[0])
    )


def give_back_memory() -> None:
    """Return to the system and to the GPU what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        # cuBLAS keeps a workspace of megabytes from the first product of matrices on.
        if clear := getattr(torch._C, "_cuda_clearCublasWorkspaces", None):
            clear()
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc: a session has told it to keep what is freed
        trim(0)


def forget_peak_rss() -> int | None:
    """Start the peak of resident memory anew, and return the bytes resident now; None where it cannot be.

    Without that, what comes after something large would seem to take as much.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return None
    return _proc_status("VmRSS")


def peak_rss() -> int:
    """Return the most bytes resident since `forget_peak_rss`, where that could be done."""
    return _proc_status("VmHWM")


def _proc_status(name: str) -> int:
    """Return a value of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")
