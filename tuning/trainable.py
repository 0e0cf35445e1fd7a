"""The one Ray trainable: a `Session` behind the cluster's interface."""

from __future__ import annotations

import gc
import json
import traceback
from typing import Any

import torch
from ray import tune

from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import TrialDiverged
from birdnet_core.records import Status, TrialRecord, provenance
from birdnet_core.training import Session


class TrainTrial(tune.Trainable):
    """One trial, an epoch a step; the actor is reused for the next trial.

    The config that Ray ships is plain JSON: ``config`` (a `TrainConfig` as a dict), ``dataset`` (the folder
    that `prepare` made) and what the driver's journal wants to know. A step returns the epoch's metrics, and
    under ``record`` the trial's record as it stands, as one JSON string so that Ray does not take it apart.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.n_trials = 0
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let go of the previous trial whole, so that a reused actor gives the numbers of a fresh one."""
        self.payload = new_config
        self.session: Session | None = None
        self.n_trials += 1
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch; an exception becomes a recorded failure with its traceback."""
        metrics: dict[str, float] = {}
        status: Status | None = None
        error = trace = None
        try:
            if self.session is None:
                config = TrainConfig.from_dict(self.payload["config"])
                self.session = Session(config, Dataset.open(self.payload["dataset"]))
            metrics = self.session.step()
            status = "completed" if self.session.finished else None
        except TrialDiverged as diverged:
            status, error = "diverged", str(diverged)
        except Exception as failure:  # the trial boundary: what a trial's code raises ends this trial only
            status, error, trace = "failed", f"{type(failure).__name__}: {failure}", traceback.format_exc()
        record = self._record(status or "killed", error, trace)
        return {
            **metrics,
            "epoch": self.session.epoch if self.session else 0,
            "status": status,
            "record": json.dumps(record.to_dict()),
            "done": status is not None,
        }

    def _record(self, status: Status, error: str | None, trace: str | None) -> TrialRecord:
        if self.session:
            record = self.session.record(status, error=error, traceback=trace)
        else:
            record = bare_record(self.payload["config"], status, error=error, traceback=trace)
        record.provenance["actor"] = {"host": record.provenance["host"], "nth_trial": self.n_trials}
        return record


def bare_record(
    config: dict[str, Any], status: Status, *, error: str | None, traceback: str | None = None
) -> TrialRecord:
    """Return the record of a trial that never got as far as a session."""
    parsed = TrainConfig.from_dict(config)
    return TrialRecord(
        trial_id=parsed.trial_id,
        config_id=parsed.config_id,
        seed=parsed.seed,
        status=status,
        config=config,
        error=error,
        traceback=traceback,
        provenance=dict(provenance()),
    )
