"""Checkpoints of a training run, from which it continues in another process as if it had never stopped.

An epoch changes two kinds of state. The parts that compute (network, optimizer, generators ...) have
`state_dict` and `load_state_dict`; `Progress` holds plain values, which are set once all batches are done.
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from birdnet_core.errors import DataError

FORMAT = 8


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def states(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """Return the state of each of `parts`; its tensors are those of the parts, not copies."""
    return {name: part.state_dict() for name, part in parts.items()}


def restore(parts: Mapping[str, Stateful], saved: Mapping[str, Any]) -> None:
    """Give each of `parts` its state of `saved`, which may share tensors with the parts from then on."""
    for name, part in parts.items():
        part.load_state_dict(saved[name])


def copied(state: Any, *, to_cpu: bool = True) -> Any:
    """Return a copy of nested dicts and lists with every tensor on the CPU, or where it is."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu" if to_cpu else state.device, copy=True)
    if isinstance(state, dict):
        return {key: copied(value, to_cpu=to_cpu) for key, value in state.items()}
    if isinstance(state, list):
        return [copied(value, to_cpu=to_cpu) for value in state]
    return state


def n_bytes(state: Any) -> int:
    """Return the bytes of all tensors in nested dicts and lists."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        state = list(state.values())
    return sum(map(n_bytes, state)) if isinstance(state, list) else 0


class Generators:
    """The generators that training draws from: `own` by name, those of the process, and that of its GPU."""

    def __init__(self, device: torch.device, **own: torch.Generator) -> None:
        self.device = device
        self.own = own

    def state_dict(self) -> dict[str, Any]:
        numpy_state: Any = np.random.get_state()
        version, words, following = random.getstate()
        return {
            **{name: generator.get_state() for name, generator in self.own.items()},
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            # Plain values, which torch.load accepts with weights_only
            "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
            "python": [version, list(words), following],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, generator in self.own.items():
            generator.set_state(state[name])
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)
        name, words, *rest = state["numpy"]
        np.random.set_state((name, np.array(words, dtype=np.uint32), *rest))
        version, words, following = state["python"]
        random.setstate((version, tuple(words), following))


@dataclass
class Progress:
    """How far a session is, and its best epoch so far.

    Args:
        micro_batch_size: clips a forward pass; half of it after each time that the GPU ran out of memory.
        n_out_of_memory: how often it did.
        epoch: epochs finished.
        best_epoch: the epoch with the best monitored metric, from 1; the newest where nothing is validated.
        best_metrics, best_weights: of the best epoch; the weights lie on the CPU.
        f1_per_species: in validation at the best epoch, of the species that it has.
        classes, top, probability: those of `records.predictions`, of the epochs so far and of the best one;
            empty where nothing is validated.
        stop_best, stop_epoch: best value so far of the metric that patience waits for, and its epoch.
        history: what `Session.step` returned, epoch by epoch.
    """

    micro_batch_size: int
    n_out_of_memory: int = 0
    epoch: int = 0
    best_epoch: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    f1_per_species: dict[str, float] = field(default_factory=dict)
    # Tensors, which torch.load accepts with weights_only
    classes: torch.Tensor = field(default_factory=lambda: torch.empty((0, 0), dtype=torch.uint16))
    top: torch.Tensor = field(default_factory=lambda: torch.empty((0, 0), dtype=torch.uint16))
    probability: torch.Tensor = field(default_factory=lambda: torch.empty((0, 0), dtype=torch.float16))
    stop_best: float | None = None
    stop_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A session between two epochs.

    Args:
        config: `TrainConfig.to_dict` of the session's config.
        data_id, split_id: of the dataset.
        device, precision: the session continues on the same kind of device (``cpu``, ``cuda``) and in the
            same precision only.
        started: when the run began, as ISO 8601.
        seconds: of wall time so far.
        peak_memory: bytes, None where the system does not measure it.
        progress: the values of `Progress`.
        parts: the state of everything that an epoch changes, by name.
    """

    config: dict[str, Any]
    data_id: str
    split_id: str
    device: str
    precision: str
    started: str
    seconds: float
    peak_memory: int | None
    progress: dict[str, Any]
    parts: dict[str, Any]

    def write(self, path: Path) -> None:
        """Write the checkpoint to `path`, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        try:
            torch.save({"format": FORMAT, **vars(self)}, partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Return the checkpoint in `path`, its tensors on the CPU.

        Raises DataError for a file that cannot be read, or is not a checkpoint of this version.
        """
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise DataError(f"cannot read the session {str(path)!r}: {error.strerror}") from None
        except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise DataError(f"{str(path)!r} is not a saved session, or is damaged: {error}") from None
        if not isinstance(saved, dict) or saved.pop("format", None) != FORMAT:
            raise DataError(f"{str(path)!r} is not a saved session of this version of birdtune")
        return cls(**saved)
