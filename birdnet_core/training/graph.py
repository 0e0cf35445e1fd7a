"""The training step as a CUDA graph, which a GPU runs without waiting for Python.

A step of AudioCNN is some 170 kernels of microseconds each. Launched one by one, they take several times as
long as the GPU computes. A graph launches all of them at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from birdnet_core.config import RuntimeConfig
from birdnet_core.training.batches import Raw

WARM_UP = 3
"""Steps before the capture: in them libraries choose their kernels, and the optimizer makes its state."""

Step = Callable[[Raw], torch.Tensor]


def why_eager(
    device: torch.device, runtime: RuntimeConfig, precision: str, parts: Iterable[nn.Module]
) -> str | None:
    """Return why the steps of a run are launched kernel by kernel; None where they may be captured.

    A graph repeats what was captured, so that a draw from Python's or numpy's generators would be the same in
    every step. `parts` from outside birdtune say with ``is_capturable = True`` that they have none.
    """
    if device.type != "cuda":
        return "on the CPU"
    if runtime.cuda_graph == "off":
        return "runtime.cuda_graph = 'off'"
    if precision == "fp16":
        return "fp16 leaves out steps whose gradients overflow"
    for part in parts:
        is_own = type(part).__module__.split(".")[0] == "birdnet_core"
        if not getattr(part, "is_capturable", is_own):
            return f"{type(part).__name__} does not state is_capturable = True"
    return None


class CapturedStep:
    """`step`, captured in a CUDA graph after `WARM_UP` steps and replayed from then on.

    All that changes from step to step must lie in tensors that stay where they are: weights, moments,
    learning rates, and the batch, which is copied to where the graph reads it. A step that makes the CPU wait
    for the GPU cannot be captured, and stays eager.

    Args:
        step: makes a training step of a batch and returns float32 [n] on the device.
        generators: those that `step` draws from, besides torch's default one of the device.
        gpu: where the graph is captured and replayed.

    Batches must have the same shapes. `why_eager` is None, unless the warm-up made the CPU wait.
    """

    def __init__(self, step: Step, generators: Iterable[torch.Generator], gpu: Gpu | None = None) -> None:
        self.step = step
        self.generators = tuple(generators)
        self.gpu = gpu or Gpu()
        self.why_eager: str | None = None
        self.n_eager = 0
        self.batch: Raw | None = None
        self.replay: Callable[[], torch.Tensor] | None = None

    def __call__(self, raw: Raw) -> torch.Tensor:
        if self.replay is not None and self.batch is not None:
            for part in fields(Raw):
                getattr(self.batch, part.name).copy_(getattr(raw, part.name), non_blocking=True)
            return self.replay()
        if self.why_eager:
            return self.step(raw)
        if self.n_eager < WARM_UP:
            self.n_eager += 1
            result, has_waited = self.gpu.warm_up(lambda: self.step(raw))
            if has_waited and self.n_eager == WARM_UP:
                self.why_eager = "a part of the step makes the CPU wait for the GPU"
            return result
        self.batch = batch = self.gpu.copy(raw)
        self.replay = self.gpu.capture(lambda: self.step(batch), self.generators)
        return self.replay()


class Gpu:
    """Captures work in a CUDA graph, on a stream of its own."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def copy(self, raw: Raw) -> Raw:
        """Return a copy of `raw` on the device, whose tensors a graph may read."""
        device = self.stream.device
        return Raw(*(getattr(raw, part.name).to(device, copy=True) for part in fields(Raw)))

    def warm_up(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, bool]:
        """Return `work()`, done on the stream of the capture, and whether it made the CPU wait."""
        before = torch.cuda.get_sync_debug_mode()
        self.stream.wait_stream(torch.cuda.current_stream())
        with warnings.catch_warnings(record=True) as caught, torch.cuda.stream(self.stream):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = work()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        torch.cuda.current_stream().wait_stream(self.stream)
        has_waited = False
        for warning in caught:
            if "synchronizing CUDA operation" in str(warning.message):
                has_waited = True
            elif "Synchronization debug mode is a prototype" not in str(warning.message):
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno, source=warning.source
                )
        return result, has_waited

    def capture(
        self, work: Callable[[], torch.Tensor], generators: Iterable[torch.Generator]
    ) -> Callable[[], torch.Tensor]:
        """Return what repeats `work` and returns a copy of its result; `work` is recorded, not yet done."""
        graph: Any = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # cuBLAS's workspace, made within the capture, belongs to the graph: `give_back_memory` of another
        # session would otherwise free it while the graph still writes to it.
        torch._C._cuda_clearCublasWorkspaces()
        # The thread that reads ahead pins memory meanwhile, which a capture of all threads refuses.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            result = work()
        torch._C._cuda_clearCublasWorkspaces()

        def replay() -> torch.Tensor:
            graph.replay()
            return result.clone()

        return replay
