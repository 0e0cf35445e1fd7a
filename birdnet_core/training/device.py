"""The device, the precision and the process that a network runs in, alike for training and prediction."""

from __future__ import annotations

import ctypes
import os
import random
import warnings
from typing import Literal

import numpy as np
import torch

from birdnet_core.config import RuntimeConfig
from birdnet_core.errors import ConfigError

Precision = Literal["bf16", "fp16", "tf32", "fp32"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Of mallopt(3)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, up to 1 GiB, where its C library is glibc.

    Activations of megabytes otherwise go back to the system and come again, page by page, at every step of
    the CPU: 3 to 10 % of a training step of AudioCNN.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 2**30)
        mallopt(_M_TOP_PAD, 64 * 2**20)


def pick_device(runtime: RuntimeConfig) -> torch.device:
    """Return the device of `runtime.device`: for ``auto`` the GPU, the CPU where there is none.

    Raises ConfigError for ``cuda`` without a GPU.
    """
    has_gpu = torch.cuda.is_available()
    if runtime.device == "cuda" and not has_gpu:
        raise ConfigError("runtime.device = 'cuda', but torch finds no GPU here; use 'auto' or 'cpu'")
    if not has_gpu or runtime.device == "cpu":
        return torch.device("cpu")
    torch.cuda.init()  # parts of torch.cuda do not start it by themselves,
    return torch.device("cuda:0")  # and parts take no device without its number


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bf16 natively: a GPU, or a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def pick_precision(wanted: str, device: torch.device) -> Precision:
    """Return `wanted`; for ``auto`` bf16, fp16 on GPUs without bf16, and fp32 on CPUs without it.

    TF32 is fp32 on a CPU.
    """
    if wanted == "tf32" and device.type != "cuda":
        return "fp32"
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    if has_fast_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def layout_of(precision: Precision) -> torch.memory_format:
    """Return the memory format that convolutions are fast in: channels_last in half precision."""
    return torch.channels_last if precision in _DTYPES else torch.contiguous_format


def choose_kernels(device: torch.device, precision: Precision, *, deterministic: bool = False) -> None:
    """Set which kernels torch takes on a GPU, for the whole process.

    Without `deterministic`, cuDNN takes the fastest of what it measures for each shape. Only ``tf32``
    multiplies float32 with less than its precision, which torch's own default does in convolutions.
    """
    if device.type != "cuda":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which torch requires of cuBLAS
    torch.use_deterministic_algorithms(deterministic)
    # No kernel here reads memory that it has not written, and filling it costs one more kernel each time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    with warnings.catch_warnings():
        # Some releases warn that newer switches exist, which torch.compile and others cannot read yet.
        warnings.simplefilter("ignore")
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


def logits_of(model: torch.nn.Module, features: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return float32 logits [batch, classes] of `features` on the device of `model`."""
    dtype = _DTYPES.get(precision)
    with torch.autocast(features.device.type, dtype, enabled=dtype is not None):
        if features.ndim == 4:
            features = features.contiguous(memory_format=layout_of(precision))
        logits: torch.Tensor = model(features)
    return logits.float()
