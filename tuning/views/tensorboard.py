"""The events of a sweep as TensorBoard logs: a run for each trial, with its choices and its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

Event = dict[str, Any]


class TensorBoardLog:
    """Writes the epochs of each trial to a folder of its own under `folder`, while a sweep runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, SummaryWriter] = {}
        self._factors: dict[str, dict[str, Any]] = {}
        self._last: dict[str, dict[str, float]] = {}

    def __call__(self, event: Event) -> None:
        """Take in one event of the driver."""
        kind, name = event["event"], event.get("trial_id", "")
        if kind == "trial":
            self._factors[name] = event["factors"]
        elif kind == "epoch":
            if name not in self._writers:
                self._writers[name] = SummaryWriter(str(self.folder / name), flush_secs=5)
            self._last[name] = event["metrics"]
            for metric, value in event["metrics"].items():
                self._writers[name].add_scalar(metric, value, event["epoch"])
        elif kind == "end" and name in self._writers:
            writer = self._writers.pop(name)
            choices = {
                key: value if isinstance(value, (bool, int, float)) else str(value)
                for key, value in self._factors[name].items()
            }
            last = {f"last/{metric}": value for metric, value in self._last.pop(name).items()}
            writer.add_hparams(choices, last, name="choices")  # a folder of its own: its writer is another
            writer.close()
