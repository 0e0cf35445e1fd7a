"""The command `birdtune`. Only this file prints; each verb imports what it needs when it is called."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from birdnet_core.errors import BirdtuneError, ConfigError, DataError, RunFolderError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from birdnet_core.config import DataConfig, TrainConfig
    from search_spaces.study import Study
    from tuning.journal import Observer
    from tuning.live import StageBars
    from tuning.planning import Plan

app = typer.Typer(
    help="Honest sweeps and ablations for bird-sound classifiers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
data_app = typer.Typer(help="Recordings: list them, prepare them, look at them.", no_args_is_help=True)
app.add_typer(data_app, name="data")
study_app = typer.Typer(help="Studies: look at them, and write your own.", no_args_is_help=True)
app.add_typer(study_app, name="study")

# No markup: names come from the data.
out_console = Console(highlight=False, soft_wrap=True, markup=False)
err_console = Console(stderr=True, highlight=False, markup=False)

StudyArgument = Annotated[
    str, typer.Argument(help="A study of `birdtune list studies`, or your own .yaml or .py file.")
]
DataOption = Annotated[
    str,
    typer.Option("--data", help="A manifest CSV, a folder per species, or 'synthetic'.", metavar="CSV|DIR"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, as in --set optim.lr=3e-4; repeatable.", metavar="KEY=VALUE"),
]
StudyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        help="An option of the study, as in --option ast=checkpoints/ast; repeatable. `birdtune list "
        "studies` names them.",
        metavar="KEY=VALUE",
    ),
]
RunArgument = Annotated[Path, typer.Argument(help="A run folder of `birdtune sweep`.", metavar="RUN")]
BudgetHoursOption = Annotated[
    float | None, typer.Option(help="Stop when drivers of this run have run for so long.")
]
BudgetGpuHoursOption = Annotated[
    float | None, typer.Option(help="Stop when this run has used so many GPU-hours of training.")
]
UntilOption = Annotated[
    str | None, typer.Option(help="Stop when an epoch is so good.", metavar="METRIC>=VALUE")
]
GpusOption = Annotated[
    str | None,
    typer.Option(
        help="GPUs of a trial; fractions share one, 'auto' as many as its memory holds.", metavar="N|auto"
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(help="A Ray cluster; auto is the one that this machine is in.", metavar="HOST:PORT|auto"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="The study's small size, to try it out.")]


def main() -> None:
    """Run the command line; an expected error is one clear message and exit code 1."""
    try:
        app()
    except BirdtuneError as error:
        lines = str(error).split("\n")
        err_console.print("error:", style="bold red", end=" ")
        err_console.print("\n       ".join(lines), soft_wrap=True)
        sys.exit(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        err_console.print(f"error: {error.strerror or error}{where}", style="bold red", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        err_console.print("interrupted; what is finished is kept: the same command goes on from there")
        sys.exit(130)


# ---------------------------------------------------------------------------------------------- data


@data_app.command("index")
def data_index(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder per species, a CSV, or metadata of BirdCLEF or xeno-canto (CSV, JSON)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The manifest to write.")] = Path("clips.csv"),
    path_column: Annotated[str, typer.Option(help="The CSV's column of audio paths.")] = "path",
    species_column: Annotated[str, typer.Option(help="The CSV's column of species.")] = "species",
    audio: Annotated[
        Path | None, typer.Option(help="The folder of the audio, if it is not beside the metadata.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a manifest of recordings from a folder, a CSV, or metadata of BirdCLEF or xeno-canto."""
    from birdnet_core.data.manifest import write_manifest
    from birdnet_core.data.readers import read_collection

    found = read_collection(source, path_column=path_column, species_column=species_column, audio=audio)
    frame = found.manifest
    write_manifest(frame, out)
    result = {
        "manifest": str(out),
        "kind": found.kind,
        "n_recordings": len(frame),
        "n_species": int(frame["species"].nunique()),
        "n_absent": len(found.absent),
        "absent": list(found.absent),
        "notes": list(found.notes),
    }
    if not as_json:
        if found.absent:
            named = ", ".join(found.absent[:5]) + (", ..." if len(found.absent) > 5 else "")
            err_console.print(
                f"{len(found.absent)} of {len(found.absent) + len(frame)} recordings in the metadata have no "
                f"audio on disk and are left out: {named}",
                style="yellow",
                soft_wrap=True,
            )
        for note in found.notes:
            err_console.print(note, style="yellow", soft_wrap=True)
    _print(
        result,
        as_json,
        f"read {source} as {found.kind}\n"
        f"{result['n_recordings']} recordings of {result['n_species']} species in {out}\n"
        f"next: birdtune data describe {out}",
    )


@data_app.command("prepare")
def data_prepare(
    source: Annotated[str, typer.Argument(metavar="CSV|DIR", help="A manifest, or 'synthetic'.")],
    settings: SetOption = None,
    workers: Annotated[int | None, typer.Option(help="Processes; all CPUs if left out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Decode recordings and compute features, once; bad files are listed and left out."""
    import time

    from birdnet_core.data.building import start_workers
    from tuning.live import StageBars

    start = time.perf_counter()
    if workers is None or workers > 1:
        start_workers()
    bars = StageBars(err_console)
    _, facts, folder = _prepared(source, settings, workers, bars)
    seconds = time.perf_counter() - start
    result = {
        "dataset": str(folder),
        "seconds": round(seconds, 2),
        "done": {stage: {"n": n, "per_s": rate} for stage, (n, rate) in bars.work.items()},
        **{k: facts[k] for k in ("n_recordings", "n_clips", "n_species", "n_skipped", "skipped", "data_id")},
    }
    _print(
        result,
        as_json,
        f"{facts['n_recordings']} recordings, {facts['n_clips']} clips, {facts['n_species']} species, ready "
        f"in {seconds:.1f} s\n{bars.summary()}",
    )
    if not as_json:
        _list_skipped(facts["skipped"])


@data_app.command("describe")
def data_describe(
    source: Annotated[str, typer.Argument(metavar="CSV|DIR", help="A manifest, or 'synthetic'.")],
    settings: SetOption = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Also draw counts per species and example spectrograms: a folder, or the first of the files."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print counts, imbalance, durations, and the split with the proof of what stands on two sides or not."""
    from birdnet_core.data.dataset import proof_of_split
    from birdnet_core.data.splits import RARE_RULE

    manifest, facts, folder = _prepared(source, settings, None)
    proof = proof_of_split(manifest, folder)
    counts = manifest["species"].value_counts()
    plots = _draw_collection(manifest, facts, folder, settings, plot) if plot else []
    if as_json:
        result = {**facts, "proof": proof, "counts": counts.to_dict(), "plots": [str(file) for file in plots]}
        _print(result, True, "")
        return
    d = facts["durations"]
    p = out_console.print
    p(f"{facts['n_recordings']} recordings of {facts['n_species']} species, {d['total_h']:.2f} h")
    p(f"durations      {d['min_s']:.1f} to {d['max_s']:.1f} s, median {d['median_s']:.1f} s")
    rates = ", ".join(f"{n} at {int(rate):,} Hz" for rate, n in facts["sample_rates"].items())
    p(f"sample rates   {rates}")
    p(
        f"imbalance      {counts.max()} recordings of {counts.index[0]}, {counts.min()} of "
        f"{counts.index[-1]} ({counts.max() / counts.min():.0f} : 1)"
    )
    sizes = ", ".join(f"{len(members)} {name}" for name, members in facts["strata"].items())
    p(f"strata         {sizes} species, by training {facts['scored']}")
    sides = ", ".join(f"{facts[f'n_{side}']} {side}" for side in ("train", "val", "test"))
    p(f"split          {sides} {facts['scored']}")
    p(f"rule           {RARE_RULE}")
    for column, found in proof.items():
        crossed = found["crossing"]
        few = ", ".join(crossed[:5]) + (", ..." if len(crossed) > 5 else "")
        verdict = f"NOT separated: {len(crossed)} on several sides: {few}" if crossed else "none on two sides"
        p(f"proof          {found['n']} {column}s, {verdict}")
    for note in facts["notes"]:
        p(f"note           {note}")
    copies = facts["duplicates"]
    p(f"duplicates     {len(copies) or 'no'} recordings in several files of the same content")
    for same in copies:
        where = f"{', '.join(same['species'])} in {', '.join(same['sides'])}"
        p(f"               {where}: {', '.join(same['paths'])}")
    table = Table("species", "recordings", "train", box=None, padding=(0, 2))
    for species, n in counts.items():
        table.add_row(str(species), str(n), str(facts["train_counts"].get(species, 0)))
    p(table)
    _list_skipped(facts["skipped"])
    for file in plots:
        p(f"plot           {file}")


def _draw_collection(
    manifest: pd.DataFrame, facts: dict[str, Any], folder: Path, settings: list[str] | None, plot: Path
) -> list[Path]:
    """Write the figures of `data describe` as PNG and SVG; return the PNG files."""
    from birdnet_core.config import TrainConfig
    from birdnet_core.data.dataset import scored_rows
    from reports.data_plots import counts_figure, species_counts, spectrograms_figure
    from reports.plots import save

    counts_stem = plot.with_suffix("") if plot.suffix.lower() in (".png", ".svg") else plot / "species"
    config = TrainConfig().override(parse_settings(settings)).data
    scored = scored_rows(manifest, folder)
    save(counts_figure(species_counts(scored), of=facts["scored"]), counts_stem)
    examples = []
    for name, species in facts["strata"].items():
        if not species:
            continue
        # By training recordings: the commonest of the common, the rarest of the rare, one in the middle.
        ranked = sorted(species, key=lambda s: facts["train_counts"][s])
        chosen = ranked[{"rare": 0, "medium": len(ranked) // 2, "common": -1}[name]]
        mine = scored[scored["species"] == chosen]
        n = mine["path"].nunique()
        title = f"{chosen}\n{name}, {n} recording{'s' if n > 1 else ''}"
        shown = mine[mine["side"] == "train"]  # nobody looks at the test side
        examples.append((title, _spectrogram(shown["path"].iloc[0], config)))
    examples.reverse()
    spectrograms_stem = counts_stem.with_name(f"{counts_stem.name}_spectrograms")
    figure = spectrograms_figure(examples, seconds=config.window_s, sample_rate=config.sample_rate)
    save(figure, spectrograms_stem)
    return [stem.with_name(f"{stem.name}.png") for stem in (counts_stem, spectrograms_stem)]


def _spectrogram(path: str, config: DataConfig) -> Any:
    """Return the most active window of a recording as [frequencies, frames] in dB below its loudest point."""
    import torch

    from birdnet_core.data.audio import decode
    from birdnet_core.data.clip_store import active_windows
    from birdnet_core.features.log_mel import power_to_db

    samples, sample_rate = decode(path)
    _, windows = active_windows(samples, sample_rate, config)
    window = torch.from_numpy(windows[0])
    spectrum = torch.stft(window, 1024, 256, window=torch.hann_window(1024), return_complex=True)
    return power_to_db(spectrum.abs().square()[None])[0].numpy()


# ---------------------------------------------------------------------------------------------- list


KINDS = ("models", "losses", "features", "augmentations", "presets", "studies", "metrics")


@app.command("list")
def list_names(
    kind: Annotated[str, typer.Argument(help=" | ".join(KINDS), metavar="KIND")],
    as_json: JsonOption = False,
) -> None:
    """List what can be named in a config, with options and defaults."""
    from birdnet_core import registry
    from birdnet_core.presets import PRESETS
    from birdnet_core.records import METRICS

    if kind not in KINDS:
        raise ConfigError(f"cannot list {kind!r}{did_you_mean(kind, KINDS)}; known: {', '.join(KINDS)}")
    if kind == "metrics":
        rows: list[dict[str, Any]] = [
            {"name": name, "direction": direction, "summary": summary}
            for name, (direction, summary) in METRICS.items()
        ]
    elif kind == "presets":
        rows = [
            {"name": name, "summary": preset.summary, "settings": preset.overrides}
            for name, preset in PRESETS.items()
        ]
    elif kind == "studies":
        rows = [_study_row(name) for name in registry.studies.names()]
    else:
        entries: registry.Registry = getattr(registry, kind)
        rows = [
            {"name": name, "summary": entries[name].summary, "options": entries[name].defaults()}
            for name in entries.names()
        ]
        if kind == "models":
            for row in rows:
                row["n_params"] = _n_params(row["name"])
    if as_json:
        _print({kind: rows}, True, "")
        return
    if kind == "studies":
        for row in rows:
            out_console.print(_study_text(row))
        return
    table = Table(*rows[0], box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(highlight=False, markup=False).print(table)


def _study_row(name: str) -> dict[str, Any]:
    from birdnet_core import registry
    from birdnet_core.config import TrainConfig
    from search_spaces.study import Ablation, base_config, load_study

    study = load_study(name)
    kind = "ablation" if isinstance(study, Ablation) else "search"
    if isinstance(study, Ablation):
        trials = f"{len(study.cells())} cells x {study.n_seeds} seeds"
    else:
        trials = f"{study.n_trials} trials"
    return {
        "name": name,
        "question": study.question,
        "kind": kind,
        "trials": trials,
        "epochs": base_config(study, TrainConfig()).training.epochs,
        "metric": study.metric,
        "options": registry.studies[name].defaults(),
    }


def _study_text(row: dict[str, Any]) -> str:
    # As a table, the question would leave no room for the rest on a terminal of 80 columns.
    size = f"{row['kind']}, {row['trials']}, {row['epochs']} epochs, {row['metric']}"
    options = f"; options {', '.join(row['options'])}" if row["options"] else ""
    return f"{row['name']}\n    {row['question']}\n    {size}{options}"


def _n_params(name: str) -> int:
    """Count a model's parameters at 3 x 40 x 130 and 89 classes."""
    from birdnet_core.build import rehearse
    from birdnet_core.config import TrainConfig

    return rehearse(TrainConfig().override({"model.name": name}), (3, 40, 130), 89)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


# --------------------------------------------------------------------------------------------- study


@study_app.command("show")
def study_show(
    study: StudyArgument,
    options: StudyOption = None,
    quick: QuickOption = False,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print it as a file to start your own from.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print what a study varies: the cells of an ablation, the space of a search."""
    from search_spaces.files.study_plain import to_yaml
    from tuning.study_view import design_as_text, design_of

    asked = _study(study, quick=quick, options=parse_options(options))
    if as_yaml:
        print(to_yaml(asked), end="")
    elif as_json:
        _print(design_of(asked), True, "")
    else:
        out_console.print(design_as_text(design_of(asked)))


@study_app.command("schema")
def study_schema_command() -> None:
    """Print the JSON Schema of study files in YAML; editors complete and check from it."""
    from search_spaces.files.schema import study_schema

    _print(study_schema(), True, "")


# --------------------------------------------------------------------------------------------- sweep


@app.command("sweep")
def sweep_command(
    study: StudyArgument,
    data: DataOption = "synthetic",
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/STUDY if left out.")] = None,
    base: Annotated[
        str | None, typer.Option(help="What to start from: a config file, such as best.json, or a preset.")
    ] = None,
    settings: SetOption = None,
    options: StudyOption = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of every cell of an ablation.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of a search.")] = None,
    quick: QuickOption = False,
    cpus_per_trial: Annotated[int, typer.Option(min=1, help="CPUs and torch threads of a trial.")] = 1,
    gpus_per_trial: GpusOption = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="The most trials side by side.")] = None,
    address: AddressOption = None,
    workers: Annotated[int | None, typer.Option(help="Processes that prepare data.")] = None,
    sampler: Annotated[
        str, typer.Option(help="Of a search: tpe, random, gp, cmaes or nsga2.", metavar="NAME")
    ] = "tpe",
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="What ends trials of a search early, else the study's: asha, hyperband, median or fifo.",
            metavar="NAME",
        ),
    ] = None,
    storage: Annotated[
        str,
        typer.Option(
            help="Of a search's Optuna study: sqlite, journal, a database's URL, or env, which "
            "reads the URL from BIRDTUNE_STORAGE."
        ),
    ] = "sqlite",
    budget_hours: BudgetHoursOption = None,
    budget_gpu_hours: BudgetGpuHoursOption = None,
    until: UntilOption = None,
    trial_timeout: Annotated[
        float | None, typer.Option(help="Seconds an epoch may take; a trial that hangs longer has failed.")
    ] = None,
    keep_checkpoints: Annotated[
        int, typer.Option(min=0, help="Completed trials, the best, that keep a checkpoint for `extend`.")
    ] = 0,
    tensorboard: Annotated[
        bool, typer.Option(help="Also write TensorBoard logs, to RUN/tensorboard.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the trials that this would train, and do nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train the trials of a study; what the run folder holds already is not trained again.

    Ctrl-C once finishes the epochs in progress and stops; twice stops at once. `birdtune resume` goes on.
    """
    from search_spaces.files.study_file import is_study_file, read_source

    is_file = is_study_file(study)
    request = {
        "study": str(Path(study).absolute()) if is_file else study,
        "source": read_source(study) if is_file else None,
        "data": data if data == "synthetic" else str(Path(data).absolute()),
        "base": _config(base).to_dict() if base else None,
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
        "keep_checkpoints": keep_checkpoints,
        "tensorboard": tensorboard,
    }
    if dry_run:
        _tell_dry_run(request, as_json)
        return
    _tell_sweep(_sweep(request, out or Path("runs") / _asked(request).name), as_json)


@app.command("resume")
def resume_command(
    run: RunArgument,
    budget_hours: BudgetHoursOption = None,
    budget_gpu_hours: BudgetGpuHoursOption = None,
    until: UntilOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with the studies of a run that was interrupted or killed, as they were asked for.

    Budgets count what the run has used before; a budget or an address given here replaces the one it was
    started with.
    """
    from birdnet_core.records import RunFolder

    for name in RunFolder.existing(run).study_names():
        request = _request(run, name)
        given = {"hours": budget_hours, "gpu_hours": budget_gpu_hours, "until": until}
        if any(value is not None for value in given.values()):
            request["budget"] = given
        if address:
            request["address"] = address
        _tell_sweep(_sweep(request, run), as_json)


@app.command("rerun")
def rerun_command(
    run: RunArgument,
    failed: Annotated[bool, typer.Option("--failed", help="Those that failed or diverged.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train the failed and diverged trials of a run again, from their start."""
    from birdnet_core.records import RunFolder

    if not failed:
        raise ConfigError("say which trials shall be trained again: birdtune rerun RUN --failed")
    for name in RunFolder.existing(run).study_names():
        _tell_sweep(_sweep(_request(run, name), run, rerun_failed=True), as_json)


@app.command("extend")
def extend_command(
    run: RunArgument,
    study: Annotated[str | None, typer.Option(help="Which study, where the run holds several.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds in all, or +N more; of an ablation.")] = None,
    trials: Annotated[str | None, typer.Option(help="Trials in all, or +N more; of a search.")] = None,
    epochs: Annotated[
        str | None,
        typer.Option(help="Epochs of each trial, or +N more: a study of its own in the same folder."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add seeds, trials or epochs to a study; what is trained already is kept, and not trained again."""
    from birdnet_core.records import RunFolder

    folder = RunFolder.existing(run)
    names = folder.study_names()
    if study is None and len(names) > 1:
        raise ConfigError(f"{str(run)!r} holds several studies; give --study: {', '.join(names)}")
    name = study or names[0]
    if name not in names:
        raise ConfigError(f"no study {name!r} in {str(run)!r}{did_you_mean(name, names)}: {', '.join(names)}")
    there, request = folder.read_study(name), _request(run, name)
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
        request["name"] = f"{_asked(request).name}-{n}-epochs"
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


def _request(run: Path, study: str) -> dict[str, Any]:
    """Return what the command line asked for when a study was started."""
    from birdnet_core.records import RunFolder

    request: dict[str, Any] | None = RunFolder(run).read_study(study)["request"]
    if request is None:
        raise RunFolderError(
            f"study {study!r} in {str(run)!r} was started from Python, not by `birdtune sweep`; "
            "call tuning.launch.sweep again with the arguments it was started with"
        )
    _tell_changed(request)
    return request


@app.command("status")
def status_command(
    run: Annotated[Path, typer.Argument(help="A run folder of `birdtune sweep`.")],
    watch: Annotated[
        float | None,
        typer.Option(min=0.2, help="Draw it anew every so often, until Ctrl-C.", metavar="SECONDS"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how a run stands, from another terminal while it runs, or after; reads only."""
    from dataclasses import asdict

    from birdnet_core.records import RunFolder
    from tuning.status import as_text, run_status

    folder = RunFolder.existing(run)
    if watch is None:
        status = run_status(folder)
        if as_json:
            _print(asdict(status), True, "")
        else:
            out_console.print(as_text(status))
        return
    if as_json:
        raise ConfigError("--json prints once, and --watch draws again and again; leave one of them out")
    import contextlib
    import time

    from rich.live import Live

    with contextlib.suppress(KeyboardInterrupt), Live(console=out_console, auto_refresh=False) as live:
        while True:
            live.update(as_text(run_status(folder)), refresh=True)
            time.sleep(watch)


@app.command("dashboard")
def dashboard_command(
    run: Annotated[Path, typer.Argument(help="A run folder of `birdtune sweep`.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port on 127.0.0.1.")] = 8080,
) -> None:
    """Show a copy of a run's searches in optuna-dashboard, on this machine alone, until Ctrl-C."""
    import contextlib
    import tempfile

    from birdnet_core.records import RunFolder
    from tuning.dashboard import copy_storage, serve

    folder = RunFolder.existing(run)
    with tempfile.TemporaryDirectory(prefix="birdtune-dashboard-") as scratch:
        storage = copy_storage(folder, Path(scratch))
        err_console.print(f"http://127.0.0.1:{port} shows the searches as they are now; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            serve(storage, port)


def _sweep(
    request: dict[str, Any], out: Path, *, rerun_failed: bool = False, shorter: int | None = None
) -> dict[str, Any]:
    """Run the sweep that `request` asks for, under a live view, and return its summary as plain values.

    `request` is kept in the run folder: it is all that `resume` needs.
    """
    import contextlib
    import importlib
    import threading

    from birdnet_core.records import RunFolder
    from tuning.halt import Budget
    from tuning.live import SweepView
    from tuning.resources import ray_session

    study = _asked(request)
    budget = Budget(**request.get("budget", {}))
    view = SweepView(err_console)
    observers: list[Observer] = [view]
    if request.get("tensorboard"):
        from tuning.tensorboard import TensorBoardLog

        observers.append(TensorBoardLog(out / "tensorboard"))

    def observe(event: dict[str, Any]) -> None:
        for observer in observers:
            observer(event)

    with contextlib.ExitStack() as stack:
        stack.enter_context(view.shown())
        view.progress("reading recordings", 0, 1)
        manifest = _manifest(request["data"])
        if not request.get("address") and study.name not in RunFolder(out).study_names():
            # Ray takes seconds to start and torch seconds to load: here side by side.
            threading.Thread(target=importlib.import_module, args=("tuning.launch",), daemon=True).start()
            stack.enter_context(ray_session(out / "ray.log"))
        from birdnet_core.config import TrainConfig
        from tuning.launch import Data, Resources, sweep

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
                timeout_s=request.get("trial_timeout"),
                checkpoints=request.get("keep_checkpoints", 0),
            ),
            budget=budget,
            rerun_failed=rerun_failed,
            shorter=shorter,
            sampler=request.get("sampler", "tpe"),
            storage=request.get("storage", "sqlite"),
            address=request.get("address"),
            request=request,
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


def _asked(request: dict[str, Any]) -> Study:
    """Return the study that `request` asks for: of a file, as it was when the run was started."""
    from dataclasses import replace

    from search_spaces.study import Ablation

    name, source = request["study"], request.get("source")
    study = _study(
        name,
        quick=request["quick"],
        options=request.get("options", {}),
        seeds=request["seeds"],
        trials=request["trials"],
        source=source,
    )
    if scheduler := request.get("scheduler"):
        if isinstance(study, Ablation):
            raise ConfigError(
                f"{name!r} is an ablation: every cell trains its whole budget; --scheduler is for searches"
            )
        study = replace(study, scheduler=scheduler)
    return replace(study, name=request.get("name", study.name))


def _study(
    name: str,
    *,
    quick: bool,
    options: dict[str, Any],
    seeds: int | None = None,
    trials: int | None = None,
    source: str | None = None,
) -> Study:
    """Return the study `name`; ConfigError for seeds of a search, or trials of an ablation."""
    import optuna

    from search_spaces.study import Ablation, load_study

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = load_study(name, quick=quick, options=options, source=source)
    if isinstance(study, Ablation) and trials is not None:
        raise ConfigError(f"{name!r} is an ablation: its trials are its cells; use --seeds, not --trials")
    if not isinstance(study, Ablation) and seeds is not None:
        raise ConfigError(f"{name!r} is a search: it trains each config once; use --trials, not --seeds")
    return study


def _tell_dry_run(request: dict[str, Any], as_json: bool) -> None:
    """Print the trials that a sweep would train."""
    from birdnet_core.config import TrainConfig
    from tuning.study_view import dry_run, dry_run_as_text

    result = dry_run(
        _asked(request),
        TrainConfig.from_dict(request["base"] or {}),
        request["settings"],
        n_seeds=request["seeds"],
        n_trials=request["trials"],
    )
    if as_json:
        _print(result, True, "")
    else:
        out_console.print(dry_run_as_text(result))


def _tell_changed(request: dict[str, Any]) -> None:
    """Say so where the file of a study is no longer what the run was started with."""
    file, source = Path(request["study"]), request.get("source")
    if source is None:
        return
    if not file.exists():
        state = "is gone"
    elif file.read_text(encoding="utf-8-sig", errors="replace") != source:
        state = "has changed since this run was started"
    else:
        return
    err_console.print(
        f"{file} {state}: the run goes on with what it was then, which its folder keeps", soft_wrap=True
    )


def _tell_sweep(result: dict[str, Any], as_json: bool) -> None:
    """Print how a sweep ended and what to do next; ConfigError when no trial of it completed."""
    run = result["run"]
    goes_on = f"birdtune resume {run}    " if result["halted"] else ""
    stopped = f"stopped early: {result['halted']}\n" if result["halted"] else ""
    following = f"next: {goes_on}birdtune report {run}    birdtune best {run}"
    _print(result, as_json, f"{_sweep_line(result)}\n{stopped}{following}")
    if not as_json:
        _list_failures(Path(run))
    if result["halted"]:
        return
    if not result["counts"].get("completed"):
        raise ConfigError(f"no trial of {result['study']!r} completed; the reasons stand in {run}/trials/")


def _sweep_line(result: dict[str, Any]) -> str:
    states = ", ".join(f"{n} {status}" for status, n in sorted(result["counts"].items()))
    reused = f" ({result['n_reused']} were there already)" if result["n_reused"] else ""
    return f"{result['study']}: {states}{reused} in {result['seconds']:.0f} s"


@app.command("plan")
def plan_command(
    study: StudyArgument,
    data: DataOption = "synthetic",
    out: Annotated[
        Path | None, typer.Option(help="The sweep's run folder, only read; runs/STUDY if left out.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="What to start from: a config file, such as best.json, or a preset.")
    ] = None,
    settings: SetOption = None,
    options: StudyOption = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of every cell of an ablation.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of a search.")] = None,
    quick: QuickOption = False,
    cpus_per_trial: Annotated[int, typer.Option(min=1, help="CPUs and torch threads of a trial.")] = 1,
    gpus_per_trial: GpusOption = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="The most trials side by side.")] = None,
    budget_hours: Annotated[float | None, typer.Option(min=0, help="Wall time of the sweep.")] = None,
    budget_gpu_hours: Annotated[
        float | None, typer.Option(min=0, help="GPU-hours of the sweep; fractions count as fractions.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what a sweep will take, from measured steps: trials, hours, GPU memory and packing, disk."""
    from birdnet_core.config import TrainConfig
    from birdnet_core.data.dataset import prepare
    from tuning.live import StageBars
    from tuning.planning import plan

    asked = _study(study, quick=quick, options=parse_options(options), seeds=seeds, trials=trials)
    gpus = parse_gpus(gpus_per_trial)
    start_from = _config(base) if base else TrainConfig()
    overrides = parse_settings(settings)
    run = out or Path("runs") / asked.name
    bars = StageBars(err_console)
    with bars.shown():
        manifest = _manifest(data)
        planned = plan(
            asked,
            lambda config: prepare(manifest, config, progress=bars),
            run,
            base=start_from,
            settings=overrides,
            n_seeds=seeds,
            n_trials=trials,
            cpus_per_trial=cpus_per_trial,
            gpus_per_trial=gpus,
            concurrent=concurrent,
            budget_hours=budget_hours,
            budget_gpu_hours=budget_gpu_hours,
            progress=bars,
        )
    given = {
        "data": data, "out": out, "base": base, "seeds": seeds, "trials": trials,
        "cpus-per-trial": cpus_per_trial if cpus_per_trial > 1 else None, "gpus-per-trial": gpus_per_trial,
        "concurrent": concurrent, "budget-hours": budget_hours, "budget-gpu-hours": budget_gpu_hours,
    }  # fmt: skip
    words = ["birdtune", "sweep", study, *(["--quick"] if quick else [])]
    words += [word for item in settings or [] for word in ("--set", item)]
    words += [word for item in options or [] for word in ("--option", item)]
    words += [word for k, v in given.items() if v is not None for word in (f"--{k}", str(v))]
    command = shlex.join(words)
    if as_json:
        _print({**planned.to_dict(), "command": command}, True, "")
    else:
        _tell_plan(planned)
        out_console.print(f"next: {command}")


def parse_gpus(given: str | None) -> float | Literal["auto"] | None:
    """Return ``--gpus-per-trial`` as a number, ``auto``, or None; ConfigError for anything else."""
    if given is None or given == "auto":
        return given  # type: ignore[return-value]
    try:
        gpus = float(given)
    except ValueError:
        gpus = -1.0
    if not 0 <= gpus < math.inf:
        raise ConfigError(f"--gpus-per-trial {given!r} is not accepted; it takes a number from 0, or 'auto'")
    return gpus


def _tell_plan(plan: Plan) -> None:
    """Print a plan: how much, how long, what each arm takes, what is on disk, what to read before."""
    from tuning.live import clock, describe
    from tuning.packing import as_size

    p = out_console.print
    machine, worst, expected = plan.machine, plan.worst, plan.expected
    if plan.design:
        p(f"design         {plan.design['kind']}, {plan.design['n_cells']} cells")
        for note in plan.design["notes"]:
            p(f"               {note}")
    done = f", {plan.n_done} of them in the run folder" if plan.n_done else ""
    p(f"trials         {plan.n_trials}{done}; {plan.n_left} to train, {plan.concurrent} side by side")
    if plan.kind == "search":
        p(f"epochs         about {expected.epochs:,.0f} under ASHA, at most {worst.epochs:,.0f}")
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
    columns = ["trials", "step", "epoch", "trial", "memory", *(["share", "a GPU"] if machine.gpus else [])]
    table = Table("arm", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for arm in plan.arms:
        probe, share = arm.probe, arm.share
        if probe.gpu_peak_bytes is not None:
            needed: int | None = probe.gpu_peak_bytes + (probe.gpu_context_bytes or 0)
        else:
            needed = probe.rss_growth_bytes
        row = [
            describe(arm.settings) or "every trial", str(arm.n_trials), f"{1000 * probe.step_s:.1f} ms",
            f"{probe.epoch_s:.2f} s", clock(3600 * arm.trial_hours),
            "?" if needed is None else as_size(needed),
        ]  # fmt: skip
        if machine.gpus:
            row += [f"{arm.gpus_per_trial:g}", f"{share.trials_per_gpu} trials" if share else ""]
        table.add_row(*row)
    if plan.arms:
        p(table)
        on_gpu = any(arm.probe.gpu_peak_bytes is not None for arm in plan.arms)
        p(
            "memory: of the GPU, the CUDA context included"
            if on_gpu
            else "memory: by how much the process grew, data that trials share included"
        )


def parse_settings(given: list[str] | None) -> dict[str, Any]:
    """Return ``["optim.lr=3e-4", "loss.name=focal"]`` as typed values; ConfigError for a bad form.

    Folders that are there are made absolute: trials run, and `resume` may be called, from elsewhere.
    """
    from birdnet_core.config import FOLDER_SETTINGS

    settings = _parse(given, "--set", "optim.lr=3e-4")
    folders = {key: _absolute(settings[key]) for key in FOLDER_SETTINGS if key in settings}
    return {**settings, **folders}


def parse_options(given: list[str] | None) -> dict[str, Any]:
    """Return ``["ast=checkpoints/ast"]`` as `parse_settings` does; any option may be a folder."""
    options = _parse(given, "--option", "ast=checkpoints/ast")
    return {key: _absolute(value) for key, value in options.items()}


def _parse(given: list[str] | None, flag: str, example: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in given or []:
        key, equals, text = item.partition("=")
        if not (key and equals):
            raise ConfigError(f"{flag} {item!r} is not KEY=VALUE; for example {flag} {example}")
        try:
            values[key.strip()] = json.loads("null" if text.lower() in ("none", "null") else text)
        except json.JSONDecodeError:
            values[key.strip()] = text
    return values


def _absolute(value: Any) -> Any:
    if isinstance(value, str) and Path(value).expanduser().is_dir():
        return str(Path(value).expanduser().absolute())
    return value


# --------------------------------------------------------------------------------- report, best, train


@app.command("report")
def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders of `birdtune sweep`.")],
    out: Annotated[Path | None, typer.Option(help="The report's folder; RUN/report if left out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write report.html, .md and .json, tables and figures."""
    from reports import write_report

    folder = out or runs[0] / "report"
    report = write_report(runs, folder)
    lines = [f"{folder / 'report.html'}"]
    for study in report["studies"]:
        lines.append(f"{study['name']}: {len(study['cells'])} cells")
    _print({"report": str(folder / "report.html"), "studies": [s["name"] for s in report["studies"]]},
           as_json, "\n".join(lines))  # fmt: skip


@app.command("best")
def best_command(
    run: Annotated[Path, typer.Argument(help="A run folder of `birdtune sweep`.")],
    study: Annotated[str | None, typer.Option(help="Which study, where the run holds several.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; RUN/best.json if left out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the best config by one stated rule; `train` and `sweep --base` read the file."""
    from birdnet_core.records import write_json
    from reports import choose, load

    best = choose(load([run]), study)
    file = out or run / "best.json"
    write_json(file, best)
    interval = "" if best["low"] is None else f" [{best['low']:.4f}, {best['high']:.4f}]"
    _print(
        best,
        as_json,
        f"{_cell(best['factors'])}\n"
        f"{best['metric']} {best['mean']:.4f}{interval}, n = {best['n']}\n"
        f"rule: {best['rule']}\n"
        f"{best['how_sure']}\n"
        f"{file}\n"
        f"next: birdtune train {file} --data ... --out model/",
    )


@app.command("train")
def train_command(
    config: Annotated[
        Path | None,
        typer.Argument(help="best.json, a trial's record, or a config as JSON; defaults if left out."),
    ] = None,
    data: DataOption = "synthetic",
    out: Annotated[Path, typer.Option(help="The model's folder.")] = Path("model"),
    preset: Annotated[
        str | None, typer.Option(help="Instead of a file: a config of `birdtune list presets`.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the config's seed.")] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train one config alone, without Ray: the same numbers as its trial in a sweep.

    When interrupted, the same command goes on after the last finished epoch.
    """
    if config and preset:
        raise ConfigError(f"give a config file or --preset, not both: {str(config)!r} and {preset!r} came")
    start_from = preset or (str(config) if config else None)
    result = _train(start_from, data, out, seed=seed, settings=settings, quiet=as_json)
    _print(
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
    from birdnet_core.training import save_model, train
    from tuning.live import StageBars

    chosen = _config(start_from) if start_from else TrainConfig()
    chosen = chosen.override({**parse_settings(settings), **({} if seed is None else {"seed": seed})})
    bars = StageBars(err_console)
    with bars.shown():
        dataset = Dataset.open(prepare(_manifest(data), chosen, progress=bars))
    monitor = chosen.training.monitor

    def show(epoch: int, metrics: dict[str, float]) -> None:
        if not quiet:
            err_console.print(
                f"epoch {epoch:3d}/{chosen.training.epochs}  train/loss {metrics['train/loss']:.4f}  "
                f"val/loss {metrics['val/loss']:.4f}  {monitor} {metrics[monitor]:.4f}  "
                f"{metrics['epoch_s']:.1f} s"
            )

    checkpoint = out / "session.pt"
    if checkpoint.exists() and not quiet:
        err_console.print(f"going on from {checkpoint}", soft_wrap=True)
    session = train(chosen, dataset, on_epoch=show, checkpoint=checkpoint)
    save_model(session, out)
    checkpoint.unlink(missing_ok=True)
    record = session.record("completed")
    kept = ("trial_id", "config_id", "seed", "epochs", "best_epoch", "metrics", "n_params", "seconds")
    return {"model": str(out), **{k: getattr(record, k) for k in kept}}


# ---------------------------------------------------------------------------------------------- demo


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Where to put the run, the report and the model.")] = Path("demo"),
) -> None:
    """Synthetic birds -> sweep -> report -> best config -> trained model, in minutes on two CPU cores."""
    import time

    start = time.perf_counter()

    def step(text: str, command: str) -> None:
        out_console.print(f"\n{text}", style="bold")
        out_console.print(f"$ {command}")

    run, best = out / "run", out / "best.json"
    out_console.print("birdtune demo: is it the capacity, the loss, or both? Asked of synthetic birds.")
    windows = "data.windows_per_recording=3"
    step("1. Recordings: decode, clip, split", f"birdtune data prepare synthetic --set {windows}")
    _, facts, _ = _prepared("synthetic", [windows], None)
    out_console.print(
        f"{facts['n_recordings']} recordings of {facts['n_species']} species: {facts['n_train']} train, "
        f"{facts['n_val']} val, {facts['n_test']} test, grouped by {' and '.join(facts['grouped_by'])}"
    )
    step(
        "2. Ablation: 2 networks x 2 losses x 2 seeds",
        f"birdtune sweep capacity --quick --seeds 2 --out {run}",
    )
    sweep_command("capacity", out=run, seeds=2, quick=True)
    step("3. Report", f"birdtune report {run} --out {out / 'report'}")
    report_command([run], out / "report")
    step("4. Best config", f"birdtune best {run} --out {best}")
    best_command(run, out=best)
    step("5. The chosen config, trained alone", f"birdtune train {best} --out {out / 'model'}")
    train_command(best, out=out / "model")
    out_console.print(
        f"\nbest config  {best}\nreport       {out / 'report' / 'report.html'}\n"
        f"model        {out / 'model'}\n"
        f"done in {time.perf_counter() - start:.0f} s"
    )


# --------------------------------------------------------------------------------------------- shared


def _manifest(source: str) -> pd.DataFrame:
    """Return the manifest that ``--data`` names: a CSV, a folder per species, or synthetic birds."""
    from birdnet_core.data.building import default_cache
    from birdnet_core.data.manifest import index_folder, read_manifest
    from birdnet_core.data.synthetic import cached_synthetic_birds

    if source == "synthetic":
        return read_manifest(cached_synthetic_birds(default_cache()))
    if Path(source).is_dir():
        return index_folder(source)
    if not Path(source).exists():
        raise DataError(
            f"no recordings at {source!r}: there is no such file or folder; give a manifest CSV, "
            "a folder with one folder per species, or 'synthetic'"
        )
    return read_manifest(source)


def _config(source: str) -> TrainConfig:
    """Return the config of a preset, or in best.json, a trial's record or a config file."""
    from birdnet_core.config import TrainConfig
    from birdnet_core.presets import PRESETS, preset
    from birdnet_core.records import read_json

    if source in PRESETS:
        return preset(source)
    if not Path(source).exists():
        raise ConfigError(
            f"no config at {source!r}: there is no such file{did_you_mean(source, PRESETS)}; give best.json, "
            f"a trial's record, a config as JSON, or a preset ({', '.join(PRESETS)})"
        )
    content = read_json(Path(source))
    return TrainConfig.from_dict(content.get("config", {k: v for k, v in content.items() if k != "schema"}))


def _prepared(
    source: str, settings: list[str] | None, workers: int | None, bars: StageBars | None = None
) -> tuple[pd.DataFrame, dict[str, Any], Path]:
    """Return the manifest, the dataset's facts and its folder, under a bar for each stage."""
    from birdnet_core.config import TrainConfig
    from birdnet_core.data.dataset import Dataset, prepare
    from tuning.live import StageBars

    config = TrainConfig().override(parse_settings(settings))
    bars = bars or StageBars(err_console)
    with bars.shown():
        manifest = _manifest(source)
        folder = prepare(manifest, config, workers=workers, progress=bars)
    return manifest, Dataset.open(folder).facts, folder


def _list_skipped(skipped: list[dict[str, str]]) -> None:
    if skipped:
        err_console.print(f"{len(skipped)} recordings were left out:", style="yellow")
        for item in skipped:
            err_console.print(f"  {item['path']}: {item['error']}", soft_wrap=True)


def _list_failures(run: Path) -> None:
    from birdnet_core.records import RunFolder

    for record in RunFolder(run).records().values():
        if record.error:
            line = f"  {record.trial_id} {record.status}: {record.error}"
            err_console.print(line, soft_wrap=True)


def _print(result: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        out_console.print(text)


if __name__ == "__main__":
    main()
