"""The one Ray trainable: a `Session` behind the cluster's interface."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
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
import ray
import torch
from ray import tune

from birdnet_core import registry
from birdnet_core.config import TrainConfig
from birdnet_core.data.building import default_cache
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.errors import BirdtuneError, ConfigError, TrialDiverged
from birdnet_core.records.provenance import provenance
from birdnet_core.records.trial import Status, TrialRecord, parts_of
from birdnet_core.training.memory import give_back_memory, is_out_of_memory
from birdnet_core.training.session import Session
from tuning.engine.nodes import AtFault, TrialFault, is_of_the_node, placed
from tuning.engine.packing import RESERVE, as_size

log = logging.getLogger(__name__)

RUN_ID = "run_id"
"""The file in a run's folder of checkpoints by which a worker knows that it sees the driver's folder."""


CONTEXT = 2**30
"""Bytes of a GPU that a process takes at most outside torch's allocator: CUDA context, kernels, libraries."""

STEP_S = 1.0
"""Where epochs are shorter, a step trains several: a result costs Ray and the driver some 10 ms, whatever it
holds, and a checkpoint costs as much as an epoch of a linear head."""

SAVING_SHARE = 0.05
"""The share of a trial's time that saving it may take, where it takes more than `QUICK_SAVE_S`: a large
network is not saved after every step."""

QUICK_SAVE_S = 0.5

LEAK = 0.05
"""The share of its memory that a trial can do without: what `packing.RESERVE` leaves to nobody."""


class NodeUnfit(Exception):
    """This machine cannot train the sweep's trials; no fault of the trial."""


class TrainTrial(tune.Trainable):
    """One trial; the actor is reused for the next one.

    A step trains an epoch, or as many as begin within `STEP_S`, up to one after which the driver may stop the
    trial.

    The config that Ray ships is plain JSON: ``config`` (a `TrainConfig` as a dict), ``dataset`` (the folder
    that `prepare` made), ``journal`` (what the driver's journal wants to know), ``resources`` (CPUs and
    GPUs), ``avoid`` (the nodes that it must not run on), ``memory_cap`` (the share of the GPU's memory that
    it may take), ``checkpoints`` (the run's folder of checkpoints, its id, the trial of a shorter budget that
    this one may continue from, whether completed trials keep theirs), ``timeout_s``, ``plugins`` (what the
    driver has loaded), ``decisions`` (the epochs after which the driver may stop the trial). A step returns
    the metrics of its last epoch, the ``node`` it was trained on, under ``earlier`` those of the epochs
    before, and under ``record`` the trial's record as it stands, each as one JSON string so that Ray does not
    take it apart; that of a completed trial also ``predictions``, the content of their file.
    `journal.epochs_of` reads the epochs of a result.

    The session is saved after a step, before the driver hears of it, unless that would take more than
    `SAVING_SHARE` of the time. A trial whose process was killed continues from there: it first reports the
    epochs that were trained already, marked ``replayed``, and trains those again that were not saved.

    A step raises TrialFault where the machine or this process is at fault, and where a trial fails before its
    first epoch here, for a reason that may be the process's: all are retried elsewhere. Every other
    exception is a result, the record of a trial that failed.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Return the CPUs and GPUs that the driver chose for this trial."""
        return tune.PlacementGroupFactory(**placed(config["resources"], config["avoid"]))

    def setup(self, config: dict[str, Any], manifest: pd.DataFrame | None = None) -> None:
        """Start the actor; `manifest` lists the recordings for nodes that do not see the dataset."""
        self.manifest = manifest
        self.n_trials = 0
        self.opened: tuple[tuple[Path, int, int], Dataset] | None = None  # that of the trial before
        self.gpu_baseline: int | None = None  # bytes that torch held before the first trial
        self.may_go_on = True
        # torch would load it when it first trains; loaded now, no collection of garbage looks through it.
        importlib.import_module("torch._dynamo")
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Let go of the previous trial whole, so that a reused actor gives the numbers of a fresh one.

        Never returns False, by which Ray ends the trial without a word to the driver, and never raises,
        after which Ray counts the trial as waiting for this process for ever. Where the process cannot have
        the trial, its first `step` raises, and the trial is handed out again, to a fresh process.
        """
        if not self.may_go_on:
            self._drop_own_checkpoint()
        self.payload = new_config
        self.may_go_on = False  # a trial that the scheduler stops does not hear of it
        self.session: Session | None = None
        self.n_reported = 0
        self.has_trained = False
        self.next_save = 0.0  # on the clock of time.monotonic
        self.n_trials += 1
        self.gpu_memory: str | None = None
        self.unfit: str | None = None
        try:
            give_back_memory()
            if self.n_trials <= 2:
                # What is left is the process's own: modules, the last of which the first trial imports. To
                # look through them for every trial would take as long as ten epochs of a linear head.
                gc.freeze()
            if torch.cuda.is_available():
                self.gpu_memory = self._take_gpu(new_config["memory_cap"])
        except RuntimeError as error:  # of the GPU: its context is broken by the trial before, say
            self.unfit = f"this process cannot train on the GPU any more: {error}"
        return True

    def _take_gpu(self, cap: float | None) -> str | None:
        """Claim the trial's share of the GPU, of which torch may take `cap`; return what is amiss with it.

        A fresh process waits for what another one, that was ended to make room, gives back late; one that is
        reused has nothing to wait for, since its own memory came back at once. A trial that finds less than
        its share is trained all the same: it may need less, and running out is recorded. So is a little that
        trials before have left behind; raises RuntimeError where that is more than `LEAK` of the share.
        """
        total = torch.cuda.get_device_properties(0).total_memory
        # What a greedy trial takes beyond its share would be its neighbours' memory: it fails alone.
        torch.cuda.set_per_process_memory_fraction(cap or 1.0)
        share = int(cap * total) if cap else int((1 - RESERVE) * total) - CONTEXT
        held = torch.cuda.memory_allocated()
        if self.gpu_baseline is None:
            self.gpu_baseline = held
            return await_memory(share, _gpu_room)
        left = held - self.gpu_baseline
        if left > LEAK * share:
            raise RuntimeError(
                f"it still holds {as_size(left)} of the trials before, more than {LEAK:.0%} of the "
                f"{as_size(share)} that a trial may take"
            )
        faults = [f"{as_size(left)} of the trials before were still held"] if left > 0 else []
        if (room := _gpu_room()) < share - left:
            faults.append(_missing(room, share))
        return "; ".join(faults) or None

    def step(self) -> dict[str, Any]:
        """Train some epochs; an exception becomes a recorded failure with its traceback, or a TrialFault."""
        if self.unfit:
            raise self._fault("process" if self.n_trials > 1 else "node", self.unfit)
        start = time.monotonic()
        epochs: list[dict[str, Any]] = []
        status: Status | None = None
        error = trace = fault = None
        ran_out = False
        try:
            if self.session is None:
                self._raise_if_it_hung()
                self._load_plugins()
                dataset = self._dataset()
                with self._watched():
                    self.session = self._open(dataset)
            progress, n_known = self.session.progress, self.session.progress.epoch
            while status is None:
                replayed = self.n_reported < n_known
                if not replayed:
                    with self._watched():
                        self.session.step()
                    self.has_trained = True
                epochs.append(
                    {**progress.history[self.n_reported], "epoch": self.n_reported + 1, "replayed": replayed}
                )
                self.n_reported += 1
                if self.n_reported == progress.epoch and self.session.finished:
                    status = "completed"
                if self.n_reported in self.payload["decisions"] or time.monotonic() - start >= STEP_S:
                    break
            if progress.epoch > n_known and self._is_to_be_saved(status):
                fault = self._save()
        except TrialDiverged as diverged:
            status, error = "diverged", str(diverged)
        except Exception as failure:  # the trial boundary: what a trial's code raises ends this trial only
            ran_out = is_out_of_memory(failure)
            status, error, trace = "failed", f"{type(failure).__name__}: {failure}", traceback.format_exc()
            if isinstance(failure, NodeUnfit) or is_of_the_node(failure):
                raise self._fault("node", error, trace) from None
            # What birdtune itself refuses, and a trial that hung before, would only be refused again.
            is_refused = isinstance(failure, (BirdtuneError, TimeoutError))
            if not (self.has_trained or ran_out or is_refused):
                raise self._fault("chance", error, trace) from None
        is_kept = status == "completed" and self.payload["checkpoints"]["keep"]
        self.may_go_on = ran_out or fault is not None or is_kept
        record = self._record(status or "killed", error, trace)
        has_ended_well = status in (None, "completed")
        predictions = self.session.predictions if self.session else None
        last = epochs.pop() if has_ended_well else {"epoch": self.n_reported, "replayed": False}
        return {
            **last,
            "earlier": json.dumps(epochs),
            "status": status,
            "record": json.dumps(record.to_dict()),
            "predictions": predictions.to_bytes() if predictions and status == "completed" else None,
            "fault": fault,
            "node": _node(),
            "out_of_memory": ran_out,
            "done": status is not None,
        }

    def _fault(self, at_fault: AtFault, why: str, trace: str | None = None) -> TrialFault:
        self.may_go_on = True
        record = json.dumps(self._record("failed", why, trace).to_dict())
        return TrialFault(why, at_fault, _node(), platform.node(), record)

    def _load_plugins(self) -> None:
        """Load what registers the names of the trial's config; NodeUnfit where this machine lacks it."""
        try:
            registry.load_shipped(self.payload["plugins"])
        except ConfigError as error:
            raise NodeUnfit(
                f"{platform.node()} cannot train with the driver's plugins: {error}; install the plugin on "
                "every node, or share its folder"
            ) from error

    def _dataset(self) -> Dataset:
        """Return the trial's dataset: the driver's, or, where that is not seen, made here from the audio.

        The driver has opened it, so that whatever goes wrong here is this machine's: raises NodeUnfit. A
        dataset's folder is named by a hash of all that went into it, so that a node that made another one is
        found out.
        """
        folder = Path(self.payload["dataset"])
        try:
            meta = (folder / "dataset.json").stat()  # replaced where anything of a dataset changes
            opened = (folder, meta.st_ino, meta.st_mtime_ns)
            if self.opened is None or self.opened[0] != opened:
                self.opened = None  # before the next: they may be large
                self.opened = opened, Dataset.open(folder)
            return self.opened[1]
        except (BirdtuneError, OSError) as error:
            if self.manifest is None:
                raise NodeUnfit(f"{platform.node()} cannot read {folder}: {error}") from error
        config = TrainConfig.from_dict(self.payload["config"])
        try:
            made = prepare(self.manifest, config)
        except (BirdtuneError, OSError, MemoryError) as error:
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
                    return Session.load(checkpoint, dataset, epochs=epochs, runtime=config.runtime)
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
        hang = self._hang
        hang.parent.mkdir(parents=True, exist_ok=True)
        with open(hang, "w", encoding="utf-8") as file:
            # A thread of its own in C, which needs neither the interpreter's lock nor its help.
            faulthandler.dump_traceback_later(timeout_s, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                hang.unlink()

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

    def _is_to_be_saved(self, status: Status | None) -> bool:
        is_kept = status == "completed" and self.payload["checkpoints"]["keep"]
        return is_kept or time.monotonic() >= self.next_save

    def _save(self) -> str | None:
        """Save the session; return why that could not be done where the run folder's disk is full.

        A full disk is no fault of the trial: the driver ends the sweep, and the trial can continue later.
        Raises NodeUnfit where the disk is this machine's own.
        """
        assert self.session is not None
        checkpoint = self._folder(self.session.config.trial_id) / "session.pt"
        start = time.monotonic()
        try:
            self.session.save(checkpoint)
            now = time.monotonic()
            took = now - start
            self.next_save = now if took < QUICK_SAVE_S else now + took * (1 / SAVING_SHARE - 1)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where the disk is full
            if is_of_the_node(error):
                raise
            free_mb = shutil.disk_usage(checkpoint.parent).free / 2**20
            fault = f"cannot write {checkpoint} ({free_mb:,.1f} MB are free there): {error}"
            if not self._sees_the_run():
                raise NodeUnfit(f"{platform.node()} {fault}") from error
            return fault
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
            record = bare_record(self.payload, status, error=error, traceback=trace)
        actor = {"host": record.provenance["host"], "nth_trial": self.n_trials, "gpu_memory": self.gpu_memory}
        record.provenance["actor"] = actor
        return record


def _node() -> str:
    """Return Ray's id of this machine, "" where no Ray runs."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def await_memory(
    wanted: int,
    free: Callable[[], int],
    *,
    settled_s: float = 5.0,
    timeout_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str | None:
    """Wait until `wanted` bytes are free; return None, or what is missing.

    That long only as memory comes back: nothing more within `settled_s`, and what is missing belongs to
    others, a desktop or another user's processes. Not longer than `timeout_s` at all.
    """
    end = clock() + timeout_s
    most, at = free(), clock()
    while most < wanted and clock() < min(end, at + settled_s):
        sleep(0.25)
        if (now := free()) > most:
            most, at = now, clock()
    return None if most >= wanted else _missing(most, wanted)


def _missing(free: int, wanted: int) -> str:
    return f"{as_size(free)} were free of the {as_size(wanted)} of its share"


def _gpu_room() -> int:
    """Return the bytes of the GPU that this process may still take; none where not even a context fits."""
    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError as error:
        if is_out_of_memory(error):
            return 0
        raise
    return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


def bare_record(
    payload: dict[str, Any], status: Status, *, error: str | None, traceback: str | None = None
) -> TrialRecord:
    """Return the record of a trial that never got as far as a session; it may name what is not here."""
    trial_id: str = payload["journal"]["trial_id"]
    config_id, repeat, seed = parts_of(trial_id)
    return TrialRecord(
        trial_id=trial_id,
        config_id=config_id,
        repeat=repeat,
        seed=seed,
        status=status,
        config=payload["config"],
        error=error,
        traceback=traceback,
        provenance=dict(provenance()),
    )
