"""`birdtune train`, of one config alone or of an ensemble, and `evaluate`, on the test split."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from birdnet_core.errors import ConfigError
from birdnet_core.records.seen import seen_text
from tuning.cli import options as opt
from tuning.cli.inputs import read_config, read_recordings
from tuning.cli.output import err_console, print_result
from tuning.engine.halt import Budget
from tuning.engine.packing import Resources

if TYPE_CHECKING:
    from birdnet_core.config import TrainConfig


def train_command(
    config: Annotated[
        Path | None,
        typer.Argument(
            callback=opt.local, help="best.json, a trial's record, or a config as JSON; defaults if left out."
        ),
    ] = None,
    data: opt.Data = "synthetic",
    out: Annotated[Path, typer.Option(callback=opt.local_folder, help="The model's folder.")] = Path("model"),
    preset: Annotated[
        str | None, typer.Option(help="Instead of a file: a config of `birdtune list presets`.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the config's seed.")] = None,
    settings: opt.Settings = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Final training: so many seeds become one model, an ensemble.")
    ] = None,
    keep_val: Annotated[
        bool, typer.Option("--keep-val", help="With --seeds: never train on the validation split.")
    ] = False,
    cpus_per_trial: opt.Cpus = 1,
    gpus_per_trial: opt.Gpus = None,
    concurrent: opt.Concurrent = None,
    budget_hours: opt.BudgetHours = None,
    budget_gpu_hours: opt.BudgetGpuHours = None,
    plugin: opt.Plugins = None,
    as_json: opt.Json = False,
) -> None:
    """Train a model: one config alone, or with --seeds the ensemble that a sweep's best config becomes.

    Alone, it runs without Ray and has the same numbers as its trial in a sweep. With --seeds, each is trained
    twice, side by side: in the training split, which says for how many epochs, and then on training and
    validation together; budgets and --gpus-per-trial are those of `sweep`. When interrupted, the same command
    continues after the last finished epoch.
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
    from birdnet_core.config import TrainConfig

    chosen = read_config(start_from) if start_from else TrainConfig()
    chosen = chosen.override(opt.parse_settings(settings) | ({} if seed is None else {"seed": seed}))
    if seeds is None:
        result = _train_one(chosen, data, out, quiet=as_json)
        scores = [f"{k} {v:.4f}" for k, v in result["metrics"].items() if k.startswith("val/f1")]
        text = f"best epoch {result['best_epoch']} of {result['epochs']}: {', '.join(scores)}\n{out}"
    else:
        gpus = opt.parse_gpus(gpus_per_trial)
        result = _train_final(
            chosen,
            data,
            out,
            n_seeds=seeds,
            keep_val=keep_val,
            chosen=_choice(start_from),
            resources=Resources(cpus=cpus_per_trial, gpus=gpus, concurrent=concurrent),
            budget=Budget(hours=budget_hours, gpu_hours=budget_gpu_hours),
        )
        text = _final_text(result, out, data)
    print_result(result, as_json, text)


def _train_one(chosen: TrainConfig, data: str, out: Path, *, quiet: bool) -> dict[str, Any]:
    from birdnet_core.data.dataset import Dataset, prepare
    from birdnet_core.training.run import save_model, train
    from reports.model.card import write_card
    from tuning.views.live import StageBars

    bars = StageBars(err_console)
    with bars.live():
        dataset = Dataset.open(prepare(read_recordings(data), chosen, progress=bars))
    names = dict.fromkeys(("train/loss", "val/loss", chosen.training.monitor))

    def show(epoch: int, metrics: dict[str, float]) -> None:
        if not quiet:
            scores = [f"{name} {metrics[name]:.4f}" for name in names if name in metrics]
            err_console.print(
                f"epoch {epoch:3d}/{chosen.training.most_epochs}  {'  '.join(scores)}  "
                f"{metrics['epoch_s']:.1f} s"
            )

    checkpoint = out / "session.pt"
    if checkpoint.exists() and not quiet:
        err_console.print(f"continuing from {checkpoint}")
    session = train(chosen, dataset, on_epoch=show, checkpoint=checkpoint)
    save_model(session, out)
    checkpoint.unlink(missing_ok=True)
    write_card(out)
    record = session.record("completed")
    kept = ("trial_id", "config_id", "seed", "epochs", "best_epoch", "metrics", "n_params", "seconds")
    return {"model": str(out), **{k: getattr(record, k) for k in kept}}


def _train_final(config: TrainConfig, data: str, out: Path, **how: Any) -> dict[str, Any]:
    """Train the ensemble under a live view; `how` are the keywords of `tuning.final.train_final`."""
    from reports.model.card import write_card
    from tuning.engine.preparation import Data
    from tuning.final import train_final
    from tuning.views.live import SweepView

    view = SweepView(err_console)
    with view.live():
        view.progress("reading recordings", 0, 1)
        evidence = train_final(
            config,
            Data(name=Path(data).stem, manifest=read_recordings(data), progress=view.progress),
            out,
            command=shlex.join(["birdtune", *sys.argv[1:]]),
            observer=view,
            **how,
        )
    write_card(out)
    return {"model": str(out), **evidence}


def evaluate_command(
    model: opt.Model,
    data: opt.Data = "synthetic",
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline/--no-baseline",
            help="Also score logistic regression, nearest neighbours, and the labels of a backbone.",
        ),
    ] = True,
    device: opt.Device = "auto",
    weights: opt.Weights = None,
    plugin: opt.Plugins = None,
    as_json: opt.Json = False,
) -> None:
    """Open the test split: the scores of a model on recordings that no choice was based on.

    Each opening is recorded in MODEL/tests.json and counted in its card. Writes evaluation.json, figures and
    MODEL_CARD.md into the folder.
    """
    from birdnet_core.data.dataset import Dataset, prepare
    from birdnet_core.inference.evaluation import EVALUATION_FILE, check_split, evaluate, record_opening
    from birdnet_core.inference.model_folder import read_model
    from birdnet_core.records.files import read_json, write_json
    from birdnet_core.training.device import pick_device
    from reports.model.card import write_card
    from reports.model.figures import write_figures
    from tuning.views.live import StageBars

    trained = read_model(model, weights=weights)
    pick_device(trained.config.override({"runtime.device": device}).runtime)  # its faults open nothing
    with StageBars(err_console).live() as bars:
        manifest = read_recordings(data)
        dataset = Dataset.open(prepare(manifest, trained.config, progress=bars))
    check_split(trained, dataset)
    opening = record_opening(model, trained, dataset, shlex.join(["birdtune", *sys.argv[1:]]))
    with StageBars(err_console).live() as bars:
        found = evaluate(trained, dataset, manifest, with_baselines=baseline, device=device, progress=bars)
    write_json(model / EVALUATION_FILE, {**found, "opening": opening})
    result = read_json(model / EVALUATION_FILE)
    write_figures(result, model / "evaluation")
    card = write_card(model)
    if opening["number"] > 1:
        err_console.print(
            f"opening number {opening['number']} of the test split: scores are too high if anything was "
            "changed after looking",
            style="yellow",
        )
    print_result(result, as_json, f"{_test_text(result)}\n{model / EVALUATION_FILE}\n{card}")


def _test_text(result: dict[str, Any]) -> str:
    """Return the scores of the test as a table of values, and the intervals of what prediction gives."""
    from birdnet_core.inference.evaluation import CALIBRATED, COMPARED
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
    lines.append(f"{CALIBRATED}, with 95 % intervals:")
    for key, shown in TEST.items():
        lines.append(f"  {shown:<12}{_with_interval(rows[CALIBRATED][key])}")
    for name, metrics in result["over_baseline"].items():
        lines.append(f"calibrated − {name}, with 95 % intervals:")
        lines += [f"  {TEST[key]:<12}{_with_interval(metrics[key])}" for key in COMPARED]
    if seen := result["seen"]:
        lines += _seen_lines(seen)
    return "\n".join([*lines, *result["notes"]])


def _seen_lines(seen: dict[str, Any]) -> list[str]:
    """Return the scores of the test recordings that the backbone may have been trained on, and of others."""
    lines = [
        f"test {seen['scored']} seen before by the backbone {seen['backbone']!r} (trained on "
        f"{seen['trained_on']}): {seen_text(seen['counts']['test'])}"
    ]
    for part in seen["rows"]:
        counts = f"{part['n']} of {part['n_species']} species, {part['n_groups']} groups"
        lines.append(f"  {part['status']}, {counts}, F1-macro:")
        for row in part["rows"]:
            value = _with_interval(row["metrics"]["test/f1_macro"])
            lines.append(f"    {row['name']:<22}{value}")
    return lines


def _with_interval(value: dict[str, float | None]) -> str:
    shown = {key: _text_of(value[key]) for key in ("value", "low", "high")}
    return f"{shown['value']:>8}  [{shown['low']}, {shown['high']}]"


def _text_of(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 4) + 0.0:.4f}"


_SHOWN = ("test/accuracy", "test/f1_macro", "test/f1_rare", "test/map", "test/auroc", "test/loss", "test/ece")


def _choice(start_from: str | None) -> dict[str, Any] | None:
    """Return what best.json says of the choice, without the config; None for anything else."""
    from birdnet_core.records.files import read_json

    if start_from is None or not Path(start_from).exists():
        return None
    content = read_json(Path(start_from))
    return {k: v for k, v in content.items() if k not in ("schema", "config")} if "rule" in content else None


def _final_text(evidence: dict[str, Any], out: Path, data: str) -> str:
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
        lines.append("members: the best epochs of these seeds; never trained on the validation split")
    else:
        n = final["established_epochs"]
        lines.append(
            f"members: the same seeds on training and validation, {n} epoch{'' if n == 1 else 's'} each "
            f"(median of {', '.join(map(str, final['epochs_of_seeds']))})"
        )
    return "\n".join([*lines, str(out), f"next: birdtune evaluate {out} --data {data}"])
