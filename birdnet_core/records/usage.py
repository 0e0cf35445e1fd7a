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
        if kind != "session" and time > self._last:  # not of the first, whose last is nan
            self.hours += (time - self._last) / 3600
        self._last = time
        if kind == "epoch":
            gpus, cpus = self._shares.get(event["trial_id"], (0.0, 0.0))
            self.gpu_hours += gpus * event["epoch_s"] / 3600
            self.cpu_hours += cpus * event["epoch_s"] / 3600
            self.n_epochs += 1
        elif kind == "trial":
            self._shares[event["trial_id"]] = (event.get("gpus", 0.0), event.get("cpus", 0.0))
