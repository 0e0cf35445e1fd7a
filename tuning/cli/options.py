"""Options and arguments that several verbs take, and how their text is read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from birdnet_core import plugins
from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.checks import local_path


def local(given: Any) -> Any:
    """Return the path, or paths, of an option; one such as ``s3://bucket/run`` is refused by name."""
    for path in given if isinstance(given, list) else [given] if given is not None else []:
        local_path(path)
    return given


def local_folder(given: Any) -> Any:
    """Return the path of a folder that is written, which may not be there yet; a file is refused."""
    if given is not None and local_path(given).exists() and not Path(given).is_dir():
        raise RunFolderError(f"--out {str(given)!r} is a file; give a folder, which need not exist yet")
    return given


def _load_plugins(context: typer.Context, given: list[str] | None) -> list[str] | None:
    for name in () if context.resilient_parsing else given or ():
        plugins.load(name)
    return given


Study = Annotated[
    str,
    typer.Argument(
        help="A study of `birdtune list studies`, or your own .yaml or .py file.", metavar="STUDY"
    ),
]
Data = Annotated[
    str,
    typer.Option("--data", help="A manifest CSV, a folder per species, or 'synthetic'.", metavar="CSV|DIR"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, as in --set optim.lr=3e-4; repeatable.", metavar="KEY=VALUE"),
]
StudyOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        help="An option of the study, as in --option ast=checkpoints/ast; repeatable. `birdtune list "
        "studies` names them.",
        metavar="KEY=VALUE",
    ),
]
Run = Annotated[Path, typer.Argument(callback=local, help="A run folder of `birdtune sweep`.", metavar="RUN")]
Model = Annotated[
    Path, typer.Argument(callback=local, help="A model folder of `birdtune train`.", metavar="MODEL")
]
Recordings = Annotated[str, typer.Argument(help="A manifest, or 'synthetic'.", metavar="CSV|DIR")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Where the backbone's weights are, if no longer where the model was trained.", metavar="PATH"
    ),
]
OneStudy = Annotated[
    str | None,
    typer.Option(help="Which study, where the run holds several, or your copy of its Python file."),
]
Base = Annotated[
    str | None, typer.Option(help="What to start from: a config file, such as best.json, or a preset.")
]
Repeats = Annotated[
    int | None,
    typer.Option(min=1, help="Of every cell of an ablation: each a fresh validation fold and seed."),
]
Trials = Annotated[int | None, typer.Option(min=1, help="Trials of a search.")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="What ends trials of a search early, else the study's: asha, hyperband, median or fifo.",
        metavar="NAME",
    ),
]
Audit = Annotated[
    float | None,
    typer.Option(
        help="The share of the trials to be ended early that train to the end, else the study's: 0 to 1.",
        metavar="SHARE",
    ),
]
Folds = Annotated[
    bool | None,
    typer.Option(
        help="Whether promising configs of a search are trained on all validation folds, and the best is "
        "chosen among those, else the study's.",
    ),
]
Constraints = Annotated[
    list[str] | None,
    typer.Option(
        "--constraint",
        help="A bound that a config has to keep, as in --constraint 'n_params<=5e6', on a metric, n_params "
        "or hours, else the study's; repeatable.",
        metavar="NAME<=VALUE",
    ),
]
Cpus = Annotated[int, typer.Option(min=1, help="CPUs and torch threads of a trial.")]
Concurrent = Annotated[int | None, typer.Option(min=1, help="The most trials side by side.")]
BudgetHours = Annotated[
    float | None, typer.Option(help="Stop when drivers of this run have run for so long.")
]
BudgetGpuHours = Annotated[
    float | None, typer.Option(help="Stop when this run has used so many GPU-hours of training.")
]
Until = Annotated[str | None, typer.Option(help="Stop when an epoch is so good.", metavar="METRIC>=VALUE")]
Gpus = Annotated[
    str | None,
    typer.Option(
        help="GPUs of a trial; fractions share one, 'auto' as many as its memory holds.", metavar="N|auto"
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="A Ray cluster; auto is the one that this machine is in.", metavar="HOST:PORT|auto"),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        help="A module, such as my_lab.models, or a .py file that registers models, losses, features, "
        "augmentations or studies of your own; repeatable.",
        metavar="MODULE|FILE",
        is_eager=True,  # what it registers may be named by every other option
        callback=_load_plugins,
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the Python that the run folder holds: a study's, a plugin's.")
]
OwnStudies = Annotated[
    list[str] | None,
    typer.Option(
        "--study",
        help="Your copy of a Python file whose study the run trains, so that no --trust is needed; "
        "repeatable.",
        metavar="FILE",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quick = Annotated[bool, typer.Option("--quick", help="The study's small size, to try it out.")]


def parse_settings(given: list[str] | None) -> dict[str, Any]:
    """Return ``["optim.lr=3e-4", "loss.name=focal"]`` as typed values; ConfigError for a bad form.

    Folders and files that are there are made absolute: trials, and perhaps `resume`, run elsewhere.
    """
    from birdnet_core.config import PATH_SETTINGS

    settings = _parse(given, "--set", "optim.lr=3e-4")
    paths = {key: _absolute(settings[key]) for key in PATH_SETTINGS if key in settings}
    return {**settings, **paths}


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
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    # A file has an ending, as weights do; a name without one is a name, whatever lies in this folder.
    is_place = path.is_dir() or (path.suffix != "" and path.is_file())
    return str(path.absolute()) if is_place else value


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
