"""Which trial Ray runs next, and which it ends."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from birdnet_core.records.trial import TrialRecord
from tuning.engine.journal import Journal, epochs_of, name_of, needs_whole_gpu
from tuning.engine.nodes import Nodes, TrialFault, fault_of
from tuning.engine.placement import Placement
from tuning.engine.ray_internals import node_of_dead, stop_before_start
from tuning.engine.schedulers import Rule
from tuning.engine.searcher import Payload, Source, is_of_storage
from tuning.engine.stopping import StoppingScheduler
from tuning.engine.trainable import bare_record
from tuning.engine.waiting import LOOK_EVERY_S


@dataclass
class _Handed:
    """A trial that was suggested and is not over.

    `key` is the source's name for it, `avoid` the nodes where it failed, `record` what its last result held.
    """

    key: str
    payload: Payload
    avoid: set[str] = field(default_factory=set)
    record: str = ""

    @property
    def trial_id(self) -> str:
        return str(self.payload["journal"]["trial_id"])


class Dispatcher(Searcher):
    """Hands out what `source` suggests, until the sweep halts.

    A trial whose process or node died is handed out again and continues after its last epoch. After more
    than `restarts` deaths without an epoch between them it counts as killed, and continues when the run is
    resumed; a preempted node is no death. Not by Ray's own means, which may take one death for two.

    A trial that failed before its first epoch, for a reason that may be its process's, is retried once, on
    another node where there is one. A fault of a node is never the trial's: `nodes.MAX_FAULTS` of them in a
    row put the node aside. A trial that ran out of memory on a share of a GPU is handed out once more with a
    whole one.

    The source hears how a trial ended when its record is on disk. One that was stopped because the sweep
    halts, or whose record cannot be written, is still to be trained.

    Args:
        source: where trials come from.
        journal: writes what becomes of them.
        placement: says what each trial is given.
        prepare: returns whether the data of a payload is made, and enters it there; raises what its making
            raised. OSError and MemoryError are the machine's, others the trial's.
        concurrent: how many trials are trained side by side.
        restarts: deaths without progress that a trial survives.
        nodes: which machines are put aside.
    """

    def __init__(
        self,
        source: Source,
        journal: Journal,
        placement: Placement,
        prepare: Callable[[Payload], bool] = lambda payload: True,
        *,
        concurrent: int = 1,
        restarts: int = 0,
        nodes: Nodes | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.journal = journal
        self.placement = placement
        self.prepare = prepare
        self.concurrent = concurrent
        self.restarts = restarts
        self.nodes = nodes or Nodes()
        self._running: dict[str, _Handed] = {}  # by Ray's id
        self._again: deque[_Handed] = deque()
        self._waiting: list[_Handed] = []  # for their data, which is being made
        self._n_suggested = 0
        self._n_deaths: Counter[str] = Counter()  # since the last epoch
        self._second_attempts: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its searcher with its own state, which nobody reads: leave all of it out."""
        return {}

    # ---------------------------------------------------------------------------------- what runs next

    def suggest(self, trial_id: str) -> Payload | str | None:  # type: ignore[override]
        """Return the payload of the next trial, None while one may come, or Searcher.FINISHED."""
        finished: str = Searcher.FINISHED
        # Ray's loop may stay here for minutes while nothing but data is to be waited for.
        self.journal.halt.judge(self.journal.usage, {}, time.time())
        if self.journal.halt.reason:
            return finished
        handed = self._again.popleft() if self._again else self._prepared() or self._drawn()
        if handed is None:
            return None if self._running or self._waiting else finished
        avoid = self._avoided(handed)
        if avoid is None:
            return finished
        self._running[trial_id] = handed
        return {**handed.payload, "avoid": avoid}

    def _drawn(self) -> _Handed | None:
        """Return a new trial of the source whose data is there; those whose is not wait for it.

        One more than are trained side by side may wait, so that one trial alone does not keep the next from
        starting. Yet more would be drawn without what the others teach.
        """
        while len(self._waiting) <= self.concurrent:
            self._n_suggested += 1
            key = str(self._n_suggested)
            suggested = None
            with self._storage():
                suggested = self.source.suggest(key)
            if suggested is None:
                return None
            self._waiting.append(_Handed(key, {**suggested, **self.placement.of(suggested["config"])}))
            if handed := self._prepared():
                return handed
        return None

    def _prepared(self) -> _Handed | None:
        """Return a trial that waited for its data, now made. One for which none can be made has failed."""
        for handed in list(self._waiting):
            try:
                is_made = self.prepare(handed.payload)
            except (OSError, MemoryError) as error:  # this machine's, whatever the trial asks for
                why = str(error) or "it does not fit into memory"
                self.journal.halt.ask(f"cannot make the data of a trial: {why}", is_fault=True)
                return None
            except Exception as error:  # a trial's boundary: its settings may not fit the recordings
                self._waiting.remove(handed)
                why = f"its data cannot be made: {type(error).__name__}: {error}"
                record = bare_record(handed.payload, "failed", error=why)
                self.journal.settle_unfit(record, handed.payload["journal"])
                self._settle_source(handed)
                continue
            if is_made:
                self._waiting.remove(handed)
                return handed
        return None

    def _avoided(self, handed: _Handed) -> list[str] | None:
        """Return the nodes that a trial must not run on; None where that leaves none, and the sweep halts."""
        if not self.nodes.aside and not handed.avoid:
            return []
        able = set(self.nodes.able(handed.payload["resources"]))
        if not able and not self.nodes.aside:
            return []  # where it failed is gone, and others may join
        if not able:
            aside = ", ".join(self.nodes.aside.values())
            self.journal.halt.ask(f"no machine is left to train on: put aside are {aside}", is_fault=True)
            return None
        return sorted({*self.nodes.aside, *(handed.avoid if able - handed.avoid else ())})

    # ------------------------------------------------------------------------------- how trials get on

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._take(self._running[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hand a trial out again that is not over; settle the others at the source."""
        handed = self._running.pop(trial_id)
        if error:
            self._on_error(trial_id, handed)
        elif result:
            # Ray does not hand the last result to on_trial_result when a trial ends on it.
            self._take(handed, result)
            if needs_whole_gpu(handed.payload, result):
                resources = {**handed.payload["resources"], "gpu": 1.0}
                handed.payload = {**handed.payload, "resources": resources, "memory_cap": None}
                self._again.append(handed)
                return
        elif not self.journal.halt.reason:  # it waited for a node, of which none is left
            self._again.append(handed)
            return
        self._settle_source(handed)

    def _take(self, handed: _Handed, result: dict[str, Any]) -> None:
        handed.record = result["record"]
        if any(not epoch["replayed"] for epoch in epochs_of(result)):
            self._n_deaths.pop(handed.trial_id, None)
            for node in self.nodes.trained(result["node"], handed.trial_id):
                self._say_aside(node, "trials that failed there at once were trained elsewhere")
        with self._storage():
            self.source.report(handed.key, result)

    def _settle_source(self, handed: _Handed) -> None:
        """Tell the source how a trial ended, unless it is still to be trained."""
        # Not any record that is settled: one that another study pruned, and that was not begun, is none here.
        if record := self.journal.outcome(handed.trial_id, handed.payload["journal"]["study"]):
            with self._storage():
                self.source.settle(handed.key, record)

    def _on_error(self, ray_id: str, handed: _Handed) -> None:
        """Hand out again, or settle, a trial that Ray raised an exception for instead of a result."""
        name, payload, journal = handed.trial_id, handed.payload, self.journal
        error = journal.error_of(ray_id)
        fault = fault_of(error)
        why = fault.why if fault else f"{type(error).__name__}: {error}" if error else "Ray gave no reason"
        if fault:
            handed.record = fault.record
        record = (
            TrialRecord.from_dict(json.loads(handed.record))
            if handed.record
            else bare_record(payload, "failed", error=None)
        )
        journal.enter(ray_id, payload)  # its process may have died before the trial started
        # Whatever else Ray says of a trial is that its process is gone.
        at_fault = fault.at_fault if fault else "chance" if isinstance(error, RayTaskError) else "node"
        if at_fault == "node" and not getattr(error, "preempted", False):
            self._n_deaths[name] += 1
            if fault:
                self._count_fault(fault.node, f"{name} {self._n_deaths[name]}", why)
            elif node := node_of_dead(error):
                # Once a trial: one that ends every process it is given is no proof against the node.
                self._count_fault(node, name, why)
        if journal.halt.reason:
            journal.interrupt(record, payload)
        elif at_fault != "chance":
            if self._n_deaths[name] <= self.restarts:
                self._hand_out_again(handed, fault, why)
            else:
                journal.settle(replace(record, status="killed", error=why), payload)
        elif name not in self._second_attempts:
            self._second_attempts.add(name)
            if fault:
                self.nodes.suspect(fault.node, name)
            self._hand_out_again(handed, fault, why)
        else:
            journal.settle(replace(record, status="failed", error=record.error or why), payload)

    def _hand_out_again(self, handed: _Handed, fault: TrialFault | None, why: str) -> None:
        if fault and fault.at_fault != "process":
            handed.avoid.add(fault.node)
        self.journal.restart(handed.trial_id, why)
        self._again.append(handed)

    def _count_fault(self, node: str, key: str, why: str) -> None:
        if self.nodes.fault(node, key):
            self._say_aside(node, why)

    def _say_aside(self, node: str, why: str) -> None:
        self.journal.note(f"{self.nodes.aside[node]} is given no more trials: {why.splitlines()[0]}")

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        """Let the sweep halt where Optuna's storage cannot be written, a full disk say."""
        try:
            yield
        except Exception as error:
            # Whatever its type: Optuna raises RuntimeError where it cannot give back the lock of its journal.
            if not is_of_storage(error):
                raise
            self.journal.halt.ask(f"cannot write the Optuna study: {error}", is_fault=True)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the run folder holds all there is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the run folder holds all there is."""


class HaltingScheduler(StoppingScheduler):
    """Ends the trials that a rule ends; when the sweep halts, all of them.

    Those that run end after the step they are in; those that wait for a worker or a node, at once. So is one
    that waits for a node of which none is left, and the dispatcher hands it out anew.
    """

    def __init__(self, rule: Rule, journal: Journal, nodes: Nodes) -> None:
        super().__init__(rule)
        self.journal = journal
        self.nodes = nodes
        self._looked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Keep the error for the dispatcher: Ray calls it next, without the error."""
        self.journal.keep_error(trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        self.journal.enter_epochs(trial, result)
        decision: str = super().on_trial_result(tune_controller, trial, result)
        self.journal.enter_let_on(name_of(trial), self.rule)
        if self.journal.halt.reason and decision == TrialScheduler.CONTINUE and not result["status"]:
            self.journal.interrupted.add(name_of(trial))
            return TrialScheduler.STOP
        return decision

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the next trial that waits; Ray asks in every step of its loop, whether anything runs or not.

        So this is where a sweep of which no trial has come to a first epoch is ended.
        """
        halt = self.journal.halt
        halt.judge(self.journal.usage, {}, time.time())
        for trial in self._in_vain(tune_controller.get_trials()):
            if halt.reason:
                self.journal.interrupted.add(name_of(trial))
            stop_before_start(tune_controller, trial)
        chosen: Trial | None = super().choose_trial_to_run(tune_controller)
        return chosen

    def _in_vain(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return the trials that wait to be started and shall not be."""
        if self.journal.halt.reason:
            return [trial for trial in trials if trial.status == Trial.PENDING]
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return []
        self._looked = time.monotonic()
        return [
            trial
            for trial in trials
            if trial.status == Trial.PENDING
            and self.nodes.is_stranded(trial.config["resources"], trial.config["avoid"])
        ]
