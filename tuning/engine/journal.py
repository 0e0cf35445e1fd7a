"""The journal of a sweep: the only writer of a run folder while a driver runs."""

from __future__ import annotations

import bisect
import json
import math
import os
import platform
import shutil
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from birdnet_core.records.metrics import METRICS, metric_direction
from birdnet_core.records.run_folder import PRUNED_CHECKPOINT_BYTES, RunFolder
from birdnet_core.records.trial import OF_ONE_SEARCH, TrialRecord
from birdnet_core.records.usage import Usage
from tuning.engine.halt import Halt
from tuning.engine.ray_internals import drop_results, error_of
from tuning.engine.schedulers import Rule

UNFIT = "unfit-"
"""How the names of trials begin whose choices make no config."""

Event = dict[str, Any]
Observer = Callable[[Event], None]


class Journal(tune.Callback):
    """Appends what Ray reports to the journal, and settles the record of every trial that ends.

    Args:
        run: the run folder.
        observer: called with every event after it is written.
        halt: ends the sweep where the folder cannot be written, or a budget is used up.
        keep: the number of completed trials, the best of a study by its metric, whose checkpoints stay.

    `settled` holds the records of the trials that are over, as they lie on disk, whatever study they were
    trained for: completed, pruned, infeasible, or failed by themselves, as they would again. Killed ones are
    to be continued.
    """

    def __init__(
        self, run: RunFolder, observer: Observer, halt: Halt | None = None, *, keep: int = 0
    ) -> None:
        self.run = run
        self.observer = observer
        self.halt = halt or Halt()
        self.keep = keep
        self.usage = Usage()
        # Trials that the scheduler stopped because the sweep halts.
        self.interrupted: set[str] = set()
        # What Ray raised for a trial, by Ray's id of it.
        self._errors: dict[str, Exception | None] = {}
        self._entered: set[str] = set()
        self._members: defaultdict[str, set[str]] = defaultdict(set)
        self._trained_for: dict[str, str] = {}
        self._unended: set[str] = set()
        self._n_known: dict[str, int] = {}
        self._let_on: dict[str, dict[str, int]] = {"audit": {}, "spared": {}}
        self._iteration: dict[str, int] = {}
        for event in run.events():
            self._remember(event)
        self.settled = {name: r for name, r in run.records().items() if r.status != "killed"}
        self._metrics: dict[str, str] = {}
        self._kept = {study: self._checkpoints_of(study) for study in self._members}
        self._pruned: deque[tuple[str, int]] = deque()
        self._pruned_bytes = 0
        for name, record in self.settled.items():
            if record.status == "pruned":
                self._keep_pruned(name)

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks with its own state, which nobody reads: leave all of it out."""
        return {}

    def members(self, study: str) -> set[str]:
        """Return the trials that the journal has entered for `study`."""
        return self._members[study]

    def failed(self, study: str) -> set[str]:
        """Return the trials of `study` that failed or diverged, but for those that could not be trials.

        Where the space of a search is drawn from again, its trial has another number, and so another name.
        """
        return {
            name
            for name in self._members[study]
            if name in self.settled
            and self.settled[name].status in ("failed", "diverged")
            and not name.startswith(UNFIT)
        }

    def outcome(self, trial_id: str, study: str) -> TrialRecord | None:
        """Return how a trial ended, None where `study` has it to train.

        A trial that was pruned for another study was compared with other trials, and one that is infeasible
        there may be feasible here: this study trains it.
        """
        record = self.settled.get(trial_id)
        if record and record.status in OF_ONE_SEARCH and self._trained_for.get(trial_id) != study:
            return None
        return record

    def curve(self, trial_id: str, metric: str) -> dict[int, float]:
        """Return the values of a metric by epoch, as far as the trial has come; reads the whole journal."""
        return {
            event["epoch"]: event["metrics"][metric]
            for event in self.run.events()
            if event["event"] == "epoch"
            and event["trial_id"] == trial_id
            and event["metrics"].get(metric) is not None
        }

    def begin(self, command: str) -> None:
        """Enter a session of a driver, and the ends that the driver before was killed over."""
        self.write({"event": "session", "pid": os.getpid(), "host": platform.node(), "command": command})
        for name in sorted(self._unended & set(self.settled)):
            self._enter_end(self.settled[name])

    def reuse(self, line: Event) -> None:
        """Enter a trial that another study, an earlier call, or another trial of its config has trained."""
        self.write(
            {"event": "trial", **line, "reused": True, "status": self.settled[line["trial_id"]].status}
        )

    def rerun(self, trial_id: str) -> None:
        """Enter that a trial which failed is trained again from its start."""
        self._unsettle(trial_id, "is trained again")
        self._drop_checkpoint(trial_id)
        self.write({"event": "rerun", "trial_id": trial_id})

    def restart(self, trial_id: str, why: str) -> None:
        """Enter that a trial is handed out again, and continues after its last epoch."""
        self.write({"event": "restart", "trial_id": trial_id, "error": why})

    def next_fold(self, study: str, trial_id: str, number: int) -> None:
        """Enter that config `number` of a search, of which `trial_id` completed, gets its next fold."""
        self.write({"event": "next_fold", "study": study, "trial_id": trial_id, "number": number})

    def note(self, text: str) -> None:
        """Enter something that whoever watches should know."""
        self.write({"event": "note", "text": text})

    def write(self, *events: Event) -> None:
        """Append events; where that cannot be done, the sweep halts."""
        if self.halt.is_fault or not events:
            return
        try:
            written = self.run.append(*events)
        except OSError as error:
            self.halt.ask(f"cannot write {self.run.journal_path}: {error.strerror}", is_fault=True)
            return
        for event, as_written in zip(events, written, strict=True):
            self._remember(as_written)
            self.observer(event)

    def _remember(self, event: Event) -> None:
        kind = event["event"]
        self.usage.add(event)
        if kind == "trial":
            self._members[event["study"]].add(event["trial_id"])
            if not event["reused"]:
                self._trained_for[event["trial_id"]] = event["study"]
                self._unended.add(event["trial_id"])
        elif kind == "epoch":
            self._n_known[event["trial_id"]] = event["epoch"]
        elif kind == "rerun":
            self._n_known[event["trial_id"]] = 0
        elif kind in self._let_on:
            self._let_on[kind][event["trial_id"]] = event["epoch"]
        elif kind == "end":
            self._unended.discard(event["trial_id"])

    # ------------------------------------------------------------------------------ what Ray reports

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.enter(trial.trial_id, trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        name = name_of(trial)
        self.enter_epochs(trial, result)
        if needs_whole_gpu(trial.config, result):
            self.restart(name, "out of memory; now with a whole GPU")
        elif result["done"]:
            # `status` is the trial's own word; a trial that did not end itself was stopped by the scheduler.
            record = TrialRecord.from_dict(json.loads(result["record"]))
            record.status = result["status"] or "pruned"
            if name in self.interrupted:
                self.interrupt(record, trial.config)
            else:
                self.settle(record, trial.config, result["predictions"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        drop_results(trial)

    def keep_error(self, trial: Trial) -> None:
        """Keep what Ray raised for a trial: the scheduler hears of it before the searcher, who cannot ask."""
        self._errors[trial.trial_id] = error_of(trial)

    def error_of(self, ray_id: str) -> Exception | None:
        """Return what `keep_error` kept."""
        return self._errors.pop(ray_id, None)

    # ---------------------------------------------------------------------------- what becomes of trials

    def enter(self, ray_id: str, payload: Event) -> None:
        """Enter once that a trial is being trained."""
        if ray_id in self._entered:
            return
        self._entered.add(ray_id)
        shares = {f"{name}s": amount for name, amount in payload["resources"].items()}
        self._unsettle(payload["journal"]["trial_id"], f"is trained on for {payload['journal']['study']}")
        self.write({"event": "trial", **payload["journal"], **shares, "reused": False})

    def enter_epochs(self, trial: Trial, result: Event) -> None:
        """Enter the epochs of a step unless they are known; ask the sweep to halt where it may train no more.

        Called before the scheduler decides, and by Ray once more.
        """
        name, iteration = name_of(trial), result["training_iteration"]
        if result["fault"]:
            self.halt.ask(result["fault"], is_fault=True)
        if self._iteration.get(trial.trial_id) == iteration:
            return
        self._iteration[trial.trial_id] = iteration
        epochs = epochs_of(result)
        metrics_of = [{name: epoch[name] for name in METRICS if name in epoch} for epoch in epochs]
        n_known = self._n_known.get(name, 0)
        self.write(
            *(
                {
                    "event": "epoch",
                    "trial_id": name,
                    "epoch": epoch["epoch"],
                    "metrics": metrics,
                    "epoch_s": round(epoch["epoch_s"], 4),
                }
                for epoch, metrics in zip(epochs, metrics_of, strict=True)
                if not (epoch["replayed"] and epoch["epoch"] <= n_known)
            )
        )
        for metrics in metrics_of:
            self.halt.judge(self.usage, metrics)

    def enter_let_on(self, trial_id: str, rule: Rule) -> None:
        """Enter that a trial trains on where it would have been stopped: as an audit, or spared."""
        for kind, epochs in (("audit", rule.audits), ("spared", rule.spared)):
            if epochs.get(trial_id) != self._let_on[kind].get(trial_id):
                self.write({"event": kind, "trial_id": trial_id, "epoch": epochs[trial_id]})

    def interrupt(self, record: TrialRecord, payload: Event) -> None:
        """Settle a trial that is to be continued when the run is resumed."""
        why = f"stopped after epoch {record.epochs}: {self.halt.reason}; it can be resumed"
        self.settle(replace(record, status="killed", error=why), payload)

    def settle_unfit(self, record: TrialRecord, line: Event) -> None:
        """Settle a trial that does not begin: its choices make no config or an infeasible one, or it has no
        data.
        """
        nothing = {"cpu": 0.0, "gpu": 0.0}
        self.write({"event": "trial", **line, "cpus": 0.0, "gpus": 0.0, "reused": False})
        self.settle(record, {"journal": line, "resources": nothing})

    def settle(self, record: TrialRecord, payload: Event, predictions: bytes | None = None) -> None:
        """Write how a trial ended, and drop the checkpoint that nobody will continue from.

        Where that cannot be done the sweep halts, and the trial stays unfinished: it is not in `settled`,
        Optuna does not hear of it, and it continues when the run is resumed.
        """
        record.cpus, record.gpus = payload["resources"]["cpu"], payload["resources"]["gpu"]
        record.audited_at = self._let_on["audit"].get(record.trial_id)
        record.spared_at = self._let_on["spared"].get(record.trial_id)
        record.cpu_hours, record.gpu_hours = (
            round(share * record.seconds / 3600, 6) for share in (record.cpus, record.gpus)
        )
        if self.halt.is_fault:
            return
        try:
            if predictions:
                self.run.write_predictions(record.trial_id, predictions)
            self.run.write_record(record)
        except OSError as error:
            self.halt.ask(f"cannot write into {self.run.path}: {error.strerror}", is_fault=True)
            return
        if record.status == "killed":
            self._enter_end(record)
            return
        self.settled[record.trial_id] = record
        if record.status == "completed":
            self._keep_if_best(payload["journal"]["study"], record)
        elif record.status == "pruned":
            self._keep_pruned(record.trial_id)
        else:
            self._drop_checkpoint(record.trial_id)
        self._enter_end(record)

    def _unsettle(self, trial_id: str, why: str) -> None:
        """Let the record say that a trial is not over, should the driver die before it is again."""
        if record := self.settled.pop(trial_id, None):
            try:
                self.run.write_record(replace(record, status="killed", error=f"the trial {why}"))
            except OSError as error:
                self.halt.ask(f"cannot write into {self.run.path}: {error.strerror}", is_fault=True)

    def _enter_end(self, record: TrialRecord) -> None:
        error = {"error": record.error} if record.error else {}
        memory = {} if record.peak_memory_mb is None else {"peak_memory_mb": record.peak_memory_mb}
        self.write({"event": "end", "trial_id": record.trial_id, "status": record.status, **error, **memory})

    # --------------------------------------------------------------------------------- checkpoints

    def _keep_if_best(self, study: str, record: TrialRecord) -> None:
        """Drop the checkpoint of a completed trial, or of the one that it drives out of the study's best."""
        kept = self._kept.setdefault(study, [])
        bisect.insort(kept, self._place(study, record))
        for _, name in kept[self.keep :]:
            self._drop_checkpoint(name)
        del kept[self.keep :]

    def _checkpoints_of(self, study: str) -> list[tuple[float, str]]:
        """Return the completed trials of a study that have a checkpoint, the best first."""
        # Of those that it trained: a trial that it shares with another study is the other one's to keep.
        mine = [name for name, trained_for in self._trained_for.items() if trained_for == study]
        done = [self.settled[name] for name in mine if name in self.settled]
        return sorted(
            self._place(study, record)
            for record in done
            if record.status == "completed" and self.run.checkpoint_path(record.trial_id).exists()
        )

    def _place(self, study: str, record: TrialRecord) -> tuple[float, str]:
        """Return by what trials of `study` are sorted, the best first."""
        if study not in self._metrics:
            self._metrics[study] = self.run.read_study(study)["metric"]
        metric = self._metrics[study]
        value = record.objective(metric)
        if math.isnan(value):
            return math.inf, record.trial_id
        return -value if metric_direction(metric) == "maximize" else value, record.trial_id

    def _keep_pruned(self, trial_id: str) -> None:
        """Keep the checkpoint of a pruned trial, which another study may continue, while there is room."""
        file = self.run.checkpoint_path(trial_id) / "session.pt"
        n_bytes = file.stat().st_size if file.exists() else 0
        self._pruned.append((trial_id, n_bytes))
        self._pruned_bytes += n_bytes
        while self._pruned_bytes > PRUNED_CHECKPOINT_BYTES:
            name, n_bytes = self._pruned.popleft()
            self._pruned_bytes -= n_bytes
            if name in self.settled and self.settled[name].status == "pruned":
                self._drop_checkpoint(name)

    def _drop_checkpoint(self, trial_id: str) -> None:
        shutil.rmtree(self.run.checkpoint_path(trial_id), ignore_errors=True)


def name_of(trial: Trial) -> str:
    """Return birdtune's id of a trial of Ray's."""
    name: str = trial.config["journal"]["trial_id"]
    return name


def epochs_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the epochs of a step's result: number, metrics, ``epoch_s``, and whether it is ``replayed``.

    One of a step that failed after some epochs holds these; the result itself is one unless it failed.
    """
    earlier: list[dict[str, Any]] = json.loads(result.get("earlier", "[]"))
    return [*earlier, result] if result.get("status") in (None, "completed") else earlier


def needs_whole_gpu(payload: dict[str, Any], result: dict[str, Any]) -> bool:
    """Return whether a trial ran out of memory on a share of a GPU: it is retried with a whole one."""
    return bool(result["out_of_memory"]) and 0 < payload["resources"]["gpu"] < 1
