"""The record of a trial, and the validation recordings that its predictions are compared with."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

SCHEMA = 7

Status = Literal["completed", "pruned", "infeasible", "diverged", "failed", "killed"]
STATUSES: tuple[Status, ...] = get_args(Status)
OF_ONE_SEARCH = ("pruned", "infeasible")
"""How a trial ends by the rules of its search alone: another study trains such a config."""

LEAKAGE = "LEAKAGE"
"""The first word of a note on a split that makes scores too high; reports print it before any score."""


def trial_id(config_id: str, repeat: int, seed: int) -> str:
    """Return ``<config_id>-r<repeat>``, and ``-s<seed>`` after it where the seed is another number."""
    return f"{config_id}-r{repeat}" + (f"-s{seed}" if seed != repeat else "")


def parts_of(trial_id: str) -> tuple[str, int, int]:
    """Return config_id, repeat and seed of a `trial_id`."""
    config_id, _, numbers = trial_id.rpartition("-r")
    repeat, _, seed = numbers.partition("-s")
    return config_id, int(repeat), int(seed or repeat)


@dataclass(kw_only=True)
class TrialRecord:
    """The result of one trial.

    Args:
        metrics: every metric at the best epoch, by `training.monitor` of the config.
        epochs: epochs trained; `best_epoch` counts from 1.
        audited_at: the epoch after which the scheduler would have ended a trial that it let train on, to know
            what ending such trials is worth; None for others.
        spared_at: the last epoch after which the scheduler would have ended a trial, if epochs so early
            clearly predicted the end; None for others.
        f1_per_species: validation F1 of every species present in truth, at the best epoch.
        started: UTC, ISO 8601. `seconds`: wall time of building, training and validating.
        gpus, cpus: resources of the trial; times `seconds` they are gpu_hours and cpu_hours.
        peak_memory_mb: peak of torch's allocator on the GPU, or of the process on the CPU; None where the
            system does not measure it.
        provenance: versions, git commit, host, device, data and split hashes.
    """

    trial_id: str
    config_id: str
    repeat: int
    seed: int
    status: Status
    config: dict[str, Any]
    epochs: int = 0
    best_epoch: int | None = None
    audited_at: int | None = None
    spared_at: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    f1_per_species: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    traceback: str | None = None
    n_params: int | None = None
    started: str = ""
    seconds: float = 0.0
    gpus: float = 0.0
    cpus: float = 0.0
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    peak_memory_mb: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    def objective(self, name: str) -> float:
        """Return a metric at the best epoch, or a cost; nan where the trial has none."""
        if name == "hours":
            return self.seconds / 3600
        if name == "n_params":
            return math.nan if self.n_params is None else float(self.n_params)
        return self.metrics.get(name, math.nan)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrialRecord:
        """Read a record back; keys that this version does not know are left out."""
        known = {f.name for f in fields(cls)}
        record = cls(**{k: v for k, v in values.items() if k in known})
        for scores in (record.metrics, record.f1_per_species):
            scores.update({name: math.nan for name, value in scores.items() if value is None})
        return record


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The validation split, with which the predictions of trials are compared.

    Args:
        species: the name of each class.
        truth: the class of each scored recording (or clip, where these were split at random).
        recording: the number of its recording_id in the manifest, the same in every fold.
        group: the number of the group of recordings that the split keeps together, the same in every fold;
            entries of one group are not independent samples.
        seen: by the hash of a backbone's weights, the place in `records.seen.SEEN` of each.
    """

    species: list[str]
    truth: list[int]
    recording: list[int]
    group: list[int]
    # Runs of one split may know of different backbones.
    seen: dict[str, list[int]] = field(default_factory=dict, compare=False)
