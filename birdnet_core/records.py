"""The files of a run folder, and the names of what a run reports.

`tuning` writes them, `reports` reads them, and neither knows the other. Everything is JSON, so that another
tool can read a run without birdtune:

    RUN/studies/<study>.json      what was asked: question, metric, design, data, versions, command line
    RUN/journal.jsonl             what happened, one line an event, appended by the one driver
    RUN/trials/<trial_id>.json    how each trial ended
    RUN/predictions/<trial_id>.json   what each completed trial told of the validation recordings
    RUN/validation/<split_id>.json    what these recordings are
    RUN/optuna.db                 the Optuna studies of the searches
    RUN/checkpoints/<trial_id>/   what an unfinished trial goes on from, and those of the best
    RUN/driver.lock               who writes the folder
    RUN/ray.log                   what Ray had to say, if anything

`docs/run-folder.md` describes every field.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import importlib.metadata
import itertools
import json
import math
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from birdnet_core import plugins
from birdnet_core.checks import (
    A_NAME,
    checked_event,
    checked_record,
    checked_study,
    is_name,
    is_trial_id,
    local_path,
)
from birdnet_core.errors import ConfigError, RunFolderError, did_you_mean

SCHEMA = 2

Status = Literal["completed", "pruned", "diverged", "failed", "killed"]
Direction = Literal["maximize", "minimize"]
LEAKAGE = "LEAKAGE"
"""What a note on a split begins with if scores on it do not hold; reports show it before any score."""

STATUSES: tuple[Status, ...] = ("completed", "pruned", "diverged", "failed", "killed")

_SCORES: dict[str, tuple[Direction, str]] = {
    "loss": (
        "minimize",
        "mean cross-entropy of the recordings' averaged probabilities, whatever loss trains",
    ),
    "accuracy": ("maximize", "share of recordings whose most probable species is the right one"),
    "f1_macro": ("maximize", "mean F1 over the species present in truth or prediction"),
    "f1_weighted": ("maximize", "mean F1 over species, weighted by their recordings in truth"),
    "map": ("maximize", "mean average precision over the species present in truth"),
    "f1_rare": ("maximize", "mean F1 over the rare stratum's species present in truth"),
    "f1_medium": ("maximize", "mean F1 over the medium stratum's species present in truth"),
    "f1_common": ("maximize", "mean F1 over the common stratum's species present in truth"),
}
METRICS: dict[str, tuple[Direction, str]] = {
    "train/loss": ("minimize", "mean training loss over the epoch's steps"),
    "train/accuracy": ("maximize", "accuracy of the training clips as they were seen during the epoch"),
    **{f"val/{name}": value for name, value in _SCORES.items()},
}


TEST_METRICS: dict[str, tuple[Direction, str]] = {
    **{f"test/{name}": value for name, value in _SCORES.items()},
    "test/top5": ("maximize", "share of recordings whose species is among the five most probable"),
    "test/auroc": ("maximize", "mean area under the ROC curve, one against the rest, over species in truth"),
    "test/ece": ("minimize", "expected calibration error, 15 bins of equal width (Guo et al. 2017)"),
}
"""What `birdtune evaluate` reports; no study can name one, so that none can look at the test side."""


def metric_direction(metric: str) -> Direction:
    """Return ``maximize`` or ``minimize``; the one place where a metric's direction is typed."""
    if metric not in METRICS:
        raise ConfigError(
            f"unknown metric {metric!r}{did_you_mean(metric, METRICS)} (known: {', '.join(METRICS)})"
        )
    return METRICS[metric][0]


COSTS: dict[str, tuple[Direction, str]] = {
    "n_params": ("minimize", "trainable values of the network"),
    "hours": ("minimize", "wall time of building, training and validating"),
}
"""What a trial costs: with the metrics, all that a search of several objectives may weigh."""


def objective_direction(objective: str) -> Direction:
    """Return ``maximize`` or ``minimize`` of a metric or a cost; ConfigError for an unknown name."""
    if objective in COSTS:
        return COSTS[objective][0]
    if objective not in METRICS:
        known = (*COSTS, *METRICS)
        raise ConfigError(
            f"unknown objective {objective!r}{did_you_mean(objective, known)} (known: {', '.join(known)})"
        )
    return metric_direction(objective)


def is_better(value: float, than: float | None, direction: Direction) -> bool:
    """Return whether `value` beats `than`; nan beats nothing and anything finite beats None."""
    if math.isnan(value):
        return False
    if than is None:
        return True
    return value > than if direction == "maximize" else value < than


@dataclass(kw_only=True)
class TrialRecord:
    """How one trial ended.

    Args:
        metrics: every metric at the best epoch, by `training.monitor` of the config.
        epochs: epochs trained; `best_epoch` counts from 1.
        f1_per_species: validation F1 of every species present in truth, at the best epoch.
        started: UTC, ISO 8601. `seconds`: wall time of building, training and validating.
        gpus, cpus: what the trial was given; with `seconds`, its gpu_hours and cpu_hours.
        peak_memory_mb: the most during the trial, of the process on the CPU (None where the system does not
            tell), of torch's allocator on the GPU.
        provenance: versions, git commit, host, device, data and split hashes.
    """

    trial_id: str
    config_id: str
    seed: int
    status: Status
    config: dict[str, Any]
    epochs: int = 0
    best_epoch: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    f1_per_species: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    traceback: str | None = None
    n_params: int | None = None
    started: str = ""
    seconds: float = 0.0
    gpus: float = 0.0
    cpus: float = 0.0
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    peak_memory_mb: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    def objective(self, name: str) -> float:
        """Return a metric at the best epoch, or a cost; nan where the trial never came to know it."""
        if name == "hours":
            return self.seconds / 3600
        if name == "n_params":
            return math.nan if self.n_params is None else float(self.n_params)
        return self.metrics.get(name, math.nan)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrialRecord:
        """Read a record back; keys that this version does not know are left out."""
        known = {f.name for f in fields(cls)}
        record = cls(**{k: v for k, v in values.items() if k in known})
        for scores in (record.metrics, record.f1_per_species):
            scores.update({name: math.nan for name, value in scores.items() if value is None})
        return record


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The validation side of a split: what the predictions of trials are held against.

    Args:
        species: the name of each class.
        truth: the class of each scored recording (or clip, where these were split at random).
        recording: a number a recording_id; entries of one number are no independent samples.
    """

    species: list[str]
    truth: list[int]
    recording: list[int]


@dataclass
class Spent:
    """What a run has cost so far, from the events of its journal."""

    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    hours: float = 0.0
    n_epochs: int = 0
    _shares: dict[str, tuple[float, float]] = field(default_factory=dict)
    _last: float = math.nan

    @classmethod
    def of(cls, events: Iterable[dict[str, Any]]) -> Spent:
        """Return the cost of `events`; time between two sessions of drivers is free."""
        spent = cls()
        for event in events:
            spent.take(event)
        return spent

    def hours_until(self, now: float) -> float:
        """Return the hours of a run whose driver still drives it `now` (Unix time)."""
        return self.hours + (0.0 if math.isnan(self._last) else max(0.0, now - self._last) / 3600)

    def take(self, event: dict[str, Any]) -> None:
        """Add one event of the journal."""
        if event["event"] != "session":
            self.hours = self.hours_until(event["time"])
        self._last = event["time"]
        if event["event"] == "trial":
            self._shares[event["trial_id"]] = (event.get("gpus", 0.0), event.get("cpus", 0.0))
        elif event["event"] == "epoch":
            gpus, cpus = self._shares.get(event["trial_id"], (0.0, 0.0))
            self.gpu_hours += gpus * event["epoch_s"] / 3600
            self.cpu_hours += cpus * event["epoch_s"] / 3600
            self.n_epochs += 1


PRUNED_CHECKPOINT_BYTES = 2**30
"""How much room the checkpoints of a run's pruned trials may take together, before the oldest are deleted."""

LINES_AT_ONCE = 1000  # of the journal: parsed together they take four fifths of the time
RECORDS_AT_ONCE = 100


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
            raise RunFolderError(f"no run folder at {str(path)!r}: there is no such folder")
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
                if not is_held(error):
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
        return self.path / folder / f"{name}.json"

    def _files(self, folder: str) -> list[Path]:
        """Return the files of a folder that are named like ours."""
        fits = is_trial_id if folder in ("trials", "predictions") else is_name
        return sorted(p for p in (self.path / folder).glob("*.json") if fits(p.stem))

    def strays(self) -> list[Path]:
        """Return what lies among the run's files and is not named like one: it is never read."""
        found = []
        for folder in ("studies", "trials", "predictions", "validation"):
            if (self.path / folder).is_dir():
                ours = set(self._files(folder))
                found += [p for p in sorted((self.path / folder).iterdir()) if p not in ours]
        # What is hidden is the system's, or was being written when a driver was killed.
        return [path for path in found if not path.name.startswith(".")]

    def notes(self) -> list[str]:
        """Return what a reader should know of the folder itself, in sentences."""
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
        return checked_study(path, read_json(path), SCHEMA)

    def write_study(self, study: dict[str, Any]) -> None:
        write_json(self._file("studies", study["name"]), {"schema": SCHEMA, **study})

    def write_record(self, record: TrialRecord) -> None:
        write_json(self._file("trials", record.trial_id), record.to_dict())

    def records(self) -> dict[str, TrialRecord]:
        """Return every trial's record by trial_id; RunFolderError for a file that is none."""
        paths = self._files("trials")
        blocks = (paths[i : i + RECORDS_AT_ONCE] for i in range(0, len(paths), RECORDS_AT_ONCE))
        values = itertools.chain.from_iterable(map(_read_together, blocks))
        return {
            path.stem: TrialRecord.from_dict(checked_record(path, value, SCHEMA, STATUSES))
            for path, value in zip(paths, values, strict=True)
        }

    def write_predictions(self, trial_id: str, predicted: Sequence[int]) -> None:
        """Keep the class that a completed trial told of each validation recording, in their order."""
        content = json.dumps({"predicted": list(predicted)})
        write_text(self._file("predictions", trial_id), content + "\n")

    def predictions(self, trial_id: str) -> list[int] | None:
        """Return what `write_predictions` kept; None for a trial without, such as one of an older version."""
        path = self._file("predictions", trial_id)
        return _whole_numbers(path, read_json(path), "predicted") if path.exists() else None

    def write_validation(self, split_id: str, validation: Validation) -> None:
        write_text(self._file("validation", split_id), json.dumps(asdict(validation)) + "\n")

    def validation(self, split_id: str) -> Validation | None:
        """Return the validation recordings of a split, None for one of a run of an older version."""
        path = self._file("validation", split_id)
        if not path.exists():
            return None
        content = read_json(path)
        species = content.get("species")
        truth, recording = (_whole_numbers(path, content, key) for key in ("truth", "recording"))
        if not isinstance(species, list) or not all(isinstance(name, str) for name in species):
            raise RunFolderError(f"{str(path)!r}: 'species' is {species!r:.80}; it takes a list of names")
        if len(truth) != len(recording) or not all(0 <= number < len(species) for number in truth):
            raise RunFolderError(
                f"{str(path)!r}: 'truth' takes the class of each of {len(recording)} recordings, from 0 to "
                f"{len(species) - 1}"
            )
        return Validation(species=species, truth=truth, recording=recording)

    def append(self, event: dict[str, Any]) -> dict[str, Any]:
        """Add one event to the journal, hand it to the operating system at once, and return it as written."""
        self.path.mkdir(parents=True, exist_ok=True)
        written: dict[str, Any] = _without_nan({**event, "time": round(time.time(), 3)})
        line = json.dumps(written, ensure_ascii=False) + "\n"
        with open(self.journal_path, "ab+") as journal:
            drop_unfinished_line(journal)
            journal.write(line.encode())
        return written

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the journal's events in order.

        A last line cut off by a kill is left out; a line elsewhere that is broken, or is no event of
        birdtune, raises RunFolderError.
        """
        if not self.journal_path.exists():
            return
        known_ids = set[str]()
        # A byte that is no UTF-8 becomes a sign of its own, and its line is told as any that was altered.
        with open(self.journal_path, encoding="utf-8", errors="replace") as journal:
            number = 1
            while lines := list(itertools.islice(journal, LINES_AT_ONCE)):
                whole = lines if lines[-1].endswith("\n") else lines[:-1]
                for n, event in enumerate(self._parsed(whole, number), start=number):
                    yield checked_event(f"{self.journal_path} line {n}", event, STATUSES, known_ids)
                if whole is not lines:
                    return  # what a driver writes meanwhile would begin within that line
                number += len(lines)

    def _parsed(self, lines: list[str], first: int) -> list[Any]:
        """Return the values of whole lines, the first of which has the number `first`."""
        with contextlib.suppress(json.JSONDecodeError):
            events: list[Any] = json.loads(f"[{','.join(lines)}]")
            if len(events) == len(lines):
                return events
        for number, line in enumerate(lines, start=first):
            try:
                json.loads(line)
            except json.JSONDecodeError as error:
                raise RunFolderError(
                    f"{self.journal_path} line {number} is not JSON ({error.msg}); "
                    "the journal was altered: remove that line to read the rest"
                ) from None
        return [json.loads(line) for line in lines]


def provenance() -> dict[str, Any]:
    """Return the versions, the commit of the source if it runs from a checkout, the host, and the plugins."""
    return {**_provenance(), "plugins": [plugin.facts() for plugin in plugins.loaded()]}


@functools.lru_cache(maxsize=1)
def _provenance() -> dict[str, Any]:
    versions = {}
    for name in ("birdtune", "torch", "torchaudio", "transformers", "numpy", "ray", "optuna"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": _source_commit(),
        "host": platform.node(),
    }


def _source_commit() -> str | None:
    """Return the commit that this file was checked out from, with ``+changes``, or None for a wheel."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "-uno") else commit


def drop_unfinished_line(journal: BinaryIO) -> None:
    """Cut a last line that a killed driver left without its end, or the next event would be glued to it."""
    end = journal.seek(0, os.SEEK_END)
    if end == 0:
        return
    journal.seek(end - 1)
    if journal.read(1) == b"\n":
        return
    tail = min(end, 1 << 20)
    journal.seek(end - tail)
    journal.truncate(end - tail + journal.read(tail).rfind(b"\n") + 1)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; raises RunFolderError where it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{str(path)!r} holds a {type(value).__name__}; a JSON object was expected")
    return value


def _read_together(paths: list[Path]) -> list[dict[str, Any]]:
    """Return what `read_json` does of each, parsed at once: names that repeat are kept once."""
    with contextlib.suppress(OSError, ValueError):
        values = json.loads(f"[{','.join(path.read_text(encoding='utf-8') for path in paths)}]")
        if len(values) == len(paths) and all(isinstance(value, dict) for value in values):
            return list(values)
    return [read_json(path) for path in paths]


def _whole_numbers(path: Path, content: dict[str, Any], key: str) -> list[int]:
    values = content.get(key)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise RunFolderError(f"{str(path)!r}: {key!r} is {values!r:.80}; it takes a list of whole numbers")
    return values


def is_held(error: OSError) -> bool:
    """Return whether a lock was refused because another process holds it, and not for want of locks."""
    return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: readers see the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as JSON, whole or not at all; nan becomes null, which every reader accepts."""
    write_text(path, json.dumps(_without_nan(value), indent=1, ensure_ascii=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
