"""Compute that a run has used, in hours."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Usage:
    """GPU hours, CPU hours, hours of wall time and epochs of a run so far, from the events of its journal."""

    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    hours: float = 0.0
    n_epochs: int = 0
    _shares: dict[str, tuple[float, float]] = field(default_factory=dict)
    # Seconds of trials whose shares earlier events may tell.
    _without_share: dict[str, float] = field(default_factory=dict)
    _first: tuple[str, float] | None = None
    _last: float = math.nan

    @classmethod
    def of(cls, events: Iterable[dict[str, Any]]) -> Usage:
        """Return the usage of `events`; time between two drivers does not count."""
        usage = cls()
        for event in events:
            usage.add(event)
        return usage

    def hours_until(self, now: float) -> float:
        """Return the hours until `now` (Unix time) of a run whose driver still runs."""
        return self.hours + (0.0 if math.isnan(self._last) else max(0.0, now - self._last) / 3600)

    def add(self, event: dict[str, Any]) -> None:
        """Add one event of the journal."""
        kind, time = event["event"], event["time"]
        if self._first is None:
            self._first = kind, time
        self._until(kind, time)
        self._last = time
        if kind == "epoch":
            self._spend(event["trial_id"], event["epoch_s"])
            self.n_epochs += 1
        elif kind == "trial":
            self._shares[event["trial_id"]] = (event.get("gpus", 0.0), event.get("cpus", 0.0))

    def extend(self, later: Usage) -> None:
        """Add the events of the same journal that `later` has, which come next."""
        if later._first is None:
            return
        self._until(*later._first)
        self._last = later._last
        self.gpu_hours += later.gpu_hours
        self.cpu_hours += later.cpu_hours
        self.hours += later.hours
        self.n_epochs += later.n_epochs
        for trial_id, seconds in later._without_share.items():
            self._spend(trial_id, seconds)
        self._shares |= later._shares

    def _until(self, kind: str, time: float) -> None:
        if kind != "session" and time > self._last:  # not of the first, whose last is nan
            self.hours += (time - self._last) / 3600

    def _spend(self, trial_id: str, seconds: float) -> None:
        share = self._shares.get(trial_id)
        if share is None:
            self._without_share[trial_id] = self._without_share.get(trial_id, 0.0) + seconds
            return
        self.gpu_hours += share[0] * seconds / 3600
        self.cpu_hours += share[1] * seconds / 3600
