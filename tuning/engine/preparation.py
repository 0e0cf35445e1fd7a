"""The datasets of a sweep: made when first needed, or in the background while trials train."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from birdnet_core.config import TrainConfig
from birdnet_core.data.building import Progress, no_progress
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.errors import RunFolderError
from birdnet_core.records.run_folder import RunFolder
from tuning.engine.halt import Halt

Wanted = tuple[object, ...]


def _wanted(config: TrainConfig) -> Wanted:
    """Return what a dataset depends on; `prepare` makes one folder where all repeats share their split."""
    return config.data, config.features, config.repeat


LEAVE_AFTER_S = 10.0
"""The thread ends at its next report of progress; while another process builds, there is none."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The recordings of a sweep, by their name in reports, and how stores of them are built."""

    name: str
    manifest: pd.DataFrame
    cache: Path | None = None
    workers: int | None = None
    progress: Progress = no_progress
    _folders: dict[Wanted, Path] = field(default_factory=dict)

    def folder(self, config: TrainConfig, progress: Progress | None = None) -> Path:
        """Return the dataset of `config`, made when first needed."""
        made = self.known(config)
        if made is None:
            made = prepare(
                self.manifest,
                config,
                cache=self.cache,
                workers=self.workers,
                progress=progress or self.progress,
            )
            self._folders[_wanted(config)] = made
        return made

    def known(self, config: TrainConfig) -> Path | None:
        """Return the dataset of `config` if this sweep has made it."""
        return self._folders.get(_wanted(config))


def check_data(run: RunFolder, dataset: Dataset, name: str = "this data") -> None:
    """Raise RunFolderError where a study of `run` is of other recordings than `dataset`, called `name`."""
    for study in run.study_names():
        known, data_id = run.read_study(study).get("data") or {}, dataset.facts["data_id"]
        if known.get("data_id") != data_id:
            raise RunFolderError(
                f"{str(run.path)!r} holds results on {known.get('name')!r} (data {known.get('data_id')}), "
                f"and not on {name!r} (data {data_id}); give another --out"
            )


class _Stopped(Exception):
    """The sweep halts, and nobody waits for the dataset any more."""


class Preparation:
    """Makes datasets one after the other in a thread, while the block runs.

    The thread starts processes that do the work, so that Ray's loop, which must not wait, does not. When the
    sweep halts, a dataset that is being made is left as it is, and its making continues the next time it is
    needed.
    """

    def __init__(self, data: Data, halt: Halt) -> None:
        self.data = data
        self.halt = halt
        self._is_over = False
        self._requested: set[Wanted] = set()
        self._failed: dict[Wanted, BaseException] = {}
        self._configs: queue.SimpleQueue[TrainConfig | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="preparation", daemon=True)

    def __enter__(self) -> Preparation:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over = True
        self._configs.put(None)
        self._thread.join(LEAVE_AFTER_S)

    def folder(self, config: TrainConfig) -> Path | None:
        """Return the dataset of `config`, None while it is being made; raises what its making raised."""
        wanted = _wanted(config)
        if (made := self.data.known(config)) is not None:
            return made
        if wanted in self._failed:
            raise self._failed[wanted]
        if wanted not in self._requested:
            self._requested.add(wanted)
            self._configs.put(config)
        return None

    def _work(self) -> None:
        while (config := self._configs.get()) is not None:
            try:
                self.data.folder(config, self._progress)
            except _Stopped:
                return
            except BaseException as error:  # handed over to whoever asks for the dataset
                self._failed[_wanted(config)] = error

    def _progress(self, stage: str, done: int, total: int) -> None:
        if self._is_over or self.halt.reason is not None:
            raise _Stopped
        self.data.progress(stage, done, total)
