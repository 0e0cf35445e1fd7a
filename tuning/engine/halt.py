"""When a sweep ends before its trials do: a budget, a goal, Ctrl-C, or a disk that is full."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from birdnet_core.errors import ConfigError
from birdnet_core.records.bounds import Bound, parse_bound
from birdnet_core.records.metrics import METRICS
from birdnet_core.records.usage import Usage


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may cost over all of its sessions, and when it is good enough.

    Args:
        hours: wall time during which a driver ran.
        gpu_hours: of training; a trial with half a GPU uses half an hour an hour.
        until: a goal such as ``val/f1_macro>=0.5``: the sweep ends when an epoch of any trial meets it.
    """

    hours: float | None = None
    gpu_hours: float | None = None
    until: str | None = None

    def __post_init__(self) -> None:
        for name in ("hours", "gpu_hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"a budget of {value:g} {name} cannot train anything; give more than 0")
        self.goal()

    def goal(self) -> Bound | None:
        """Return `until` as a bound; ConfigError for another form or an unknown metric."""
        if self.until is None:
            return None
        return parse_bound(self.until, METRICS, "--until", "val/f1_macro>=0.5")


class Halt:
    """Why a sweep shall end. Trials that run end with the epoch they are in; no other is started."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self.reason: str | None = None
        self.is_fault = False

    def ask(self, reason: str, *, is_fault: bool = False) -> None:
        """Let the sweep end for `reason`: the first one, or the first fault, an error of the sweep itself."""
        if self.reason is None or (is_fault and not self.is_fault):
            self.reason, self.is_fault = reason, is_fault

    def judge(self, usage: Usage, metrics: dict[str, float], now: float | None = None) -> None:
        """End the sweep where its budget is used up, or an epoch's `metrics` meet the goal.

        `now` (Unix time) counts the time since the last event of a driver that runs.
        """
        budget = self.budget
        hours = usage.hours if now is None else usage.hours_until(now)
        if budget.hours is not None and hours >= budget.hours:
            self.ask(f"the budget of {budget.hours:g} hours is used up")
        if budget.gpu_hours is not None and usage.gpu_hours >= budget.gpu_hours:
            self.ask(f"the budget of {budget.gpu_hours:g} GPU-hours is used up")
        if goal := budget.goal():
            value = metrics.get(goal.name, math.nan)
            if goal.holds(value):
                self.ask(f"{goal.name} {goal.comparison} {goal.limit:g} is reached: {value:.4f}")


@contextlib.contextmanager
def ended_by_signals(halt: Halt, note: Callable[[str], None]) -> Iterator[None]:
    """End the sweep at the first Ctrl-C or SIGTERM, when its epochs are done; at the second, now.

    `note` takes a line for the user. Signals reach the main thread alone; elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[signal.Signals(number)]
        if halt.reason is not None:
            raise KeyboardInterrupt
        halt.ask(f"interrupted ({name})")
        note(f"{name}: finishing the epochs in progress; once more to stop now")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
