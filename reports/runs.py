"""Run folders as two tidy frames: one row a trial of a study, one row an epoch of a trial.

Nothing is filtered here. Failed, pruned, diverged, killed and unfinished trials keep their row, so that
tables can count them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from birdnet_core.errors import RunFolderError
from birdnet_core.records.metrics import METRICS
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord, parts_of
from birdnet_core.records.usage import Usage

RUNNING = "running"
SET_ASIDE = "set aside"
"""Of a trial that was trained on other recordings or another split than its study: no part of any mean."""
FAILED = ("failed", "diverged", "killed")
OTHER_TRAINING = "out of memory: other training"
"""The status of a trial that completed with smaller micro-batches than its config has, under batch norm."""

TRIAL_COLUMNS = (
    "run", "study", "trial_id", "number", "config_id", "repeat", "seed", "status", "reused", "factors",
    "epochs", "best_epoch", "audited_at", "spared_at", "n_params", "seconds", "gpus", "cpus",
    "peak_memory_mb", "started", "error", "traceback", "config", "f1_per_species", "provenance",
)  # fmt: skip
N_PACKED = 500_000  # values of epochs that become an array at once
EPOCH_COLUMNS = ("run", "trial_id", "epoch", "epoch_s")


@dataclass(frozen=True)
class Runs:
    """What one or more run folders hold.

    Args:
        studies: the content of each `studies/*.json`, with `run`, the folder it was read from,
            `load_notes`, sentences on what of the folder is left out, and `n_extended`, how often
            `birdtune extend` added trials to it.
        trials: one row a (study, trial) with the record's fields; its metrics, all from the best epoch, in
            columns named like the metric. A trial that two studies share has two rows.
        epochs: one row a (run, trial, epoch), in this order, metrics in columns. Where a trial was trained
            again, the last occurrence of an epoch counts.
        usage: what each run folder has cost, by its path.
    """

    studies: list[dict[str, Any]]
    trials: pd.DataFrame
    epochs: pd.DataFrame
    usage: dict[str, Usage] = field(default_factory=dict)

    def trials_of(self, study: dict[str, Any]) -> pd.DataFrame:
        """Return the rows of one study, by number."""
        mine = (self.trials["run"] == study["run"]) & (self.trials["study"] == study["name"])
        rows: pd.DataFrame = self.trials.loc[mine]
        return rows.sort_values("number", kind="stable").reset_index(drop=True)

    def epochs_of(self, study: dict[str, Any]) -> pd.DataFrame:
        """Return the epochs of one study's trials, in order."""
        mine = (self.epochs["run"] == study["run"]) & self.epochs["trial_id"].isin(
            self.trials_of(study)["trial_id"]
        )
        rows: pd.DataFrame = self.epochs.loc[mine]
        return rows.reset_index(drop=True)


def load(paths: Iterable[str | Path], apart: Callable[..., Future[Any]] | None = None) -> Runs:
    """Read run folders.

    `apart` runs a function with its arguments in another process, for the end of each journal.

    A trial without a record has the status ``running``, unless it failed by the journal; one of
    other recordings or another split than its study is ``set aside``; and one that completed and is no sample
    of its config (``not_comparable`` in its provenance) is `OTHER_TRAINING`. A study of the same name in two
    folders stays two studies.
    """
    folders = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not folders:
        raise RunFolderError("no run folder given; give at least one that `birdtune sweep --out` wrote")
    studies: list[dict[str, Any]] = []
    trials: list[dict[str, Any]] = []
    epochs: list[pd.DataFrame] = []
    usage: dict[str, Usage] = {}
    for path in dict.fromkeys(str(Path(folder)) for folder in folders):
        folder = RunFolder.existing(path)
        in_folder = [{**folder.read_study(name), "run": path} for name in folder.study_names()]
        names = {study["name"] for study in in_folder}
        of_trials, of_epochs, usage[path], extended = _read_journal(folder, path, names, apart)
        for study in in_folder:
            mine = [row for row in of_trials if row["study"] == study["name"]]
            study["load_notes"] = [*folder.notes(), *_set_aside(study, mine)]
            study["n_extended"] = len(extended.get(study["name"], ()))
        studies += in_folder
        trials += of_trials
        epochs.append(of_epochs)
    metrics = [m for m in METRICS if any(m in row for row in trials) or any(m in frame for frame in epochs)]
    return Runs(
        studies,
        _frame(trials, metrics),
        pd.concat(epochs, ignore_index=True).reindex(columns=[*EPOCH_COLUMNS, *metrics]),
        usage,
    )


@dataclass(frozen=True)
class _Stretch:
    """What a stretch of a journal says.

    Args:
        usage: of its events. others: its events but for epochs.
        trial_ids: of its epochs, each once; `code` [epochs] is the place of an epoch's trial there.
        epoch: [epochs]. values: [epochs, 1 + metrics], seconds and `METRICS`.
    """

    usage: Usage
    others: list[dict[str, Any]]
    trial_ids: list[str]
    code: np.ndarray
    epoch: np.ndarray
    values: np.ndarray

    @classmethod
    def read(cls, run: str, start: int = 0, end: int | None = None) -> _Stretch:
        """Return the events whose lines begin from byte `start` on, and before `end`."""
        folder, usage, others = RunFolder(run), Usage(), list[dict[str, Any]]()
        # There may be a million epochs, so that their values are packed now and then.
        code_of: dict[str, int] = {}
        codes, numbers = list[int](), list[int]()
        blocks, values = list[np.ndarray](), list[float | None]()
        for event in folder.events(folder.position_at(start), until=end):
            usage.add(event)
            if event["event"] != "epoch":
                others.append(event)
                continue
            codes.append(code_of.setdefault(event["trial_id"], len(code_of)))
            numbers.append(event["epoch"])
            values.append(event.get("epoch_s"))
            values += map(event["metrics"].get, METRICS)
            if len(values) > N_PACKED:
                blocks.append(np.array(values, dtype="float64"))  # None becomes nan
                values = []
        blocks.append(np.array(values, dtype="float64"))
        in_rows = np.concatenate(blocks).reshape(-1, 1 + len(METRICS))
        return cls(
            usage, others, list(code_of), np.array(codes, dtype=int), np.array(numbers, dtype=int), in_rows
        )

    def followed_by(self, later: _Stretch) -> _Stretch:
        """Return both as one; `later` comes next."""
        self.usage.extend(later.usage)
        code_of = {name: i for i, name in enumerate(self.trial_ids)}
        codes = np.array([code_of.setdefault(name, len(code_of)) for name in later.trial_ids], dtype=int)
        return _Stretch(
            self.usage,
            self.others + later.others,
            list(code_of),
            np.concatenate([self.code, codes[later.code]]),
            np.concatenate([self.epoch, later.epoch]),
            np.concatenate([self.values, later.values]),
        )


def _read_journal(
    folder: RunFolder, run: str, studies: set[str], apart: Callable[..., Future[Any]] | None
) -> tuple[list[dict[str, Any]], pd.DataFrame, Usage, dict[str, set[int]]]:
    """Return trial rows, epochs and costs of one folder, and the sessions that extended each study."""
    path = folder.journal_path
    if apart is not None and path.exists():
        middle = path.stat().st_size * 3 // 5  # the other process has to start
        later = apart(_Stretch.read, run, middle)
        journal, records = _Stretch.read(run, 0, middle), folder.records()
        journal = journal.followed_by(later.result())
    else:
        journal, records = _Stretch.read(run), folder.records()
    extended: dict[str, set[int]] = {}
    n_sessions, is_extension = 0, False
    started: dict[tuple[str, str], dict[str, Any]] = {}
    ended: dict[str, str] = {}
    for event in journal.others:
        kind = event["event"]
        if kind == "trial" and event["study"] in studies:
            # A resumed trial, or a searcher that samples one config twice, comes here again: the first
            # number names it, and it counts as reused only if this study never trained it.
            if is_extension and (event["study"], event["trial_id"]) not in started:
                extended.setdefault(event["study"], set()).add(n_sessions)
            first = started.setdefault((event["study"], event["trial_id"]), event)
            first["reused"] = first.get("reused", False) and event.get("reused", False)
        elif kind == "session":
            n_sessions += 1
            is_extension = event.get("command", "").split()[1:2] == ["extend"]
        elif kind == "end":
            ended[event["trial_id"]] = event["status"]
    names, code, epoch = np.array(journal.trial_ids, dtype=object), journal.code, journal.epoch
    n_recorded = np.array([records[name].epochs if name in records else 0 for name in names], dtype=int)
    last = pd.Series(epoch).groupby(code).max()
    n_epochs = dict(zip(names[last.index], last.tolist(), strict=True))
    trials = [
        _trial_row(event, run, records.get(trial_id), ended.get(trial_id), n_epochs.get(trial_id, 0))
        for (_, trial_id), event in started.items()
    ]
    frame = pd.DataFrame(journal.values, columns=["epoch_s", *METRICS])
    frame.insert(0, "epoch", epoch)
    frame.insert(0, "trial_id", pd.Series(names[code], dtype=object))
    frame.insert(0, "run", run)
    # By trial and epoch. Where a trial was trained again, the last occurrence of an epoch counts.
    rank = np.argsort(np.argsort(names))[code]
    order = np.lexsort((epoch, rank))
    is_last = np.ones(len(order), dtype=bool)
    is_last[:-1] = (np.diff(rank[order]) != 0) | (np.diff(epoch[order]) != 0)
    # Epochs beyond the recorded ones are left from an earlier attempt that went further.
    of_trial = n_recorded[code[order]]
    order = order[is_last & ((of_trial <= 0) | (epoch[order] <= of_trial))]
    return trials, frame.iloc[order].dropna(axis="columns", how="all"), journal.usage, extended


def _set_aside(study: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Mark the trials that were trained on other data or another split, and return notes on them.

    The split follows from the recordings, the settings of the data and the repeat, so trials that share these
    share their split: the study's, where any has it, else the commonest.
    """
    data = study.get("data") or {}
    foreign: dict[str, list[str]] = {"recordings": [], "split": []}
    by_settings: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        given = row["provenance"].get("data_id")
        if given is not None and data.get("data_id") not in (None, given):
            row["status"] = SET_ASIDE
            foreign["recordings"].append(row["trial_id"])
        elif row["provenance"].get("split_id") is not None:
            settings = json.dumps(row["config"].get("data", {}), sort_keys=True)
            by_settings.setdefault((settings, row["repeat"]), []).append(row)
    for alike in by_settings.values():
        counts = Counter(row["provenance"]["split_id"] for row in alike)
        own = data.get("split_id")
        kept = own if own in counts else counts.most_common(1)[0][0]
        for row in alike:
            if row["provenance"]["split_id"] != kept:
                row["status"] = SET_ASIDE
                foreign["split"].append(row["trial_id"])
    notes = []
    for what, names in foreign.items():
        if names:
            other = "other recordings" if what == "recordings" else "another split"
            n = f"{len(names)} trial{'s' * (len(names) > 1)}"
            notes.append(f"{n} of {other} than the study, set aside: {', '.join(names)}")
    return notes


def _trial_row(
    event: dict[str, Any],
    run: str,
    record: TrialRecord | None,
    ended: str | None,
    last_epoch: int,
) -> dict[str, Any]:
    trial_id = event["trial_id"]
    config_id, repeat, seed = parts_of(trial_id)
    row = {
        "run": run,
        "study": event["study"],
        "trial_id": trial_id,
        "number": event["number"],
        "config_id": config_id,
        "repeat": repeat,
        "seed": seed,
        "reused": bool(event["reused"]),
        "factors": event.get("factors") or {},
    }
    if record is None:
        return {
            **row,
            "status": ended if ended in (*FAILED, "pruned") else RUNNING,
            "epochs": last_epoch,
            "seconds": math.nan,
            "gpus": event.get("gpus"),
            "cpus": event.get("cpus"),
            "config": {},
            "f1_per_species": {},
            "provenance": {},
        }
    row |= {name: getattr(record, name) for name in TRIAL_COLUMNS if name not in row}
    if record.status == "completed" and record.provenance.get("not_comparable"):
        row["status"] = OTHER_TRAINING
    return row | {name: value for name, value in record.metrics.items() if name in METRICS}


def _frame(rows: list[dict[str, Any]], metrics: list[str]) -> pd.DataFrame:
    """Return the trial rows as a frame in which an absent number is nan and an absent text is None."""
    columns = {name: [row.get(name, math.nan) for row in rows] for name in (*TRIAL_COLUMNS, *metrics)}
    frame = pd.DataFrame(columns, dtype=object)
    numbers = ("best_epoch", "audited_at", "spared_at", "n_params", "seconds", "gpus", "cpus")
    floats = (*numbers, "peak_memory_mb", *metrics)
    whole = dict.fromkeys(("number", "repeat", "seed", "epochs"), "int64")
    frame = frame.astype(whole | dict.fromkeys(floats, "float64"))
    for column in ("error", "traceback", "started"):
        frame[column] = frame[column].where(frame[column].notna(), None)
    return frame
