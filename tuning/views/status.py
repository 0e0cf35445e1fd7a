"""The state of a run, from its journal: during the sweep, from another terminal or machine, or after it.

Reads only, takes no lock, and imports neither Ray nor torch nor Optuna, so that it is fast enough to run
every second. `birdtune status`, `dashboard` and `runs` print the same values.
"""

from __future__ import annotations

import os
import platform
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from birdnet_core.errors import RunFolderError
from birdnet_core.records.files import read_json
from birdnet_core.records.metrics import Direction, is_better
from birdnet_core.records.run_folder import Position, RunFolder
from birdnet_core.records.trial import parts_of, trial_id
from birdnet_core.records.usage import Usage
from tuning.views.live import clock, describe, running_table

Event = dict[str, Any]

FAULTS = ("failed", "diverged", "killed")
N_CURVES = 40  # of ended trials: more lines cannot be read, and would make the status of a large run long
N_POINTS = 120  # of a curve
N_FAILURES = 20
N_MESSAGES = 5


@dataclass(frozen=True, kw_only=True)
class Driver:
    """Who writes the run folder, or did so last; `is_alive` is None where this machine cannot know."""

    is_alive: bool | None
    pid: int | None = None
    host: str | None = None
    started: str | None = None
    command: str | None = None


@dataclass(frozen=True, kw_only=True)
class Running:
    """A trial in training; `epoch` is its last finished one, 0 before the first."""

    trial_id: str
    label: str
    factors: dict[str, Any]
    epoch: int
    value: float | None
    epoch_s: float | None


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best value of the study's metric in any epoch of a trial that did not fail.

    Of a search by folds, the best mean of a config over all folds, each at its best epoch; `epoch` is None.
    """

    value: float
    trial_id: str
    label: str
    epoch: int | None
    factors: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A trial that failed, diverged or was killed; `error` is the first line, None where none is known."""

    trial_id: str
    label: str
    status: str
    epoch: int
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The study's metric over the epochs of a trial; of a long one, evenly chosen epochs and the last."""

    trial_id: str
    label: str
    status: str
    epochs: list[int]
    values: list[float]


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """The state of one study.

    Args:
        state: ``finished`` once all trials are over; else ``running`` where a driver trains them,
            ``interrupted`` where none does, and ``unknown`` where only another machine can know.
        n_trials: that it asks for; `counts` says what became of those begun, `n_left` how many are not. A
            trial that was in training when its driver died counts as ``interrupted``, and is not among
            `running`. Of a search with several folds a trial is a config, on its latest fold.
        epochs: the budget of a trial; `n_epochs` were trained for this study, `epoch_s` seconds each.
        eta_s: seconds until the study is trained, with as many trials side by side as now; None where nothing
            runs or no epoch is finished. Trials not yet begun are taken to be as long as those that ended.
        n_audited: trials that the scheduler would have ended, and let train on as a sample.
        cpus, gpus: what the running trials have. peak_memory_mb: the most of an ended trial.
        failures: the newest. curves: of the running trials, the newest ended ones, and the best.
    """

    name: str
    question: str
    kind: str
    state: str
    metric: str
    direction: str
    epochs: int
    n_trials: int
    counts: dict[str, int]
    n_left: int
    n_reused: int
    n_audited: int
    running: list[Running]
    best: Best | None
    n_epochs: int
    epoch_s: float | None
    eta_s: float | None
    cpus: float
    gpus: float
    peak_memory_mb: float | None
    failures: list[Failure]
    curves: list[Curve]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The state of a run; hours of CPUs and GPUs are those of finished epochs, weighted by a trial's share.

    Args:
        begun: Unix time of the first event; None where there is none. `hours` a driver has run since.
        halted: why the last driver ended before its trials did; None where it did not, or still runs.
        messages: the newest of the driver's, such as trials that are handed out again.
        notes: of the folder itself (`RunFolder.notes`).
    """

    run: str
    driver: Driver | None
    studies: list[StudyStatus]
    begun: float | None
    hours: float
    gpu_hours: float
    cpu_hours: float
    halted: str | None
    messages: list[str]
    notes: list[str]


class _Epochs:
    """The epochs of a trial; of one that was trained again, the last occurrence of each counts."""

    def __init__(self) -> None:
        self.events: dict[int, Event] = {}
        self.seconds = 0.0
        self._best: dict[str, tuple[float, int] | None] = {}

    def add(self, event: Event) -> None:
        if again := self.events.get(event["epoch"]):
            self.seconds -= again["epoch_s"]
        self.events[event["epoch"]] = event
        self.seconds += event["epoch_s"]
        self._best.clear()

    def best(self, metric: str, direction: Direction) -> tuple[float, int] | None:
        """Return the best value of a metric and its epoch; None where no epoch has one."""
        if metric not in self._best:
            best: tuple[float, int] | None = None
            for epoch, event in self.events.items():
                value = event["metrics"].get(metric)
                if value is not None and is_better(value, best[0] if best else None, direction):
                    best = (value, epoch)
            self._best[metric] = best
        return self._best[metric]


NO_EPOCHS = _Epochs()


@dataclass(eq=False)
class _Trial:
    """One trial of a study, from the journal; `ended` is the time of its end, 0 before it.

    `earlier`: of a config of a search, the trial_ids of its earlier folds.
    """

    trial_id: str
    label: str
    factors: dict[str, Any]
    status: str
    is_reused: bool
    cpus: float = 0.0
    gpus: float = 0.0
    ended: float = 0.0
    error: str | None = None
    peak_memory_mb: float | None = None
    earlier: tuple[str, ...] = ()
    study: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The trial_ids of all its folds."""
        return (*self.earlier, self.trial_id)


@dataclass
class _JournalState:
    """The content of a journal, gathered event by event."""

    # By study; an ablation's trials by trial_id, a search's by number, as it may draw a config twice.
    trials: dict[str, dict[Any, _Trial]] = field(default_factory=dict)
    epochs: dict[str, _Epochs] = field(default_factory=dict)
    running: dict[str, list[_Trial]] = field(default_factory=dict)
    audited: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    usage: Usage = field(default_factory=Usage)
    begun: float | None = None
    halted: str | None = None
    messages: deque[str] = field(default_factory=lambda: deque(maxlen=N_MESSAGES))
    # The studies that the last driver has begun trials of.
    driven: set[str] = field(default_factory=set)

    def add(self, event: Event, searches: set[str]) -> None:
        """Add one event of the journal; `searches` are the studies that are."""
        kind, trial_id = event["event"], event.get("trial_id", "")
        self.usage.add(event)
        self.begun = self.begun or event["time"]
        if kind == "session":
            self.halted = None
            self.driven.clear()
        elif kind == "trial":
            self.driven.add(event["study"])
            self._begin(event, event["study"] in searches)
        elif kind == "epoch":
            self.epochs.setdefault(trial_id, _Epochs()).add(event)
        elif kind == "audit":
            self.audited.add(trial_id)
        elif kind == "end":
            for trial in self.running.pop(trial_id, []):
                trial.status, trial.ended = event["status"], event["time"]
                trial.error, trial.peak_memory_mb = event.get("error"), event.get("peak_memory_mb")
            if event["status"] in FAULTS:
                self.failed.add(trial_id)
        elif kind == "next_fold":
            self.trials[event["study"]][event["number"]].status = "waiting"
        elif kind == "note":
            self.messages.append(str(event.get("text", "")))
        elif kind == "restart":
            self.messages.append(f"{trial_id}: {_first_line(event.get('error')) or 'failed'}; it continues")
        elif kind == "halt":
            self.halted = str(event.get("reason", ""))

    def _begin(self, event: Event, is_search: bool) -> None:
        trials, trial_id = self.trials.setdefault(event["study"], {}), event["trial_id"]
        choices = describe(event["factors"])
        if is_search:
            label = f"#{event['number']}: {choices}"
        else:
            label = ", ".join(filter(None, (choices, f"repeat {parts_of(trial_id)[1]}")))
        trial = _Trial(
            trial_id=trial_id,
            label=label,
            factors=event["factors"],
            status=event["status"] if event["reused"] else "running",
            is_reused=event["reused"],
            study=event["study"],
        )
        if not event["reused"]:
            trial.cpus, trial.gpus = event.get("cpus", 0.0), event.get("gpus", 0.0)
            self.running.setdefault(trial_id, []).append(trial)
            # A retry of a search has a number of its own, and takes the place of the trial that failed.
            if trial_id in self.failed:
                for key in [k for k, t in trials.items() if t.trial_id == trial_id and t.status in FAULTS]:
                    del trials[key]
        key = event["number"] if is_search else trial_id
        if event.get("fold") and key in trials:
            before = trials[key]
            trial.earlier = tuple(name for name in before.names if name != trial_id)
        trials[key] = trial


class StatusReader:
    """Follows a run: each `status` reads only what was appended to the journal since the last."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._state, self._position = _JournalState(), Position()

    def status(self) -> RunStatus:
        """Return the state of the run.

        Raises RunFolderError for a study file or a journal that cannot be read.
        """
        # Before the journal: a driver that ends in between has then written all that it had to say.
        driver = _driver(self.run)
        studies = [self.run.read_study(name) for name in self.run.study_names()]
        searches = {study["name"] for study in studies if study["kind"] == "search"}
        journal = self.run.journal_path
        if self._position.offset > (journal.stat().st_size if journal.exists() else 0):
            self._state, self._position = _JournalState(), Position()  # another journal
        try:
            for event in self.run.events(self._position):
                self._state.add(event, searches)
        except RunFolderError:
            self._state, self._position = _JournalState(), Position()
            raise
        state = self._state
        is_alive = driver.is_alive if driver else False
        return RunStatus(
            run=str(self.run.path),
            driver=driver,
            studies=[_study_status(study, state, is_alive) for study in studies],
            begun=state.begun,
            hours=state.usage.hours,
            gpu_hours=state.usage.gpu_hours,
            cpu_hours=state.usage.cpu_hours,
            halted=None if is_alive else state.halted,
            messages=list(state.messages),
            notes=self._notes,
        )

    @cached_property
    def _notes(self) -> list[str]:
        return self.run.notes()


def run_status(run: RunFolder) -> RunStatus:
    """Return the state of `run`, as `StatusReader.status` does."""
    return StatusReader(run).status()


def _driver(run: RunFolder) -> Driver | None:
    """Return who holds RUN/driver.lock, or held it last; None where no driver ever did."""
    path = run.path / "driver.lock"
    if not path.exists():
        return None
    try:
        holder = read_json(path)
    except RunFolderError:
        holder = {}  # a driver that has only just started has not written its name yet
    pid, *texts = (holder.get(key) for key in ("pid", "host", "started", "command"))
    pid = pid if type(pid) is int else None
    host, started, command = (text if isinstance(text, str) else None for text in texts)
    if holder and host != platform.node():
        is_alive = None  # not every network file system passes locks on
    elif pid is not None and not _exists(pid):
        is_alive = False
    else:
        is_alive = _is_locked(path, pid)
    return Driver(is_alive=is_alive, pid=pid, host=host, started=started, command=command)


def _is_locked(path: Path, pid: int | None) -> bool | None:
    """Return whether the process `pid`, or any where it is None, holds the lock; None if that is not known.

    By the kernel's list: to try the lock would be to hold it for a moment, in which no driver could start.
    """
    try:
        locks = Path("/proc/locks").read_text(encoding="utf-8")
        inode = str(path.stat().st_ino)
    except OSError:
        return None
    # 1: FLOCK  ADVISORY  WRITE 27275 fe:00:2966436 0 EOF
    held = [fields for line in locks.splitlines() if len(fields := line.split()) > 5 and fields[1] == "FLOCK"]
    return any(fields[5].split(":")[-1] == inode and pid in (None, int(fields[4])) for fields in held)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _study_status(study: dict[str, Any], state: _JournalState, is_alive: bool | None) -> StudyStatus:
    trials = state.trials.get(study["name"], {})
    if study["kind"] == "search":
        n_trials = max(study["n_trials"], len(trials))
    else:
        repeats = [(repeat, study["seed"] + i) for i, repeat in enumerate(study["repeats"])]
        planned = {trial_id(cell["config_id"], *each) for cell in study["cells"] for each in repeats}
        n_trials = len(planned | set(trials))
    counts = Counter(
        "interrupted" if is_alive is False and t.status in ("running", "waiting") else t.status
        for t in trials.values()
    )
    n_left = n_trials - len(trials)
    is_driven = not state.driven or study["name"] in state.driven
    if not n_left and not counts.keys() & {"running", "waiting", "interrupted", "killed"}:
        status = "finished"
    elif is_alive is None:
        status = "unknown"
    else:
        status = "running" if is_alive and is_driven else "interrupted"
    # The latest of each, as those of a driver that died are there, too.
    latest = [rows[-1] for rows in state.running.values() if rows[-1].study == study["name"]]
    running = [] if is_alive is False else latest
    mine = [t for t in trials.values() if not t.is_reused]
    trained = {name: state.epochs.get(name, NO_EPOCHS) for t in mine for name in t.names}
    n_epochs = sum(len(epochs.events) for epochs in trained.values())
    epoch_s = sum(epochs.seconds for epochs in trained.values()) / n_epochs if n_epochs else None
    eta_s = None
    if running and epoch_s is not None:
        ended = [t for t in mine if t.status in ("completed", "pruned")]
        of_ended = sum(len(trained[name].events) for t in ended for name in t.names)
        length = of_ended / len(ended) if ended else study["epochs"]
        to_train = n_left * length + sum(study["epochs"] - len(trained[t.trial_id].events) for t in running)
        eta_s = to_train * epoch_s / len(running)
    best = _best(study, trials.values(), state)
    memory = [t.peak_memory_mb for t in trials.values() if t.peak_memory_mb is not None]
    return StudyStatus(
        name=study["name"],
        question=study.get("question", ""),
        kind=study["kind"],
        state=status,
        metric=study["metric"],
        direction=study["direction"],
        epochs=study["epochs"],
        n_trials=n_trials,
        counts=dict(counts),
        n_left=n_left,
        n_reused=sum(t.is_reused for t in trials.values()),
        n_audited=sum(not state.audited.isdisjoint(t.names) for t in trials.values()),
        running=[_running(t, trained[t.trial_id], study["metric"]) for t in running],
        best=best,
        n_epochs=n_epochs,
        epoch_s=epoch_s,
        eta_s=eta_s,
        cpus=sum(t.cpus for t in running),
        gpus=sum(t.gpus for t in running),
        peak_memory_mb=max(memory, default=None),
        failures=_failures(trials.values(), state),
        curves=_curves(study["metric"], trials.values(), running, state, best),
    )


def _running(trial: _Trial, epochs: _Epochs, metric: str) -> Running:
    last = epochs.events[max(epochs.events)] if epochs.events else None
    return Running(
        trial_id=trial.trial_id,
        label=trial.label,
        factors=trial.factors,
        epoch=last["epoch"] if last else 0,
        value=last["metrics"].get(metric) if last else None,
        epoch_s=last["epoch_s"] if last else None,
    )


def _best(study: dict[str, Any], trials: Iterable[_Trial], state: _JournalState) -> Best | None:
    best: Best | None = None
    n_folds = len(study["repeats"]) if study["kind"] == "search" else 1
    for trial in trials:
        if trial.status in FAULTS:
            continue
        if n_folds > 1 and (len(trial.names) < n_folds or trial.status != "completed"):
            continue
        of_folds = [
            found
            for name in trial.names
            if (found := state.epochs.get(name, NO_EPOCHS).best(study["metric"], study["direction"]))
        ]
        if len(of_folds) < len(trial.names):
            continue
        value = fmean(value for value, _ in of_folds)
        if is_better(value, best.value if best else None, study["direction"]):
            epoch = of_folds[0][1] if n_folds == 1 else None
            best = Best(
                value=value, trial_id=trial.trial_id, label=trial.label, epoch=epoch, factors=trial.factors
            )
    return best


def _failures(trials: Iterable[_Trial], state: _JournalState) -> list[Failure]:
    failed = _newest(t for t in trials if t.status in FAULTS)
    return [
        Failure(
            trial_id=t.trial_id,
            label=t.label,
            status=t.status,
            epoch=max(state.epochs.get(t.trial_id, NO_EPOCHS).events, default=0),
            error=_first_line(t.error),
        )
        for t in failed[:N_FAILURES]
    ]


def _newest(trials: Iterable[_Trial]) -> list[_Trial]:
    return sorted(reversed(list(trials)), key=lambda t: -t.ended)


def _first_line(error: str | None) -> str | None:
    return error.strip().split("\n")[0][:300] if error else None


def _curves(
    metric: str, trials: Iterable[_Trial], running: list[_Trial], state: _JournalState, best: Best | None
) -> list[Curve]:
    training = set(running)
    ended = _newest(t for t in trials if t not in training)
    of_best = [t for t in ended[N_CURVES:] if best and t.trial_id == best.trial_id]
    curves = []
    for t in [*running, *ended[:N_CURVES], *of_best]:
        events = state.epochs.get(t.trial_id, NO_EPOCHS).events
        points = [(n, events[n]["metrics"].get(metric)) for n in sorted(events)]
        points = [point for point in points if point[1] is not None]
        points = points[: -1 : len(points) // N_POINTS + 1] + points[-1:]
        curves.append(
            Curve(
                trial_id=t.trial_id,
                label=t.label,
                status=t.status if t in training else t.status.replace("running", "interrupted"),
                epochs=[n for n, _ in points],
                values=[value for _, value in points],
            )
        )
    return curves


# -------------------------------------------------------------------------------------------- as text


def as_text(status: RunStatus) -> Group:
    """Return what a person reads: the driver, each study with its running trials, and what it has cost."""
    lines: list[Text | Table] = [Text(f"{status.run}: {_driver_line(status.driver)}")]
    for study in status.studies:
        lines += [Text(), Text(f"{study.name} ({study.kind}): {_counts_line(study)}", style="bold")]
        if study.best:
            where = "over all folds" if study.best.epoch is None else f"at epoch {study.best.epoch}"
            lines.append(
                Text(f"best {study.metric} {study.best.value:.4f} {where}: {describe(study.best.factors)}")
            )
        if study.epoch_s is not None:
            left = f", about {clock(study.eta_s)} left" if study.eta_s is not None else ""
            lines.append(Text(f"{study.n_epochs:,} epochs, {study.epoch_s:.1f} s/epoch{left}"))
        if study.running:
            rows = [
                (describe(t.factors), f"{t.epoch}/{study.epochs}", t.value, t.epoch_s) for t in study.running
            ]
            lines.append(running_table(study.metric, rows))
    lines += [Text(f"note: {note}", style="yellow") for note in status.notes]
    lines += [Text(), Text(f"{status.gpu_hours:.2f} GPU-hours and {status.cpu_hours:.2f} CPU-hours used")]
    return Group(*lines)


def _driver_line(driver: Driver | None) -> str:
    if driver is None:
        return "no driver runs"
    if driver.pid is None:
        return "a driver has only just started" if driver.is_alive else "no driver runs"
    who = f"process {driver.pid} on {driver.host}, started {driver.started}"
    state = {True: "is driven by", False: "no driver runs; the last was", None: "may be driven by"}
    return f"{state[driver.is_alive]} {who}" + (
        f" (only {driver.host} knows)" if driver.is_alive is None else ""
    )


def _counts_line(study: StudyStatus) -> str:
    states = "".join(f", {n} {status}" for status, n in sorted(study.counts.items()))
    reused = f" ({study.n_reused} reused)" if study.n_reused else ""
    audited = f" ({study.n_audited} audited)" if study.n_audited else ""
    return f"{study.n_trials} trials{states}{reused}{audited}, {study.n_left} left"
