"""The files of a run folder, and the only code that reads or writes them.

`tuning` writes them and `reports` reads them; neither imports the other. Everything is JSON or arrays of
numpy, so that another tool can read a run without birdtune:

    RUN/studies/<study>.json      a study: question, metric, design, data, versions, command line
    RUN/journal.jsonl             the events of the run, one a line, appended by its one driver
    RUN/trials/<trial_id>.json    how each trial ended
    RUN/predictions/<trial_id>.npz    what a completed trial predicted for each validation recording
    RUN/validation/<split_id>.json    the true classes of these recordings
    RUN/optuna.db                 the Optuna studies of the searches
    RUN/checkpoints/<trial_id>/   where an unfinished trial continues, and the best trials' weights
    RUN/driver.lock               the driver that writes the folder
    RUN/ray.log                   Ray's messages, if any

`docs/run-folder.md` describes every field.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from birdnet_core.errors import RunFolderError
from birdnet_core.records.checks import (
    A_NAME,
    checked_event,
    checked_record,
    checked_study,
    is_name,
    is_trial_id,
    local_path,
)
from birdnet_core.records.files import (
    drop_unfinished_line,
    read_json,
    without_nan,
    write_bytes,
    write_json,
    write_text,
)
from birdnet_core.records.seen import SEEN
from birdnet_core.records.trial import SCHEMA, TrialRecord, Validation

if TYPE_CHECKING:
    import numpy as np

    from birdnet_core.records.predictions import Predictions

PRUNED_CHECKPOINT_BYTES = 2**30
"""Above this total size the oldest checkpoints of a run's pruned trials are deleted."""


@dataclass
class Position:
    """A place in a journal: the byte, and the number of the line, that come next."""

    offset: int = 0
    line: int = 1


class RunFolder:
    """The paths of one run and the only code that reads or writes them."""

    def __init__(self, path: str | Path) -> None:
        self.path = local_path(path)
        self.journal_path = self.path / "journal.jsonl"
        self.storage_path = self.path / "optuna.db"
        self.checkpoints_path = self.path / "checkpoints"
        self.lock_path = self.path / "driver.lock"

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """Return the run at `path`; raises RunFolderError where there is none."""
        run = cls(path)
        if not run.path.is_dir():
            what = "it is a file" if run.path.exists() else "there is no such folder"
            raise RunFolderError(f"no run folder at {str(path)!r}: {what}")
        if not run.study_names():
            raise RunFolderError(
                f"{str(path)!r} is not a run folder: it holds no studies/*.json; "
                "give the folder that `birdtune sweep --out` wrote"
            )
        run.check_journal()
        return run

    def check_journal(self) -> None:
        """Raise RunFolderError where trials have records and the journal, which names them, is lost."""
        n_records = len(self._files("trials"))
        if not n_records or any(event["event"] == "trial" for event in self.events()):
            return
        state = "names no trial" if self.journal_path.exists() else "is missing"
        raise RunFolderError(
            f"{str(self.path)!r} holds {n_records} trial record{'s' * (n_records > 1)}, and "
            f"{self.journal_path.name}, which says what they belong to, {state}: the folder was copied in "
            "part or altered; copy the journal from where the run was made, or train anew into another --out"
        )

    @contextlib.contextmanager
    def driven(self, command: str = "") -> Iterator[None]:
        """Be the one driver of the folder while the block runs.

        The lock is the operating system's, so a driver that was killed has given it up. Raises RunFolderError
        that names the holder where another one lives.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.check_journal()
        with open(self.lock_path, "a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if not _is_held(error):
                    raise RunFolderError(
                        f"cannot lock {str(self.lock_path)!r}: {error.strerror}; the lock keeps a second "
                        "driver out, and this file system has none: give an --out on a local disk or on NFS, "
                        "or mount this one with locks (Lustre: -o flock)"
                    ) from None
                raise RunFolderError(
                    f"{str(self.path)!r} is being written by another driver: {self._holder()}; wait for it, "
                    "end it, or give another --out"
                ) from None
            lock.truncate(0)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            holder = {"pid": os.getpid(), "host": platform.node(), "started": started, "command": command}
            lock.write(json.dumps(holder) + "\n")
            lock.flush()
            yield

    def _holder(self) -> str:
        try:
            holder = read_json(self.lock_path)
        except RunFolderError:
            return "it has only just started"
        pid, host, started = (holder.get(key, "?") for key in ("pid", "host", "started"))
        return f"process {pid} on {host}, started {started}"

    def _file(self, folder: str, name: str) -> Path:
        """Return where the file of `name` lies; RunFolderError for a name that would lead elsewhere."""
        if not is_name(name):
            raise RunFolderError(
                f"{str(self.path)!r}: {name!r:.120} cannot name a file in {folder}/; a name holds {A_NAME}"
            )
        return self.path.joinpath(folder, f"{name}{_suffix(folder)}")

    def _files(self, folder: str) -> list[Path]:
        """Return the files of a folder that are named like ours."""
        fits = is_trial_id if folder in ("trials", "predictions") else is_name
        suffix, where = _suffix(folder), self.path / folder
        names = sorted(os.listdir(where)) if where.is_dir() else []
        return [where / n for n in names if n.endswith(suffix) and fits(n.removesuffix(suffix))]

    def strays(self) -> list[Path]:
        """Return the entries of the run's folders that are not named like its files; they are never read."""
        found = []
        for where in (self.path / name for name in ("studies", "trials", "predictions", "validation")):
            if where.is_dir():
                strays = set(os.listdir(where)).difference(path.name for path in self._files(where.name))
                # Hidden files are the system's, or were being written when a driver was killed.
                found += [where / name for name in sorted(strays) if not name.startswith(".")]
        return found

    def notes(self) -> list[str]:
        """Return a sentence on the files that are not read; none where there are no such files."""
        strays = [str(path.relative_to(self.path)) for path in self.strays()]
        if not strays:
            return []
        few = ", ".join(strays[:3]) + (", ..." if len(strays) > 3 else "")
        what = "1 file is" if len(strays) == 1 else f"{len(strays)} files are"
        return [f"{what} not named like a file of birdtune's, and left out: {few}"]

    def checkpoint_path(self, trial_id: str) -> Path:
        """Return the folder of a trial's checkpoint."""
        return self.checkpoints_path / self._file("checkpoints", trial_id).stem

    def study_names(self) -> list[str]:
        return sorted(path.stem for path in self._files("studies"))

    def read_study(self, name: str) -> dict[str, Any]:
        """Return the content of a study's file; RunFolderError where it is none."""
        path = self._file("studies", name)
        return checked_study(path, read_json(path))

    def write_study(self, study: dict[str, Any]) -> None:
        write_json(self._file("studies", study["name"]), {"schema": SCHEMA, **study})

    def write_record(self, record: TrialRecord) -> None:
        write_json(self._file("trials", record.trial_id), record.to_dict())

    def records(self) -> dict[str, TrialRecord]:
        """Return every trial's record by trial_id; RunFolderError for a file that is none."""
        return {
            path.stem: TrialRecord.from_dict(checked_record(path, read_json(path)))
            for path in self._files("trials")
        }

    def write_predictions(self, trial_id: str, predictions: Predictions | bytes) -> None:
        """Write what a completed trial predicted, as it is or as `Predictions.to_bytes` gives it."""
        content = predictions if isinstance(predictions, bytes) else predictions.to_bytes()
        write_bytes(self._file("predictions", trial_id), content)

    def predictions(self, trial_id: str) -> Predictions | None:
        """Return what `write_predictions` kept, None for a trial without."""
        from birdnet_core.records.predictions import Predictions  # `status` starts without numpy

        path = self._file("predictions", trial_id)
        return Predictions.read(path) if path.exists() else None

    def predicted_classes(self, trial_id: str, epoch: int) -> np.ndarray | None:
        """Return the row of one epoch of `Predictions.classes` [recordings], None for a trial without."""
        from birdnet_core.records.predictions import Predictions

        path = self._file("predictions", trial_id)
        return Predictions.read_epoch(path, epoch) if path.exists() else None

    def write_validation(self, split_id: str, validation: Validation) -> None:
        write_text(self._file("validation", split_id), json.dumps(asdict(validation)) + "\n")

    def validation(self, split_id: str) -> Validation | None:
        """Return the validation recordings of a split, None for one of a run of an older version."""
        path = self._file("validation", split_id)
        if not path.exists():
            return None
        content = read_json(path)
        species = content.get("species")
        truth, recording, group = (
            _whole_numbers(path, content, key) for key in ("truth", "recording", "group")
        )
        if not isinstance(species, list) or not all(isinstance(name, str) for name in species):
            raise RunFolderError(f"{str(path)!r}: 'species' is {species!r:.80}; it takes a list of names")
        if len({len(truth), len(recording), len(group)}) > 1 or not all(
            0 <= number < len(species) for number in truth
        ):
            raise RunFolderError(
                f"{str(path)!r}: 'truth' takes the class of each of {len(recording)} recordings, from 0 to "
                f"{len(species) - 1}, and 'group' its group"
            )
        known = content.get("seen", {})
        if not isinstance(known, dict):
            raise RunFolderError(f"{str(path)!r}: 'seen' is {known!r:.80}; it takes a list by backbone")
        seen = {weights: _whole_numbers(path, known, weights) for weights in known}
        for each in seen.values():
            if len(each) != len(truth) or not all(0 <= number < len(SEEN) for number in each):
                raise RunFolderError(
                    f"{str(path)!r}: 'seen' takes a number from 0 to {len(SEEN) - 1} for each of "
                    f"{len(truth)} recordings"
                )
        return Validation(species=species, truth=truth, recording=recording, group=group, seen=seen)

    def append(self, *events: dict[str, Any]) -> list[dict[str, Any]]:
        """Add events to the journal, for the operating system to keep, and return them as written."""
        self.path.mkdir(parents=True, exist_ok=True)
        now = round(time.time(), 3)
        written: list[dict[str, Any]] = [without_nan({**event, "time": now}) for event in events]
        lines = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in written)
        with open(self.journal_path, "ab+") as journal:
            drop_unfinished_line(journal)
            journal.write(lines.encode())
        return written

    def position_at(self, offset: int) -> Position:
        """Return the place of the journal's first line that begins at byte `offset` or after it."""
        if offset == 0:
            return Position()
        with open(self.journal_path, "rb") as journal:
            line, left = 1, offset - 1
            while left and (block := journal.read(min(left, 2**20))):
                line += block.count(b"\n")
                left -= len(block)
            line += journal.readline().endswith(b"\n")
            return Position(journal.tell(), line)

    def events(
        self, position: Position | None = None, *, until: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the journal's events in order: those after `position`, which moves along, or all.

        With `until` only those whose lines begin before this byte. A last line cut off by a kill is
        left out; any other line that is broken, or is not an event of birdtune, raises RunFolderError.
        """
        if not self.journal_path.exists():
            return
        position = position or Position()
        known_ids, where = set[str](), str(self.journal_path)
        with open(self.journal_path, "rb") as journal:
            journal.seek(position.offset)
            for line in journal:
                if until is not None and position.offset >= until:
                    return
                if not line.endswith(b"\n"):
                    return  # later writes of a driver would begin within that line
                try:
                    event = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise RunFolderError(
                        f"{where} line {position.line} is not JSON ({error.msg}); "
                        "the journal was altered: remove that line to read the rest"
                    ) from None
                yield checked_event(f"{where} line {position.line}", event, known_ids)
                position.offset += len(line)
                position.line += 1


def _suffix(folder: str) -> str:
    return ".npz" if folder == "predictions" else ".json"


def _whole_numbers(path: Path, content: dict[str, Any], key: str) -> list[int]:
    values = content.get(key)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise RunFolderError(f"{str(path)!r}: {key!r} is {values!r:.80}; it takes a list of whole numbers")
    return values


def _is_held(error: OSError) -> bool:
    """Return whether a lock was refused because another process holds it, and not for want of locks."""
    return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
