"""`birdtune list` and `birdtune study`: what there is to name, and what a study varies."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from birdnet_core.errors import ConfigError, did_you_mean
from tuning.cli import options as opt
from tuning.cli.inputs import find_study
from tuning.cli.output import in_words, print_result

KINDS = ("models", "losses", "features", "backbones", "augmentations", "presets", "studies", "metrics")


def list_names(
    kind: Annotated[str, typer.Argument(help=" | ".join(KINDS), metavar="KIND")],
    plugin: opt.Plugins = None,
    as_json: opt.Json = False,
) -> None:
    """List what can be named in a config, with options and defaults."""
    from birdnet_core import registry
    from birdnet_core.presets import PRESETS
    from birdnet_core.records.metrics import METRICS

    if kind not in KINDS:
        raise ConfigError(f"cannot list {kind!r}{did_you_mean(kind, KINDS)}; known: {', '.join(KINDS)}")
    if kind == "metrics":
        rows: list[dict[str, Any]] = [
            {"name": name, "direction": direction, "summary": summary}
            for name, (direction, _, summary) in METRICS.items()
        ]
    elif kind == "presets":
        rows = [
            {"name": name, "summary": preset.summary, "settings": preset.overrides}
            for name, preset in PRESETS.items()
        ]
    elif kind == "studies":
        rows = [_study_row(name) for name in registry.studies.names()]
    elif kind == "backbones":
        rows = [_backbone_row(name) for name in registry.backbones.names()]
    else:
        entries: registry.Registry = getattr(registry, kind)
        rows = [
            {"name": name, "summary": entries[name].summary, "options": entries[name].defaults()}
            for name in entries.names()
        ]
        if kind == "models":
            for row in rows:
                row["n_params"] = _n_params(row["name"])
    in_text = {"studies": _study_text, "backbones": _backbone_text}.get(kind)
    if as_json or in_text:
        print_result({kind: rows}, as_json, "\n".join(map(in_text, rows)) if in_text else "")
        return
    table = Table(*rows[0], box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(in_words(value) for value in row.values()))
    Console(highlight=False, markup=False).print(table)


def _study_row(name: str) -> dict[str, Any]:
    from birdnet_core import registry
    from birdnet_core.config import TrainConfig
    from search_spaces.loading import load_study
    from search_spaces.study import Ablation

    study = load_study(name)
    if isinstance(study, Ablation):
        trials = f"{len(study.cells())} cells x {study.n_repeats} repeats"
    else:
        trials = f"{study.n_trials} trials"
    return {
        "name": name,
        "question": study.question,
        "kind": study.kind,
        "trials": trials,
        "epochs": study.base.get("training.epochs", TrainConfig().training.epochs),
        "metric": study.metric,
        "options": registry.studies[name].defaults(),
    }


def _study_text(row: dict[str, Any]) -> str:
    # As a table, the question would leave no room for the rest on a terminal of 80 columns.
    size = f"{row['kind']}, {row['trials']}, {row['epochs']} epochs, {row['metric']}"
    options = f"; options {', '.join(row['options'])}" if row["options"] else ""
    return f"{row['name']}\n    {row['question']}\n    {size}{options}"


def _backbone_row(name: str) -> dict[str, Any]:
    """Return what a backbone states; where its weights are to be given, that it depends on them."""
    from dataclasses import asdict

    from birdnet_core import registry
    from birdnet_core.features.embedding import opened

    backbone = registry.backbones[name]
    row: dict[str, Any] = {"name": name, "summary": backbone.summary}
    if backbone.make.needs_weights:  # type: ignore[attr-defined]
        return {**row, "takes": "by its weights", "gives": "by its weights", "licence": "by its weights"}
    try:
        stated = asdict(opened(name, None).convention)
    except ConfigError as error:
        return {**row, "takes": str(error), "gives": "", "licence": ""}
    n_labels = len(stated.pop("labels"))
    return {
        **row,
        "takes": f"{stated['window_s']:g} s at {stated['sample_rate']:,} Hz",
        "gives": f"{stated['dim']:,} values, {n_labels:,} species",
        "licence": stated["licence"],
        "convention": {**stated, "n_labels": n_labels},
    }


def _backbone_text(row: dict[str, Any]) -> str:
    facts = dict.fromkeys(each for each in (row["takes"], row["gives"], row["licence"]) if each)
    lines = [row["name"], row["summary"], "; ".join(facts)]
    if stated := row.get("convention"):
        lines += [f"trained on {stated['trained_on']}", stated["source"]]
    return "\n    ".join(lines)


def _n_params(name: str) -> int:
    """Count a model's parameters at 89 classes and 3 x 40 x 130, or 1,024 values of an embedding."""
    from birdnet_core.build import input_ndim, rehearse
    from birdnet_core.config import TrainConfig

    shape = (1024,) if input_ndim(name) == 1 else (3, 40, 130)
    return rehearse(TrainConfig().override({"model.name": name}), shape, ["species"] * 89)


def study_show(
    study: opt.Study,
    options: opt.StudyOptions = None,
    quick: opt.Quick = False,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print it as a file to start your own from.")
    ] = False,
    plugin: opt.Plugins = None,
    as_json: opt.Json = False,
) -> None:
    """Print what a study varies: the cells of an ablation, the space of a search."""
    from search_spaces.files.study_plain import to_yaml
    from tuning.views.study_view import design_as_text, design_of

    loaded = find_study(study, quick=quick, options=opt.parse_options(options))
    if as_yaml:
        print(to_yaml(loaded), end="")
    else:
        design = design_of(loaded)
        print_result(design, as_json, design_as_text(design))


def study_schema_command(plugin: opt.Plugins = None) -> None:
    """Print the JSON Schema of study files in YAML; editors complete and check from it."""
    from search_spaces.files.schema import study_schema

    print_result(study_schema(), as_json=True)
