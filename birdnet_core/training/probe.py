"""Seconds, memory and disk of a training run, measured with a few real steps before it starts."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import ConfigError
from birdnet_core.training.batches import epoch_order
from birdnet_core.training.checkpoint import Generators
from birdnet_core.training.graph import WARM_UP
from birdnet_core.training.memory import forget_peak_rss, give_back_memory, is_out_of_memory, peak_rss
from birdnet_core.training.optim import set_rates
from birdnet_core.training.session import Session

N_STEPS = 5

# Settings that do not change the time or memory of a step. AdamW keeps two values a
# weight under every schedule, and the gradient's norm is computed whether it is clipped or not.
_NEUTRAL = ("seed", "repeat", "optim.", "training.epochs", "training.stop_after", "training.patience",
            "training.monitor", "training.stop_on", "training.sampling")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Time, memory and disk of one config, measured alone on the device that its trials would use.

    Args:
        device: ``cpu``, or the name of the GPU.
        setup_s: seconds until the first step, for making model, optimizer and clips; without the imports of a
            process's first trial.
        step_s: seconds of a training step, from reading the batch to the optimizer; the median.
        val_batch_s: seconds of a batch of validation; the median.
        epoch_s: seconds of an epoch, from the two before and the next two.
        n_steps, n_val_batches: in an epoch.
        gpu_peak_bytes: the most that torch's allocator reserved on the GPU; None on the CPU.
        gpu_context_bytes: memory of the CUDA context, kernels and libraries: everything in use on the GPU
            that is not torch's, so measure on a GPU that no other process uses.
        rss_growth_bytes: growth of the process's resident memory up to its peak, mapped pages of the data
            included; None where the system does not measure it (other than Linux).
        n_params: trainable values.
        checkpoint_bytes: size of the file that `Session.save` writes after an epoch.
        micro_batch_size: clips a forward pass; less than in the config where the GPU had no room.
    """

    device: str
    setup_s: float
    step_s: float
    val_batch_s: float
    epoch_s: float
    n_steps: int
    n_val_batches: int
    gpu_peak_bytes: int | None
    gpu_context_bytes: int | None
    rss_growth_bytes: int | None
    n_params: int
    checkpoint_bytes: int
    micro_batch_size: int


def arm_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that time and memory of a step depend on.

    Two configs are one arm if they differ only in seed and repeat, in `optim.*`, in how long they train, what
    they monitor and how clips are sampled; in numbers of the loss; in numbers of an augmentation that is on
    in both; and in rates of the model's options named drop..., and `training.ema_decay`, that are above 0 in
    both. Everything else may change a step: data, features, sizes, names, batches, precision, threads.
    """
    kept: dict[str, Any] = {}
    is_on = {c.name: bool(c.kwargs["p"]) for c in config.augment}
    for key, value in config.flat().items():
        group, _, option = key.partition(".")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if key.startswith(_NEUTRAL) or (group == "loss" and is_number):
            continue
        if group == "augment":
            name, _, option = option.partition(".")
            if option == "p":
                kept[key] = is_on[name]
            elif is_on[name] and not is_number:
                kept[key] = value
        elif is_number and (key == "training.ema_decay" or (group == "model" and "drop" in option)):
            kept[key] = value > 0
        else:
            kept[key] = value
    return kept


def arm_id(config: TrainConfig) -> str:
    """Return ten hex digits that name the arm of `config`, see `arm_settings`."""
    return hashlib.sha256(json.dumps(arm_settings(config), sort_keys=True).encode()).hexdigest()[:10]


def by_arm(configs: Iterable[TrainConfig]) -> dict[str, list[TrainConfig]]:
    """Return `configs` under their `arm_id`, in the order in which the arms first appear."""
    arms: dict[str, list[TrainConfig]] = {}
    for config in configs:
        arms.setdefault(arm_id(config), []).append(config)
    return arms


def probe(config: TrainConfig, dataset: Dataset, *, n_steps: int = N_STEPS) -> Probe:
    """Return the time and memory of an epoch of `config`, from `n_steps` training steps after a warm-up step.

    The parts are those of a trial, made by `Session`. Afterwards the random state and torch's threads are as
    they were, and memory is given back. Raises ConfigError where the GPU has no room for a step of one clip,
    and whatever `Session` raises.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps = {n_steps} is out of range; it takes 1 or more")
    with _as_before():
        try:
            return _measured(config, dataset, n_steps)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fault = (
                f"model {config.model.name!r} has no room on {torch.cuda.get_device_name()}, not even with "
                "one clip a forward pass; take a smaller model or smaller features"
            )
        # Outside of the except block, whose traceback keeps the tensors of the failed step alive.
        raise ConfigError(fault)


def _measured(config: TrainConfig, dataset: Dataset, n_steps: int) -> Probe:
    # The first optimizer of a process imports this: seconds and 150 MiB that are not of the arm.
    importlib.import_module("torch._dynamo")
    resident = forget_peak_rss()
    start = time.perf_counter()
    session = Session(config, dataset)
    setup_s = time.perf_counter() - start
    is_gpu = session.device.type == "cuda"

    def seconds() -> tuple[np.ndarray, np.ndarray]:
        if is_gpu:
            torch.cuda.reset_peak_memory_stats(session.device)
        # Eager ones and the capture come before the steps of an epoch.
        n_warm = 1 + (WARM_UP + 1 if session.captured else 0)
        steps = _seconds_each(_steps(session, n_warm + n_steps), session.device, n_warm)
        return steps, _seconds_each(_scored(session, 1 + n_steps), session.device, 1)

    steps, scored = session.until_it_fits(seconds)  # `scored` is empty without validation
    gpu_peak = gpu_context = None
    if is_gpu:
        gpu_peak = torch.cuda.max_memory_reserved(session.device)
        free, total = torch.cuda.mem_get_info(session.device)
        gpu_context = context_bytes(free, total, torch.cuda.memory_reserved(session.device))
    growth = None if resident is None else max(0, peak_rss() - resident)
    n_train, n_val = len(session.train_clips), len(session.val_clips or ())
    n_of_epoch = math.ceil(n_train / config.training.batch_size)
    n_val_batches = math.ceil(n_val / session.scoring_batch_size)
    val_batch_s = float(np.median(scored)) if len(scored) else 0.0
    return Probe(
        device=torch.cuda.get_device_name(session.device) if is_gpu else "cpu",
        setup_s=setup_s,
        step_s=float(np.median(steps)),
        val_batch_s=val_batch_s,
        epoch_s=float(n_of_epoch * np.median(steps) + n_val_batches * val_batch_s),
        n_steps=n_of_epoch,
        n_val_batches=n_val_batches,
        gpu_peak_bytes=gpu_peak,
        gpu_context_bytes=gpu_context,
        rss_growth_bytes=growth,
        n_params=session.n_params,
        checkpoint_bytes=_checkpoint_bytes(session),
        micro_batch_size=session.progress.micro_batch_size,
    )


def context_bytes(free: int, total: int, reserved: int) -> int:
    """Return the bytes of a GPU that are neither free nor reserved by torch, of `total` bytes."""
    return max(0, total - free - reserved)


def _steps(session: Session, n: int) -> Iterator[Any]:
    """Make `n` training steps of whole batches: the short last one of an epoch would be too quick."""
    training = session.config.training
    labels = session.train_clips.labels
    size = min(training.batch_size, len(labels))
    n_epochs = math.ceil(n * size / len(labels))
    generator = torch.Generator().manual_seed(session.config.seed)
    order = torch.cat([epoch_order(labels, training.sampling, generator) for _ in range(n_epochs)])
    session.model.train()
    set_rates(session.optimizer, 1.0)
    for raw in session.train_clips.batches(session.train_clips.placed(order[: n * size]).split(size)):
        yield session.train_step(raw)


def _scored(session: Session, n: int) -> Iterator[Any]:
    """Score `n` whole batches of the validation split; none where a session is not validated."""
    clips = session.val_clips
    if clips is None:
        return
    size = min(session.scoring_batch_size, len(clips))
    positions = torch.arange(n * size) % len(clips)
    for raw in clips.batches(positions.split(size)):
        yield session.probabilities(clips.features(raw)[0])


def _seconds_each(work: Iterator[Any], device: torch.device, n_warm: int) -> np.ndarray:
    """Return the seconds of each item of `work` but the first `n_warm`, which warm up."""
    ends = []
    for _ in work:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())
    return np.diff(ends)[n_warm - 1 :]


def _checkpoint_bytes(session: Session) -> int:
    """Return the size of a session's file after an epoch, when it holds the best weights too."""
    best: int = sum(values.nbytes for values in session.scored_model.state_dict().values())
    with tempfile.TemporaryDirectory(prefix="birdtune-probe-") as folder:
        path = Path(folder) / "session.pt"
        session.save(path)
        return path.stat().st_size + best


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Restore random states and threads, and give back memory, after the block."""
    generators = Generators(torch.device("cuda:0" if torch.cuda.is_available() else "cpu"))
    state, threads = generators.state_dict(), torch.get_num_threads()
    give_back_memory()
    try:
        yield
    finally:
        generators.load_state_dict(state)
        torch.set_num_threads(threads)
        give_back_memory()
