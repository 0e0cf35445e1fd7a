"""Optuna on Ray, with the states that Optuna itself would have recorded.

Ray's own OptunaSearch tells a trial that ASHA stopped as COMPLETE with its truncated value, so that
importance and best-value plots mix training lengths. Here it is PRUNED, with its intermediate values.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import math
import os
import traceback
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from birdnet_core.errors import ConfigError, RunFolderError, did_you_mean
from birdnet_core.records.files import drop_unfinished_line, write_text
from birdnet_core.records.metrics import Direction, objective_direction
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.trial import TrialRecord
from search_spaces.study import Search
from tuning.engine.folds import fold_of, n_finalists
from tuning.engine.journal import Journal, epochs_of

log = logging.getLogger(__name__)

Payload = dict[str, Any]

SAMPLERS = ("tpe", "random", "gp", "cmaes", "nsga2")
STORAGES = ("journal", "sqlite", "env")
DEFAULT_STORAGE = "journal"
STORAGE_VARIABLE = "BIRDTUNE_STORAGE"


def sampler_of(search: Search, name: str, seed: int) -> BaseSampler:
    """Return the sampler `name` of SAMPLERS for `search`.

    A quarter of the trials, at least 4 and at most 10, are random before TPE or the Gaussian process model
    anything. Raises ConfigError for a name that is not known, for `cmaes` where its package is missing, or
    there are several objectives or constraints, and for `gp` where a constraint is on n_params.
    """
    if name not in SAMPLERS:
        raise ConfigError(
            f"unknown sampler {name!r}{did_you_mean(name, SAMPLERS)} (known: {', '.join(SAMPLERS)})"
        )
    if name == "cmaes" and search.also:
        n = len(search.objectives)
        raise ConfigError(
            f"sampler 'cmaes' takes one objective, and the study has {n}; take nsga2, tpe or gp"
        )
    if name == "cmaes" and search.constraints:
        raise ConfigError(
            f"sampler 'cmaes' takes no constraints, and the study has "
            f"{', '.join(map(str, search.constraints))}; take tpe, gp or nsga2"
        )
    if name == "gp" and "n_params" in {bound.name for bound in search.constraints}:
        raise ConfigError(
            "sampler 'gp' learns from trained configs alone, and one with too many parameters is not "
            "trained, so that it would be drawn again; take tpe or nsga2 with a constraint on n_params"
        )
    if name == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise ConfigError(
            "sampler 'cmaes' needs the package cmaes, which is not installed: pip install 'birdtune[cmaes]'"
        )
    n_startup = min(10, max(4, search.n_trials // 4))
    samplers = optuna.samplers
    with warnings.catch_warnings():
        # What Optuna's own defaults are is spelled out, since they differ between its versions.
        # Marked experimental: multivariate, group and constant_liar of TPE, without which it ignores
        # interactions and trials that are still running; consider_pruned_trials of CMA-ES.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":  # Bergstra et al. 2011; learns from pruned trials too
            return samplers.TPESampler(
                seed=seed,
                n_startup_trials=n_startup,
                multivariate=True,
                group=True,
                constant_liar=True,
                n_ei_candidates=24,
            )
        if name == "random":  # the yardstick of the others: Bergstra and Bengio 2012
            return NumberedRandomSampler(seed)
        if name == "gp":  # Jones et al. 1998; learns from completed trials alone
            return samplers.GPSampler(
                seed=seed,
                n_startup_trials=n_startup,
                deterministic_objective=False,
                warn_independent_sampling=False,
            )
        if name == "cmaes":  # Hansen 2016
            # Pruned trials too, or ASHA would leave it nothing to learn from. It looks at ranks alone, and a
            # pruned trial was worse at its last rung than those that continued.
            return samplers.CmaEsSampler(
                seed=seed, consider_pruned_trials=True, warn_independent_sampling=False
            )
        return samplers.NSGAIISampler(seed=seed, population_size=n_startup)  # Deb et al. 2002


COMPLETED_ALONE = ("gp", "nsga2")
"""The samplers that learn nothing from pruned trials."""


class NumberedRandomSampler(optuna.samplers.RandomSampler):
    """Independent draws: each a function of the seed, the trial's number and the name of the setting alone.

    So a search that was killed and resumed draws what it would have drawn otherwise. A generator that is
    carried from trial to trial does not.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        digest = hashlib.sha256(f"{self.seed} {trial.number} {param_name}".encode()).digest()
        drawn = optuna.samplers.RandomSampler(seed=int.from_bytes(digest[:4]))
        return drawn.sample_independent(study, trial, param_name, param_distribution)


def open_storage(spec: str, run: RunFolder) -> BaseStorage:
    """Return the Optuna storage that `spec` names: one of STORAGES, or the URL of a database.

    ``journal`` is Optuna's journal file, RUN/optuna.jsonl; ``sqlite`` RUN/optuna.db, slow with hundreds of
    running trials and not for NFS; ``env`` the URL in the environment variable BIRDTUNE_STORAGE. A URL is
    SQLAlchemy's, as in ``postgresql+psycopg://user@host/database``. The request is kept in the run folder and
    can be seen in a list of processes, so a URL that holds a password is refused: it goes into
    BIRDTUNE_STORAGE and stays out of the run folder. Raises ConfigError for that, for an unknown name, and
    for a database that cannot be opened.
    """
    if spec == "journal":
        return _open_journal(run.path / "optuna.jsonl")
    url = _database_url(spec, run)
    run.path.mkdir(parents=True, exist_ok=True)
    try:
        return RDBStorage(url.render_as_string(hide_password=False))
    except ImportError:
        raise ConfigError(
            f"storage {url.drivername!r} needs a Python driver that is not installed; for PostgreSQL: "
            "pip install 'birdtune[postgresql]'"
        ) from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        where = f"{url.drivername} database {url.database!r}" + (f" on {url.host}" if url.host else "")
        raise ConfigError(f"cannot open the storage, {where}: {str(error).splitlines()[0]}") from None


def _open_journal(file: Path) -> JournalStorage:
    """Return Optuna's journal, without what a driver that was killed may have left of it.

    That is the lock, for which Optuna would wait for 30 s, and half a line, after which it reads no more. The
    driver is the only writer, so that neither can be another's.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{file}.lock").unlink(missing_ok=True)
    with open(file, "ab+") as journal:
        drop_unfinished_line(journal)
    try:
        return JournalStorage(_WholeLines(file))
    except (ValueError, KeyError, TypeError) as error:  # what Optuna raises for lines that are not its own
        raise ConfigError(f"cannot read {file}, which is no journal of Optuna's: {error}") from None


class _WholeLines(JournalFileBackend):
    """Optuna's journal file, which holds whole lines only, also after a disk that was full for a while.

    A part of a line in the middle would make all of the file unreadable.
    """

    def __init__(self, file: Path) -> None:
        # Exclusive creation of a file is right on NFS since version 3, and there are file systems without
        # symbolic links, which Optuna's other lock needs.
        super().__init__(str(file), JournalFileOpenLock(str(file)))
        self._waiting: list[dict[str, Any]] | None = None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Append what is written within the block at its end: one wait for the disk instead of one a line."""
        self._waiting = []
        try:
            yield
        finally:
            logs, self._waiting = self._waiting, None
            if logs:
                self.append_logs(logs)
                # The storage has read them; else Optuna would read the file from its start to find its place.
                for log in logs:
                    n_read = len(self._log_number_offset) - 1
                    n_bytes = len(json.dumps(log, separators=(",", ":")).encode()) + 1
                    self._log_number_offset[n_read + 1] = self._log_number_offset[n_read] + n_bytes

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append `logs` whole, or raise OSError and leave the file as it was."""
        if self._waiting is not None:
            self._waiting += logs
            return
        size = os.path.getsize(self._file_path)
        try:
            super().append_logs(logs)
        except OSError:
            os.truncate(self._file_path, size)
            raise

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the logs from a number on, with those that wait to be written."""
        if self._waiting is None:
            yield from super().read_logs(log_number_from)
            return
        n_written = len(self._log_number_offset) - 1  # the storage reads all of the file before it writes
        yield from self._waiting[log_number_from - n_written :]


def _database_url(spec: str, run: RunFolder) -> sqlalchemy.URL:
    if spec == "sqlite":
        return sqlalchemy.URL.create("sqlite", database=str(run.storage_path))
    text = os.environ.get(STORAGE_VARIABLE, "") if spec == "env" else spec
    if not text:
        raise ConfigError(
            f"storage 'env' reads the URL of a database from the environment variable {STORAGE_VARIABLE}, "
            "which is not set; for example postgresql+psycopg://user:password@host/database"
        )
    if spec != "env" and "://" not in spec:
        raise ConfigError(
            f"unknown storage {spec!r}{did_you_mean(spec, STORAGES)} (known: {', '.join(STORAGES)}, or a URL "
            "such as postgresql+psycopg://user@host/database)"
        )
    try:
        url = sqlalchemy.make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        # The text may hold a password, so it is not repeated.
        raise ConfigError(
            "the storage's URL cannot be read; for example postgresql+psycopg://user@host/database"
        ) from None
    if spec != "env" and (url.password or any("pass" in key.lower() for key in url.query)):
        raise ConfigError(
            f"the URL of the storage on {url.host!r} holds a password, which would be kept in the run "
            f"folder; put the URL into the environment variable {STORAGE_VARIABLE} and give storage 'env', "
            "or leave the password to the database's own means, such as PGPASSFILE"
        )
    return url


def open_study(
    run: RunFolder, search: Search, *, seed: int, sampler: str = "tpe", storage: str = DEFAULT_STORAGE
) -> optuna.Study:
    """Return the Optuna study of `search` in a run, created if new.

    A sampler that learns starts from `seed` plus the number of trials that the study holds: started from
    `seed` again after a kill, it would repeat its draws. A random draw depends on its trial's number instead.
    Trials that an earlier driver left RUNNING are as it left them; `OptunaSearcher` takes them up again. In a
    database of its own a study has its own name; in one that other runs may share, the run's id follows,
    which RUN/optuna_id keeps.
    """
    sampler_of(search, sampler, seed)  # its faults, before anything is created
    opened = open_storage(storage, run)
    directions = [objective_direction(objective) for objective in search.objectives]
    name = search.name if storage in ("sqlite", "journal") else f"{search.name}-{_run_id(run)}"
    study = optuna.create_study(storage=opened, study_name=name, directions=directions, load_if_exists=True)
    _check_objectives(study, search, directions)
    n_there = len(study.get_trials(deepcopy=False))
    study.sampler = sampler_of(search, sampler, seed if sampler == "random" else seed + n_there)
    return study


def written_together(study: optuna.Study) -> contextlib.AbstractContextManager[None]:
    """Return a block whose writes reach the disk together, where the storage is Optuna's journal."""
    backend = getattr(study._storage, "_backend", None)
    return backend.together() if isinstance(backend, _WholeLines) else contextlib.nullcontext()


def _check_objectives(study: optuna.Study, search: Search, directions: list[Direction]) -> None:
    """Raise RunFolderError if the study was created for other objectives than those of `search`."""
    objectives = list(search.objectives)
    there = [direction.name.lower() for direction in study.directions]
    if there != directions or study.metric_names not in (None, objectives):
        was = study.metric_names or there
        raise RunFolderError(
            f"the storage holds study {study.study_name!r} with other objectives: it has {was}, this asks "
            f"for {objectives} ({', '.join(directions)}); give another --out"
        )
    if search.also:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(objectives)


def _run_id(run: RunFolder) -> str:
    path = run.path / "optuna_id"
    if not path.exists():
        write_text(path, f"{uuid.uuid4().hex[:8]}\n")
    return path.read_text(encoding="utf-8").strip()


def is_of_storage(error: BaseException) -> bool:
    """Return whether Optuna's storage raised `error`, and not the code that draws from it."""
    storages = str(Path(optuna.storages.__file__).parent)
    return any(frame.filename.startswith(storages) for frame in traceback.extract_tb(error.__traceback__))


class Source(Protocol):
    """Where trials come from: the plan of an ablation, or the sampler of a search.

    `key` is a name for a trial that the source knows it by from `suggest` on.
    """

    def n_left(self) -> int:
        """Return how many trials are still to be suggested."""

    def suggest(self, key: str) -> Payload | None:
        """Return the payload of the next trial, None where there is none left."""

    def report(self, key: str, result: dict[str, Any]) -> None:
        """Take in the epochs of a step; a plan has no use for them."""
        return

    def settle(self, key: str, record: TrialRecord) -> None:
        """Take in how a trial ended, once its record is on disk; a plan has no use for it."""
        return


class OptunaSearcher(Source):
    """Draws trials from Optuna and reports their values and ends to it.

    With several folds an Optuna trial is a config on its first fold. Once all have it, the best of them, the
    finalists, are suggested on the further folds, of which Optuna does not hear.

    Args:
        study: where the trials are kept; its driver is the only writer. Trials that it holds as RUNNING were
            left by a driver that is gone: they are suggested first, with the number and the choices they had.
        search: its first objective is the metric whose value is reported every epoch. Of its number of trials
            those that failed count, so that a study in which everything fails comes to an end; `retry_failed`
            enqueues them again.
        make_payload: turns an Optuna trial and the number of a fold, from 0, into what the trainable is
            shipped, or into a record when its choices make no config, or one that needs no training.
        journal: enters the trials that end as another one of their config did, and the finalists.
        n_folds: the folds of a finalist.
    """

    def __init__(
        self,
        study: optuna.Study,
        search: Search,
        make_payload: Callable[[Trial | FrozenTrial, int], Payload | TrialRecord],
        journal: Journal,
        n_folds: int = 1,
    ) -> None:
        self.study, self.journal = study, journal
        self.make_payload = make_payload
        self.name, self.objectives, self.n_trials = search.name, search.objectives, search.n_trials
        self.constraints = search.constraints
        self._direction = objective_direction(search.metric)
        self.n_folds = n_folds
        self._trials: dict[str, tuple[Trial | FrozenTrial, Payload, int]] = {}  # with the fold
        self._reported: dict[str, set[int]] = {}
        # Trials with the config of one in training, by its trial_id: it ends for them as it does.
        self._twins: dict[str, list[tuple[Trial, Payload]]] = {}
        trials = study.get_trials(deepcopy=False)
        # The storage holds their choices, and suggest_* returns them instead of drawing.
        self._open = deque(Trial(study, t._trial_id) for t in trials if t.state == TrialState.RUNNING)
        self._n_enqueued = sum(t.state == TrialState.WAITING for t in trials)
        # Counted on, and not anew from the study: a thousand trials would be looked at at each of their ends.
        self._n_counted = len(trials) - self._n_enqueued - len(_retried(trials))
        # The Optuna trial of each config that was pruned, whose intermediate values its twins take over.
        self._pruned = {
            t.user_attrs["trial_id"]: t.intermediate_values
            for t in trials
            if t.state == TrialState.PRUNED and "trial_id" in t.user_attrs
        }
        self._further = self._of_finalists()

    def n_left(self) -> int:
        return len(self._open) + self._n_new() + len(self._further)

    def _n_new(self) -> int:
        return max(self._n_enqueued, self.n_trials - self._n_counted)

    def retry_failed(self) -> int:
        """Enqueue the choices of every trial that failed and was not retried; return how many.

        A retry is a new trial of the study and takes the place of the one that failed.
        """
        trials = self.study.get_trials(deepcopy=False)
        retried = _retried(trials)
        failed = [t for t in trials if t.state == TrialState.FAIL and t.number not in retried]
        for trial in failed:
            self.study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
        self._n_enqueued += len(failed)
        self._n_counted -= len(failed)
        return len(failed)

    def suggest(self, key: str) -> Payload | None:
        while self.n_left():
            trial, fold = self._next()
            made = self.make_payload(trial, fold)
            name = made.trial_id if isinstance(made, TrialRecord) else made["journal"]["trial_id"]
            if isinstance(trial, Trial):
                trial.set_user_attr("trial_id", name)
            if isinstance(made, TrialRecord):
                if name not in self.journal.settled:
                    return None  # its record could not be written, and the sweep halts
                if made.status == "pruned" and name not in self._pruned:
                    # Its driver died after it wrote the record and before it settled the trial in Optuna.
                    self._pruned[name] = self.journal.curve(name, self.objectives[0])
                self._end(trial, made)
            elif name in self._twins and isinstance(trial, Trial):
                self._twins[name].append((trial, made))
            else:
                self._twins[name] = []
                self._trials[key] = trial, made, fold
                self._reported[key] = set(self._frozen(trial).intermediate_values)
                return made
        return None

    def _next(self) -> tuple[Trial | FrozenTrial, int]:
        if self._open:
            return self._open.popleft(), 0
        if not self._n_new():
            return self._further.popleft()
        trial = self.study.ask()
        self._n_enqueued -= self._n_enqueued > 0  # Optuna hands these out first
        self._n_counted += 1
        return trial, 0

    def report(self, key: str, result: dict[str, Any]) -> None:
        """Give Optuna the value of each epoch of a step's result, once; of further folds none."""
        metric = self.objectives[0]
        trial = self._trials[key][0]
        # Optuna keeps no intermediate values of several objectives.
        if len(self.objectives) > 1 or not isinstance(trial, Trial):
            return
        with written_together(self.study):
            for each in epochs_of(result):
                epoch = int(each["epoch"])
                if metric in each and epoch not in self._reported[key]:
                    self._reported[key].add(epoch)
                    trial.report(each[metric], epoch)

    def settle(self, key: str, record: TrialRecord) -> None:
        trial, payload, _ = self._trials.pop(key)
        del self._reported[key]
        twins = self._twins.pop(payload["journal"]["trial_id"])
        for _, its_payload in twins:
            self.journal.reuse(its_payload["journal"])
        for each in (trial, *(twin for twin, _ in twins)):
            self._end(each, record)

    def _end(self, trial: Trial | FrozenTrial, record: TrialRecord) -> None:
        """Report the end of a first fold; line up further folds after the last one, or one that failed."""
        if isinstance(trial, Trial):
            self._report_end(trial, record)
        if isinstance(trial, Trial) or record.status != "completed":
            self._further = self._of_finalists()
            for each in {each.number: each for each, _ in self._further}.values():
                self.journal.next_fold(self.name, each.user_attrs["trial_id"], each.number)

    def _of_finalists(self) -> deque[tuple[FrozenTrial, int]]:
        """Return the further folds that the finalists lack, the best first; none before all first folds.

        Another config takes the place of one that failed on a further fold.
        """
        lacking = deque[tuple[FrozenTrial, int]]()
        in_training = (fold for *_, fold in self._trials.values())
        if self.n_folds == 1 or self._open or self._n_new() or not all(in_training):
            return lacking
        firsts = {
            trial.user_attrs["trial_id"]: trial
            for trial in reversed(self.study.get_trials(deepcopy=False))
            if trial.state == TrialState.COMPLETE
            and all(excess <= 0 for excess in trial.constraints.values())
        }
        sign = -1 if self._direction == "maximize" else 1
        n_left, known = n_finalists(self.n_trials), self.journal.members(self.name)
        for first, trial in sorted(
            firsts.items(), key=lambda item: (sign * item[1].values[0], item[1].number)
        ):
            folds = {fold: fold_of(first, fold) for fold in range(1, self.n_folds)}
            records = [self.journal.outcome(name, self.name) for name in folds.values()]
            if n_left == 0 or any(record and record.status != "completed" for record in records):
                continue
            n_left -= 1
            lacking += [
                (trial, fold)
                for (fold, name), record in zip(folds.items(), records, strict=True)
                if name not in self._twins and not (record and name in known)
            ]
        return lacking

    def _report_end(self, trial: Trial, record: TrialRecord) -> None:
        """Report to Optuna how a trial ended: COMPLETE with the values at its best epoch, PRUNED, or FAIL.

        A trial that is not trained, because its number of parameters breaks a constraint, is PRUNED with the
        excess; so is one that is ended early with what is known then. Samplers take neither as feasible
        where it is not.
        """
        is_whole = record.status == "completed"
        excesses = {
            str(bound): bound.excess(record.objective(bound.name))
            for bound in self.constraints
            if is_whole or bound.name == "n_params"
        }
        if record.status == "infeasible":
            self._constrain(trial, excesses)
            self.study.tell(trial, state=TrialState.PRUNED)
        elif record.status == "pruned":
            there = self._frozen(trial).intermediate_values
            values = self._pruned.setdefault(record.trial_id, there)
            if len(self.objectives) == 1:
                for epoch, value in values.items():
                    if epoch not in there:
                        trial.report(value, epoch)
            self._constrain(trial, excesses)
            self.study.tell(trial, state=TrialState.PRUNED)
        elif is_whole:
            reached = [record.objective(name) for name in self.objectives]
            if any(math.isnan(value) for value in (*reached, *excesses.values())):
                names = [*self.objectives, *(bound.name for bound in self.constraints)]
                reached = [record.objective(name) for name in names]
                log.warning("trial %d is FAIL in Optuna: %s is %s", trial.number, names, reached)
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                # Also of an audited trial: it was trained whole, and its value is as true as any.
                if record.audited_at is not None:
                    trial.set_user_attr("audited_at", record.audited_at)
                self._constrain(trial, excesses)
                self.study.tell(trial, reached)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def _constrain(self, trial: Trial, excesses: Mapping[str, float]) -> None:
        """Give Optuna the excess over each constraint; a driver that died may have given some before."""
        there = self._frozen(trial).constraints
        for name, excess in excesses.items():
            if name not in there:
                trial.set_constraint(name, excess)

    def _frozen(self, trial: Trial | FrozenTrial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)


def _retried(trials: list[FrozenTrial]) -> set[int]:
    return {trial.user_attrs["retry_of"] for trial in trials if "retry_of" in trial.user_attrs}


class PlannedSearcher(Source):
    """Hands out the trials of an ablation in their order."""

    def __init__(self, payloads: list[Payload]) -> None:
        self._left = deque(payloads)

    def n_left(self) -> int:
        return len(self._left)

    def suggest(self, key: str) -> Payload | None:
        return self._left.popleft() if self._left else None
