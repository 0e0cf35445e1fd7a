"""What the phases of gpu.py and gpu_packing.py share: their data, sessions, measures and arguments."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.data.feature_store import FeatureStore, quantised
from birdnet_core.records.files import write_json
from birdnet_core.training.memory import give_back_memory
from birdnet_core.training.optim import set_rates
from birdnet_core.training.session import Session

ROOT = Path(__file__).resolve().parents[1]
# Seconds that a phase may take.
LIMITS = {"tests": 110, "steps": 140, "kernels": 50, "end_to_end": 90, "packing": 70,
          "packing_one_process": 70, "packing_mps": 70, "input": 60, "variants": 80, "memory": 60, "ray": 110,
          "doctor": 40}  # fmt: skip
MODELS = ("audio_cnn", "audio_cnn_v2", "linear", "mlp", "audio_ast")
N_CLASSES, N_TRAIN, N_VAL = 89, 7751, 1550
MODES = {"captured": {"runtime.cuda_graph": "auto"}, "eager": {"runtime.cuda_graph": "off"}}
AUGMENTED = {"augment.spec_augment.p": 0.8, "augment.mixup.p": 0.6}
MIB = 2**20
Settings = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where a phase runs and where its rows go."""

    is_cpu: bool
    scratch: Path
    result: Path

    @property
    def device(self) -> str:
        return "cpu" if self.is_cpu else "cuda"

    def pick(self, on_gpu: Any, on_cpu: Any) -> Any:
        return on_cpu if self.is_cpu else on_gpu

    @property
    def batch(self) -> int:
        return self.pick(32, 4)

    @property
    def spectrogram(self) -> tuple[int, int, int]:
        return self.pick((3, 40, 130), (3, 16, 24))

    def shape(self, model: str) -> tuple[int, ...]:
        """Return the shape of the features that `model` is measured on."""
        if model in ("linear", "mlp"):
            return self.pick((1024,), (64,))
        return self.pick((1, 128, 173), (1, 16, 26)) if model == "audio_ast" else self.spectrogram

    def row(self, **values: Any) -> None:
        """Append a row to the results of the phase."""
        with open(self.result, "a") as file:
            file.write(json.dumps(values, default=str) + "\n")

    @contextlib.contextmanager
    def recorded(self, **values: Any) -> Iterator[None]:
        """Turn an exception in the block into a row with `values`, so that the rest of the phase runs."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.row(**values, error=f"{type(error).__name__}: {error}"[:600])
            error.__traceback__ = None
        give_back_memory()


# ------------------------------------------------------------------------------- data and sessions


def synthetic(bench: Bench, shape: tuple[int, ...], n_train: int, n_val: int) -> Dataset:
    """Return a dataset of random features, whose bins (or values) have another mean in each class.

    Its feature store is written to the scratch folder unless it is there.
    """
    n = n_train + n_val
    folder = bench.scratch / f"features-{'x'.join(map(str, shape))}-{n}"
    labels = np.arange(n) % N_CLASSES
    if not folder.exists():
        new = folder.with_suffix(".new")
        new.mkdir(parents=True)
        generator = torch.Generator().manual_seed(0)
        means = torch.randn(N_CLASSES, *shape[:2], generator=generator)
        means = 0.5 * means.reshape(*means.shape, *[1] * (len(shape) - 2))
        with open(new / "features.i16", "wb") as values, open(new / "scales.f32", "wb") as scales:
            for some in torch.from_numpy(labels).split(500):
                features = means[some] + torch.randn(len(some), *shape, generator=generator)
                quantum, scale, offset = quantised(features)
                quantum.numpy().tofile(values)
                torch.stack([scale, offset], dim=-1).numpy().tofile(scales)
        np.arange(1, n + 1, dtype=np.uint64).tofile(new / "clips.u8")
        write_json(new / "store.json", {"shape": shape})
        new.rename(folder)
    species = [f"species {i:02}" for i in range(N_CLASSES)]
    return Dataset(
        folder=folder,
        clips_folder=folder,
        features=FeatureStore.open(folder),
        input_shape=shape,
        in_store=np.arange(n),
        labels=labels,
        recording=np.arange(n),
        sha256=("",) * n,
        splits=np.where(np.arange(n) < n_train, "train", "val"),
        fold=np.zeros(n, np.int8),
        group=np.arange(n, dtype=np.int32),
        species=tuple(species),
        mean=np.zeros(shape[0], np.float32),
        std=np.ones(shape[0], np.float32),
        facts={
            "strata": {"rare": species[:30], "medium": species[30:60], "common": species[60:]},
            "scored": "recordings",
            "data_id": "synthetic",
            "split_id": "synthetic",
        },
    )


def config_of(bench: Bench, model: str, *settings: Settings) -> TrainConfig:
    """Return a config of `model` in bf16 with a constant learning rate and `settings`."""
    flat = {
        "model.name": model,
        "training.batch_size": bench.batch,
        "training.patience": 0,
        "training.precision": "bf16",
        "optim.warmup_epochs": 0,
        "optim.schedule": "constant",
        "runtime.device": bench.device,
    }
    if model == "audio_ast" and bench.is_cpu:
        flat["model.size"] = "tiny"
    for some in settings:
        flat |= some
    if len(bench.shape(model)) == 1:
        flat.pop("augment.spec_augment.p", None)
    return TrainConfig().override(flat)


# --------------------------------------------------------------------------------------- measuring


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any]) -> float:
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def whole_batches(session: Session, n: int) -> list[torch.Tensor]:
    """Return the positions of `n` whole batches, the same for every session of as many clips."""
    clips, size = session.train_clips, session.config.training.batch_size
    generator = torch.Generator().manual_seed(1)
    orders = [torch.randperm(len(clips), generator=generator) for _ in range(n * size // len(clips) + 1)]
    return list(clips.placed(torch.cat(orders)[: n * size]).split(size))


def run_steps(session: Session, n: int, given: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
    """Make `n` steps as an epoch makes them; return loss, clips right and the gradient's norm of each."""
    session.model.train()
    found = []
    for raw in session.train_clips.batches(given or whole_batches(session, n)):
        set_rates(session.optimizer, 1.0)
        found.append(session.train_step(raw))
    return found


def losses(bench: Bench, dataset: Dataset, model: str, *settings: Settings, n: int) -> np.ndarray:
    """Return the losses of the first `n` steps of a new session."""
    if model == "audio_ast":  # the whole one takes minutes on a CPU
        settings = (*settings, {"model.size": "tiny"})
    session = Session(config_of(bench, model, *settings), dataset)
    return torch.stack(run_steps(session, n))[:, 0].double().cpu().numpy()


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest relative difference of two curves of the loss."""
    return float(np.max(np.abs(a - b) / np.abs(b)))


def step_ms(session: Session, budget_s: float = 0.3) -> float:
    """Return the milliseconds of a step, the median of three runs of about `budget_s` each.

    On a CPU, where only the script is tried out, a run is one step.
    """
    n = 1
    if session.device.type == "cuda":
        run_steps(session, 5)
        once = seconds(lambda: run_steps(session, 5)) / 5
        n = int(min(max(budget_s / once, 3), 300))
    return 1000 * statistics.median(seconds(lambda: run_steps(session, n)) / n for _ in range(3))


@dataclass(frozen=True)
class Trace:
    """Kernels and copies on the GPU: how many, the ms in which at least one ran, and the ms of each kind."""

    count: int
    busy_ms: float
    ms_of: dict[str, float]


def traced(bench: Bench, work: Callable[[], Any]) -> Trace:
    """Return what `work` ran on the GPU, by torch's profiler; with --cpu the operators of the CPU."""
    activity = torch.profiler.ProfilerActivity
    wanted = bench.pick(("kernel", "gpu_memcpy", "gpu_memset"), ("cpu_op",))
    with torch.profiler.profile(
        activities=[bench.pick(activity.CUDA, activity.CPU)], acc_events=True
    ) as profiler:
        work()
        synchronise()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    events = [event for event in events if event.get("cat") in wanted and "dur" in event]
    busy, end = 0.0, -np.inf
    ms_of: dict[str, float] = {}
    for event in sorted(events, key=lambda event: float(event["ts"])):
        first, last = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
        ms_of[event["name"]] = ms_of.get(event["name"], 0.0) + float(event["dur"]) / 1000
    return Trace(len(events), busy / 1000, ms_of)


def waits(work: Callable[[], Any]) -> str:
    """Return the lines of birdtune at which `work` made the CPU wait for the GPU, and how often."""
    if not torch.cuda.is_available():
        return "no GPU"
    found: dict[str, int] = {}

    def note(message: Any, category: Any, *rest: Any, **more: Any) -> None:
        if "synchronizing" not in str(message):
            return
        own = [f for f in traceback.extract_stack() if f"{ROOT}/" in f.filename and f.filename != __file__]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].line}" if own else "elsewhere"
        found[where] = found.get(where, 0) + 1

    before = warnings.showwarning
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            warnings.showwarning = before
    return "; ".join(f"{n} x {where}" for where, n in found.items()) or "none"


def run_phase(phases: dict[str, Callable[[Bench], None]], given: argparse.Namespace) -> None:
    """Run one phase in this process, which gets SIGTERM when it takes too long."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))
    if given.cpu:
        torch.set_num_threads(1)  # threads wait for each other where others use the CPUs
    importlib.import_module("torch._dynamo")  # which the first optimizer would load
    # A session collects garbage, and need not look through the modules each time.
    gc.freeze()
    phases[given.phase](Bench(given.cpu, given.scratch, given.result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--phases", default=",".join(LIMITS))
    parser.add_argument("--seconds", type=float, default=240, help="for all phases together")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--phase", choices=LIMITS, help="one phase, in this process")
    parser.add_argument("--result", type=Path)
    parser.add_argument("--scratch", type=Path)
    return parser.parse_args()
