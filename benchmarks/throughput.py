"""Training speed of the CNNs: plain fp32 against bf16 and channels_last, on one thread, in one run.

    python benchmarks/throughput.py

Batches of 32 clips of 3 x 40 x 130, 89 classes, forward, backward and optimizer step; the median of 9
repeats of 4 steps, alternating between the two.
"""

from __future__ import annotations

import statistics
import time

import torch

from birdnet_core.build import build
from birdnet_core.config import TrainConfig
from birdnet_core.training import has_fast_bf16

CPU = torch.device("cpu")


def timed_steps(model_name: str, is_mixed: bool) -> float:
    """Return clips a second over 4 steps, after one that is not counted."""
    torch.manual_seed(0)
    parts = build(
        TrainConfig().override({"model.name": model_name}),
        (3, 40, 130),
        torch.ones(89, dtype=torch.long),
        CPU,
    )
    layout = torch.channels_last if is_mixed else torch.contiguous_format
    model = parts.model.to(memory_format=layout).train()
    clips = torch.randn(32, 3, 40, 130).contiguous(memory_format=layout)
    classes = torch.randint(0, 89, (32,))
    for n in range(5):
        if n == 1:
            start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            logits = model(clips)
        parts.optimizer.zero_grad(set_to_none=True)
        parts.loss(logits.float(), classes).backward()
        parts.optimizer.step()
    return 4 * 32 / (time.perf_counter() - start)


def main() -> None:
    torch.set_num_threads(1)
    if not has_fast_bf16(CPU):
        print("this CPU has no fast bf16; birdtune trains in fp32 here")
    for name in ("audio_cnn", "audio_cnn_v2"):
        plain, mixed = [], []
        for _ in range(9):
            plain.append(timed_steps(name, is_mixed=False))
            mixed.append(timed_steps(name, is_mixed=True))
        a, b = statistics.median(plain), statistics.median(mixed)
        print(
            f"{name:14} fp32 NCHW {a:6.1f} clips/s   bf16 channels_last {b:6.1f} clips/s   ratio {b / a:.2f}"
        )


if __name__ == "__main__":
    main()
