"""What a trial is given: CPUs, and a whole GPU or a share of one with a cap on its memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from birdnet_core import plugins, registry
from birdnet_core.config import TrainConfig
from birdnet_core.data.building import without_main
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import ConfigError
from birdnet_core.probe import Probe, arm_id, by_arm, probe
from tuning.packing import RESERVE, Share, n_concurrent, pack
from tuning.planning import this_machine

Gpus = float | Literal["auto"] | None
Measure = Callable[[TrainConfig, Path], Probe]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What trials are given.

    Args:
        cpus: of every trial.
        gpus: of a trial whose arm has no share of its own.
        shares: by arm (`birdnet_core.probe.arm_id`), where they were packed by measured memory.
        concurrent: how many trials fit side by side: those of the smallest arms.
    """

    cpus: int
    gpus: float
    concurrent: int
    shares: Mapping[str, Share] = field(default_factory=dict)

    def of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``resources`` and ``memory_cap`` of the trial of a config.

        The cap is the share of the GPU's memory that torch may take; None leaves all of it. An arm that a
        search met later than those that were measured is given what the largest of them needs.
        """
        gpus, cap = self.gpus, None
        if self.shares:
            largest = min(self.shares.values(), key=lambda share: share.trials_per_gpu)
            share = self.shares.get(arm_id(TrainConfig.from_dict(dict(config))), largest)
            gpus, cap = (share.fraction, share.memory_cap) if share.trials_per_gpu > 1 else (1.0, None)
        elif 0 < gpus < 1:
            cap = (1 - RESERVE) * gpus
        return {"resources": {"cpu": float(self.cpus), "gpu": gpus}, "memory_cap": cap}


def place(
    gpus: Gpus,
    cpus: int,
    total: Mapping[str, float],
    configs: Sequence[TrainConfig],
    folder_of: Callable[[TrainConfig], Path],
    *,
    measure: Measure | None = None,
    gpu_bytes: int | None = None,
) -> Placement:
    """Return what the trials of `configs` are given of `total` CPUs and GPUs.

    `gpus` is a number, None for a whole one where there is any, or ``auto``: a training step of each distinct
    arm is measured alone on the GPU, and as many trials share one as their memory allows. `measure` and
    `gpu_bytes` are the machine's own unless given. Raises ConfigError where not even one trial fits.
    """
    if gpus != "auto" or not total["gpu"]:
        each = float(total["gpu"] >= 1) if gpus is None else 0.0 if gpus == "auto" else gpus
        fits = n_concurrent(total, {"cpu": float(cpus), "gpu": each})
        return Placement(cpus=cpus, gpus=each, concurrent=fits)
    gpu_bytes = gpu_bytes or min(this_machine().gpus, default=0)
    if not gpu_bytes:
        raise ConfigError(
            "--gpus-per-trial auto measures on a GPU of this machine, and torch finds none here; "
            "give a number"
        )
    probes = {
        arm: (measure or measured_apart)(some[0], folder_of(some[0])) for arm, some in by_arm(configs).items()
    }
    shares = pack(
        {arm: p.gpu_peak_bytes or 0 for arm, p in probes.items()},
        gpu_bytes=gpu_bytes,
        n_gpus=int(total["gpu"]),
        context_bytes=max(p.gpu_context_bytes or 0 for p in probes.values()),
        cpus=int(total["cpu"]),
        cpus_per_trial=cpus,
    )
    smallest = min(share.fraction for share in shares.values())
    fits = n_concurrent(total, {"cpu": float(cpus), "gpu": smallest})
    return Placement(cpus=cpus, gpus=1.0, concurrent=fits, shares=shares)


def measured_apart(config: TrainConfig, dataset: Path) -> Probe:
    """Return `probe` of a config in a process of its own, so that the driver holds no memory of the GPU."""
    shipped = [plugin.to_dict() for plugin in plugins.loaded()]
    with without_main(), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_probe, config.to_dict(), dataset, shipped).result()


def _probe(config: dict[str, Any], dataset: Path, shipped: list[dict[str, Any]]) -> Probe:
    registry.load_shipped(shipped)
    return probe(TrainConfig.from_dict(config), Dataset.open(dataset))
