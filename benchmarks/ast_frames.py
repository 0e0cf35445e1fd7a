"""What AST costs at the frames of the clips against the 1,024 frames that it was made for, in one run.

    python benchmarks/ast_frames.py

One training step (forward, backward, AdamW) of audio_ast base from scratch, batch 2 of 1 x 128 x 173, 89
classes, on one thread, against the same step with the clips padded to 1,024 frames; the median of 5 repeats
that alternate between the two, after one that is not counted. In the trainer's default precision: bf16 where
the CPU multiplies it natively, fp32 elsewhere.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from birdnet_core.build import build_model
from birdnet_core.config import component
from birdnet_core.registry import models
from birdnet_core.training.device import has_fast_bf16

CPU = torch.device("cpu")
BATCH, BINS, N_CLASSES = 2, 128, 89
FRAMES, PADDED_FRAMES = 173, 1024
REPEATS = 5


class Trained:
    """A network of its own for one length of spectrogram, and its optimizer."""

    def __init__(self, frames: int, layout: torch.memory_format) -> None:
        torch.manual_seed(0)
        self.layout = layout
        self.model = build_model(component(models, "audio_ast", {}), (1, BINS, frames), N_CLASSES).train()
        self.model = self.model.to(memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.missing = frames - FRAMES

    def timed_step(self, clips: torch.Tensor, classes: torch.Tensor, is_mixed: bool) -> float:
        """Return the seconds of one training step, padding included."""
        start = time.perf_counter()
        features = nn.functional.pad(clips, (0, self.missing)).contiguous(memory_format=self.layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            logits = self.model(features)
        self.optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(logits.float(), classes).backward()
        self.optimizer.step()
        return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    is_mixed = has_fast_bf16(CPU)
    layout = torch.channels_last if is_mixed else torch.contiguous_format
    clips, classes = torch.randn(BATCH, 1, BINS, FRAMES), torch.randint(0, N_CLASSES, (BATCH,))
    seconds: dict[int, list[float]] = {FRAMES: [], PADDED_FRAMES: []}
    trained = {frames: Trained(frames, layout) for frames in seconds}
    for repeat in range(1 + REPEATS):
        for frames, taken in seconds.items():
            one = trained[frames].timed_step(clips, classes, is_mixed)
            if repeat > 0:
                taken.append(one)
    short, long = (statistics.median(seconds[frames]) for frames in (FRAMES, PADDED_FRAMES))
    print(f"{'bf16' if is_mixed else 'fp32'}, one thread, batch {BATCH}")
    print(f"{FRAMES:5} frames {short:6.2f} s a step")
    print(f"{PADDED_FRAMES:5} frames {long:6.2f} s a step   ratio {long / short:.2f}")


if __name__ == "__main__":
    main()
