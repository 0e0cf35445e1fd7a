"""The driver's pen: the only writer of a run folder while a sweep runs."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray.exceptions
from ray import cloudpickle, tune
from ray.tune.experiment import Trial

from birdnet_core.records import METRICS, RunFolder, Spent, TrialRecord, is_better, metric_direction
from tuning.halt import Halt
from tuning.trainable import bare_record

Event = dict[str, Any]
Observer = Callable[[Event], None]


class Journal(tune.Callback):
    """Appends what Ray reports to the journal, and settles the record of every trial that ends.

    Args:
        run: the run folder.
        observer: called with every event after it is written.
        halt: asked to end the sweep where the folder cannot be written, or a budget is used up.
        keep: the number of completed trials, the best of a study by its metric, whose checkpoints stay.

    `finished` holds the records of the trials that need no training any more, whatever study they were
    trained for: those that completed, and those that failed by themselves and would fail again.
    """

    def __init__(
        self, run: RunFolder, observer: Observer, halt: Halt | None = None, *, keep: int = 0
    ) -> None:
        self.run = run
        self.observer = observer
        self.halt = halt or Halt()
        self.keep = keep
        self.spent = Spent()
        # Trials that the scheduler stopped because the sweep halts.
        self.interrupted: set[str] = set()
        # Trials whose process died, and which are handed out again.
        self.restarting: set[str] = set()
        self._entered: set[str] = set()
        self._members: defaultdict[str, set[str]] = defaultdict(set)
        self._n_known: dict[str, int] = {}
        self._iteration: dict[str, int] = {}
        for event in run.events():
            self._remember(event)
        records = run.records()
        self.finished = {name: r for name, r in records.items() if r.status == "completed"}
        self.failed = {name: r for name, r in records.items() if r.status in ("failed", "diverged")}

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks with its own state, which nobody reads: leave all of it out."""
        return {}

    def members(self, study: str) -> set[str]:
        """Return the trials that the journal has entered for `study`."""
        return self._members[study]

    def begin(self, command: str) -> None:
        """Enter a session of a driver."""
        self.write({"event": "session", "pid": os.getpid(), "host": platform.node(), "command": command})

    def reuse(self, line: Event) -> None:
        """Enter a trial that another study, or an earlier call, has trained."""
        self.write({"event": "trial", **line, "reused": True})

    def rerun(self, trial_id: str) -> None:
        """Enter that a trial which failed is trained again from its start."""
        self.failed.pop(trial_id, None)
        self._drop_checkpoint(trial_id)
        self.write({"event": "rerun", "trial_id": trial_id})

    def write(self, event: Event) -> None:
        """Append an event; where that cannot be done, the sweep halts."""
        if self.halt.is_fault:
            return
        try:
            written = self.run.append(event)
        except OSError as error:
            self.halt.ask(f"cannot write {self.run.journal_path}: {error.strerror}", is_fault=True)
            return
        self._remember(written)
        self.observer(event)

    def _remember(self, event: Event) -> None:
        kind = event["event"]
        self.spent.take(event)
        if kind == "trial":
            self._members[event["study"]].add(event["trial_id"])
        elif kind == "epoch":
            self._n_known[event["trial_id"]] = event["epoch"]
        elif kind == "rerun":
            self._n_known[event["trial_id"]] = 0

    # ------------------------------------------------------------------------------ what Ray reports

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if trial.trial_id in self._entered:
            return
        self._entered.add(trial.trial_id)
        shares = {f"{name}s": amount for name, amount in trial.config["resources"].items()}
        self.write({"event": "trial", **trial.config["journal"], **shares, "reused": False})

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        name = name_of(trial)
        self.enter_epoch(trial, result)
        if is_tried_alone(trial.config, result):
            self.write({"event": "restart", "trial_id": name, "error": "out of memory; now with a whole GPU"})
        elif result["done"]:
            # `status` is the trial's own word; a trial that did not end itself was stopped by the scheduler.
            record = TrialRecord.from_dict(json.loads(result["record"]))
            record.status = result["status"] or "pruned"
            if name in self.interrupted:
                record.status = "killed"
                record.error = f"stopped after epoch {record.epochs}: {self.halt.reason}; it can be resumed"
            self._settle(record, trial.config, json.loads(result["predicted"]))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Drop what Ray would keep of a trial that is over: a tenth of a megabyte, and nobody asks for it."""
        trial.run_metadata.last_result = {"done": True}
        trial.run_metadata.metric_analysis = {}
        trial.run_metadata.metric_n_steps = {}

    def enter_epoch(self, trial: Trial, result: Event) -> None:
        """Enter an epoch unless it is known, and ask the sweep to halt where that was the last it may have.

        Called before the scheduler decides, and by Ray once more.
        """
        name, iteration = name_of(trial), result["training_iteration"]
        if result["fault"]:
            self.halt.ask(result["fault"], is_fault=True)
        if result["status"] not in (None, "completed") or self._iteration.get(trial.trial_id) == iteration:
            return
        self._iteration[trial.trial_id] = iteration
        metrics = {metric: result[metric] for metric in METRICS if metric in result}
        if not (result["replayed"] and result["epoch"] <= self._n_known.get(name, 0)):
            self.write(
                {
                    "event": "epoch",
                    "trial_id": name,
                    "epoch": result["epoch"],
                    "metrics": metrics,
                    "epoch_s": round(result["epoch_s"], 4),
                }
            )
        self.halt.judge(self.spent, metrics)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Settle a trial whose process is gone: the trainable itself turns exceptions into results."""
        self.on_trial_start(iteration, trials, trial)  # its process may have died before the trial started
        error = _error_of(trial)
        if name_of(trial) in self.restarting:
            self.restarting.remove(name_of(trial))
            self.write({"event": "restart", "trial_id": name_of(trial), "error": _why(error)})
            return
        last = trial.last_result or {}
        if "record" in last:
            record = TrialRecord.from_dict(json.loads(last["record"]))
        else:
            record = bare_record(trial.config, "failed", error=None)
        record.status = "killed" if isinstance(error, ray.exceptions.RayActorError) else "failed"
        record.error = _why(error)
        self._settle(record, trial.config)

    def _settle(self, record: TrialRecord, payload: dict[str, Any], predicted: Sequence[int] = ()) -> None:
        """Write how a trial ended, and drop the checkpoint that nobody will go on from."""
        record.cpus, record.gpus = payload["resources"]["cpu"], payload["resources"]["gpu"]
        record.cpu_hours, record.gpu_hours = (
            round(share * record.seconds / 3600, 6) for share in (record.cpus, record.gpus)
        )
        if not self.halt.is_fault:
            try:
                if predicted:
                    self.run.write_predictions(record.trial_id, predicted)
                self.run.write_record(record)
            except OSError as error:
                self.halt.ask(f"cannot write into {self.run.path}: {error.strerror}", is_fault=True)
        if self.halt.is_fault:
            return  # the trial stays unfinished, and goes on when the run is resumed
        if record.status == "completed":
            self.finished[record.trial_id] = record
            self._keep_best(payload["journal"]["study"])
        elif record.status in ("failed", "diverged"):
            self.failed[record.trial_id] = record
        if record.status not in ("completed", "killed"):
            self._drop_checkpoint(record.trial_id)
        self.write({"event": "end", "trial_id": record.trial_id, "status": record.status})

    # --------------------------------------------------------------------------------- checkpoints

    def _keep_best(self, study: str) -> None:
        """Drop the checkpoints of completed trials that are not among the best `keep` of the study."""
        metric = self.run.read_study(study)["metric"]
        direction = metric_direction(metric)
        kept: list[TrialRecord] = []
        for name in self._members[study]:
            record = self.finished.get(name)
            if record is None or not self._checkpoint(name).exists():
                continue
            place = sum(not is_better(record.objective(metric), k.objective(metric), direction) for k in kept)
            kept.insert(place, record)
        for record in kept[self.keep :]:
            self._drop_checkpoint(record.trial_id)

    def _checkpoint(self, trial_id: str) -> Path:
        return self.run.checkpoint_path(trial_id)

    def _drop_checkpoint(self, trial_id: str) -> None:
        shutil.rmtree(self._checkpoint(trial_id), ignore_errors=True)


def name_of(trial: Trial) -> str:
    """Return birdtune's id of a trial of Ray's."""
    name: str = trial.config["journal"]["trial_id"]
    return name


def is_tried_alone(payload: dict[str, Any], result: dict[str, Any]) -> bool:
    """Return whether a trial ran out of memory on a share of a GPU: it is tried again with a whole one."""
    return bool(result["out_of_memory"]) and 0 < payload["resources"]["gpu"] < 1


def _why(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}" if error else "Ray gave no reason"


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
