"""What a sweep will take, before it is run: trials, epochs, hours, memory and disk, from measured steps.

Without Ray, whose start takes longer than most plans.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from birdnet_core.build import rehearse
from birdnet_core.config import TrainConfig
from birdnet_core.data.building import Progress, no_progress
from birdnet_core.data.dataset import Dataset
from birdnet_core.records.predictions import N_TOP
from birdnet_core.records.run_folder import PRUNED_CHECKPOINT_BYTES, RunFolder
from birdnet_core.records.trial import OF_ONE_SEARCH
from birdnet_core.training.probe import Probe, arm_id, by_arm, probe
from search_spaces.study import Ablation, Search, Study, base_config, cautions, check, group_of, trial_config
from tuning.doctor import existing
from tuning.engine.folds import few_configs, n_finalists, n_folds_of
from tuning.engine.packing import Resources, as_size, makespan, n_concurrent
from tuning.engine.placement import (
    MOST_MEASURED,
    Machine,
    Placement,
    by_name,
    described,
    distinctive_settings,
    expected_of,
    place,
    this_machine,
    to_measure,
)
from tuning.engine.preparation import check_data
from tuning.engine.schedulers import rule_of

# Of a run folder's text, rounded up: a trial's record, its line of F1 for each species, and an epoch in the
# journal and in the Optuna storage.
RECORD_BYTES, SPECIES_BYTES, EPOCH_BYTES = 4_000, 50, 700
# Of a trial's predictions of a recording, before compression: after every epoch, and at the best one.
CLASS_BYTES, LIKELIEST_BYTES = 2, 4 * N_TOP


N_SIMULATED = 2_000  # trials, over all simulated searches: the mean of their epochs is within some 5 %
MOST_TRIALS = 500  # of one simulated search
VALUE = "val/f1_macro"  # of simulated trials: rules compare ranks, so that any metric would do


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Trials whose steps take equal time and memory, see `birdnet_core.training.probe.arm_id`.

    Args:
        settings: what distinguishes the arm from the others.
        n_trials: of those still to be trained; in a search, by the shares of 50 random samples.
        probe: what was measured of one of its configs.
        is_measured: whether that is so; else `probe` is of the largest arm of its network, but for `epoch_s`,
            which is between that and the quickest.
        gpus_per_trial: what each requests from Ray.
        memory_cap: the share of a GPU's memory that torch may take in each; None leaves all of it.
        concurrent: how many of it run side by side.
        trial_hours: of a trial that trains its whole budget.
    """

    settings: dict[str, Any]
    n_trials: int
    probe: Probe
    is_measured: bool
    gpus_per_trial: float
    memory_cap: float | None
    concurrent: int
    trial_hours: float


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What training takes, in epochs and hours; GPU-hours count fractions of a GPU as fractions."""

    epochs: float
    hours: float
    cpu_hours: float
    gpu_hours: float


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Which budget ends the sweep early, and after about how many of its trials."""

    budget: Literal["--budget-hours", "--budget-gpu-hours"]
    after_trials: int


@dataclass(frozen=True, kw_only=True)
class Store:
    """A folder of the cache that the trials read; `is_new` if this plan has made it or added to it."""

    path: str
    n_bytes: int
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that the sweep will write, and those that are free where the run folder is.

    `checkpoints` are two for each trial that runs, its last and the one being written, and those of pruned
    trials that are kept.
    """

    run_folder: int
    checkpoints: int
    free: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep will take.

    Args:
        design: of an ablation, as in the study's file; its ``notes`` say what its cells can show.
        n_further: trainings of the best configs of a search on further folds.
        n_trials: of the study; `n_done` of them are in the run folder, `n_left` will be trained.
        scheduler: what ends trials early.
        worst: every trial trains its whole budget. Early stopping by `training.patience` counts nowhere.
        expected: as the scheduler ends trials that come in no order of merit (`simulated_epochs`).
        taking_turns_hours: as `expected`, if trials that share a GPU slow each other down as much as they
            can, so that sharing gains nothing; None where none share.
        cut: None where no budget ends the sweep.
        notes: what a person should read before typing the command.

    Hours are those of trials as fast side by side as alone; starting Ray and its processes is not counted.
    """

    study: str
    kind: str
    design: dict[str, Any] | None
    n_trials: int
    n_done: int
    n_left: int
    n_further: int
    epochs_each: int
    scheduler: str
    machine: Machine
    cpus_per_trial: int
    concurrent: int
    worst: Amount
    expected: Amount
    taking_turns_hours: float | None
    cut: Cut | None
    arms: tuple[Arm, ...]
    stores: tuple[Store, ...]
    disk: Disk
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def plan(
    study: Study,
    folder_of: Callable[[TrainConfig], Path],
    run: str | Path,
    *,
    base: TrainConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    resources: Resources | None = None,
    budget_hours: float | None = None,
    budget_gpu_hours: float | None = None,
    machine: Machine | None = None,
    measure: Callable[[TrainConfig, Dataset], Probe] = probe,
    progress: Progress = no_progress,
) -> Plan:
    """Return what the sweep of `study` into the run folder `run` will take on this machine.

    Data are prepared as the sweep would (`folder_of` returns the folder of a config's dataset), and one
    config of each arm is measured, alone. Of many arms these are the largest and the quickest of each network
    (`placement.to_measure`): the others need as much memory as the largest, and take seconds between the two
    by their parameters and the number of feature values. The run folder is only read. Raises ConfigError for
    settings that the study cannot take and for trials that do not fit on the machine, and RunFolderError for
    a run folder on other data.
    """
    start = time.time()
    machine = machine or this_machine()
    settings = dict(settings or {})
    resources = resources or Resources()
    cpus, most_concurrent = resources.cpus, resources.concurrent or machine.cpus
    fixed = resources.gpus if isinstance(resources.gpus, (int, float)) else 0.0
    n_concurrent([machine.node], cpus=cpus, gpus=fixed)
    config = base_config(study, base or TrainConfig(), settings).override({"runtime.threads": cpus})
    configs = check(study, config, settings)
    arms = by_arm(configs)
    datasets = {arm: Dataset.open(folder_of(members[0])) for arm, members in arms.items()}
    for arm, members in arms.items():
        for each in members:
            rehearse(each, datasets[arm].input_shape, datasets[arm].species)

    folder = RunFolder(run)
    first = next(iter(datasets.values()))
    check_data(folder, first)
    n_folds = n_folds_of(study, config.repeat, first.facts["folds"])
    if isinstance(study, Ablation):
        wanted, left = _ablation_trials(study, config, settings, folder)
    else:
        wanted = study.n_trials
        n_new = max(0, wanted - _n_sampled(folder, study.name))
        left = [configs[i % len(configs)] for i in range(n_new)]

    members_left = by_arm(left)
    chosen = to_measure(configs, folder_of)
    # Packing needs the memory of all arms, also of those that are trained already.
    of_arms = chosen if resources.gpus == "auto" and machine.gpus and left else members_left
    works: dict[str, int] = {}  # of a clip of each arm, where not all are measured
    if len(arms) > MOST_MEASURED:
        works = {arm: expected_of(members[0], folder_of).work for arm, members in members_left.items()}
    quickest = {
        members_left[arm][0].model.name: arm for arm in sorted(works, key=works.__getitem__, reverse=True)
    }
    wanted_probes = by_name(
        [*(chosen[arm] for arm in of_arms), *(members_left[arm][0] for arm in quickest.values())]
    )
    measured = {}
    for n, (arm, config) in enumerate(wanted_probes.items(), start=1):
        progress("measuring", n - 1, len(wanted_probes))
        measured[arm] = measure(config, datasets[arm])
        progress("measuring", n, len(wanted_probes))
    probes = {}
    for arm, members in members_left.items():
        probes[arm] = measured.get(arm, measured[arm_id(chosen[arm])])
        if arm not in measured:
            quick, large = quickest[members[0].model.name], chosen[arm]
            epoch_s = np.interp(
                works[arm],
                [works[quick], expected_of(large, folder_of).work],
                [measured[quick].epoch_s, probes[arm].epoch_s],
            )
            probes[arm] = replace(probes[arm], epoch_s=float(epoch_s))
    placement = place(
        resources.gpus if left else 0.0,
        cpus,
        [machine.node],
        configs,
        folder_of,
        measure=lambda config, _: measured[arm_id(config)],
        gpu_bytes=min(machine.gpus, default=None),
    )
    names = distinctive_settings({arm: members[0] for arm, members in members_left.items()})
    planned: dict[str, Arm] = {}
    for arm, members in members_left.items():
        given = placement.of(members[0].to_dict())
        gpus = given["resources"]["gpu"]
        planned[arm] = Arm(
            settings=names[arm],
            n_trials=len(members),
            probe=probes[arm],
            is_measured=arm in measured,
            gpus_per_trial=gpus,
            memory_cap=given["memory_cap"],
            concurrent=min(n_concurrent([machine.node], cpus=cpus, gpus=gpus), most_concurrent),
            trial_hours=_seconds(members[0], probes[arm]) / 3600,
        )
    notes = cautions(study, configs) + few_configs(study) + _gpu_notes(planned.values(), placement, machine)
    most = min(max((arm.concurrent for arm in planned.values()), default=0), len(left))
    arm_of = {id(each): planned[arm] for arm, members in members_left.items() for each in members}
    arms_left = [arm_of[id(each)] for each in left]

    budgets = [each.training.most_epochs for each in left]

    n_further = (n_folds - 1) * n_finalists(wanted) if left else 0
    further = [i % len(left) for i in range(n_further)]

    def amount(epochs: Sequence[int]) -> Amount:
        """Return what is left if each trial trains so many epochs, and finalists train on further folds."""
        epochs = [*epochs, *(budgets[i] for i in further)]
        jobs = [
            (arm.probe.setup_s + n * arm.probe.epoch_s, arm.gpus_per_trial)
            for arm, n in zip([*arms_left, *(arms_left[i] for i in further)], epochs, strict=True)
        ]
        seconds = makespan(
            jobs, cpus=machine.cpus, cpus_per_trial=cpus, n_gpus=len(machine.gpus), concurrent=most_concurrent
        )
        return Amount(
            epochs=float(sum(epochs)),
            hours=seconds / 3600,
            cpu_hours=cpus * sum(s for s, _ in jobs) / 3600,
            gpu_hours=sum(s * g for s, g in jobs) / 3600,
        )

    worst, expected = amount(budgets), amount(budgets)
    if isinstance(study, Search) and study.scheduler != "fifo" and left:
        all_of_it = [configs[i % len(configs)] for i in range(wanted)]
        searches = simulated_epochs(study, all_of_it, side_by_side=most)
        expected = _mean([amount(epochs[-len(left) :]) for epochs in searches])
    on_shares = [each for each in zip(left, arms_left, strict=True) if 0 < each[1].gpus_per_trial <= 0.5]
    shared = sum(_seconds(each, arm.probe) for each, arm in on_shares) / 3600
    shared *= expected.epochs / max(1.0, worst.epochs)
    turns = max(expected.hours, shared / len(machine.gpus)) if shared else None
    cut = _cut(expected, len(left), budget_hours, budget_gpu_hours)
    n_species = len(next(iter(datasets.values())).species)
    checkpoint = max((arm.probe.checkpoint_bytes for arm in arms_left), default=0)
    n_val = max(dataset.facts["n_val"] for dataset in datasets.values())
    trial = RECORD_BYTES + SPECIES_BYTES * n_species + LIKELIEST_BYTES * n_val
    disk = Disk(
        run_folder=(len(left) + n_further) * trial + int(worst.epochs * (EPOCH_BYTES + CLASS_BYTES * n_val)),
        checkpoints=2 * most * checkpoint
        + (min(PRUNED_CHECKPOINT_BYTES, len(left) * checkpoint) if study.scheduler != "fifo" else 0),
        free=shutil.disk_usage(existing(folder.path)).free,
    )
    if disk.run_folder + disk.checkpoints > disk.free:
        notes.append(
            f"the disk of {str(run)!r} has {as_size(disk.free)} free, and the sweep writes up to "
            f"{as_size(disk.run_folder + disk.checkpoints)}"
        )
    return Plan(
        study=study.name,
        kind=study.kind,
        design=study.design_facts() if isinstance(study, Ablation) else None,
        n_trials=wanted,
        n_done=wanted - len(left),
        n_left=len(left),
        n_further=n_further,
        epochs_each=configs[0].training.most_epochs,
        scheduler=study.scheduler,
        machine=machine,
        cpus_per_trial=cpus,
        concurrent=most,
        worst=worst,
        expected=expected,
        taking_turns_hours=turns,
        cut=cut,
        arms=tuple(planned.values()),
        stores=_stores(datasets.values(), start),
        disk=disk,
        notes=tuple(notes),
    )


# ------------------------------------------------------------------------------------------- epochs


def simulated_epochs(
    study: Search, trials: Sequence[TrainConfig], *, side_by_side: int, seed: int = 0
) -> list[list[int]]:
    """Return how many epochs each of `trials` trains, in each of several simulated searches.

    The study's own rule decides, with its brackets and groups, over made-up trials: `side_by_side` of them
    train in turn, in no order of merit. Each has a quality, drawn evenly from 0 to 1, and a value that rises
    towards it as 1 - exp(-3 t / T) over its T epochs, so that ranks last from epoch to epoch. Real ranks
    change, so that under ASHA and HyperBand real searches train fewer epochs; those of a sampler that learns
    train more, as its later trials are better. Rules that compare ranks at the same epoch do not see the
    shape of the curves; the median rule, which compares a best value with averages, does.

    Of more than `MOST_TRIALS` trials, the further ones train as those of the second half of them do.
    """
    rng = np.random.default_rng(seed)
    study = replace(study, metric=VALUE, rung_metric=None)
    budgets = [config.training.most_epochs for config in trials[:MOST_TRIALS]]
    groups = [group_of(config, study.asha_within) for config in trials[:MOST_TRIALS]]
    searches = []
    for _ in range(max(3, min(40, N_SIMULATED // len(budgets)))):
        rule = rule_of(study, budgets[0])
        name = rng.integers(2**62)  # what HyperBand draws a trial's bracket by
        quality = rng.uniform(size=len(budgets))
        trained = [0] * len(budgets)
        waiting = deque(range(len(budgets)))
        running: list[int] = []
        while waiting or running:
            while waiting and len(running) < side_by_side:
                running.append(waiting.popleft())
            for i in list(running):
                trained[i] += 1
                value = quality[i] * -math.expm1(-3 * trained[i] / budgets[i])
                is_stopped = rule.is_stopped(f"{name}-{i}", groups[i], trained[i], {VALUE: value})
                if is_stopped or trained[i] >= budgets[i]:
                    running.remove(i)
                    if not is_stopped:
                        rule.finish(f"{name}-{i}", groups[i])
        later = trained[len(trained) // 2 :]
        trained += [later[i % len(later)] for i in range(len(trials) - len(trained))]
        searches.append(trained)
    return searches


def _mean(amounts: Sequence[Amount]) -> Amount:
    fields = [asdict(each) for each in amounts]
    return Amount(**{name: math.fsum(each[name] for each in fields) / len(fields) for name in fields[0]})


# ------------------------------------------------------------------------------------------- trials


def _ablation_trials(
    study: Ablation, config: TrainConfig, settings: Mapping[str, Any], folder: RunFolder
) -> tuple[int, list[TrainConfig]]:
    """Return how many trials an ablation has, and those of them that the run folder does not hold.

    In the order in which a sweep trains them. Cells with equal configs are one trial.
    """
    trials: dict[str, TrainConfig] = {}
    for repeat, cell in product(study.repeats(config), study.cells()):
        each = trial_config(config, settings, study.overrides(cell)).override(repeat)
        trials.setdefault(each.trial_id, each)
    done = {name for name, record in folder.records().items() if record.status == "completed"}
    return len(trials), [each for name, each in trials.items() if name not in done]


def _n_sampled(folder: RunFolder, study: str) -> int:
    """Return how many trials of a search need not be sampled again: those that are not failed."""
    records = folder.records()
    return len(
        {
            event["number"]
            for event in folder.events()
            if event["event"] == "trial"
            and event["study"] == study
            and event["trial_id"] in records
            and records[event["trial_id"]].status in ("completed", *OF_ONE_SEARCH)
        }
    )


def _seconds(config: TrainConfig, measured: Probe) -> float:
    return measured.setup_s + config.training.most_epochs * measured.epoch_s


# ------------------------------------------------------------------------------------- GPUs and budget


def _gpu_notes(arms: Collection[Arm], placement: Placement, machine: Machine) -> list[str]:
    """Return notes on GPUs that are requested but not used, or used unrequested, and on scarce memory."""
    peaks = [(arm, arm.probe.gpu_peak_bytes) for arm in arms if arm.probe.gpu_peak_bytes is not None]
    if arms and any(arm.gpus_per_trial for arm in arms) != bool(peaks):
        return [
            "the trials use the GPU, and ask for none: give --gpus-per-trial a share"
            if peaks
            else "the trials train on the CPU, and each holds a GPU: give --gpus-per-trial 0"
        ]
    if placement.memory_cap is None:  # an arm that was packed has the room that it was measured to need
        return []
    room = placement.memory_cap * min(machine.gpus, default=0)
    return [
        f"{described(arm.settings)} took {as_size(peak)} of GPU memory, and {placement.gpus:g} of a GPU "
        f"leaves it {as_size(room)}: it will halve its micro-batches, or fail"
        for arm, peak in peaks
        if peak > room
    ]


def _cut(
    expected: Amount, n_left: int, budget_hours: float | None, budget_gpu_hours: float | None
) -> Cut | None:
    """Return the budget that ends the sweep first, if one does before its trials are trained."""
    kept = []
    if budget_hours is not None and expected.hours > budget_hours:
        kept.append((budget_hours / expected.hours, "--budget-hours"))
    if budget_gpu_hours is not None and expected.gpu_hours > budget_gpu_hours:
        kept.append((budget_gpu_hours / expected.gpu_hours, "--budget-gpu-hours"))
    if not kept:
        return None
    share, budget = min(kept)
    return Cut(budget=budget, after_trials=int(share * n_left))  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- disk


def _stores(datasets: Iterable[Dataset], since: float) -> tuple[Store, ...]:
    """Return the stores that `datasets` read, each once; new are those that grew since `since` (Unix)."""
    folders = {}
    for dataset in datasets:
        for folder in (dataset.clips_folder, dataset.features.folder if dataset.features else None):
            if folder is not None:
                folders[str(folder)] = folder
    return tuple(
        Store(
            path=path,
            # A feature store has rows that no dataset uses, which take no room.
            n_bytes=sum(512 * file.stat().st_blocks for file in folder.iterdir() if file.is_file()),
            is_new=(folder / "store.json").stat().st_mtime >= since,
        )
        for path, folder in folders.items()
    )
