"""What a sweep will take, before it is run: trials, epochs, hours, memory and disk, from measured steps.

Without Ray, whose start takes longer than most plans.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from birdnet_core.build import rehearse
from birdnet_core.config import TrainConfig
from birdnet_core.data.building import Progress, no_progress
from birdnet_core.data.dataset import Dataset
from birdnet_core.errors import RunFolderError
from birdnet_core.probe import Probe, arm_settings, by_arm, probe
from birdnet_core.records import RunFolder
from search_spaces.study import Ablation, Study, base_config, cautions, check, trial_config
from tuning.packing import Share, as_size, makespan, memory_cap, n_concurrent, pack

# Of a run folder's text, rounded up: a trial's record, its line of F1 for each species, and an epoch in the
# journal and in the Optuna storage.
RECORD_BYTES, SPECIES_BYTES, EPOCH_BYTES = 4_000, 50, 700


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to train on: CPUs that this process may use, and the bytes of each GPU."""

    cpus: int
    gpus: tuple[int, ...] = ()


def this_machine() -> Machine:
    """Return the CPUs that this process may run on and the GPUs that torch sees."""
    gpus = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return Machine(cpus=len(os.sched_getaffinity(0)), gpus=tuple(gpus))


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Trials whose steps take equal time and memory, see `birdnet_core.probe.arm_id`.

    Args:
        settings: what tells the arm from the others.
        n_trials: of those still to be trained; in a search, by the shares of 50 random samples.
        probe: what was measured of one of its configs.
        gpus_per_trial: what each asks Ray for.
        share: of a GPU, with the cap on its memory; None without a GPU.
        concurrent: how many of it run side by side.
        trial_hours: of a trial that trains its whole budget.
    """

    settings: dict[str, Any]
    n_trials: int
    probe: Probe
    gpus_per_trial: float
    share: Share | None
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

    `checkpoints` are two for each trial that runs: its last, and the one being written.
    """

    run_folder: int
    checkpoints: int
    free: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep will take.

    Args:
        design: of an ablation, as in the study's file; its ``notes`` say what its cells can tell.
        n_trials: of the study; `n_done` of them are in the run folder, `n_left` will be trained.
        worst: every trial trains its whole budget. Early stopping by `training.patience` counts nowhere.
        expected: under ASHA, where trials come in no order of merit (`asha_epochs`); else the same.
        taking_turns_hours: as `expected`, if trials that share a GPU slow each other down as much as they
            can, so that sharing gains nothing; None where none share.
        cut: None where no budget ends the sweep.
        notes: what a person should read before typing the command.

    Hours are those of trials as fast side by side as alone; starting Ray and its processes is not counted.
    """

    study: str
    kind: Literal["ablation", "search"]
    design: dict[str, Any] | None
    n_trials: int
    n_done: int
    n_left: int
    epochs_each: int
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
    n_seeds: int | None = None,
    n_trials: int | None = None,
    cpus_per_trial: int = 1,
    gpus_per_trial: float | Literal["auto"] | None = None,
    concurrent: int | None = None,
    budget_hours: float | None = None,
    budget_gpu_hours: float | None = None,
    machine: Machine | None = None,
    measure: Callable[[TrainConfig, Dataset], Probe] = probe,
    progress: Progress = no_progress,
) -> Plan:
    """Return what the sweep of `study` into the run folder `run` will take on this machine.

    Data are prepared as the sweep would (`folder_of` returns the folder of a config's dataset), and one
    config of each arm is measured, alone. The run folder is only read. `gpus_per_trial` as for a sweep: None
    is a whole one where there are any, ``auto`` as many trials on one as its memory holds. Raises ConfigError
    for settings that the study cannot take and for trials that do not fit on the machine, and RunFolderError
    for a run folder on other data.
    """
    start = time.time()
    machine = machine or this_machine()
    settings = dict(settings or {})
    fixed = gpus_per_trial if isinstance(gpus_per_trial, (int, float)) else None
    total = {"cpu": float(machine.cpus), "gpu": float(len(machine.gpus))}
    n_concurrent(total, {"cpu": float(cpus_per_trial), "gpu": fixed or 0.0})
    config = base_config(study, base or TrainConfig(), settings).override({"runtime.threads": cpus_per_trial})
    tried = check(study, config, settings)
    arms = by_arm(tried)
    datasets = {arm: Dataset.open(folder_of(members[0])) for arm, members in arms.items()}
    for arm, members in arms.items():
        for each in members:
            rehearse(each, datasets[arm].input_shape, len(datasets[arm].species))

    folder = RunFolder(run)
    _refuse_other_data(folder, next(iter(datasets.values())))
    if isinstance(study, Ablation):
        wanted, left = _ablation_trials(study, config, settings, n_seeds, folder)
    else:
        wanted = n_trials or study.n_trials
        n_new = max(0, wanted - _n_sampled(folder, study.name))
        left = [tried[i % len(tried)] for i in range(n_new)]

    members_left = by_arm(left)
    probes = {}
    for n, arm in enumerate(members_left, start=1):
        progress("measuring", n - 1, len(members_left))
        probes[arm] = measure(members_left[arm][0], datasets[arm])
        progress("measuring", n, len(members_left))
    names = _told_apart({arm: members[0] for arm, members in members_left.items()})
    notes = cautions(study, tried)
    gpus, shares = _gpus(probes, names, gpus_per_trial, machine, cpus_per_trial, notes)
    side_by_side = {
        arm: min(
            n_concurrent(total, {"cpu": float(cpus_per_trial), "gpu": gpus[arm]}),
            concurrent or machine.cpus,
        )
        for arm in probes
    }
    budget = tried[0].training.most_epochs
    arm_of = {id(each): arm for arm, members in members_left.items() for each in members}
    jobs = [(_seconds(each, probes[arm_of[id(each)]]), gpus[arm_of[id(each)]]) for each in left]
    worst = Amount(
        epochs=sum(each.training.most_epochs for each in left),
        hours=makespan(
            jobs, cpus=machine.cpus, cpus_per_trial=cpus_per_trial, n_gpus=len(machine.gpus),
            concurrent=concurrent or machine.cpus,
        ) / 3600,
        cpu_hours=cpus_per_trial * sum(s for s, _ in jobs) / 3600,
        gpu_hours=sum(s * g for s, g in jobs) / 3600,
    )  # fmt: skip
    expected = worst
    if not isinstance(study, Ablation) and left:
        epochs = asha_epochs(
            len(left), budget, grace=study.grace_epochs, reduction_factor=study.reduction_factor
        )
        share = epochs / worst.epochs
        # However much is stopped, somebody trains to the end.
        longest = max(s for s, _ in jobs) / 3600
        expected = Amount(
            epochs=epochs,
            hours=max(share * worst.hours, min(longest, worst.hours)),
            cpu_hours=share * worst.cpu_hours,
            gpu_hours=share * worst.gpu_hours,
        )
    on_gpu = sum(s for s, g in jobs if 0 < g <= 0.5) / 3600 * (expected.epochs / max(1, worst.epochs))
    turns = max(expected.hours, on_gpu / len(machine.gpus)) if on_gpu else None
    cut = _cut(expected, len(left), budget_hours, budget_gpu_hours)
    most = max(side_by_side.values(), default=0)
    n_species = len(next(iter(datasets.values())).species)
    disk = Disk(
        run_folder=len(left) * (RECORD_BYTES + SPECIES_BYTES * n_species) + int(worst.epochs * EPOCH_BYTES),
        checkpoints=2 * min(most, len(left)) * max((p.checkpoint_bytes for p in probes.values()), default=0),
        free=shutil.disk_usage(_existing(folder.path)).free,
    )
    if disk.run_folder + disk.checkpoints > disk.free:
        notes.append(
            f"the disk of {str(run)!r} has {as_size(disk.free)} free, and the sweep writes up to "
            f"{as_size(disk.run_folder + disk.checkpoints)}"
        )
    return Plan(
        study=study.name,
        kind="ablation" if isinstance(study, Ablation) else "search",
        design=study.design_facts() if isinstance(study, Ablation) else None,
        n_trials=wanted,
        n_done=wanted - len(left),
        n_left=len(left),
        epochs_each=budget,
        machine=machine,
        cpus_per_trial=cpus_per_trial,
        concurrent=min(most, len(left)),
        worst=worst,
        expected=expected,
        taking_turns_hours=turns,
        cut=cut,
        arms=tuple(
            Arm(
                settings=names[arm],
                n_trials=len(members),
                probe=probes[arm],
                gpus_per_trial=gpus[arm],
                share=shares.get(arm),
                concurrent=side_by_side[arm],
                trial_hours=_seconds(members[0], probes[arm]) / 3600,
            )
            for arm, members in members_left.items()
        ),
        stores=_stores(datasets.values(), start),
        disk=disk,
        notes=tuple(notes),
    )


# ------------------------------------------------------------------------------------------- epochs


def asha_epochs(n_trials: int, max_epochs: int, *, grace: int, reduction_factor: int) -> float:
    """Return how many epochs `n_trials` train in all under ASHA, if they come in no order of merit.

    Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter
    Tuning"), as Ray's ASHAScheduler stops: at a rung, the grace period times a power of the factor f, a trial
    goes on unless its value is below the (1 - 1/f) quantile of those that were at this rung before it.

    A trial that comes after m others is equally likely to fall into each of the m + 1 gaps between their
    values (exchangeability). Of the a that have reached a rung, (a - 1) / f lie above the quantile, so the
    trial passes in (a - 1) / f + 1 of the gaps: with probability ((a - 1) / f + 1) / (m + 1), if its rank
    lasts from rung to rung and those who lead are all there. At the first rung a = m, and that is 1 for the
    first trial, one half for the second, 1/f after many. At the later ones every new leader passes, which is
    why short searches save less than 1/f a rung. Summed over the trials, with a the sum so far. Within 15 %
    of simulations of 6 to 200 trials of lasting rank; too high where ranks change between rungs, and where
    the sampler learns, too low.
    """
    rungs = []
    rung = min(grace, max_epochs)
    while rung < max_epochs:
        rungs.append(rung)
        rung *= reduction_factor
    arrived = [0.0] * (len(rungs) + 1)  # at each rung, and last at the end
    for m in range(n_trials):
        p = 1.0
        for i, a in enumerate(arrived):
            arrived[i] += p
            p = min(p, (max(a - 1, 0) / reduction_factor + 1) / (m + 1))
    marks = (0, *rungs, max_epochs)
    return sum(n * (marks[i + 1] - marks[i]) for i, n in enumerate(arrived))


# ------------------------------------------------------------------------------------------- trials


def _ablation_trials(
    study: Ablation, config: TrainConfig, settings: Mapping[str, Any], n_seeds: int | None, folder: RunFolder
) -> tuple[int, list[TrainConfig]]:
    """Return how many trials an ablation has, and those of them that the run folder does not hold.

    In the order in which a sweep trains them. Cells with equal configs are one trial.
    """
    seeds = range(config.seed, config.seed + (n_seeds or study.n_seeds))
    trials: dict[str, TrainConfig] = {}
    for seed, cell in product(seeds, study.cells()):
        each = trial_config(config, settings, study.overrides(cell)).override({"seed": seed})
        trials.setdefault(each.trial_id, each)
    done = {name for name, record in folder.records().items() if record.status == "completed"}
    return len(trials), [each for name, each in trials.items() if name not in done]


def _n_sampled(folder: RunFolder, study: str) -> int:
    """Return how many trials of a search need not be sampled again: those that completed or were pruned."""
    records = folder.records()
    return len(
        {
            event["number"]
            for event in folder.events()
            if event["event"] == "trial"
            and event["study"] == study
            and event["trial_id"] in records
            and records[event["trial_id"]].status in ("completed", "pruned")
        }
    )


def _refuse_other_data(folder: RunFolder, dataset: Dataset) -> None:
    for name in folder.study_names():
        there = folder.read_study(name)["data"]
        if there["data_id"] != dataset.facts["data_id"]:
            raise RunFolderError(
                f"{str(folder.path)!r} holds results on {there['name']!r} (data {there['data_id']}), and "
                f"this is other data ({dataset.facts['data_id']}); give another --out"
            )


def _seconds(config: TrainConfig, measured: Probe) -> float:
    return measured.setup_s + config.training.most_epochs * measured.epoch_s


def _told_apart(arms: Mapping[str, TrainConfig]) -> dict[str, dict[str, Any]]:
    """Return, of each arm's settings, those in which arms that have them differ."""
    settings = {arm: arm_settings(config) for arm, config in arms.items()}
    every = {key for values in settings.values() for key in values}
    varied = {key for key in every if len({repr(v[key]) for v in settings.values() if key in v}) > 1}
    return {arm: {k: v for k, v in values.items() if k in varied} for arm, values in settings.items()}


# ------------------------------------------------------------------------------------- GPUs and budget


def _gpus(
    probes: Mapping[str, Probe],
    names: Mapping[str, dict[str, Any]],
    asked: float | Literal["auto"] | None,
    machine: Machine,
    cpus_per_trial: int,
    notes: list[str],
) -> tuple[dict[str, float], dict[str, Share]]:
    """Return the GPUs of a trial of each arm, and its share of one where it uses one."""
    peaks = {arm: p.gpu_peak_bytes for arm, p in probes.items() if p.gpu_peak_bytes is not None}
    labels = {arm: ", ".join(f"{k}={v}" for k, v in names[arm].items()) or "every trial" for arm in probes}
    context = max((probes[arm].gpu_context_bytes or 0 for arm in peaks), default=0)
    if asked == "auto" and peaks:
        packed = pack(
            {f"{labels[arm]} ({arm})": peak for arm, peak in peaks.items()},
            gpu_bytes=min(machine.gpus),
            n_gpus=len(machine.gpus),
            context_bytes=context,
            cpus=machine.cpus,
            cpus_per_trial=cpus_per_trial,
        )
        shares = dict(zip(peaks, packed.values(), strict=True))
        return {arm: shares[arm].fraction if arm in shares else 0.0 for arm in probes}, shares
    gpus = float(bool(machine.gpus)) if asked is None else 0.0 if asked == "auto" else float(asked)
    if probes and bool(gpus) != bool(peaks):
        notes.append(
            "the trials use the GPU, and ask for none: give --gpus-per-trial a share"
            if peaks
            else "the trials train on the CPU, and each holds a GPU: give --gpus-per-trial 0"
        )
    if not gpus or not peaks:
        return dict.fromkeys(probes, gpus), {}
    n = max(1, int(1 / gpus + 1e-9))
    cap = memory_cap(n, gpu_bytes=min(machine.gpus), context_bytes=context)
    for arm, peak in peaks.items():
        room = int(cap * min(machine.gpus))
        if peak > room:
            notes.append(
                f"{labels[arm]} took {as_size(peak)} of GPU memory, and {gpus:g} of a GPU leaves it "
                f"{as_size(room)}: it will halve its micro-batches, or fail"
            )
    share = Share(trials_per_gpu=n, fraction=gpus, memory_cap=cap)
    return dict.fromkeys(probes, gpus), dict.fromkeys(peaks, share)


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
            # A feature store has rows that no dataset has asked for, which take no room.
            n_bytes=sum(512 * file.stat().st_blocks for file in folder.iterdir() if file.is_file()),
            is_new=(folder / "store.json").stat().st_mtime >= since,
        )
        for path, folder in folders.items()
    )


def _existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
