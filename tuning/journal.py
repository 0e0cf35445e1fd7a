"""The driver's pen: the only writer of a run folder while a sweep runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.exceptions
from ray import cloudpickle, tune
from ray.tune.experiment import Trial

from birdnet_core.records import METRICS, RunFolder, TrialRecord
from tuning.trainable import bare_record

Event = dict[str, Any]
Observer = Callable[[Event], None]


class Journal(tune.Callback):
    """Appends what Ray reports to the journal, and settles the record of every trial that ends.

    Args:
        run: the run folder.
        observer: called with every event after it is written.

    `per_trial` is the CPUs and GPUs of a trial, which its record keeps.
    """

    def __init__(self, run: RunFolder, observer: Observer) -> None:
        self.run = run
        self.observer = observer
        self.per_trial: dict[str, float] = {"cpu": 0.0, "gpu": 0.0}
        self._entered: set[str] = set()
        # Trials that need no training any more, whatever study they were trained for.
        self.finished = {name: r for name, r in run.records().items() if r.status == "completed"}

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks with its own state, which nobody reads: leave out the observer."""
        return {**self.__dict__, "observer": None}

    def members(self, study: str) -> set[str]:
        """Return the trials that the journal has entered for `study`."""
        return {e["trial_id"] for e in self.run.events() if e["event"] == "trial" and e["study"] == study}

    def reuse(self, line: Event) -> None:
        """Enter a trial that another study, or an earlier call, has trained."""
        self.write({"event": "trial", **line, "reused": True})

    def write(self, event: Event) -> None:
        self.run.append(event)
        self.observer(event)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._entered.add(trial.trial_id)
        self.write({"event": "trial", **trial.config["journal"], "reused": False})

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if not result["status"] or result["status"] == "completed":
            metrics = {name: result[name] for name in METRICS if name in result}
            self.write(
                {
                    "event": "epoch",
                    "trial_id": trial.config["journal"]["trial_id"],
                    "epoch": result["epoch"],
                    "metrics": metrics,
                    "epoch_s": round(result["epoch_s"], 4),
                }
            )
        if result["done"]:
            # `status` is the trial's own word; a trial that did not end itself was stopped by the scheduler.
            record = TrialRecord.from_dict(json.loads(result["record"]))
            record.status = result["status"] or "pruned"
            self.settle(record)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Settle a trial whose process is gone: the trainable itself turns exceptions into results."""
        if trial.trial_id not in self._entered:  # its process died before the trial started
            self.on_trial_start(iteration, trials, trial)
        error = _error_of(trial)
        last = trial.last_result or {}
        if "record" in last:
            record = TrialRecord.from_dict(json.loads(last["record"]))
        else:
            record = bare_record(trial.config["config"], "failed", error=None)
        is_dead = isinstance(error, ray.exceptions.RayActorError)
        record.status = "killed" if is_dead else "failed"
        record.error = f"{type(error).__name__}: {error}" if error else "Ray gave no reason"
        self.settle(record)

    def settle(self, record: TrialRecord) -> None:
        """Write how a trial ended."""
        record.cpus, record.gpus = self.per_trial["cpu"], self.per_trial["gpu"]
        self.run.write_record(record)
        if record.status == "completed":
            self.finished[record.trial_id] = record
        self.write({"event": "end", "trial_id": record.trial_id, "status": record.status})


def _error_of(trial: Trial) -> Exception | None:
    """Return what Ray raised for a trial.

    From the trial's local folder: `Trial.get_pickled_error` looks in the storage, where it is not yet.
    """
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return None
    with open(path, "rb") as file:
        error: Exception = cloudpickle.load(file)
    return error
