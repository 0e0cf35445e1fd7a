"""Several trials of AudioCNN on one GPU: processes with and without MPS, threads, streams, grouped kernels.

Phases of gpu.py, which starts this script and keeps its rows. `ratio` is always to one trial alone in the
same way, captured where steps can be.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from gpu_common import (
    MODES,
    N_CLASSES,
    N_TRAIN,
    N_VAL,
    Bench,
    arguments,
    config_of,
    run_phase,
    seconds,
    synthetic,
)
from torch import nn
from torch.nn.functional import cross_entropy

from birdnet_core.data.dataset import Dataset
from birdnet_core.models.audio_cnn import AudioCNN, GlobalAveragePool
from birdnet_core.training.session import Session

K = (1, 2, 4, 8)
EPOCHS = 3


def trials(bench: Bench) -> Dataset:
    return synthetic(bench, bench.spectrogram, *bench.pick((N_TRAIN, N_VAL), (16, 16)))


# --------------------------------------------------------------------------------------- processes


def trial(pipe: Connection, bench: Bench) -> None:
    """Train `EPOCHS` epochs in a mode whenever the pipe gives one and a time to start; send the time after.

    The first message is None, once every mode has trained an epoch. An exception is sent as text.
    """
    try:
        dataset = trials(bench)
        sessions = {
            mode: Session(config_of(bench, "audio_cnn", settings), dataset)
            for mode, settings in MODES.items()
        }
        for session in sessions.values():
            seconds(session.train_epoch)
        pipe.send(None)
        while (task := pipe.recv()) is not None:
            mode, start = task
            time.sleep(max(0.0, start - time.perf_counter()))
            seconds(lambda session=sessions[mode]: [session.train_epoch() for _ in range(EPOCHS)])
            pipe.send(time.perf_counter())  # of one clock for all processes
    except Exception:
        pipe.send(traceback.format_exc())


def received(pipe: Connection, timeout: float) -> Any:
    if not pipe.poll(timeout):
        raise TimeoutError(f"no answer of a process within {timeout:.0f} s")
    message = pipe.recv()
    if isinstance(message, str):
        raise RuntimeError(message)
    return message


def packing(bench: Bench) -> None:
    """Processes that share the GPU, each with a session of its own."""
    side_by_side(bench, "processes")


def side_by_side(bench: Bench, how: str) -> None:
    n_clips = len(trials(bench).rows("train"))  # writes the features, before any process needs them
    context = multiprocessing.get_context("spawn")
    ks = bench.pick(K, (1, 2))
    started = []
    try:
        for _ in range(max(ks)):
            here, there = context.Pipe()
            process = context.Process(target=trial, args=(there, bench), daemon=True)
            process.start()
            started.append((process, here))
        for _, pipe in started:
            received(pipe, 60)
        alone: float | None = None
        for mode in MODES:
            for k in ks:
                begin = time.perf_counter() + 0.1
                for _, pipe in started[:k]:
                    pipe.send((mode, begin))
                end = max(received(pipe, 60) for _, pipe in started[:k])
                rate = k * EPOCHS * n_clips / (end - begin)
                alone = alone or rate
                bench.row(how=how, mode=mode, trials=k, clips_s=rate, ratio=rate / alone)
    finally:
        for process, _ in started:
            process.kill()


def packing_mps(bench: Bench) -> None:
    """The same under NVIDIA's Multi-Process Service, as a sweep starts it."""
    from tuning.engine.cluster import scratch_folder
    from tuning.engine.mps import mps

    with scratch_folder() as folder, mps(folder) as words:
        bench.row(how="processes with MPS", mps=words)
        if not words.startswith("no"):
            side_by_side(bench, "processes with MPS")


# ------------------------------------------------------------------------------------- one process


def packing_one_process(bench: Bench) -> None:
    """Trials in one process: sessions in threads, streams forked within a graph, grouped kernels."""
    torch.backends.cudnn.benchmark = True  # as in a session
    for layout in (torch.channels_last, torch.contiguous_format):
        name = str(layout).removeprefix("torch.")
        alone: float | None = None
        for how, make in (("forked streams", forked), ("grouped kernels", grouped)):
            for k in bench.pick(K, (1, 2)):
                with bench.recorded(how=how, layout=name, trials=k):
                    step = captured(bench, make(bench, k, layout))
                    seconds(step)
                    n = bench.pick(100, 1)
                    took = min(seconds(lambda s=step, n=n: [s() for _ in range(n)]) for _ in range(3)) / n
                    rate = k * bench.batch / took
                    alone = alone or rate
                    bench.row(
                        how=how, layout=name, trials=k, step_ms=1000 * took, clips_s=rate, ratio=rate / alone
                    )
                    del step
    for mode in MODES:
        alone = None
        for k in bench.pick(K, (1, 2)):
            with bench.recorded(how="threads", mode=mode, trials=k):
                rate = in_threads(bench, mode, k)
                alone = alone or rate
                bench.row(how="threads", mode=mode, trials=k, clips_s=rate, ratio=rate / alone)


def in_threads(bench: Bench, mode: str, k: int) -> float:
    """Return the clips a second of `k` sessions, each in a thread and on a stream of its own."""
    dataset = trials(bench)
    sessions = [Session(config_of(bench, "audio_cnn", MODES[mode]), dataset) for _ in range(k)]
    for session in sessions:
        session.train_epoch()
    faults: list[str] = []

    def train(session: Session) -> None:
        try:
            on_own = contextlib.nullcontext() if bench.is_cpu else torch.cuda.stream(torch.cuda.Stream())
            with on_own:
                for _ in range(EPOCHS):
                    session.train_epoch()
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")

    def together() -> None:
        threads = [threading.Thread(target=train, args=(session,)) for session in sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    took = seconds(together)
    if faults:
        raise RuntimeError("; ".join(faults[:2]))
    return k * EPOCHS * len(sessions[0].train_clips) / took


class Grouped(nn.Module):
    """K networks AudioCNN as one: grouped convolutions, and batched products of matrices as head.

    Inputs are [batch, K * channels, bins, frames], logits [K, batch, classes] (Wang et al. 2021, HFTA).
    """

    def __init__(self, k: int, channels: int, n_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block, n_out in enumerate((32, 64, 128)):
            for number in range(2):
                layers.append(nn.Conv2d(k * channels, k * n_out, 3, padding=1, groups=k))
                layers.append(nn.BatchNorm2d(k * n_out))
                layers += [nn.MaxPool2d(2)] if number == 1 and block < 2 else []
                layers.append(nn.LeakyReLU(0.0, inplace=True))
                channels = n_out
        self.k = k
        self.features = nn.Sequential(*layers, GlobalAveragePool())
        self.hidden = nn.Parameter(torch.randn(k, 128, 256) / 128**0.5)
        self.hidden_bias = nn.Parameter(torch.zeros(k, 1, 256))
        self.last = nn.Parameter(torch.randn(k, 256, n_classes) / 256**0.5)
        self.last_bias = nn.Parameter(torch.zeros(k, 1, n_classes))
        self.dropout = nn.Dropout(0.5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        pooled = self.features(features)
        of_each = pooled.reshape(len(pooled), self.k, -1).transpose(0, 1)
        hidden = torch.baddbmm(self.hidden_bias, of_each, self.hidden).relu()
        return torch.baddbmm(self.last_bias, self.dropout(hidden), self.last)


def bare_step(bench: Bench, model: nn.Module, features: torch.Tensor, n_logits: int) -> Callable[[], None]:
    """Return a step of `model` in bf16 on one fixed batch, without clipping, with one fused AdamW."""
    classes = torch.arange(n_logits, device=features.device) % N_CLASSES
    capturable = not bench.is_cpu
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=capturable)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(bench.device, torch.bfloat16):
            logits = model(features)
        # The sum of the mean losses of the trials.
        loss = cross_entropy(logits.float().flatten(0, -2), classes, reduction="sum") / bench.batch
        loss.backward()
        optimizer.step()

    return step


def forked(bench: Bench, k: int, layout: torch.memory_format) -> list[Callable[[], None]]:
    """Return the steps of `k` networks that know nothing of each other."""
    device = torch.device(bench.device)
    made = []
    for _ in range(k):
        model = AudioCNN(bench.spectrogram, N_CLASSES).to(device, memory_format=layout)
        features = torch.randn(bench.batch, *bench.spectrogram, device=device).contiguous(
            memory_format=layout
        )
        made.append(bare_step(bench, model, features, bench.batch))
    return made


def grouped(bench: Bench, k: int, layout: torch.memory_format) -> list[Callable[[], None]]:
    """Return the one step of `k` networks in grouped kernels."""
    device = torch.device(bench.device)
    channels, *rest = bench.spectrogram
    model = Grouped(k, channels, N_CLASSES).to(device, memory_format=layout)
    features = torch.randn(bench.batch, k * channels, *rest, device=device).contiguous(memory_format=layout)
    return [bare_step(bench, model, features, k * bench.batch)]


def captured(bench: Bench, steps: list[Callable[[], None]]) -> Callable[[], Any]:
    """Return what replays `steps` as one CUDA graph, each on a stream of its own; on the CPU, their calls."""
    if bench.is_cpu:
        return lambda: [step() for step in steps]
    streams = [torch.cuda.Stream() for _ in steps]

    def all_steps() -> None:
        main = torch.cuda.current_stream()
        for stream, step in zip(streams, steps, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                step()
        for stream in streams:
            main.wait_stream(stream)

    # Captured work must have run before, on another stream than the default one.
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            all_steps()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_steps()
    torch.cuda.synchronize()
    return partial(_replay, graph, steps)


def _replay(graph: torch.cuda.CUDAGraph, steps: list[Callable[[], None]]) -> None:
    """Replay `graph`; `steps` keep the tensors alive that it works on."""
    graph.replay()


PHASES = {"packing": packing, "packing_mps": packing_mps, "packing_one_process": packing_one_process}

if __name__ == "__main__":
    run_phase(PHASES, arguments())
