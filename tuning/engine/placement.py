"""What a trial is given: CPUs, and a whole GPU or a share of one with a cap on its memory.

`place` is the one policy: a sweep trains by it, and a plan prints what it says.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from birdnet_core import plugins, registry
from birdnet_core.build import input_shape, rehearse
from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import ConfigError
from birdnet_core.processes import without_main
from birdnet_core.training.probe import Probe, arm_id, arm_settings, by_arm, probe
from tuning.engine.packing import Gpus, Node, Share, memory_cap, n_concurrent, pack

Measure = Callable[[TrainConfig, Path], Probe]

MOST_MEASURED = 8
"""Up to this many arms are measured each; of more, the largest of each network."""

ASSUMED_CONTEXT_BYTES = 2**29
"""What the CUDA context of a process takes of a GPU, where nothing is measured: some 0.4 GiB, rounded up."""

ASSUMED_GPU_BYTES = 16 * 2**30
"""A GPU of which the driver knows nothing is taken for a small one, of which a context is a large part."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to train on: CPUs that this process may use, and the bytes of each GPU."""

    cpus: int
    gpus: tuple[int, ...] = ()

    @property
    def node(self) -> Node:
        """Return the machine as Ray counts it."""
        return Node(cpus=float(self.cpus), gpus=float(len(self.gpus)))


def this_machine() -> Machine:
    """Return the CPUs that this process may run on and the GPUs that torch sees."""
    gpus = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return Machine(cpus=len(os.sched_getaffinity(0)), gpus=tuple(gpus))


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What trials are given.

    Args:
        cpus: of every trial.
        gpus: of a trial that has no share of its own.
        concurrent: how many trials fit side by side now: those of the smallest arms.
        memory_cap: the share of a GPU's memory that torch may take in a trial without a share of its own;
            None leaves all of it.
        shares: by arm (`probe.arm_id`) and by network, where memory was measured and packed.
    """

    cpus: int
    gpus: float
    concurrent: int
    memory_cap: float | None = None
    shares: Mapping[str, Share] = field(default_factory=dict)

    def of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``resources`` and ``memory_cap`` of the trial of a config.

        An arm that a search met later than those that were measured is given what the largest of its network
        needs, and an unknown network what the largest of all does.
        """
        gpus, cap = self.gpus, self.memory_cap
        if self.shares:
            parsed = TrainConfig.from_dict(dict(config))
            largest = min(self.shares.values(), key=lambda share: share.trials_per_gpu)
            share = self.shares.get(arm_id(parsed)) or self.shares.get(parsed.model.name) or largest
            gpus, cap = (share.fraction, share.memory_cap) if share.trials_per_gpu > 1 else (1.0, None)
        return {"resources": {"cpu": float(self.cpus), "gpu": gpus}, "memory_cap": cap}


def place(
    gpus: Gpus,
    cpus: int,
    nodes: Sequence[Node],
    configs: Sequence[TrainConfig],
    folder_of: Callable[[TrainConfig], Path],
    *,
    measure: Measure | None = None,
    gpu_bytes: int | None = None,
    is_open: bool = False,
) -> Placement:
    """Return what the trials of `configs` are given on `nodes`.

    `gpus` is a number, None for a whole one where a node has any, or ``auto``: a training step of the arms
    that `to_measure` chooses is measured alone on the GPU, and as many trials share one as their memory
    allows. `measure` and `gpu_bytes`, of the smallest GPU, are this machine's unless given. Raises
    ConfigError where no node has room for one trial, unless the cluster `is_open` for nodes that join later.
    """
    has_gpus = any(node.gpus >= 1 for node in nodes)
    gpu_bytes = gpu_bytes or min(this_machine().gpus, default=None)
    if gpus != "auto" or not has_gpus:
        each = float(has_gpus) if gpus is None else 0.0 if gpus == "auto" else float(gpus)
        cap = None
        if 0 < each < 1:
            cap = memory_cap(
                int(1 / each + 1e-9),
                gpu_bytes=gpu_bytes or ASSUMED_GPU_BYTES,
                context_bytes=ASSUMED_CONTEXT_BYTES,
            )
        fits = n_concurrent(nodes, cpus=cpus, gpus=each, is_open=is_open)
        return Placement(cpus=cpus, gpus=each, concurrent=fits, memory_cap=cap)
    if not gpu_bytes:
        raise ConfigError(
            "--gpus-per-trial auto measures on a GPU of this machine, and torch finds none here; "
            "give a number"
        )
    chosen = to_measure(configs, folder_of)
    measured = {
        arm: (measure or measured_apart)(config, folder_of(config))
        for arm, config in by_name(chosen.values()).items()
    }
    names = {
        arm: f"{described(settings)} ({arm})"
        for arm, settings in distinctive_settings(by_name(chosen.values())).items()
    }
    packed = pack(
        {names[arm]: p.gpu_peak_bytes or 0 for arm, p in measured.items()},
        nodes,
        gpu_bytes=gpu_bytes,
        context_bytes=max(p.gpu_context_bytes or 0 for p in measured.values()),
        cpus_per_trial=cpus,
    )
    shares: dict[str, Share] = {}
    for arm, config in chosen.items():
        shares[arm] = share = packed[names[arm_id(config)]]
        known = shares.setdefault(config.model.name, share)
        if share.trials_per_gpu < known.trials_per_gpu:
            shares[config.model.name] = share
    smallest = min(share.fraction for share in shares.values())
    fits = n_concurrent(nodes, cpus=cpus, gpus=smallest, is_open=is_open)
    return Placement(cpus=cpus, gpus=1.0, concurrent=fits, shares=shares)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a config is expected to take, in numbers that compare the configs of one network.

    Args:
        work: of a clip: parameters x values of a spectrogram.
        memory: of a step: its work x clips of a forward pass.
    """

    work: int
    memory: int


def expected_of(config: TrainConfig, folder_of: Callable[[TrainConfig], Path]) -> Expected:
    """Return what `config` is expected to take, from a network without weights."""
    shape = input_shape(config)
    n_params = rehearse(config, shape, Dataset.open(folder_of(config)).species)
    work = n_params * math.prod(shape)
    return Expected(work=work, memory=work * (config.training.micro_batch_size or config.training.batch_size))


def to_measure(
    configs: Iterable[TrainConfig], folder_of: Callable[[TrainConfig], Path]
) -> dict[str, TrainConfig]:
    """Return, for each arm of `configs`, the config whose memory is measured for it.

    That is one of its own, or where there are more than `MOST_MEASURED` arms, the one of its network that is
    expected to take most. So a search over everything waits for a handful of measurements.
    """
    arms = {arm: some[0] for arm, some in by_arm(configs).items()}
    if len(arms) <= MOST_MEASURED:
        return arms
    largest: dict[str, tuple[int, TrainConfig]] = {}
    for config in arms.values():
        memory = expected_of(config, folder_of).memory
        if config.model.name not in largest or memory > largest[config.model.name][0]:
            largest[config.model.name] = (memory, config)
    return {arm: largest[config.model.name][1] for arm, config in arms.items()}


def by_name(configs: Iterable[TrainConfig]) -> dict[str, TrainConfig]:
    """Return one config of each arm, under its `arm_id`."""
    return {arm: some[0] for arm, some in by_arm(configs).items()}


def distinctive_settings(arms: Mapping[str, TrainConfig]) -> dict[str, dict[str, Any]]:
    """Return, of each arm's settings, those in which arms that have them differ."""
    settings = {arm: arm_settings(config) for arm, config in arms.items()}
    every = {key for values in settings.values() for key in values}
    varied = {key for key in every if len({repr(v[key]) for v in settings.values() if key in v}) > 1}
    return {arm: {k: v for k, v in values.items() if k in varied} for arm, values in settings.items()}


def described(settings: Mapping[str, Any]) -> str:
    """Return the distinctive settings of an arm as text."""
    return ", ".join(f"{k}={v}" for k, v in settings.items()) or "every trial"


def measured_apart(config: TrainConfig, dataset: Path) -> Probe:
    """Return `probe` of a config in a process of its own, so that the driver holds no memory of the GPU."""
    shipped = [plugin.to_dict() for plugin in plugins.loaded()]
    with without_main(), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_probe, config.to_dict(), dataset, shipped).result()


def _probe(config: dict[str, Any], dataset: Path, shipped: list[dict[str, Any]]) -> Probe:
    registry.load_shipped(shipped)
    return probe(TrainConfig.from_dict(config), Dataset.open(dataset))
