"""`birdtune sweep`, `resume`, `rerun` and `extend`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from birdnet_core import plugins
from birdnet_core.errors import ConfigError, did_you_mean
from tuning.cli import options as opt
from tuning.cli.inputs import read_config, read_recordings
from tuning.cli.output import err_console, list_failures, print_result
from tuning.cli.request import Request
from tuning.engine.halt import Budget
from tuning.engine.packing import Resources

if TYPE_CHECKING:
    from birdnet_core.records.run_folder import RunFolder
    from search_spaces.study import Study
    from tuning.engine.journal import Observer


def sweep_command(
    study: opt.Study,
    data: opt.Data = "synthetic",
    out: Annotated[
        Path | None, typer.Option(callback=opt.local_folder, help="The run folder; runs/STUDY if left out.")
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
    address: opt.Address = None,
    workers: Annotated[int | None, typer.Option(help="Processes that prepare data.")] = None,
    sampler: Annotated[
        str, typer.Option(help="Of a search: tpe, random, gp, cmaes or nsga2.", metavar="NAME")
    ] = "tpe",
    scheduler: opt.Scheduler = None,
    audit: opt.Audit = None,
    folds: opt.Folds = None,
    constraint: opt.Constraints = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            callback=opt.local,
            help="The run folder of an earlier search by this metric: its best configs are trained first.",
            metavar="RUN",
        ),
    ] = None,
    enqueue: Annotated[
        list[str] | None,
        typer.Option(
            help="A config that a search trains first: best.json, a trial's record or a config; repeatable.",
            metavar="FILE",
        ),
    ] = None,
    storage: Annotated[
        str,
        typer.Option(
            help="Of a search's Optuna study: journal, sqlite, a database's URL, or env, which "
            "reads the URL from BIRDTUNE_STORAGE."
        ),
    ] = "journal",
    budget_hours: opt.BudgetHours = None,
    budget_gpu_hours: opt.BudgetGpuHours = None,
    until: opt.Until = None,
    trial_timeout: Annotated[
        float | None, typer.Option(help="Seconds an epoch may take; a trial that hangs longer has failed.")
    ] = None,
    restarts: Annotated[
        int,
        typer.Option(
            min=0,
            help="Deaths of its process or node that a trial survives without an epoch between them.",
        ),
    ] = 3,
    keep_checkpoints: Annotated[
        int, typer.Option(min=0, help="Completed trials, the best, that keep a checkpoint for `extend`.")
    ] = 0,
    tensorboard: Annotated[
        bool, typer.Option(help="Also write TensorBoard logs, to RUN/tensorboard.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the trials that this would train, and do nothing.")
    ] = False,
    plugin: opt.Plugins = None,
    as_json: opt.Json = False,
) -> None:
    """Train the trials of a study, except those that the run folder already holds.

    Ctrl-C once finishes the epochs in progress and stops; twice stops at once. `birdtune resume` continues.
    """
    from search_spaces.loading import is_study_file, read_source

    is_file = is_study_file(study)
    request = Request(
        study=str(Path(study).absolute()) if is_file else study,
        source=read_source(study) if is_file else None,
        data=data if data == "synthetic" else str(Path(data).absolute()),
        base=read_config(base).to_dict() if base else None,
        settings=opt.parse_settings(settings),
        options=opt.parse_options(options),
        repeats=repeats,
        trials=trials,
        quick=quick,
        resources=Resources(
            cpus=cpus_per_trial, gpus=opt.parse_gpus(gpus_per_trial), concurrent=concurrent,
            restarts=restarts, timeout_s=trial_timeout, checkpoints=keep_checkpoints,
        ),
        address=address,
        workers=workers,
        sampler=sampler,
        scheduler=scheduler,
        audit=audit,
        folds=folds,
        constraints=tuple(constraint or ()),
        warm_start=str(warm_start.absolute()) if warm_start else None,
        enqueue=tuple(read_config(file).to_dict() for file in enqueue or ()),
        storage=storage,
        budget=Budget(hours=budget_hours, gpu_hours=budget_gpu_hours, until=until),
        tensorboard=tensorboard,
        plugins=tuple(each for each in plugins.loaded() if each.kind in ("module", "file")),
    )  # fmt: skip
    study_to_train = request.load_study()
    if dry_run:
        from birdnet_core.config import TrainConfig
        from search_spaces.study import Search
        from tuning.engine.warm_start import NOT_OF_ABLATIONS, best_of_earlier, enqueued
        from tuning.views import study_view

        trials_to_train = study_view.dry_run(study_to_train, request.base_config(), request.settings)
        if isinstance(study_to_train, Search):
            given = [TrainConfig.from_dict(config) for config in request.enqueue]
            trials_to_train["first"] = [each.parameters for each in enqueued(given, study_to_train)]
            if warm_start:
                trials_to_train["first"] += best_of_earlier(warm_start, study_to_train)["configs"]
        elif warm_start or enqueue:
            raise ConfigError(NOT_OF_ABLATIONS.format(study_to_train.name))
        print_result(trials_to_train, as_json, study_view.dry_run_as_text(trials_to_train))
        return
    _print_summary(train_study(study_to_train, request, out or Path("runs") / study_to_train.name), as_json)


def resume_command(
    run: opt.Run,
    budget_hours: opt.BudgetHours = None,
    budget_gpu_hours: opt.BudgetGpuHours = None,
    until: opt.Until = None,
    address: opt.Address = None,
    study: opt.OwnStudies = None,
    plugin: opt.Plugins = None,
    trust: opt.Trust = False,
    as_json: opt.Json = False,
) -> None:
    """Continue the studies of an interrupted or killed run with the settings that it was started with.

    Budgets count what the run has used before; a budget or an address given here replaces the one it was
    started with.
    """
    for request in _requests_of(run, study, trust, address):
        budget = Budget(hours=budget_hours, gpu_hours=budget_gpu_hours, until=until)
        request = replace(
            request,
            budget=request.budget if budget == Budget() else budget,
            address=address or request.address,
        )
        _print_summary(train_study(request.load_study(), request, run), as_json)


def rerun_command(
    run: opt.Run,
    failed: Annotated[bool, typer.Option("--failed", help="Those that failed or diverged.")] = False,
    study: opt.OwnStudies = None,
    plugin: opt.Plugins = None,
    trust: opt.Trust = False,
    as_json: opt.Json = False,
) -> None:
    """Train the failed and diverged trials of a run again, from their start."""
    if not failed:
        raise ConfigError("say which trials shall be trained again: birdtune rerun RUN --failed")
    for request in _requests_of(run, study, trust):
        _print_summary(train_study(request.load_study(), request, run, rerun_failed=True), as_json)


def extend_command(
    run: opt.Run,
    study: opt.OneStudy = None,
    repeats: Annotated[str | None, typer.Option(help="Repeats in all, or +N more; of an ablation.")] = None,
    trials: Annotated[str | None, typer.Option(help="Trials in all, or +N more; of a search.")] = None,
    epochs: Annotated[
        str | None,
        typer.Option(help="Epochs of each trial, or +N more: a study of its own in the same folder."),
    ] = None,
    plugin: opt.Plugins = None,
    trust: opt.Trust = False,
    as_json: opt.Json = False,
) -> None:
    """Add repeats, trials or epochs to a study; what is trained already is kept, and not trained again."""
    from birdnet_core.records.run_folder import RunFolder

    folder = RunFolder.existing(run)
    names = folder.study_names()
    files = own_file(study)
    if study is None and len(names) > 1:
        raise ConfigError(f"{str(run)!r} holds several studies; give --study: {', '.join(names)}")
    name = study_named(folder, study) or names[0]
    if name not in names:
        raise ConfigError(f"no study {name!r} in {str(run)!r}{did_you_mean(name, names)}: {', '.join(names)}")
    there, request = folder.read_study(name), trusted_request(run, name, files=files, trust=trust)
    shorter = None
    if repeats is None and trials is None and epochs is None:
        raise ConfigError("say what to add: --repeats, --trials or --epochs, each as a total or as +N")
    if repeats is not None:
        request = replace(request, repeats=_extended("--repeats", repeats, len(there["repeats"])))
    if trials is not None:
        request = replace(request, trials=_extended("--trials", trials, there["n_trials"] or 0))
    if epochs is not None:
        shorter = there["epochs"]
        n = _extended("--epochs", epochs, shorter)
        request = replace(request, settings={**request.settings, "training.epochs": n}, name=None)
        request = replace(request, name=f"{request.load_study().name}-{n}-epochs")
    _print_summary(train_study(request.load_study(), request, run, shorter=shorter), as_json)


def _extended(option: str, given: str, now: int) -> int:
    """Return the total that ``+N`` or ``N`` asks for; ConfigError where it is not more than `now`."""
    try:
        total = now + int(given) if given.startswith("+") else int(given)
    except ValueError:
        raise ConfigError(f"{option} {given!r} is not a number; give a total such as 5, or +2") from None
    if total <= now:
        raise ConfigError(f"{option} {given} adds nothing: the study has {now}; give a larger total, or +N")
    return total


def _requests_of(
    run: Path, files: list[str] | None, trust: bool, address: str | None = None
) -> list[Request]:
    """Return the request of every study of a run, before any of them runs; see `trusted_request`."""
    from birdnet_core.records.run_folder import RunFolder
    from search_spaces.loading import is_study_file

    for file in files or ():
        if not is_study_file(file):
            raise ConfigError(
                f"--study {file!r} is not a study's file; it takes your copy of one, a .py file"
            )
    names = RunFolder.existing(run).study_names()
    return [trusted_request(run, name, files=files or (), trust=trust, address=address) for name in names]


def own_file(study: str | None) -> list[str]:
    """Return what --study names if that is a file, and not a study by its name."""
    from search_spaces.loading import is_study_file

    return [study] if study is not None and is_study_file(study) else []


def study_named(folder: RunFolder, study: str | None) -> str | None:
    """Return the name of the study that --study gives, by its name or by a copy of its file."""
    if study is None or not own_file(study):
        return study
    text = plugins.source_of(study)
    for name in folder.study_names():
        if (folder.read_study(name).get("request") or {}).get("source") == text:
            return name
    raise ConfigError(
        f"no study of {str(folder.path)!r} was started with the text of {study!r}; give the file as it was, "
        f"or the study by its name: {', '.join(folder.study_names())}"
    )


def trusted_request(
    run: Path,
    study: str,
    *,
    files: Sequence[str] = (),
    trust: bool = False,
    address: str | None = None,
    with_study: bool = True,
) -> Request:
    """Return the request that a study was started with, with its plugins loaded.

    ConfigError where code of the run folder would run without the user's word, see `trust.load_code`; a
    cluster's address counts as such, because who answers there sends what is run here.
    """
    from birdnet_core.records.run_folder import RunFolder
    from tuning.cli.trust import load_code

    folder = RunFolder(run)
    request = Request.of(folder, study)
    if request.address not in (None, "auto") and not (address or trust):
        raise ConfigError(
            f"study {study!r} in {str(run)!r} was started on the Ray cluster at {request.address!r}, "
            "which would send code to this machine: give `birdtune resume` --address ... if the cluster is "
            "yours, or --trust"
        )
    load_code(folder, study, request, files=files, trust=trust, with_study=with_study)
    if note := request.file_note():
        err_console.print(note)
    return request


def train_study(
    study: Study,
    request: Request,
    out: Path,
    *,
    is_kept: bool = True,
    rerun_failed: bool = False,
    shorter: int | None = None,
) -> dict[str, Any]:
    """Train `study` on the data, and with the resources, of `request`, under a live view.

    Returns the summary as plain values. The run folder keeps the request for `resume`, unless another command
    trains the study and continues when it is repeated (`is_kept`).
    """
    import contextlib
    import importlib
    import threading

    from birdnet_core.config import TrainConfig
    from birdnet_core.records.run_folder import RunFolder
    from tuning.engine.cluster import ray_session
    from tuning.views.live import SweepView

    view = SweepView(err_console)
    observers: list[Observer] = [view]
    if request.tensorboard:
        from tuning.views.tensorboard import TensorBoardLog

        observers.append(TensorBoardLog(out / "tensorboard"))

    def observe(event: dict[str, Any]) -> None:
        for observer in observers:
            observer(event)

    with contextlib.ExitStack() as stack:
        stack.enter_context(view.live())
        view.progress("reading recordings", 0, 1)
        manifest = read_recordings(request.data)
        if not request.address and study.name not in RunFolder(out).study_names():
            # Ray takes seconds to start and torch seconds to load: here side by side.
            threading.Thread(
                target=importlib.import_module, args=("tuning.engine.launch",), daemon=True
            ).start()
            stack.enter_context(ray_session(out / "ray.log"))
        from tuning.engine.launch import sweep
        from tuning.engine.preparation import Data

        summary = sweep(
            study,
            Data(
                name=Path(request.data).stem,
                manifest=manifest,
                workers=request.workers,
                progress=view.progress,
            ),
            out,
            base=request.base_config(),
            settings=request.settings,
            resources=request.resources,
            budget=request.budget,
            rerun_failed=rerun_failed,
            shorter=shorter,
            sampler=request.sampler,
            warm_start=request.warm_start,
            first_configs=[TrainConfig.from_dict(config) for config in request.enqueue],
            storage=request.storage,
            address=request.address,
            request=request.to_dict() if is_kept else None,
            command=shlex.join(["birdtune", *sys.argv[1:]]),
            observer=observe,
        )
    return {**asdict(summary), "run": str(out), "seconds": round(summary.seconds, 1)}


def _print_summary(result: dict[str, Any], as_json: bool) -> None:
    """Print how a sweep ended and what to do next; ConfigError when no trial of it completed."""
    from tuning.views.live import clock

    run, halted = result["run"], result["halted"]
    states = ", ".join(f"{n} {status}" for status, n in sorted(result["counts"].items()))
    reused = f" ({result['n_reused']} were there already)" if result["n_reused"] else ""
    stopped = f"stopped early: {halted}\n" if halted else ""
    following = (
        f"{f'birdtune resume {run}    ' if halted else ''}birdtune report {run}    birdtune best {run}"
    )
    print_result(
        result,
        as_json,
        f"{result['study']}: {states}{reused} in {clock(result['seconds'])}\n{stopped}next: {following}",
    )
    if not as_json:
        list_failures(Path(run))
    if not halted and not result["counts"].get("completed"):
        raise ConfigError(f"no trial of {result['study']!r} completed; see the reasons in {run}/trials/")
