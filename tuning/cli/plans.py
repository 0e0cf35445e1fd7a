"""`birdtune plan`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tuning.cli import options as opt
from tuning.cli.inputs import find_study, read_config, read_recordings
from tuning.cli.output import err_console, out_console, print_result
from tuning.engine.packing import Resources, as_size

if TYPE_CHECKING:
    from tuning.planning import Plan


def plan_command(
    study: opt.Study,
    data: opt.Data = "synthetic",
    out: Annotated[
        Path | None,
        typer.Option(
            callback=opt.local_folder, help="The sweep's run folder, only read; runs/STUDY if left out."
        ),
    ] = None,
    base: opt.Base = None,
    settings: opt.Settings = None,
    options: opt.StudyOptions = None,
    repeats: opt.Repeats = None,
    trials: opt.Trials = None,
    quick: opt.Quick = False,
    cpus_per_trial: opt.Cpus = 1,
    gpus_per_trial: opt.Gpus = None,
    concurrent: opt.Concurrent = None,
    scheduler: opt.Scheduler = None,
    audit: opt.Audit = None,
    folds: opt.Folds = None,
    budget_hours: Annotated[float | None, typer.Option(min=0, help="Wall time of the sweep.")] = None,
    budget_gpu_hours: Annotated[
        float | None, typer.Option(min=0, help="GPU-hours of the sweep; fractions count as fractions.")
    ] = None,
    plugin: opt.Plugins = None,
    as_json: opt.Json = False,
) -> None:
    """Estimate a sweep from measured steps: trials, hours, GPU memory and packing, disk."""
    from birdnet_core.config import TrainConfig
    from birdnet_core.data.dataset import prepare
    from tuning.planning import plan
    from tuning.views.live import StageBars

    chosen = find_study(
        study,
        quick=quick,
        options=opt.parse_options(options),
        repeats=repeats,
        trials=trials,
        scheduler=scheduler,
        audit=audit,
        folds=folds,
    )
    gpus = opt.parse_gpus(gpus_per_trial)
    start_from = read_config(base) if base else TrainConfig()
    overrides = opt.parse_settings(settings)
    run = out or Path("runs") / chosen.name
    bars = StageBars(err_console)
    with bars.live():
        manifest = read_recordings(data)
        planned = plan(
            chosen,
            lambda config: prepare(manifest, config, progress=bars),
            run,
            base=start_from,
            settings=overrides,
            resources=Resources(cpus=cpus_per_trial, gpus=gpus, concurrent=concurrent),
            budget_hours=budget_hours,
            budget_gpu_hours=budget_gpu_hours,
            progress=bars,
        )
    given = {
        "data": data, "out": out, "base": base, "repeats": repeats, "trials": trials,
        "cpus-per-trial": cpus_per_trial if cpus_per_trial > 1 else None, "gpus-per-trial": gpus_per_trial,
        "concurrent": concurrent, "scheduler": scheduler, "budget-hours": budget_hours,
        "budget-gpu-hours": budget_gpu_hours,
    }  # fmt: skip
    words = ["birdtune", "sweep", study, *(["--quick"] if quick else [])]
    words += [word for item in settings or [] for word in ("--set", item)]
    words += [word for item in options or [] for word in ("--option", item)]
    words += [word for item in plugin or [] for word in ("--plugin", item)]
    words += [word for k, v in given.items() if v is not None for word in (f"--{k}", str(v))]
    command = shlex.join(words)
    if as_json:
        print_result({**planned.to_dict(), "command": command}, as_json)
    else:
        _print_plan(planned)
        out_console.print(f"next: {command}")


def _print_plan(plan: Plan) -> None:
    """Print a plan: how much, how long, what each arm takes, what is on disk, what to read before."""
    from tuning.views.live import clock, describe

    p = out_console.print
    machine, worst, expected = plan.machine, plan.worst, plan.expected
    if plan.design:
        p(f"design         {plan.design['kind']}, {plan.design['n_cells']} cells")
        for note in plan.design["notes"]:
            p(f"               {note}")
    done = f", {plan.n_done} of them in the run folder" if plan.n_done else ""
    p(f"trials         {plan.n_trials}{done}; {plan.n_left} to train, {plan.concurrent} side by side")
    if plan.n_further:
        total = plan.n_left + plan.n_further
        p(f"trainings      {total}, of which {plan.n_further} of the best configs on further folds")
    names = {"asha": " under ASHA", "hyperband": " under HyperBand", "median": " under the median rule"}
    if plan.scheduler in names:
        p(f"epochs         about {expected.epochs:,.0f}{names[plan.scheduler]}, at most {worst.epochs:,.0f}")
        p(f"wall time      about {clock(3600 * expected.hours)}, at most {clock(3600 * worst.hours)}")
    else:
        p(f"epochs         {worst.epochs:,.0f}, {plan.epochs_each} a trial")
        p(f"wall time      about {clock(3600 * worst.hours)}")
    if plan.taking_turns_hours is not None:
        p(f"               {clock(3600 * plan.taking_turns_hours)} if sharing a GPU gains nothing")
    p(f"CPU-hours      {expected.cpu_hours:.2f} on {machine.cpus} CPUs, {plan.cpus_per_trial} a trial")
    if machine.gpus:
        sizes = ", ".join(as_size(size) for size in machine.gpus)
        p(f"GPU-hours      {expected.gpu_hours:.2f} on {len(machine.gpus)} GPUs ({sizes})")
    else:
        p("GPU            no GPU here")
    for store in plan.stores:
        p(f"store          {as_size(store.n_bytes)} {'made now' if store.is_new else 'there'}: {store.path}")
    disk = plan.disk
    p(
        f"disk           run folder {as_size(disk.run_folder)}, checkpoints {as_size(disk.checkpoints)}, "
        f"{as_size(disk.free)} free"
    )
    if plan.cut:
        n = f"{plan.cut.after_trials} of {plan.n_left}"
        p(f"budget         {plan.cut.budget} ends it after about {n} trials")
    for note in plan.notes:
        p(f"note           {note}")
    if not all(arm.is_measured for arm in plan.arms):
        n_measured = sum(arm.is_measured for arm in plan.arms)
        p(
            f"measured       {n_measured} of {len(plan.arms)} arms, the largest and the quickest of each "
            "network; the others count as large as the largest, and are between the two in time"
        )
    columns = ["trials", "step", "epoch", "trial", "memory", *(["share", "a GPU"] if machine.gpus else [])]
    table = Table("arm", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for arm in plan.arms:
        probe = arm.probe
        if probe.gpu_peak_bytes is not None:
            needed: int | None = probe.gpu_peak_bytes + (probe.gpu_context_bytes or 0)
        else:
            needed = probe.rss_growth_bytes
        row = [
            describe(arm.settings) or "every trial", str(arm.n_trials),
            f"{1000 * probe.step_s:.1f} ms" if arm.is_measured else "",
            f"{probe.epoch_s:.2f} s", clock(3600 * arm.trial_hours),
            "?" if needed is None else as_size(needed),
        ]  # fmt: skip
        if machine.gpus:
            n_sharing = int(1 / arm.gpus_per_trial + 1e-9) if arm.gpus_per_trial else 0
            cap = f", {as_size(arm.memory_cap * min(machine.gpus))} each" if arm.memory_cap else ""
            row += [f"{arm.gpus_per_trial:g}", f"{n_sharing} trials{cap}" if n_sharing else ""]
        table.add_row(*row)
    if plan.arms:
        p(table)
        on_gpu = any(arm.probe.gpu_peak_bytes is not None for arm in plan.arms)
        p(
            "memory: of the GPU, the CUDA context included"
            if on_gpu
            else "memory: by how much the process grew, data that trials share included"
        )
