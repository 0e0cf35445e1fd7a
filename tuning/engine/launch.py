"""From a study to a filled run folder."""

from __future__ import annotations

import hashlib
import logging
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, Trial
from ray import tune

from birdnet_core import plugins
from birdnet_core.build import input_shape, rehearse
from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, validation_split
from birdnet_core.data.seen import seen_before
from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.checks import is_name
from birdnet_core.records.files import write_text
from birdnet_core.records.provenance import provenance
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.seen import SEEN, seen_caution, validated_splits
from birdnet_core.records.trial import OF_ONE_SEARCH, TrialRecord, trial_id
from birdnet_core.training.optim import is_open_ended
from search_spaces.designs import Range
from search_spaces.files.study_plain import space_facts
from search_spaces.study import (
    Ablation,
    Overrides,
    Search,
    Study,
    base_config,
    cautions,
    check,
    group_of,
    in_size,
    trial_config,
)
from tuning.engine.cluster import nodes_to_come, ray_session, scratch_folder
from tuning.engine.dispatch import Dispatcher, HaltingScheduler
from tuning.engine.folds import few_configs, n_folds_of
from tuning.engine.halt import Budget, Halt, ended_by_signals
from tuning.engine.journal import UNFIT, Journal, Observer
from tuning.engine.mps import shared_gpus
from tuning.engine.nodes import Nodes
from tuning.engine.packing import Resources
from tuning.engine.placement import place
from tuning.engine.preparation import Data, Preparation, check_data
from tuning.engine.ray_internals import take_low_memory_for_death
from tuning.engine.schedulers import Rule, rule_of
from tuning.engine.searcher import (
    COMPLETED_ALONE,
    DEFAULT_STORAGE,
    OptunaSearcher,
    PlannedSearcher,
    is_of_storage,
    open_study,
    sampler_of,
)
from tuning.engine.trainable import RUN_ID, TrainTrial, bare_record
from tuning.engine.waiting import Waiting
from tuning.engine.warm_start import NOT_OF_ABLATIONS, Enqueued, best_of_earlier, enqueue, enqueued

log = logging.getLogger(__name__)

NO_GPU_YET = (
    "no node of the cluster has a GPU yet, and the trials ask for none; where nodes with GPUs will join, "
    "give --gpus-per-trial"
)


@dataclass(frozen=True)
class Summary:
    """How a sweep ended: trials of the study by status, of several folds the first, those that were there
    before, wall time.

    `halted` says why it ended before all of its trials did.
    """

    study: str
    counts: dict[str, int]
    n_reused: int
    seconds: float
    halted: str | None = None


def sweep(
    study: Study,
    data: Data,
    out: str | Path,
    *,
    base: TrainConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    n_repeats: int | None = None,
    n_trials: int | None = None,
    resources: Resources | None = None,
    budget: Budget | None = None,
    rerun_failed: bool = False,
    shorter: int | None = None,
    sampler: str = "tpe",
    warm_start: str | Path | None = None,
    first_configs: Sequence[TrainConfig] = (),
    storage: str = DEFAULT_STORAGE,
    address: str | None = None,
    request: Mapping[str, Any] | None = None,
    command: str = "",
    observer: Observer = lambda event: None,
) -> Summary:
    """Train the trials of `study` that the run folder `out` does not hold yet.

    A trial is known by its config, repeat and seed: one that completed, failed or diverged is not trained
    again, the latter two unless `rerun_failed`; one that was interrupted or killed continues after its last
    epoch. With `shorter`, trials continue from kept checkpoints of the same configs with that budget.
    `sampler` and `storage` are those of a search (`searcher.SAMPLERS`, `searcher.STORAGES`). It trains
    `first_configs` first, and the best configs of the search in the run folder `warm_start`.
    `address` is of a Ray cluster; nodes that do not see the cache make the dataset themselves.
    `request` and `command` are kept in the study's file, the first for `birdtune resume`. The folder is
    written by this process alone, and can be read while the sweep runs. Raises ConfigError for settings that
    the study cannot take, before anything is trained, and RunFolderError for a folder that holds other data,
    or this study with other settings, that another driver writes, or that cannot be written any more.
    """
    start = time.perf_counter()
    study, resources = in_size(study, n_repeats, n_trials), resources or Resources()
    settings = dict(settings or {})
    config = base_config(study, base or TrainConfig(), settings).override({"runtime.threads": resources.cpus})
    configs = check(study, config, settings)
    rule = rule_of(study, configs[0].training.most_epochs)
    if any(each.optim.schedule == "wsd" and not each.optim.decay_before for each in configs):
        config = config.override({"optim.decay_before": rule.rungs})
    if isinstance(study, Search):
        sampler_of(study, sampler, 0)  # its faults, before anything is made
    elif warm_start or first_configs:
        raise ConfigError(NOT_OF_ABLATIONS.format(study.name))
    first_trials = enqueued(first_configs, study) if isinstance(study, Search) else []
    first = min(configs, key=lambda each: each.data.split != "grouped")
    dataset = Dataset.open(data.folder(first))
    n_folds = n_folds_of(study, config.repeat, dataset.facts["folds"])
    for each in configs:
        rehearse(each, input_shape(each), dataset.species)
    for caution in cautions(study, configs) + few_configs(study):
        log.warning(caution)
    run = RunFolder(out)
    known = run.read_study(study.name) if study.name in run.study_names() else None
    earlier = (known or {}).get("warm_start")
    if isinstance(study, Search) and warm_start:
        earlier = _earlier(warm_start, study, known)
    with run.driven(command):
        halt = Halt(budget)
        journal = Journal(run, observer, halt, keep=resources.checkpoints)
        setup = _Setup(
            study, config, settings, data, resources, run, _checkpoints(run), shorter, storage, rule, n_folds
        )
        definition = setup.definition(first)
        if isinstance(study, Search):
            definition |= {"sampler": sampler, "warm_start": earlier, "n_enqueued": len(first_trials)}
        # An ablation may vary the split; a note on any of its cells is a note on the study.
        folders = [data.folder(each) for each in configs] if isinstance(study, Ablation) else [dataset.folder]
        notes = [note for folder in dict.fromkeys(folders) for note in Dataset.open(folder).facts["notes"]]
        facts = {
            "name": data.name,
            **{k: v for k, v in dataset.facts.items() if k not in ("skipped", "duplicates")},
            "notes": list(dict.fromkeys(notes)),
            "seen": _seen(data, configs if isinstance(study, Ablation) else [first]),
        }
        validated = validated_splits(len(setup.repeats), dataset.facts["folds"]["n"])
        for seen in facts["seen"]:
            if few_new := seen_caution(seen, *validated):
                log.warning(few_new)
        check_data(run, dataset, data.name)
        _write_study(run, {**definition, "data": facts, "request": request}, command)
        _refuse_foreign_trials(journal, dataset)
        if isinstance(study, Search) and study.scheduler != "fifo" and sampler in COMPLETED_ALONE:
            text = (
                f"the sampler {sampler} learns from completed trials alone, and {study.scheduler} ends most "
                "before; tpe learns from those too, and with --scheduler fifo all complete"
            )
            observer({"event": "note", "text": text})
        for note in (definition["design"] or {}).get("notes", []):
            observer({"event": "note", "text": note})
        if shorter:
            observer({"event": "note", "text": _continuing(setup)})
        failed = sorted(journal.failed(study.name)) if rerun_failed else []

        searcher: PlannedSearcher | OptunaSearcher
        if isinstance(study, Ablation):
            for name in failed:
                journal.rerun(name)
            searcher, n_reused = setup.planned(journal)
        else:
            n_reused = 0
            opened = open_study(run, study, seed=config.seed, sampler=sampler, storage=storage)
            enqueue(opened, [each.parameters for each in first_trials])
            enqueue(opened, earlier["configs"] if earlier else [])
            searcher = setup.sampled(opened, study, journal, dataset.species)
            for note in _warm_start_notes(definition, config, settings, first_configs, first_trials):
                observer({"event": "note", "text": note})
            if rerun_failed:
                # First: after a driver that died in between they count as failed, and can be retried.
                searcher.retry_failed()
            for name in failed:
                journal.rerun(name)
        nodes = Nodes()
        scheduler = HaltingScheduler(rule, journal, nodes)
        scheduler.rebuild(run.events(), study.name)
        halt.judge(journal.usage, {})
        if searcher.n_left() and not halt.reason:
            with (
                shared_gpus(resources.gpus, address) as sharing,
                ray_session(run.path / "ray.log", address) as there,
            ):
                if sharing:
                    observer({"event": "note", "text": f"trials share GPUs: {sharing}"})
                if address:
                    there = [*there, *nodes_to_come(len(there) - 1)]
                waits = bool(address and resources.concurrent)  # for nodes that may still join
                placement = place(resources.gpus, resources.cpus, there, configs, data.folder, is_open=waits)
                if waits and resources.gpus is None and not placement.gpus:
                    observer({"event": "note", "text": NO_GPU_YET})
                concurrent = min(placement.concurrent, resources.concurrent or placement.concurrent)
                if waits:
                    concurrent = resources.concurrent or concurrent
                observer(
                    {
                        "event": "sweep",
                        "n_left": searcher.n_left(),
                        "n_reused": n_reused,
                        "epochs": first.training.most_epochs,
                        "n_folds": n_folds,
                        "concurrent": concurrent,
                        "metric": study.metric if first.training.is_validated else "train/loss",
                    }
                )
                journal.begin(command)
                with (
                    ended_by_signals(halt, lambda line: observer({"event": "note", "text": line})),
                    Preparation(data, halt) as preparation,
                ):
                    if len(setup.repeats) > 1:  # the folds of later repeats, while the first train
                        of_data = {(each.data, each.features): each for each in configs}.values()
                        for repeat, each in product(setup.repeats, of_data):
                            preparation.folder(each.override(repeat))
                    dispatcher = Dispatcher(
                        searcher,
                        journal,
                        placement,
                        lambda payload: setup.prepare(payload, preparation),
                        concurrent=concurrent,
                        restarts=resources.restarts,
                        nodes=nodes,
                    )
                    _fit(dispatcher, scheduler, concurrent, data.manifest if address else None)
        if halt.reason:
            journal.write({"event": "halt", "reason": halt.reason})
        if halt.is_fault:
            raise RunFolderError(
                f"the sweep was stopped: {halt.reason}\nwhat was finished is kept; once that is mended, "
                f"`birdtune resume {run.path}` continues"
            )
        trials = journal.members(study.name)
        statuses: Counter[str] = Counter(
            record.status
            for name, record in run.records().items()
            if name in trials and (n_folds == 1 or record.repeat == config.repeat)
        )
    return Summary(study.name, dict(statuses), n_reused, time.perf_counter() - start, halt.reason)


@dataclass(frozen=True)
class _Setup:
    """A study with everything that the user set: from it follows what each trial is."""

    study: Study
    config: TrainConfig
    settings: Overrides
    data: Data
    resources: Resources
    run: RunFolder
    checkpoints: dict[str, str]
    shorter: int | None
    storage: str
    rule: Rule
    n_folds: int
    _described: set[Path] = field(default_factory=set)

    def trial(self, choices: Overrides, repeat: Overrides) -> TrainConfig:
        return trial_config(self.config, self.settings, choices).override(repeat)

    @property
    def repeats(self) -> list[Overrides]:
        """`repeat` and `seed` of each trial of a cell, or of each fold of a config."""
        if isinstance(self.study, Ablation):
            return self.study.repeats(self.config)
        first = self.config
        return [{"repeat": first.repeat + i, "seed": first.seed + i} for i in range(self.n_folds)]

    def definition(self, first: TrainConfig) -> dict[str, Any]:
        """Return what the study's file says of the design; `first` is any trial's config."""
        study, repeats = self.study, self.repeats
        common = {
            **study.facts(),
            "repeats": [each["repeat"] for each in repeats],
            "seed": self.config.seed,  # of the first; the next have the next
            "epochs": first.training.most_epochs,
            "base": {**self.config.difference(), **self.settings},
            "base_id": self.config.config_id,  # under other defaults the same `base` is another config
            "scheduler": study.scheduler,
            "asha_within": study.asha_within,
            **dict.fromkeys(("design", "factors", "cells", "baseline", "n_trials", "storage")),
        }
        if isinstance(study, Search):
            return {
                **common, "n_trials": study.n_trials, "also": list(study.also),
                "grace_epochs": self.rule.grace_epochs, "reduction_factor": study.reduction_factor,
                "audit": study.audit, "rung_metric": self.rule.rung_metric,
                "space": space_facts(study.space), "storage": self.storage,
            }  # fmt: skip
        return {
            **common,
            "design": study.design_facts(),
            "factors": {
                name: asdict(levels) if isinstance(levels, Range) else list(levels)
                for name, levels in study.levels().items()
            },
            "cells": [
                {"factors": cell, "config_id": self.trial(study.overrides(cell), repeats[0]).config_id}
                for cell in study.cells()
            ],
            "baseline": study.baseline_cell(),
        }

    def payload(
        self, factors: dict[str, Any], config: TrainConfig, number: int, fold: int = 0
    ) -> dict[str, Any]:
        """Return what Ray ships to a trial: plain JSON, but for the dataset, which `prepare` enters.

        `factors` is what tables call it by. On a further `fold` of a search it is never ended early.
        """
        group = group_of(config, self.study.asha_within)
        return {
            "config": config.to_dict(),
            "journal": self.line(factors, config.trial_id, number, group, fold),
            "timeout_s": self.resources.timeout_s,
            "decisions": [] if fold else self.rule.decisions(config.trial_id),
            "plugins": [plugin.to_dict() for plugin in plugins.loaded()],
            "checkpoints": {
                **self.checkpoints,
                "shorter": self.shorter_id(config),
                "keep": self.resources.checkpoints > 0,
            },
        }

    def line(
        self, factors: dict[str, Any], trial_id: str, number: int, group: str | None, fold: int = 0
    ) -> dict[str, Any]:
        """Return what the journal says of a trial."""
        return {
            "study": self.study.name, "trial_id": trial_id, "number": number, "factors": factors,
            "group": group, **({"fold": fold} if fold else {}),
        }  # fmt: skip

    def prepare(self, payload: dict[str, Any], preparation: Preparation) -> bool:
        """Enter the dataset of a payload, and return True, once it is made.

        What the trial will predict is described in the run folder first. Raises what the making raised.
        """
        folder = preparation.folder(TrainConfig.from_dict(payload["config"]))
        if folder is None:
            return False
        payload["dataset"] = str(folder)
        if folder not in self._described:
            self._describe(TrainConfig.from_dict(payload["config"]), Dataset.open(folder))
            self._described.add(folder)
        return True

    def _describe(self, config: TrainConfig, dataset: Dataset) -> None:
        """Write the validation split of a dataset, with what its backbone and others may have seen of it."""
        split_id = dataset.facts["split_id"]
        validation = validation_split(self.data.manifest, dataset.folder)
        if seen := seen_before(self.data.manifest, dataset, config):
            known = self.run.validation(split_id)
            numbers = [SEEN.index(status) for status in seen.of("val")]
            of_backbones = {**(known.seen if known else {}), seen.weights_hash: numbers}
            validation = replace(validation, seen=of_backbones)
        self.run.write_validation(split_id, validation)

    def shorter_id(self, config: TrainConfig) -> str:
        """Return the trial of `config` with the shorter budget, "" where there is none."""
        return config.override({"training.epochs": self.shorter}).trial_id if self.shorter else ""

    def planned(self, journal: Journal) -> tuple[PlannedSearcher, int]:
        """Return the searcher of an ablation's unfinished trials, and how many are finished.

        Repeats are the outer loop, so that every cell is seen early. Cells with equal configs are one trial.
        """
        assert isinstance(self.study, Ablation)
        todo, known = [], journal.members(self.study.name)
        n_reused = 0
        taken: set[str] = set()
        for number, (repeat, cell) in enumerate(product(self.repeats, self.study.cells())):
            payload = self.payload(cell, self.trial(self.study.overrides(cell), repeat), number)
            name = payload["journal"]["trial_id"]
            record = journal.settled.get(name)
            if record and record.status not in OF_ONE_SEARCH:  # every cell trains its whole budget
                n_reused += record.status == "completed"
                if name not in known:
                    journal.reuse(payload["journal"])
            elif name not in taken:
                taken.add(name)
                todo.append(payload)
        return PlannedSearcher(todo), n_reused

    def sampled(
        self, opened: optuna.Study, study: Search, journal: Journal, species: Sequence[str]
    ) -> OptunaSearcher:
        """Return the searcher of a search, continuing from what its Optuna study holds."""
        on_size = [bound for bound in study.constraints if bound.name == "n_params"]

        def make_payload(trial: Trial | FrozenTrial, fold: int) -> dict[str, Any] | TrialRecord:
            try:
                choices = study.space(trial)
                config = self.trial(choices, self.repeats[fold])
            except Exception as error:  # a trial's boundary too: `space` is the user's code
                if is_of_storage(error):
                    raise  # the sweep halts, and no trial has failed
                unfit = _unfit(study.name, trial.number, self.config, error)
                if unfit.trial_id not in journal.settled:
                    line = self.line(dict(trial.params), unfit.trial_id, trial.number, None)
                    journal.settle_unfit(unfit, line)
                return unfit
            payload = self.payload(choices, config, trial.number, fold)
            record = journal.outcome(config.trial_id, study.name)
            if record is None and on_size:
                n_params = rehearse(config, input_shape(config), species)
                if broken := [str(bound) for bound in on_size if not bound.holds(n_params)]:
                    why = f"not trained: n_params = {n_params}, and a constraint is {' and '.join(broken)}"
                    unfit = replace(bare_record(payload, "infeasible", error=why), n_params=n_params)
                    journal.settle_unfit(unfit, payload["journal"])
                    return unfit
            if record is None:
                return payload
            journal.reuse(payload["journal"])
            return record

        return OptunaSearcher(opened, study, make_payload, journal, self.n_folds)


def _earlier(path: str | Path, search: Search, known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `best_of_earlier` of the run folder `path`; `known` is the content of the search's file, if any.

    A search that has begun keeps what it began with, even if the earlier run has gone on or is gone.
    """
    if known is None:
        return best_of_earlier(path, search)
    facts: dict[str, Any] = known.get("warm_start") or {}
    if facts.get("run") != str(Path(path).absolute()):
        began = f"with those of {facts['run']!r}" if facts else "without any"
        raise RunFolderError(
            f"study {search.name!r} began {began}, and cannot take configs of {str(path)!r} now; give "
            "another --out"
        )
    return facts


def _warm_start_notes(
    definition: Mapping[str, Any],
    config: TrainConfig,
    settings: Mapping[str, Any],
    configs: Sequence[TrainConfig],
    first: Sequence[Enqueued],
) -> list[str]:
    """Return what a search begins with, in sentences."""
    notes = []
    if facts := definition["warm_start"]:
        better = f"; {facts['n_outside']} better ones are outside of this space" * (facts["n_outside"] > 0)
        notes.append(
            f"the best {len(facts['configs'])} configs of {facts['study']!r} in {facts['run']} are "
            f"trained first{better}"
        )
    for number, (given, each) in enumerate(zip(configs, first, strict=True), start=1):
        here = trial_config(config, settings, each.settings).difference()
        there = given.difference()
        keys = sorted((here.keys() | there.keys()) - {"training.monitor"})
        if other := [key for key in keys if here.get(key) != there.get(key)]:
            notes.append(f"config {number} of --enqueue has other settings here: {', '.join(other)}")
    return notes


def _unfit(study: str, number: int, base: TrainConfig, error: Exception) -> TrialRecord:
    """Return the record of a trial whose choices make no config: it is known by its study and number."""
    unfit = f"{UNFIT}{hashlib.sha256(f'{study} {number}'.encode()).hexdigest()[:8]}"
    if isinstance(error, ConfigError):
        why, trace = str(error), None
    else:
        why = f"the space of study {study!r} raised {type(error).__name__}: {error}"
        trace = traceback.format_exc()
    payload = {"config": base.to_dict(), "journal": {"trial_id": trial_id(unfit, base.repeat, base.seed)}}
    return bare_record(payload, "failed", error=why, traceback=trace)


def _seen(data: Data, configs: list[TrainConfig]) -> list[dict[str, Any]]:
    """Return what each backbone of `configs` may have seen of the recordings (`Seen.to_dict`)."""
    found: dict[str, dict[str, Any]] = {}
    for config in configs:
        if config.features.kwargs.get("weights_hash") not in (None, *found):
            seen = seen_before(data.manifest, Dataset.open(data.folder(config)), config)
            if seen is not None:
                found[seen.weights_hash] = seen.to_dict()
    return list(found.values())


def _continuing(setup: _Setup) -> str:
    """Return in words how many trials of a longer budget continue from checkpoints of the shorter one."""
    if isinstance(setup.study, Search):
        return "configs that are sampled again continue from their checkpoints, where these are kept"
    cells = [setup.study.overrides(cell) for cell in setup.study.cells()]
    trials = [setup.trial(cell, repeat) for repeat in setup.repeats for cell in cells]
    kept = [
        trial
        for trial in trials
        if (setup.run.checkpoints_path / setup.shorter_id(trial) / "session.pt").exists()
        and is_open_ended(trial.optim)
    ]
    why = "" if len(kept) == len(trials) else (
        "; the others train from the start: a checkpoint is kept with --keep-checkpoints, and helps where "
        "optim.schedule does not follow the budget (constant, step, plateau)"
    )  # fmt: skip
    return f"{len(kept)} of {len(trials)} trials continue from their checkpoints{why}"


def _checkpoints(run: RunFolder) -> dict[str, str]:
    """Return where the run's checkpoints lie, and the id by which a worker knows the folder again."""
    mark = run.checkpoints_path / RUN_ID
    if not mark.exists():
        write_text(mark, uuid.uuid4().hex)
    run_id = mark.read_text(encoding="utf-8")
    if not is_name(run_id):  # it names a folder of the workers
        raise RunFolderError(f"{str(mark)!r} holds {run_id!r:.80}, which is no id of a run; remove that file")
    return {"folder": str(run.checkpoints_path.absolute()), "run_id": run_id}


def _write_study(run: RunFolder, definition: dict[str, Any], command: str) -> None:
    """Write the definition of the study, unless the folder holds something that contradicts it."""
    name = definition["name"]
    if name in run.study_names():
        there = run.read_study(name)
        fixed = {
            "ablation": ("factors", "cells"),
            "search": (
                "epochs", "base", "base_id", "space", "scheduler", "grace_epochs",
                "reduction_factor", "audit", "rung_metric", "asha_within", "also", "constraints", "storage",
                "repeats",
            ),
        }[definition["kind"]]  # fmt: skip
        compared = ["kind", "metric", "seed", *fixed]
        is_other = any(there.get(key) != definition[key] for key in compared)
        if is_other or there["repeats"][:1] != definition["repeats"][:1]:  # an ablation may have more
            named = ["epochs", "base", "repeats", *(key for key in compared if key != "cells")]
            was, now = _differing(
                {key: there.get(key) for key in named}, {key: definition[key] for key in named}
            )
            raise RunFolderError(
                f"{str(run.path)!r} holds study {name!r} with other settings: it has {was or 'other cells'}, "
                f"this asks for {now or 'others'}; give another --out, or the settings it was started with"
            )
    run.write_study(
        {
            **definition,
            "provenance": {**provenance(), "command": command},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def _refuse_foreign_trials(journal: Journal, dataset: Dataset) -> None:
    """Raise RunFolderError where a record is of other recordings: it would be taken for one of the study."""
    for name, record in journal.settled.items():
        data_id = record.provenance.get("data_id")
        if data_id not in (None, dataset.facts["data_id"]):
            raise RunFolderError(
                f"the record of trial {name!r} in {str(journal.run.path)!r} is of other recordings (data "
                f"{data_id}) than this run (data {dataset.facts['data_id']}): it was copied there; move it "
                "away, and the trial is trained"
            )


def _differing(one: dict[str, Any], other: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the two mappings without what they share, at any depth."""
    only: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for key in dict.fromkeys([*one, *other]):
        a, b = one.get(key), other.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            a, b = _differing(a, b)
        for kept, mapping, value in ((only[0], one, a), (only[1], other, b)):
            if key in mapping:
                kept[key] = value
    return only


def _fit(
    searcher: Dispatcher, scheduler: HaltingScheduler, concurrent: int, manifest: pd.DataFrame | None
) -> None:
    """Run Ray Tune over what `searcher` suggests. Ray's own state is thrown away: ours is the journal.

    `manifest` is for the nodes of a cluster, see `TrainTrial.setup`.
    """
    take_low_memory_for_death()
    trainable = TrainTrial if manifest is None else tune.with_parameters(TrainTrial, manifest=manifest)
    with scratch_folder() as scratch:
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[searcher.journal, Waiting(searcher.journal.observer)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
