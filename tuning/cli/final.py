"""Final training (`birdtune train --seeds`) and the honest test (`birdtune evaluate`)."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from tuning.cli.inputs import read_config, read_recordings
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
    from tuning.final import train_final
    from tuning.halt import Budget
    from tuning.launch import Data, Resources
    from tuning.live import SweepView

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
    tell({"model": str(out), **evidence}, as_json, _told(evidence, out, data))


def _chosen(start_from: str | None) -> dict[str, Any] | None:
    """Return what best.json says of the choice, without the config; None for anything else."""
    from birdnet_core.records import read_json

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
    if final["learn_from"] == "train":
        lines.append("members: the best epochs of these seeds; validation was never learnt")
    else:
        lines.append(
            f"members: the same seeds on training and validation, {final['established_epochs']} epochs each "
            f"(median of {', '.join(map(str, final['epochs_of_seeds']))})"
        )
    return "\n".join([*lines, str(out), f"next: birdtune evaluate {out} --data {data}"])
