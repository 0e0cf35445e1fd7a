"""`birdtune sweep`, `resume`, `rerun` and `extend`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from birdnet_core import plugins
from birdnet_core.errors import ConfigError, RunFolderError, did_you_mean
from tuning.cli.inputs import find_study, read_config, read_recordings
from tuning.cli.options import (
    AddressOption,
    BaseOption,
    BudgetGpuHoursOption,
    BudgetHoursOption,
    ConcurrentOption,
    CpusOption,
    DataOption,
    GpusOption,
    JsonOption,
    OwnStudiesOption,
    PluginOption,
    QuickOption,
    RunArgument,
    SchedulerOption,
    SeedsOption,
    SetOption,
    StudyArgument,
    StudyOption,
    TrialsOption,
    TrustOption,
    UntilOption,
    local,
    parse_gpus,
    parse_options,
    parse_settings,
)
from tuning.cli.output import err_console, list_failures, out_console, tell

if TYPE_CHECKING:
    from birdnet_core.records.run_folder import RunFolder
    from search_spaces.study import Study
    from tuning.engine.journal import Observer


def sweep_command(
    study: StudyArgument,
    data: DataOption = "synthetic",
    out: Annotated[
        Path | None, typer.Option(callback=local, help="The run folder; runs/STUDY if left out.")
    ] = None,
    base: BaseOption = None,
    settings: SetOption = None,
    options: StudyOption = None,
    seeds: SeedsOption = None,
    trials: TrialsOption = None,
    quick: QuickOption = False,
    cpus_per_trial: CpusOption = 1,
    gpus_per_trial: GpusOption = None,
    concurrent: ConcurrentOption = None,
    address: AddressOption = None,
    workers: Annotated[int | None, typer.Option(help="Processes that prepare data.")] = None,
    sampler: Annotated[
        str, typer.Option(help="Of a search: tpe, random, gp, cmaes or nsga2.", metavar="NAME")
    ] = "tpe",
    scheduler: SchedulerOption = None,
    storage: Annotated[
        str,
        typer.Option(
            help="Of a search's Optuna study: journal, sqlite, a database's URL, or env, which "
            "reads the URL from BIRDTUNE_STORAGE."
        ),
    ] = "journal",
    budget_hours: BudgetHoursOption = None,
    budget_gpu_hours: BudgetGpuHoursOption = None,
    until: UntilOption = None,
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
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the trials of a study; what the run folder holds already is not trained again.

    Ctrl-C once finishes the epochs in progress and stops; twice stops at once. `birdtune resume` goes on.
    """
    from search_spaces.loading import is_study_file, read_source

    is_file = is_study_file(study)
    request = {
        "study": str(Path(study).absolute()) if is_file else study,
        "source": read_source(study) if is_file else None,
        "data": data if data == "synthetic" else str(Path(data).absolute()),
        "base": read_config(base).to_dict() if base else None,
        "settings": parse_settings(settings),
        "options": parse_options(options),
        "seeds": seeds,
        "trials": trials,
        "quick": quick,
        "cpus": cpus_per_trial,
        "gpus": parse_gpus(gpus_per_trial),
        "concurrent": concurrent,
        "address": address,
        "workers": workers,
        "sampler": sampler,
        "scheduler": scheduler,
        "storage": storage,
        "budget": {"hours": budget_hours, "gpu_hours": budget_gpu_hours, "until": until},
        "trial_timeout": trial_timeout,
        "restarts": restarts,
        "keep_checkpoints": keep_checkpoints,
        "tensorboard": tensorboard,
        "plugins": [each.to_dict() for each in plugins.loaded() if each.kind in ("module", "file")],
    }
    if dry_run:
        _tell_dry_run(request, as_json)
        return
    _tell_sweep(_sweep(request, out or Path("runs") / asked_study(request).name), as_json)


def resume_command(
    run: RunArgument,
    budget_hours: BudgetHoursOption = None,
    budget_gpu_hours: BudgetGpuHoursOption = None,
    until: UntilOption = None,
    address: AddressOption = None,
    study: OwnStudiesOption = None,
    plugin: PluginOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with the studies of a run that was interrupted or killed, as they were asked for.

    Budgets count what the run has used before; a budget or an address given here replaces the one it was
    started with.
    """
    for request in _requests_of(run, study, trust, address):
        given = {"hours": budget_hours, "gpu_hours": budget_gpu_hours, "until": until}
        if any(value is not None for value in given.values()):
            request["budget"] = given
        if address:
            request["address"] = address
        _tell_sweep(_sweep(request, run), as_json)


def rerun_command(
    run: RunArgument,
    failed: Annotated[bool, typer.Option("--failed", help="Those that failed or diverged.")] = False,
    study: OwnStudiesOption = None,
    plugin: PluginOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the failed and diverged trials of a run again, from their start."""
    if not failed:
        raise ConfigError("say which trials shall be trained again: birdtune rerun RUN --failed")
    for request in _requests_of(run, study, trust):
        _tell_sweep(_sweep(request, run, rerun_failed=True), as_json)


def extend_command(
    run: RunArgument,
    study: Annotated[
        str | None,
        typer.Option(help="Which study, where the run holds several, or your copy of its Python file."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds in all, or +N more; of an ablation.")] = None,
    trials: Annotated[str | None, typer.Option(help="Trials in all, or +N more; of a search.")] = None,
    epochs: Annotated[
        str | None,
        typer.Option(help="Epochs of each trial, or +N more: a study of its own in the same folder."),
    ] = None,
    plugin: PluginOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add seeds, trials or epochs to a study; what is trained already is kept, and not trained again."""
    from birdnet_core.records.run_folder import RunFolder

    folder = RunFolder.existing(run)
    names = folder.study_names()
    files = own_file(study)
    if study is None and len(names) > 1:
        raise ConfigError(f"{str(run)!r} holds several studies; give --study: {', '.join(names)}")
    name = study_named(folder, study) or names[0]
    if name not in names:
        raise ConfigError(f"no study {name!r} in {str(run)!r}{did_you_mean(name, names)}: {', '.join(names)}")
    there, request = folder.read_study(name), request_of(run, name, files=files, trust=trust)
    shorter = None
    if seeds is None and trials is None and epochs is None:
        raise ConfigError("say what to add: --seeds, --trials or --epochs, each as a total or as +N")
    if seeds is not None:
        request["seeds"] = _extended("--seeds", seeds, len(there["seeds"]))
    if trials is not None:
        request["trials"] = _extended("--trials", trials, there["n_trials"] or 0)
    if epochs is not None:
        shorter = there["epochs"]
        n = _extended("--epochs", epochs, shorter)
        request["settings"] = {**request["settings"], "training.epochs": n}
        request.pop("name", None)
        request["name"] = f"{asked_study(request).name}-{n}-epochs"
    _tell_sweep(_sweep(request, run, shorter=shorter), as_json)


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
) -> list[dict[str, Any]]:
    """Return the request of every study of a run, before any of them runs; see `request_of`."""
    from birdnet_core.records.run_folder import RunFolder
    from search_spaces.loading import is_study_file

    for file in files or ():
        if not is_study_file(file):
            raise ConfigError(
                f"--study {file!r} is not a study's file; it takes your copy of one, a .py file"
            )
    names = RunFolder.existing(run).study_names()
    return [request_of(run, name, files=files or (), trust=trust, address=address) for name in names]


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


def request_of(
    run: Path,
    study: str,
    *,
    files: Sequence[str] = (),
    trust: bool = False,
    address: str | None = None,
    with_study: bool = True,
) -> dict[str, Any]:
    """Return what the command line asked for when a study was started, with its plugins loaded.

    ConfigError where code of the run folder would run without the user's word, see `trust.load_code`; a
    cluster's address counts as such, because who answers there sends what is run here.
    """
    from birdnet_core.records.run_folder import RunFolder
    from tuning.cli.trust import checked_request, load_code

    folder = RunFolder(run)
    request = checked_request(folder, study)
    if request is None:
        command = (folder.read_study(study).get("provenance") or {}).get("command")
        again = f"repeat `{command}`" if command else "call sweep() again with its arguments"
        raise RunFolderError(
            f"study {study!r} in {str(run)!r} was not started by `birdtune sweep`; {again}, which goes on"
        )
    if request["address"] not in (None, "auto") and not (address or trust):
        raise ConfigError(
            f"study {study!r} in {str(run)!r} was started on the Ray cluster at {request['address']!r}, "
            f"which would send code to this machine: give `birdtune resume` --address ... if "
            "the cluster is yours, or --trust"
        )
    load_code(folder, study, request, files=files, trust=trust, with_study=with_study)
    _tell_changed(request)
    return request


def _sweep(
    request: dict[str, Any], out: Path, *, rerun_failed: bool = False, shorter: int | None = None
) -> dict[str, Any]:
    """Run the sweep that `request` asks for, and keep it in the run folder: it is all that `resume` needs."""
    return train_study(
        asked_study(request), request, out, kept=request, rerun_failed=rerun_failed, shorter=shorter
    )


def train_study(
    study: Study,
    request: dict[str, Any],
    out: Path,
    *,
    kept: dict[str, Any] | None = None,
    rerun_failed: bool = False,
    shorter: int | None = None,
) -> dict[str, Any]:
    """Train `study` on the data, and with the means, of `request`, under a live view.

    Returns the summary as plain values. `kept` is what the run folder keeps for `resume`; None where another
    verb asks, and goes on when it is repeated.
    """
    import contextlib
    import importlib
    import threading

    from birdnet_core.records.run_folder import RunFolder
    from tuning.engine.cluster import ray_session
    from tuning.engine.halt import Budget
    from tuning.views.live import SweepView

    budget = Budget(**request.get("budget", {}))
    view = SweepView(err_console)
    observers: list[Observer] = [view]
    if request.get("tensorboard"):
        from tuning.views.tensorboard import TensorBoardLog

        observers.append(TensorBoardLog(out / "tensorboard"))

    def observe(event: dict[str, Any]) -> None:
        for observer in observers:
            observer(event)

    with contextlib.ExitStack() as stack:
        stack.enter_context(view.shown())
        view.progress("reading recordings", 0, 1)
        manifest = read_recordings(request["data"])
        if not request.get("address") and study.name not in RunFolder(out).study_names():
            # Ray takes seconds to start and torch seconds to load: here side by side.
            threading.Thread(
                target=importlib.import_module, args=("tuning.engine.launch",), daemon=True
            ).start()
            stack.enter_context(ray_session(out / "ray.log"))
        from birdnet_core.config import TrainConfig
        from tuning.engine.launch import Resources, sweep
        from tuning.engine.preparation import Data

        data = Data(
            name=Path(request["data"]).stem,
            manifest=manifest,
            workers=request["workers"],
            progress=view.progress,
        )
        summary = sweep(
            study,
            data,
            out,
            base=TrainConfig.from_dict(request["base"] or {}),
            settings=request["settings"],
            n_seeds=request["seeds"],
            n_trials=request["trials"],
            resources=Resources(
                cpus=request["cpus"],
                gpus=request["gpus"],
                concurrent=request["concurrent"],
                restarts=request.get("restarts", 3),
                timeout_s=request.get("trial_timeout"),
                checkpoints=request.get("keep_checkpoints", 0),
            ),
            budget=budget,
            rerun_failed=rerun_failed,
            shorter=shorter,
            sampler=request.get("sampler", "tpe"),
            storage=request.get("storage", "journal"),
            address=request.get("address"),
            request=kept,
            command=shlex.join(["birdtune", *sys.argv[1:]]),
            observer=observe,
        )
    return {
        "study": study.name,
        "run": str(out),
        "counts": summary.counts,
        "halted": summary.halted,
        "n_reused": summary.n_reused,
        "seconds": round(summary.seconds, 1),
    }


def asked_study(request: dict[str, Any]) -> Study:
    """Return the study that `request` asks for: of a file, as it was when the run was started."""
    from dataclasses import replace

    study = find_study(
        request["study"],
        quick=request["quick"],
        options=request.get("options", {}),
        seeds=request["seeds"],
        trials=request["trials"],
        scheduler=request.get("scheduler"),
        source=request.get("source"),
    )
    return replace(study, name=request.get("name", study.name))


def _tell_dry_run(request: dict[str, Any], as_json: bool) -> None:
    """Print the trials that a sweep would train."""
    from birdnet_core.config import TrainConfig
    from tuning.views.study_view import dry_run, dry_run_as_text

    result = dry_run(
        asked_study(request),
        TrainConfig.from_dict(request["base"] or {}),
        request["settings"],
        n_seeds=request["seeds"],
        n_trials=request["trials"],
    )
    if as_json:
        tell(result, True, "")
    else:
        out_console.print(dry_run_as_text(result))


def _tell_changed(request: dict[str, Any]) -> None:
    """Say so where the file of a study is no longer what the run was started with."""
    file, source = Path(request["study"]), request.get("source")
    if source is None:
        return
    if not file.is_file():
        state = "is gone"
    elif file.read_text(encoding="utf-8-sig", errors="replace") != source:
        state = "has changed since this run was started"
    else:
        return
    err_console.print(f"{file} {state}: the run goes on with what it was then, which its folder keeps")


def _tell_sweep(result: dict[str, Any], as_json: bool) -> None:
    """Print how a sweep ended and what to do next; ConfigError when no trial of it completed."""
    run = result["run"]
    goes_on = f"birdtune resume {run}    " if result["halted"] else ""
    stopped = f"stopped early: {result['halted']}\n" if result["halted"] else ""
    following = f"next: {goes_on}birdtune report {run}    birdtune best {run}"
    tell(result, as_json, f"{_sweep_line(result)}\n{stopped}{following}")
    if not as_json:
        list_failures(Path(run))
    if result["halted"]:
        return
    if not result["counts"].get("completed"):
        raise ConfigError(f"no trial of {result['study']!r} completed; the reasons stand in {run}/trials/")


def _sweep_line(result: dict[str, Any]) -> str:
    from tuning.views.live import clock

    states = ", ".join(f"{n} {status}" for status, n in sorted(result["counts"].items()))
    reused = f" ({result['n_reused']} were there already)" if result["n_reused"] else ""
    return f"{result['study']}: {states}{reused} in {clock(result['seconds'])}"
