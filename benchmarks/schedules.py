"""Which schedule of the learning rate lets early epochs predict the end, and what it costs at the end.

    python benchmarks/schedules.py MANIFEST [--trials 40] [--seeds 0 1 2] [--keep DIR]

Trains the same random configs of `probe` (heads on embeddings) for 50 epochs under each schedule. Under "wsd
before rungs" the rate decays before epochs 3, 9 and 27 as well, and the next epoch begins at the peak, from
the decayed weights. Under "wsd restored" it would begin from the weights before the decay: a run of 3 epochs
that ends in a decay has the value at epoch 3, and so on, and the run without decays on the way the end.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
from early_stopping import F1, RUNGS, curves_of
from scipy.stats import spearmanr

from birdnet_core.data.manifest import read_manifest
from search_spaces.loading import load_study
from tuning.engine.launch import sweep
from tuning.engine.preparation import Data

EPOCHS = 50
ARMS = {
    "cosine": ("cosine", (), EPOCHS),
    "constant": ("constant", (), EPOCHS),
    "wsd": ("wsd", (), EPOCHS),
    "wsd before rungs": ("wsd", RUNGS, EPOCHS),
    **{f"wsd to {rung}": ("wsd", (), rung) for rung in RUNGS},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("manifest")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="a folder for the runs")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = Data(name="birds", manifest=read_manifest(given.manifest))
    study = replace(load_study("probe", quick=True), scheduler="fifo")
    rows: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in given.seeds:
            f1 = {}
            for name, (schedule, decay_before, epochs) in ARMS.items():
                folder = (given.keep or Path(scratch)) / f"{seed} {name}"
                settings = {
                    "training.epochs": epochs, "optim.schedule": schedule,
                    "optim.decay_before": list(decay_before), "seed": seed,
                }  # fmt: skip
                sweep(study, data, folder, settings=settings, n_trials=given.trials, sampler="random")
                f1[name] = curves_of(folder)[F1]
            early = {
                name: {rung: f1[name][:, :rung].max(axis=1) for rung in RUNGS} for name in list(ARMS)[:4]
            }
            early["wsd restored"] = {rung: f1[f"wsd to {rung}"].max(axis=1) for rung in RUNGS}
            for name, at_rungs in early.items():
                end = f1[name.removesuffix(" restored")].max(axis=1)
                difference = end - f1["cosine"].max(axis=1)
                rows.setdefault(name, []).append(
                    [
                        *(float(spearmanr(values, end).statistic) for values in at_rungs.values()),
                        end.mean(), difference.mean(), difference.std(ddof=1) / len(end) ** 0.5, end.max(),
                    ]
                )  # fmt: skip
    columns = [f"rank correlation at {rung}" for rung in RUNGS]
    columns += ["mean F1", "less cosine's", "its standard error", "best F1"]
    print(f"| schedule | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for name, by_seed in rows.items():
        means = np.array(by_seed).mean(axis=0)
        print(f"| {name} | {' | '.join(f'{value:+.3f}' for value in means)} |")


if __name__ == "__main__":
    main()
