"""The Ray scheduler that asks a rule of `tuning.engine.schedulers` which trials end early."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from tuning.engine.journal import epochs_of
from tuning.engine.schedulers import Rule


class StoppingScheduler(FIFOScheduler):
    """Starts Ray's trials in their order and stops those that a rule stops.

    Args:
        rule: decides on the metrics of the trainable's results.

    The trial's config holds ``journal`` with its ``trial_id`` and perhaps its ``group``, and its ``fold`` if
    that is a further one of a search: these are never stopped, and not compared with. A result holds
    ``epoch`` and, unless the trial failed, the metrics.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rule = rule

    def rebuild(self, events: Iterable[dict[str, Any]], study: str) -> None:
        """Record what an earlier driver trained for `study`, from the journal's events in their order.

        Then later decisions are those of a driver that never died. What was trained for another study,
        before this one reused it, is left out, as that driver has left it out; epochs that were trained
        again count once.
        """
        groups: dict[str, str | None] = {}  # of the trials that are being trained for this study
        for event in events:
            if event["event"] == "trial":
                groups.pop(event["trial_id"], None)
                if event["study"] == study and not event.get("fold"):
                    groups[event["trial_id"]] = event.get("group")
            elif event["event"] == "epoch" and event["trial_id"] in groups:
                name, metrics = event["trial_id"], event["metrics"]
                if self.rule.metric in metrics:
                    self.rule.is_stopped(name, groups[name], event["epoch"], metrics)
            elif event["event"] == "end" and event["status"] == "completed" and event["trial_id"] in groups:
                self.rule.finish(event["trial_id"], groups[event["trial_id"]])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return STOP or CONTINUE. A trial that ended itself is never stopped."""
        is_stopped = self._record(trial, result) and not result.get("status")
        return str(self.STOP if is_stopped else self.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record the last result of a trial that ended itself, of which Ray does not ask."""
        self._record(trial, result)
        line = trial.config["journal"]
        if result.get("status") == "completed" and not line.get("fold"):
            self.rule.finish(line["trial_id"], line.get("group"))

    def _record(self, trial: Trial, result: dict[str, Any]) -> bool:
        """Record the epochs of a result; return whether the trial is stopped at one of them.

        That is the last: no step of a trial goes beyond an epoch at which the rule decides.
        """
        line = trial.config["journal"]
        return not line.get("fold") and any(
            [
                self.rule.is_stopped(line["trial_id"], line.get("group"), int(epoch["epoch"]), epoch)
                for epoch in epochs_of(result)
                if self.rule.metric in epoch
            ]
        )
