"""Which trial Ray runs next, and which it ends."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import optuna
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from tuning.journal import Journal, is_tried_alone, name_of
from tuning.placement import Placement
from tuning.schedulers import Rule
from tuning.stopping import StoppingScheduler

Payload = dict[str, Any]


class Dispatcher(Searcher):
    """Hands out what `source` suggests, until the sweep halts.

    A trial whose process or node died is handed out again, up to `restarts` times, and goes on after its last
    epoch; not by Ray's own means, which may take one death for two. A trial that ran out of memory on a share
    of a GPU is handed out once more with a whole one. A trial that is stopped because the sweep halts is not
    told to `source`: it is still to be trained. `placement` says what each trial is given.
    """

    def __init__(
        self, source: Searcher, journal: Journal, placement: Placement, *, restarts: int = 0
    ) -> None:
        super().__init__(metric=source.metric, mode=source.mode)
        self.source = source
        self.journal = journal
        self.placement = placement
        self.restarts = restarts
        self._n_deaths: Counter[str] = Counter()
        self._payloads: dict[str, Payload] = {}
        self._again: deque[tuple[str, Payload]] = deque()
        # What the source calls a trial that Ray was given under another id.
        self._known_as: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its searcher with its own state, which nobody reads: leave all of it out."""
        return {}

    def suggest(self, trial_id: str) -> Payload | str | None:  # type: ignore[override]
        """Return the payload of the next trial, None while one may come back, or Searcher.FINISHED."""
        finished: str = Searcher.FINISHED
        if self.journal.halt.reason:
            return finished
        if self._again:
            known_as, payload = self._again.popleft()
        else:
            known_as = trial_id
            suggested = None
            with self._storage():
                suggested = self.source.suggest(trial_id)
            if not isinstance(suggested, dict):
                return None if self._payloads else finished
            payload = {**suggested, **self.placement.of(suggested["config"])}
        self._known_as[trial_id], self._payloads[trial_id] = known_as, payload
        return payload

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        with self._storage():
            self.source.on_trial_result(self._known_as[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the source how a trial ended, unless it is to go on."""
        payload, known_as = self._payloads.pop(trial_id), self._known_as.pop(trial_id)
        name = payload["journal"]["trial_id"]
        if name in self.journal.interrupted:
            return
        if error and self._n_deaths[name] < self.restarts:
            self._n_deaths[name] += 1
            self.journal.restarting.add(name)
            self._again.append((known_as, payload))
            return
        if result and is_tried_alone(payload, result):
            alone = {**payload, "resources": {**payload["resources"], "gpu": 1.0}, "memory_cap": None}
            self._again.append((known_as, alone))
            return
        with self._storage():
            self.source.on_trial_complete(known_as, result, error)

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        """Let the sweep halt where Optuna's storage cannot be written, a full disk say."""
        try:
            yield
        except (optuna.exceptions.StorageInternalError, OSError) as error:
            self.journal.halt.ask(f"cannot write the Optuna study: {error}", is_fault=True)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the run folder holds all there is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the run folder holds all there is."""


class HaltingScheduler(StoppingScheduler):
    """Ends the trials that a rule ends; when the sweep halts, all of them.

    Those that run end after the epoch they are in; those that wait for a worker or a node, at once.
    """

    def __init__(self, rule: Rule, metric: str, journal: Journal) -> None:
        super().__init__(rule, metric)
        self.journal = journal

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        self.journal.enter_epoch(trial, result)
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if self.journal.halt.reason and decision == TrialScheduler.CONTINUE and not result["status"]:
            self.journal.interrupted.add(name_of(trial))
            return TrialScheduler.STOP
        return decision

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the next trial that waits; Ray asks in every step of its loop, whether anything runs or not.

        So this is where a sweep of which no trial has come to a first epoch is ended.
        """
        halt = self.journal.halt
        halt.judge(self.journal.spent, {}, time.time())
        if halt.reason:
            for trial in tune_controller.get_trials():
                if trial.status == Trial.PENDING:
                    self.journal.interrupted.add(name_of(trial))
                    tune_controller.stop_trial(trial)
        chosen: Trial | None = super().choose_trial_to_run(tune_controller)
        return chosen
