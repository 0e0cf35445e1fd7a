"""What a sweep says while none of its trials runs, because no node has room for one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from tuning.engine.cluster import live_nodes
from tuning.engine.packing import Node, in_words, largest_in_words

LOOK_EVERY_S = 5.0
REPEAT_EVERY_S = 600.0
SLOW_START_S = 60.0
"""Starting a worker takes seconds, and a minute where Python is read from a network."""


class Waiting(tune.Callback):
    """Tells `observer` what trials wait for: when that begins, when it changes, and every ten minutes."""

    def __init__(
        self,
        observer: Callable[[dict[str, Any]], None],
        *,
        nodes: Callable[[], Sequence[Node]] = live_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.observer = observer
        self.nodes = nodes
        self.clock = clock
        self._looked = self._notified = -float("inf")
        self._since: float | None = None  # when there was first a node for what waits
        self._last = ""

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks with its own state, which nobody reads: leave all of it out."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look around every few seconds: Ray calls this in every step, whether anything runs or not."""
        now = self.clock()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        pending = [trial for trial in trials if trial.status == Trial.PENDING]
        if not pending or any(trial.status == Trial.RUNNING for trial in trials):
            self._since, self._last = None, ""
            return
        text = self._text(pending[0].config["resources"], now)
        if text and (text != self._last or now - self._notified >= REPEAT_EVERY_S):
            self._last, self._notified = text, now
            self.observer({"event": "note", "text": text})

    def _text(self, wanted: dict[str, float], now: float) -> str:
        cpus, gpus = wanted["cpu"], wanted["gpu"]
        nodes = self.nodes()
        n_able = sum(node.n_fitting(cpus=cpus, gpus=gpus) > 0 for node in nodes)
        needs = in_words(cpus=cpus, gpus=gpus)
        if not n_able:
            self._since = None
            return (
                f"waiting for a node with {needs}: of the cluster, "
                f"{largest_in_words(nodes, cpus=cpus, gpus=gpus)}; Ctrl-C ends the sweep"
            )
        self._since = now if self._since is None else self._since
        if now - self._since < SLOW_START_S:
            return ""
        return (
            f"no trial has started for a minute: {n_able} of {len(nodes)} nodes could give one {needs}; they "
            "are busy with other work, or their processes are slow to start"
        )
