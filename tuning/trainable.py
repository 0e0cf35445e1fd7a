"""The one Ray trainable: a `Session` behind the cluster's interface."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import logging
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ray import tune

from birdnet_core.config import TrainConfig
from birdnet_core.data.building import default_cache
from birdnet_core.data.dataset import Dataset, is_whole, prepare
from birdnet_core.errors import BirdtuneError, DataError, TrialDiverged
from birdnet_core.records import Status, TrialRecord, provenance
from birdnet_core.training import Session
from tuning.packing import RESERVE

log = logging.getLogger(__name__)

RUN_ID = "run_id"
"""The file in a run's folder of checkpoints by which a worker knows that it sees the driver's folder."""


class NodeUnfit(Exception):
    """This machine cannot train the sweep's trials; no fault of the trial."""


class TrainTrial(tune.Trainable):
    """One trial, an epoch a step; the actor is reused for the next trial.

    The config that Ray ships is plain JSON: ``config`` (a `TrainConfig` as a dict), ``dataset`` (the folder
    that `prepare` made), ``journal`` (what the driver's journal wants to know), ``resources`` (CPUs and
    GPUs), ``memory_cap`` (the share of the GPU's memory that it may take), ``checkpoints`` (the run's folder
    of checkpoints, its id, the trial of a shorter budget that this one may go on from, and whether completed
    trials keep theirs), ``timeout_s``. A step returns the epoch's metrics, and under ``record`` the trial's
    record as it stands, as one JSON string so that Ray does not take it apart; the last also ``predicted``,
    the classes told of validation, as JSON.

    The session is saved after every epoch, before the driver hears of it. A trial whose process was killed
    goes on from there: it first tells the epochs that were trained already, marked ``replayed``.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Return the CPUs and GPUs that the driver chose for this trial."""
        wanted = config["resources"]
        return tune.PlacementGroupFactory([{"CPU": wanted["cpu"], "GPU": wanted["gpu"]}])

    def setup(self, config: dict[str, Any], manifest: pd.DataFrame | None = None) -> None:
        """Start the actor; `manifest` lists the recordings for nodes that do not see the dataset."""
        self.manifest = manifest
        self.n_trials = 0
        self.may_go_on = True
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let go of the previous trial whole, so that a reused actor gives the numbers of a fresh one.

        On a GPU, wait until the trial's share is free: what was stopped there may give it back late. Returns
        False where this process itself does not let go.
        """
        if not self.may_go_on:
            self._drop_own_checkpoint()
        self.payload = new_config
        self.may_go_on = False  # a trial that the scheduler stops does not hear of it
        self.session: Session | None = None
        self.n_told = 0
        self.n_trials += 1
        self.gpu_memory: str | None = None
        gc.collect()
        if not torch.cuda.is_available():
            return True
        torch.cuda.empty_cache()
        if torch.cuda.memory_allocated():
            return False  # something holds on to a tensor: the trial is handed out again, to a fresh process
        # What a greedy trial takes beyond its share would be its neighbours' memory: it fails alone.
        torch.cuda.set_per_process_memory_fraction(new_config["memory_cap"] or 1.0)
        share = new_config["memory_cap"] or 1 - RESERVE
        wanted = int(share * torch.cuda.mem_get_info()[1])
        self.gpu_memory = await_memory(wanted, lambda: torch.cuda.mem_get_info()[0])
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch; an exception becomes a recorded failure with its traceback."""
        metrics: dict[str, float] = {}
        status: Status | None = None
        error = trace = fault = None
        replayed = is_out_of_memory = False
        try:
            if self.session is None:
                self._raise_if_it_hung()
                dataset = self._dataset()
                with self._watched():
                    self.session = self._open(dataset)
            replayed = self.n_told < self.session.epoch
            if not replayed:
                with self._watched():
                    self.session.step()
                fault = self._save()
            metrics = self.session.history[self.n_told]
            self.n_told += 1
            if self.n_told == self.session.epoch and self.session.finished:
                status = "completed"
        except torch.OutOfMemoryError as failure:
            is_out_of_memory = True
            status, error, trace = "failed", f"{type(failure).__name__}: {failure}", traceback.format_exc()
        except NodeUnfit as failure:
            status, error, fault = "failed", str(failure), str(failure)
        except TrialDiverged as diverged:
            status, error = "diverged", str(diverged)
        except Exception as failure:  # the trial boundary: what a trial's code raises ends this trial only
            status, error, trace = "failed", f"{type(failure).__name__}: {failure}", traceback.format_exc()
        is_kept = status == "completed" and self.payload["checkpoints"]["keep"]
        self.may_go_on = is_out_of_memory or fault is not None or is_kept
        record = self._record(status or "killed", error, trace)
        return {
            **metrics,
            "epoch": self.n_told,
            "replayed": replayed,
            "status": status,
            "record": json.dumps(record.to_dict()),
            "predicted": json.dumps(self.session.predicted if self.session and status == "completed" else []),
            "fault": fault,
            "out_of_memory": is_out_of_memory,
            "done": status is not None,
        }

    def _dataset(self) -> Dataset:
        """Return the trial's dataset: the driver's, or, where that is not seen, made here from the audio.

        A dataset's folder is named by a hash of all that went into it, so that a node that made another one
        is found out. Raises NodeUnfit there.
        """
        folder = Path(self.payload["dataset"])
        if self.manifest is None or is_whole(folder):
            return Dataset.open(folder)
        config = TrainConfig.from_dict(self.payload["config"])
        try:
            made = prepare(self.manifest, config)
        except DataError as error:
            few = "\n".join(str(error).split("\n")[:4])
            raise NodeUnfit(f"{platform.node()} does not see {folder}, and cannot make it: {few}") from error
        dataset = Dataset.open(made)
        if made.name != folder.name:
            raise NodeUnfit(
                f"{platform.node()} does not see {folder}, and the recordings that it sees make another "
                f"dataset ({made.name}, with {dataset.facts['n_skipped']} of {len(self.manifest)} recordings "
                "unreadable); give every node the same recordings at the same path, or share the cache "
                "(BIRDTUNE_CACHE)"
            )
        return dataset

    def _open(self, dataset: Dataset) -> Session:
        """Return the trial's session: as it was last saved, or new."""
        config = TrainConfig.from_dict(self.payload["config"])
        shorter = self.payload["checkpoints"]["shorter"]
        for trial_id, epochs in ((config.trial_id, None), (shorter, config.training.epochs)):
            if trial_id and (checkpoint := self._folder(trial_id) / "session.pt").exists():
                try:
                    return Session.load(checkpoint, dataset, epochs=epochs)
                except BirdtuneError as error:
                    # Cut short by a power failure, or of another version: nothing is lost but time.
                    log.warning("the trial starts anew: %s", error)
        return Session(config, dataset)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """End the process, after it wrote where it was, if the block takes longer than ``timeout_s``."""
        timeout_s = self.payload["timeout_s"]
        if not timeout_s:
            yield
            return
        self._hang.parent.mkdir(parents=True, exist_ok=True)
        with open(self._hang, "w", encoding="utf-8") as file:
            # A thread of its own in C, which needs neither the interpreter's lock nor its help.
            faulthandler.dump_traceback_later(timeout_s, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                self._hang.unlink()

    def _raise_if_it_hung(self) -> None:
        """Raise TimeoutError if the process that had this trial before was ended by `_watched`."""
        if self._hang.exists():
            where = self._hang.read_text(encoding="utf-8")
            self._hang.unlink()
            if where:  # else the process died of something else in the middle of an epoch
                raise TimeoutError(
                    f"no epoch came within {self.payload['timeout_s']:g} s (--trial-timeout), and the "
                    f"process was ended here:\n{where}"
                )

    def _save(self) -> str | None:
        """Save the session; return why that could not be done.

        A full disk is no fault of the trial: the driver ends the sweep, and the trial can go on later.
        """
        assert self.session is not None
        checkpoint = self._folder(self.session.config.trial_id) / "session.pt"
        try:
            self.session.save(checkpoint)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where the disk is full
            free_mb = shutil.disk_usage(checkpoint.parent).free / 2**20
            return f"cannot write {checkpoint} ({free_mb:,.1f} MB are free there): {error}"
        return None

    @property
    def _hang(self) -> Path:
        return self._folder(self.payload["journal"]["trial_id"]) / "hang.txt"

    def _folder(self, trial_id: str) -> Path:
        """Return where a trial's checkpoint lies: in the run folder, or on this node where it is not seen."""
        given = self.payload["checkpoints"]
        base = (
            Path(given["folder"])
            if self._sees_the_run()
            else default_cache() / "checkpoints" / given["run_id"]
        )
        return base / trial_id

    def _sees_the_run(self) -> bool:
        given = self.payload["checkpoints"]
        try:
            mark = (Path(given["folder"]) / RUN_ID).read_text(encoding="utf-8")
        except OSError:
            return False
        return bool(mark == given["run_id"])

    def _drop_own_checkpoint(self) -> None:
        """Delete the checkpoint of a trial that is over, where the driver, which deletes others, cannot."""
        if not self._sees_the_run():
            shutil.rmtree(self._folder(self.payload["journal"]["trial_id"]), ignore_errors=True)

    def _record(self, status: Status, error: str | None, trace: str | None) -> TrialRecord:
        if self.session:
            record = self.session.record(status, error=error, traceback=trace)
        else:
            record = bare_record(self.payload["config"], status, error=error, traceback=trace)
        actor = {"host": record.provenance["host"], "nth_trial": self.n_trials, "gpu_memory": self.gpu_memory}
        record.provenance["actor"] = actor
        return record


def await_memory(
    wanted: int,
    free: Callable[[], int],
    *,
    timeout_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str | None:
    """Wait until `wanted` bytes are free; return None, or what is missing when `timeout_s` are over.

    The trial is tried all the same then: it may need less than its share, and running out is recorded.
    """
    end = clock() + timeout_s
    while (now := free()) < wanted:
        if clock() >= end:
            return f"{now / 2**30:.1f} GiB were free of the {wanted / 2**30:.1f} GiB of its share"
        sleep(0.5)
    return None


def bare_record(
    config: dict[str, Any], status: Status, *, error: str | None, traceback: str | None = None
) -> TrialRecord:
    """Return the record of a trial that never got as far as a session."""
    parsed = TrainConfig.from_dict(config)
    return TrialRecord(
        trial_id=parsed.trial_id,
        config_id=parsed.config_id,
        seed=parsed.seed,
        status=status,
        config=config,
        error=error,
        traceback=traceback,
        provenance=dict(provenance()),
    )
