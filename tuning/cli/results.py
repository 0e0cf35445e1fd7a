"""`birdtune report`, `best`, `gate` and `train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from birdnet_core.errors import BirdtuneError, ConfigError
from tuning.cli.inputs import read_config, read_recordings
from tuning.cli.options import (
    BudgetGpuHoursOption,
    BudgetHoursOption,
    ConcurrentOption,
    CpusOption,
    DataOption,
    GpusOption,
    JsonOption,
    PluginOption,
    RunArgument,
    SetOption,
    TrustOption,
    local,
    parse_gpus,
    parse_settings,
)
from tuning.cli.output import err_console, in_words, tell, tell_error


def report_command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            callback=local,
            metavar="[RUN...]",
            help="Run folders of `birdtune sweep`.",
        ),
    ] = None,
    imports: Annotated[
        Path | None,
        typer.Option(
            "--import",
            callback=local,
            metavar="DIR",
            help="A folder with histories and test results of earlier work, as JSON.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=local,
            help="The report's folder; RUN/report if left out, needed without a RUN.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write report.html, .md and .json, tables and figures, and print what they come to."""
    from reports import write_report
    from reports.page.sentences import confirmed_choice

    runs = runs or []
    if not runs and imports is None:
        raise ConfigError(
            "nothing to report: give a run folder, a folder of earlier work by --import, or both"
        )
    if not runs and out is None:
        raise ConfigError(
            f"where does the report of {str(imports)!r} go? Without a run folder, give --out DIR"
        )
    folder = out or runs[0] / "report"
    report = write_report(runs, folder, imports=imports)
    page = str(folder / "report.html")
    result: dict[str, Any] = {"report": page, "studies": [s["name"] for s in report["studies"]]}
    lines = [f"on fresh seeds: {confirmed_choice(best)}" for best in report["confirmed"]]
    for study in report["studies"]:
        lines.append(f"{study['name']}: {study['answer']}")
        for warning in study["warnings"]:
            err_console.print(f"warning: {study['name']}: {warning}", style="yellow")
    if earlier := report["earlier_work"]:
        result |= {"imported": sum(row["imported"] for row in earlier["experiments"]),
                   "warnings": earlier["warnings"], "faults": earlier["faults"]}  # fmt: skip
        lines.append(f"{imports}, {result['imported']} imported experiments: {earlier['answer']}")
        for warning in earlier["warnings"]:
            err_console.print(f"warning: {warning}", style="yellow")
        for fault in earlier["faults"]:
            err_console.print(f"not used: {fault['file']}: {fault['fault']}", style="yellow")
    tell(result, as_json, "\n".join([*lines, page]))


def best_command(
    run: Annotated[Path, typer.Argument(callback=local, help="A run folder of `birdtune sweep`.")],
    study: Annotated[
        str | None,
        typer.Option(help="Which study, where the run holds several, or your copy of its Python file."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=local,
            help="The file to write; RUN/best.json if left out.",
        ),
    ] = None,
    rule: Annotated[
        str,
        typer.Option(help="What decides: mean, lower-bound, or one-se, which prefers the smaller network."),
    ] = "mean",
    confirm_seeds: Annotated[
        int | None,
        typer.Option(
            help="Train the best configs again with fresh seeds, so many for the last of a race, and choose "
            "by these alone.",
            metavar="N",
        ),
    ] = None,
    shortlist: Annotated[
        int | None, typer.Option(help="How many configs begin that race; 8 if left out.", metavar="N")
    ] = None,
    plugin: PluginOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Choose the best config by one stated rule; `train` and `sweep --base` read the file."""
    from birdnet_core.records.files import write_json
    from birdnet_core.records.run_folder import RunFolder
    from reports import choose, load
    from tuning.cli.sweeps import own_file, study_named

    if shortlist is not None and confirm_seeds is None:
        raise ConfigError("--shortlist is of the race that --confirm-seeds N asks for; give both, or neither")
    runs = load([run])
    files, study = own_file(study), study_named(RunFolder(run), study)
    if confirm_seeds is None:
        best = choose(runs, study, rule)
    else:
        from tuning.cli.confirm import confirm

        n = 8 if shortlist is None else shortlist
        best = confirm(run, runs, study, rule, n_seeds=confirm_seeds, n=n, files=files, trust=trust)
    file = out or run / "best.json"
    write_json(file, best)
    for note in dict.fromkeys(n for s in runs.studies if study in (None, s["name"]) for n in s["load_notes"]):
        err_console.print(f"note: {note}", style="yellow")
    interval = "" if best["low"] is None else f" [{best['low']:.4f}, {best['high']:.4f}]"
    here = (best["study"], best["run"])
    asked = next(s.get("request") for s in runs.studies if (s["name"], s["run"]) == here) or {}
    following = ["birdtune", "train", str(file), "--data", asked.get("data", "..."), "--seeds", "5"]
    tell(
        best,
        as_json,
        f"{in_words(best['factors'])}\n"
        f"{best['metric']} {best['mean']:.4f}{interval}, n = {best['n']}\n"
        f"rule: {best['rule']}\n"
        f"{best['how_sure']}\n"
        f"{file}\n"
        f"next: {shlex.join(following)} --out model/",
    )


def gate_command(
    run: RunArgument,
    study: Annotated[str | None, typer.Option(help="Which study, where the run holds several.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell whether a study reached what it set out to: exit code 0 for GO, 1 INVESTIGATE, 2 NO-GO.

    Of several studies the worst decides. 3 is for what cannot be told: no such run, no gates.
    """
    from reports import load
    from reports.selection.gates import DECISIONS, verdicts

    try:
        found = verdicts(load([run]), study)
    except BirdtuneError as error:
        tell_error(error)
        raise typer.Exit(3) from None
    lines = []
    for verdict in found:
        lines.append(f"{verdict['study']}: {verdict['decision']}")
        for gate in verdict["gates"]:
            shown = "no value" if gate["value"] is None else f"{gate['value']:.4f}"
            if gate["low"] is not None:
                shown += f" [{gate['low']:.4f}, {gate['high']:.4f}]"
            note = f"; {gate['note']}" if gate["note"] else ""
            lines.append(f"  {gate['status']:7}  {gate['criterion']}: {shown}, n = {gate['n']}{note}")
    tell({"studies": found}, as_json, "\n".join(lines))
    raise typer.Exit(max(DECISIONS.index(verdict["decision"]) for verdict in found))


def train_command(
    config: Annotated[
        Path | None,
        typer.Argument(
            callback=local,
            help="best.json, a trial's record, or a config as JSON; defaults if left out.",
        ),
    ] = None,
    data: DataOption = "synthetic",
    out: Annotated[Path, typer.Option(callback=local, help="The model's folder.")] = Path("model"),
    preset: Annotated[
        str | None, typer.Option(help="Instead of a file: a config of `birdtune list presets`.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the config's seed.")] = None,
    settings: SetOption = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Final training: so many seeds become one model, an ensemble.")
    ] = None,
    keep_val: Annotated[
        bool,
        typer.Option("--keep-val", help="With --seeds: never learn the validation split; keep best epochs."),
    ] = False,
    cpus_per_trial: CpusOption = 1,
    gpus_per_trial: GpusOption = None,
    concurrent: ConcurrentOption = None,
    budget_hours: BudgetHoursOption = None,
    budget_gpu_hours: BudgetGpuHoursOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model: one config alone, or with --seeds the ensemble that a sweep's best config becomes.

    Alone, it runs without Ray and has the same numbers as its trial in a sweep. With --seeds, each is trained
    twice, side by side: in the training split, which says for how many epochs, and then on training and
    validation together; budgets and --gpus-per-trial are those of `sweep`. When interrupted, the same command
    goes on after the last finished epoch.
    """
    if config and preset:
        raise ConfigError(f"give a config file or --preset, not both: {str(config)!r} and {preset!r} came")
    start_from = preset or (str(config) if config else None)
    engine = {
        "--keep-val": keep_val or None,
        "--cpus-per-trial": None if cpus_per_trial == 1 else cpus_per_trial,
        "--gpus-per-trial": gpus_per_trial,
        "--concurrent": concurrent,
        "--budget-hours": budget_hours,
        "--budget-gpu-hours": budget_gpu_hours,
    }
    if seeds is None and (given := [name for name, value in engine.items() if value is not None]):
        raise ConfigError(
            f"{', '.join(given)} is for final training: give --seeds N with it, or leave it out"
        )
    if seeds is not None:
        from tuning.cli.final import train_and_tell

        train_and_tell(
            start_from,
            data,
            out,
            changes={**parse_settings(settings), **({} if seed is None else {"seed": seed})},
            n_seeds=seeds,
            keep_val=keep_val,
            cpus=cpus_per_trial,
            gpus=parse_gpus(gpus_per_trial),
            concurrent=concurrent,
            budget_hours=budget_hours,
            budget_gpu_hours=budget_gpu_hours,
            as_json=as_json,
        )
        return
    result = _train(start_from, data, out, seed=seed, settings=settings, quiet=as_json)
    tell(
        result,
        as_json,
        f"best epoch {result['best_epoch']} of {result['epochs']}: "
        + ", ".join(f"{k} {v:.4f}" for k, v in result["metrics"].items() if k.startswith("val/f1"))
        + f"\n{out}",
    )


def _train(
    start_from: str | None,
    data: str,
    out: Path,
    *,
    seed: int | None = None,
    settings: list[str] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    from birdnet_core.config import TrainConfig
    from birdnet_core.data.dataset import Dataset, prepare
    from birdnet_core.training.run import save_model, train
    from reports.model.card import write_card
    from tuning.views.live import StageBars

    chosen = read_config(start_from) if start_from else TrainConfig()
    chosen = chosen.override({**parse_settings(settings), **({} if seed is None else {"seed": seed})})
    bars = StageBars(err_console)
    with bars.shown():
        dataset = Dataset.open(prepare(read_recordings(data), chosen, progress=bars))
    shown = dict.fromkeys(("train/loss", "val/loss", chosen.training.monitor))

    def show(epoch: int, metrics: dict[str, float]) -> None:
        if not quiet:
            scores = [f"{name} {metrics[name]:.4f}" for name in shown if name in metrics]
            err_console.print(
                f"epoch {epoch:3d}/{chosen.training.most_epochs}  {'  '.join(scores)}  "
                f"{metrics['epoch_s']:.1f} s"
            )

    checkpoint = out / "session.pt"
    if checkpoint.exists() and not quiet:
        err_console.print(f"going on from {checkpoint}")
    session = train(chosen, dataset, on_epoch=show, checkpoint=checkpoint)
    save_model(session, out)
    checkpoint.unlink(missing_ok=True)
    write_card(out)
    record = session.record("completed")
    kept = ("trial_id", "config_id", "seed", "epochs", "best_epoch", "metrics", "n_params", "seconds")
    return {"model": str(out), **{k: getattr(record, k) for k in kept}}
