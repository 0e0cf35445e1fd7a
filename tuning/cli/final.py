"""Final training (`birdtune train --seeds`) and the honest test (`birdtune evaluate`)."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tuning.cli.inputs import read_config, read_recordings
from tuning.cli.options import DataOption, JsonOption, PluginOption, local
from tuning.cli.output import err_console, tell


def train_and_tell(
    start_from: str | None,
    data: str,
    out: Path,
    *,
    changes: dict[str, Any],
    n_seeds: int,
    keep_val: bool,
    cpus: int,
    gpus: float | Literal["auto"] | None,
    concurrent: int | None,
    budget_hours: float | None,
    budget_gpu_hours: float | None,
    as_json: bool,
) -> None:
    """Train the ensemble under a live view, and print how its seeds did before the final fit."""
    from birdnet_core.config import TrainConfig
    from tuning.engine.halt import Budget
    from tuning.engine.launch import Resources
    from tuning.engine.preparation import Data
    from tuning.final import train_final
    from tuning.views.live import SweepView

    config = (read_config(start_from) if start_from else TrainConfig()).override(changes)
    view = SweepView(err_console)
    with view.shown():
        view.progress("reading recordings", 0, 1)
        evidence = train_final(
            config,
            Data(name=Path(data).stem, manifest=read_recordings(data), progress=view.progress),
            out,
            n_seeds=n_seeds,
            keep_val=keep_val,
            chosen=_chosen(start_from),
            resources=Resources(cpus=cpus, gpus=gpus, concurrent=concurrent),
            budget=Budget(hours=budget_hours, gpu_hours=budget_gpu_hours),
            command=shlex.join(["birdtune", *sys.argv[1:]]),
            observer=view,
        )
    from reports.model.card import write_card

    write_card(out)
    tell({"model": str(out), **evidence}, as_json, _told(evidence, out, data))


def evaluate_command(
    model: Annotated[
        Path, typer.Argument(callback=local, help="A model folder of `birdtune train`.", metavar="MODEL")
    ],
    data: DataOption = "synthetic",
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also score logistic regression in the same split.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Open the test split: what the model is worth on recordings that nothing was chosen by.

    Each opening is recorded in MODEL/tests.json and counted in its card. Writes evaluation.json, figures and
    MODEL_CARD.md into the folder.
    """
    from birdnet_core.data.dataset import Dataset, groups_of, prepare
    from birdnet_core.inference.evaluation import EVALUATION_FILE, check_split, evaluate, record_opening
    from birdnet_core.inference.model_folder import read_model
    from birdnet_core.records.files import read_json, write_json
    from birdnet_core.training.device import pick_device
    from reports.model.card import write_card
    from reports.model.figures import write_figures
    from tuning.views.live import StageBars

    trained = read_model(model)
    pick_device(trained.config.override({"runtime.device": device}).runtime)  # its faults open nothing
    bars = StageBars(err_console)
    with bars.shown():
        manifest = read_recordings(data)
        dataset = Dataset.open(prepare(manifest, trained.config, progress=bars))
    check_split(trained, dataset)
    opening = record_opening(model, trained, dataset, shlex.join(["birdtune", *sys.argv[1:]]))
    found = {
        **evaluate(trained, dataset, groups_of(manifest, dataset), with_baseline=baseline, device=device),
        "opening": opening,
    }
    write_json(model / EVALUATION_FILE, found)
    result = read_json(model / EVALUATION_FILE)
    write_figures(result, model / "evaluation")
    card = write_card(model)
    if opening["number"] > 1:
        err_console.print(
            f"opening number {opening['number']} of the test split: scores are too high if anything was "
            "changed after looking",
            style="yellow",
        )
    tell(result, as_json, f"{_test_text(result)}\n{model / EVALUATION_FILE}\n{card}")


def _test_text(result: dict[str, Any]) -> str:
    """Return the scores of the test as a table of values, and the intervals of what prediction gives."""
    from reports.model.card import TEST, differences

    rows = {row["name"]: row["metrics"] for row in result["rows"]} | differences(result)
    width = max(map(len, rows))
    lines = [
        f"{result['n']} {result['scored']} of {result['n_species']} species, {result['n_groups']} groups"
    ]
    lines.append(" " * width + "".join(f"{TEST[key]:>10}" for key in _SHOWN))
    for name, metrics in rows.items():
        values = "".join(f"{_text_of(metrics[key]['value']):>10}" for key in _SHOWN)
        lines.append(f"{name:<{width}}{values}")
    for name in ("ensemble, calibrated", "calibrated − logistic regression"):
        if name in rows:
            lines.append(f"{name}, with 95 % intervals:")
            for key, shown in TEST.items():
                value = {k: _text_of(v) for k, v in rows[name][key].items()}
                lines.append(f"  {shown:<12}{value['value']:>8}  [{value['low']}, {value['high']}]")
    return "\n".join([*lines, *result["notes"]])


def _text_of(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 4) + 0.0:.4f}"


_SHOWN = ("test/accuracy", "test/f1_macro", "test/f1_rare", "test/map", "test/auroc", "test/loss", "test/ece")


def _chosen(start_from: str | None) -> dict[str, Any] | None:
    """Return what best.json says of the choice, without the config; None for anything else."""
    from birdnet_core.records.files import read_json

    if start_from is None or not Path(start_from).exists():
        return None
    content = read_json(Path(start_from))
    return {k: v for k, v in content.items() if k not in ("schema", "config")} if "rule" in content else None


def _told(evidence: dict[str, Any], out: Path, data: str) -> str:
    validation, final = evidence["validation"], evidence["final"]
    metric = evidence["metric"]
    rows = [(f"seed {m['seed']}", m["metrics"]) for m in validation["members"]]
    lines = [f"{'validation':<12}{metric:>14}{'val/loss':>10}"]
    lines += [f"{name:<12}{m[metric]:>14.4f}{m['val/loss']:>10.4f}" for name, m in rows]
    together = validation["ensemble"]
    lines.append(f"{'ensemble':<12}{together[metric]:>14.4f}{together['val/loss']:>10.4f}")
    ece = validation["ece"]
    lines.append(
        f"temperature {validation['temperature']:.3f}: calibration error {ece['before']:.4f} before, "
        f"{ece['after']:.4f} after"
    )
    if final["train_on"] == "train":
        lines.append("members: the best epochs of these seeds; validation was never learnt")
    else:
        lines.append(
            f"members: the same seeds on training and validation, {final['established_epochs']} epochs each "
            f"(median of {', '.join(map(str, final['epochs_of_seeds']))})"
        )
    return "\n".join([*lines, str(out), f"next: birdtune evaluate {out} --data {data}"])
