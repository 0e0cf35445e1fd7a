"""Optuna on Ray, with the states that Optuna itself would have recorded.

Ray's own OptunaSearch tells a trial that ASHA stopped as COMPLETE with its truncated value, so that
importance and best-value plots mix training lengths. Here it is PRUNED, with its intermediate values.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState
from ray.tune.search import Searcher

from birdnet_core.records import metric_direction

Payload = dict[str, Any]


def open_study(storage: Path, name: str, metric: str, *, seed: int, n_trials: int) -> optuna.Study:
    """Return the Optuna study `name` in an SQLite file, created if new, sampled by TPE.

    A quarter of the trials, at least 4 and at most 10, are random before TPE models anything. Trials that an
    earlier driver left RUNNING are told FAIL: nobody trains them any more.
    """
    with warnings.catch_warnings():
        # multivariate, group and constant_liar are marked experimental; the defaults ignore interactions
        # and trials that are still running.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=min(10, max(4, n_trials // 4)),
            multivariate=True,
            group=True,
            constant_liar=True,
        )
    study = optuna.create_study(
        storage=f"sqlite:///{storage}",
        study_name=name,
        sampler=sampler,
        direction=metric_direction(metric),
        load_if_exists=True,
    )
    for trial in study.get_trials(states=[TrialState.RUNNING], deepcopy=False):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


class OptunaSearcher(Searcher):
    """Asks Optuna for trials and tells it how they went.

    Args:
        study: where the trials are kept; its driver is the only writer.
        metric: the value told to Optuna, a key of the trainable's result.
        make_payload: turns an Optuna trial into what the trainable is shipped, or into a value when the
            trial's config has been trained before: that value is told and the next trial asked for.
        n_trials: how many trials the study shall hold in all.
    """

    def __init__(
        self,
        study: optuna.Study,
        metric: str,
        make_payload: Callable[[Trial], Payload | float],
        n_trials: int,
    ) -> None:
        mode = "max" if metric_direction(metric) == "maximize" else "min"
        super().__init__(metric=metric, mode=mode)
        self.study = study
        self.make_payload = make_payload
        self.n_trials = n_trials
        self._trials: dict[str, Trial] = {}
        self._values: dict[str, dict[int, float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its searcher with its own state, which nobody reads: leave out what cannot be."""
        return {**self.__dict__, "make_payload": None}

    def n_left(self) -> int:
        """Return how many trials are still to be asked for; those that failed do not count."""
        trials = self.study.get_trials(deepcopy=False)
        return max(0, self.n_trials - len([t for t in trials if t.state != TrialState.FAIL]))

    def suggest(self, trial_id: str) -> Payload | str:  # type: ignore[override]
        """Return the payload of the next trial, or Searcher.FINISHED."""
        while self.n_left():
            trial = self.study.ask()
            payload = self.make_payload(trial)
            if isinstance(payload, dict):
                self._trials[trial_id] = trial
                self._values[trial_id] = {}
                return payload
            self.study.tell(trial, payload)
        finished: str = Searcher.FINISHED
        return finished

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._report(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a trial ended: COMPLETE with its best value, PRUNED, or FAIL."""
        result = result or {}
        # Ray does not hand the last result to on_trial_result when the scheduler stops the trial on it.
        self._report(trial_id, result)
        trial, values = self._trials.pop(trial_id), self._values.pop(trial_id)
        status = result.get("status")
        if status == "completed":
            best = max if self.mode == "max" else min
            self.study.tell(trial, best(values.values()))
        elif error or status in ("failed", "diverged") or not result:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, state=TrialState.PRUNED)

    def _report(self, trial_id: str, result: dict[str, Any]) -> None:
        if self.metric not in result:
            return
        epoch = int(result["epoch"])
        if epoch not in self._values[trial_id]:
            self._values[trial_id][epoch] = result[self.metric]
            self._trials[trial_id].report(result[self.metric], epoch)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the Optuna storage holds all there is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the Optuna storage holds all there is."""


class PlannedSearcher(Searcher):
    """Hands out the trials of an ablation in their order."""

    def __init__(self, payloads: list[Payload]) -> None:
        super().__init__()
        self._left = deque(payloads)

    def n_left(self) -> int:
        """Return how many trials are still to be handed out."""
        return len(self._left)

    def suggest(self, trial_id: str) -> Payload | str:  # type: ignore[override]
        """Return the payload of the next trial, or Searcher.FINISHED."""
        return self._left.popleft() if self._left else str(Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing depends on how a planned trial ends."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the run folder says which trials are finished."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the run folder says which trials are finished."""
