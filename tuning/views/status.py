"""The state of a run, from its journal: during the sweep, from another terminal or machine, or after it.

Reads only, and imports neither Ray nor torch nor Optuna, so that it is fast enough to run every second.
"""

from __future__ import annotations

import fcntl
import os
import platform
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from birdnet_core.errors import RunFolderError
from birdnet_core.records.files import read_json
from birdnet_core.records.metrics import is_better
from birdnet_core.records.run_folder import RunFolder, is_held
from birdnet_core.records.trial import trial_id
from tuning.views.live import clock, describe, running_table

Event = dict[str, Any]

FAULTS = ("failed", "diverged", "killed")


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
    factors: dict[str, Any]
    epoch: int
    value: float | None
    epoch_s: float | None


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best value of the study's metric in any epoch of a trial that did not fail."""

    value: float
    trial_id: str
    epoch: int
    factors: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """The state of one study.

    Args:
        n_trials: that it asks for; `counts` says what became of those begun, `n_left` how many are not. A
            trial that was in training when its driver died counts as ``interrupted``, and is not among
            `running`.
        epochs: the budget of a trial; `n_epochs` were trained for this study, `epoch_s` seconds each.
        eta_s: seconds until the study is trained, with as many trials side by side as now; None where nothing
            runs or no epoch is finished. Trials not yet begun are taken to be as long as those that ended.
        n_audited: trials that the scheduler would have ended, and let train on as a sample.
    """

    name: str
    kind: str
    metric: str
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


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The state of a run; hours are those of finished epochs, weighted by what each trial was given.

    `notes` are of the folder itself (`RunFolder.notes`).
    """

    run: str
    driver: Driver | None
    studies: list[StudyStatus]
    gpu_hours: float
    cpu_hours: float
    notes: list[str] = field(default_factory=list)


@dataclass
class _Trial:
    """One trial of a study, from the journal."""

    trial_id: str
    factors: dict[str, Any]
    status: str
    is_reused: bool


@dataclass
class _JournalState:
    """The content of a journal, gathered in one pass."""

    # By study; an ablation's trials by trial_id, a search's by number, as it may draw a config twice.
    trials: dict[str, dict[Any, _Trial]] = field(default_factory=dict)
    # By trial_id and epoch: of a trial that was trained again the last occurrence counts.
    epochs: dict[str, dict[int, Event]] = field(default_factory=dict)
    running: dict[str, list[_Trial]] = field(default_factory=dict)
    shares: dict[str, tuple[float, float]] = field(default_factory=dict)
    audited: set[str] = field(default_factory=set)
    gpu_s: float = 0.0
    cpu_s: float = 0.0


def run_status(run: RunFolder) -> RunStatus:
    """Return the state of `run`.

    Raises RunFolderError for a study file or a journal that cannot be read, and for a journal that is lost.
    """
    # Before the journal: a driver that ends in between has then written all that it had to say.
    driver = _driver(run)
    studies = [run.read_study(name) for name in run.study_names()]
    searches = {study["name"] for study in studies if study["kind"] == "search"}
    state = _gather(run.events(), searches)
    is_dead = driver is None or driver.is_alive is False
    return RunStatus(
        run=str(run.path),
        driver=driver,
        studies=[_study_status(study, state, is_dead) for study in studies],
        gpu_hours=state.gpu_s / 3600,
        cpu_hours=state.cpu_s / 3600,
        notes=run.notes(),
    )


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

    def driver(is_alive: bool | None) -> Driver:
        return Driver(is_alive=is_alive, pid=pid, host=host, started=started, command=command)

    if holder and host != platform.node():
        return driver(None)  # not every network file system passes locks on
    if pid is not None and not _exists(pid):
        return driver(False)
    with open(path, encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return driver(True if is_held(error) else None)  # this file system has no locks
    return driver(False)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _gather(events: Iterable[Event], searches: set[str]) -> _JournalState:
    state = _JournalState()
    for event in events:
        kind, trial_id = event["event"], event.get("trial_id", "")
        if kind == "trial":
            _begin(state, event, event["study"] in searches)
        elif kind == "epoch":
            state.epochs.setdefault(trial_id, {})[event["epoch"]] = event
            gpus, cpus = state.shares.get(trial_id, (0.0, 0.0))
            state.gpu_s += gpus * event["epoch_s"]
            state.cpu_s += cpus * event["epoch_s"]
        elif kind == "audit":
            state.audited.add(trial_id)
        elif kind == "end":
            for trial in state.running.pop(trial_id, []):
                trial.status = event["status"]
    return state


def _begin(state: _JournalState, event: Event, is_search: bool) -> None:
    trials, trial_id = state.trials.setdefault(event["study"], {}), event["trial_id"]
    is_reused = event["reused"]
    trial = _Trial(trial_id, event["factors"], event["status"] if is_reused else "running", is_reused)
    if not is_reused:
        state.shares[trial_id] = (event.get("gpus", 0.0), event.get("cpus", 0.0))
        state.running.setdefault(trial_id, []).append(trial)
        # A retry of a search has a number of its own, and takes the place of the trial that failed.
        for key in [k for k, t in trials.items() if t.trial_id == trial_id and t.status in FAULTS]:
            del trials[key]
    trials[event["number"] if is_search else trial_id] = trial


def _study_status(study: dict[str, Any], state: _JournalState, is_dead: bool) -> StudyStatus:
    trials = state.trials.get(study["name"], {})
    if study["kind"] == "search":
        n_trials = max(study["n_trials"], len(trials))
    else:
        repeats = [(repeat, study["seed"] + i) for i, repeat in enumerate(study["repeats"])]
        planned = {trial_id(cell["config_id"], *each) for cell in study["cells"] for each in repeats}
        n_trials = len(planned | set(trials))
    counts = Counter(
        "interrupted" if is_dead and t.status == "running" else t.status for t in trials.values()
    )
    running = [] if is_dead else [t for t in trials.values() if t.status == "running"]
    trained = {t.trial_id: state.epochs.get(t.trial_id, {}) for t in trials.values() if not t.is_reused}
    seconds = [event["epoch_s"] for epochs in trained.values() for event in epochs.values()]
    epoch_s = sum(seconds) / len(seconds) if seconds else None
    n_left = n_trials - len(trials)
    eta_s = None
    if running and epoch_s is not None:
        ended = [
            len(trained[t.trial_id])
            for t in trials.values()
            if t.status in ("completed", "pruned") and not t.is_reused
        ]
        length = sum(ended) / len(ended) if ended else study["epochs"]
        to_train = n_left * length + sum(study["epochs"] - len(trained[t.trial_id]) for t in running)
        eta_s = to_train * epoch_s / len(running)
    return StudyStatus(
        name=study["name"],
        kind=study["kind"],
        metric=study["metric"],
        epochs=study["epochs"],
        n_trials=n_trials,
        counts=dict(counts),
        n_left=n_left,
        n_reused=sum(t.is_reused for t in trials.values()),
        n_audited=sum(t.trial_id in state.audited for t in trials.values()),
        running=[_running(t, trained[t.trial_id], study["metric"]) for t in running],
        best=_best(study, trials.values(), state),
        n_epochs=len(seconds),
        epoch_s=epoch_s,
        eta_s=eta_s,
    )


def _running(trial: _Trial, epochs: dict[int, Event], metric: str) -> Running:
    last = epochs[max(epochs)] if epochs else None
    return Running(
        trial_id=trial.trial_id,
        factors=trial.factors,
        epoch=last["epoch"] if last else 0,
        value=last["metrics"].get(metric) if last else None,
        epoch_s=last["epoch_s"] if last else None,
    )


def _best(study: dict[str, Any], trials: Iterable[_Trial], state: _JournalState) -> Best | None:
    best: Best | None = None
    for trial in trials:
        if trial.status in FAULTS:
            continue
        for epoch, event in state.epochs.get(trial.trial_id, {}).items():
            value = event["metrics"].get(study["metric"])
            if value is not None and is_better(value, best.value if best else None, study["direction"]):
                best = Best(value=value, trial_id=trial.trial_id, epoch=epoch, factors=trial.factors)
    return best


# -------------------------------------------------------------------------------------------- as text


def as_text(status: RunStatus) -> Group:
    """Return what a person reads: the driver, each study with its running trials, and what it has cost."""
    lines: list[Text | Table] = [Text(f"{status.run}: {_driver_line(status.driver)}")]
    for study in status.studies:
        lines += [Text(), Text(f"{study.name} ({study.kind}): {_counts_line(study)}", style="bold")]
        if study.best:
            lines.append(
                Text(
                    f"best {study.metric} {study.best.value:.4f} at epoch {study.best.epoch}: "
                    f"{describe(study.best.factors)}"
                )
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
