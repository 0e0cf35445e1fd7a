"""Compute used by a study: epochs, hours, GPU-hours and memory of its trials, by arm.

An arm is a cell of an ablation. Of a search it is what its trials compete within (`asha_within`), or, where
all compete with all, how they ended.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from reports.runs import OTHER_TRAINING, Runs
from reports.statistics.aggregate import show

COUNTS = ("n_trials", "n_completed", "n_reused", "epochs", "full_epochs")
SUMS = (*COUNTS, "hours", "gpu_hours", "cpu_hours", "lost_hours")
COLUMNS = ("arm", *SUMS, "peak_memory_mb")


def by_arm(
    trials: pd.DataFrame, epochs: pd.DataFrame, study: dict[str, Any], cells: pd.DataFrame
) -> pd.DataFrame:
    """Return one row an arm, in the order of `cells` or of the search.

    `hours` are of wall time of trials, failed ones included; of a trial without a record they are those of
    its epochs. `gpu_hours` and `cpu_hours` are hours times what a trial was given. `lost_hours` are those of
    trials that did not complete. A trial that another study of the run folder trained counts as `n_reused`
    and in nothing else but `n_trials` and `n_completed`. `full_epochs` is what all trials would take at the
    study's full number of epochs, of an ablation those that are planned. `peak_memory_mb` is the largest.
    """
    if trials.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    trained = ~trials["reused"].astype(bool)
    of_epochs = trials["trial_id"].map(epochs.groupby("trial_id")["epoch_s"].sum()).fillna(0.0)
    hours = (trials["seconds"].fillna(of_epochs) / 3600).where(trained, 0.0)
    is_completed = trials["status"].isin(("completed", OTHER_TRAINING))
    rows = pd.DataFrame(
        {
            "arm": arms(trials, study, cells),
            "n_trials": 1,
            "n_completed": is_completed.astype(int),
            "n_reused": (~trained).astype(int),
            "epochs": trials["epochs"].where(trained, 0),
            "full_epochs": np.where(trained, study["epochs"], 0),
            "hours": hours,
            "gpu_hours": hours * trials["gpus"].fillna(0.0),
            "cpu_hours": hours * trials["cpus"].fillna(0.0),
            "lost_hours": hours.where(~is_completed, 0.0),
            "peak_memory_mb": trials["peak_memory_mb"],
        }
    )
    grouped = rows.groupby("arm", sort=False)
    frame = grouped[list(SUMS)].sum().assign(peak_memory_mb=grouped["peak_memory_mb"].max())
    if study["kind"] == "ablation":
        frame = frame.reindex(list(dict.fromkeys(cells["label"])))
        frame[list(SUMS)] = frame[list(SUMS)].fillna(0)
        planned = len(study["repeats"]) * study["epochs"] - frame["n_reused"] * study["epochs"]
        frame["full_epochs"] = np.maximum(frame["full_epochs"], planned)
    return frame.astype(dict.fromkeys(COUNTS, "int64")).rename_axis("arm").reset_index()[list(COLUMNS)]


def arms(trials: pd.DataFrame, study: dict[str, Any], cells: pd.DataFrame) -> pd.Series[Any]:
    """Return the name of each trial's arm."""
    if study["kind"] == "ablation":
        first = cells.drop_duplicates("config_id").set_index("config_id")["label"]
        return trials["config_id"].map(first)
    within = study.get("asha_within")
    if not within:
        return trials["status"]
    return trials["factors"].map(
        lambda factors: show(factors[within]) if within in factors else f"no {within}"
    )


def against_budget(runs: Runs, study: dict[str, Any]) -> dict[str, float | None]:
    """Return what the study's run folder has cost by its journal, and what it may cost.

    `hours` is wall time during which a driver ran, `gpu_hours` and `cpu_hours` are of training epochs: all
    studies of the folder, as its budget counts them. `budget_hours` and `budget_gpu_hours` are None where the
    command line set none.
    """
    budget = (study.get("request") or {}).get("budget") or {}
    usage = runs.usage[study["run"]]
    return {
        **{name: getattr(usage, name) for name in ("hours", "gpu_hours", "cpu_hours")},
        **{f"budget_{name}": budget.get(name) for name in ("hours", "gpu_hours")},
    }
