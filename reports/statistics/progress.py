"""How trials validated over their epochs: the epoch of highest validation accuracy, and the training gap."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

COLUMNS = ("accuracy", "epochs_to_best", "epochs", "gap_best", "gap_last")
SCORES = {f"val/{score}": score for score in ("f1_macro", "f1_weighted", "map", "f1_rare")}
_CURVES = ("train/loss", "val/loss", "train/accuracy", "val/accuracy")


def progress(epochs: pd.DataFrame) -> pd.DataFrame:
    """Return one row a trial: its highest val/accuracy, at which epoch, and the gap to training accuracy.

    `epochs` has `trial_id`, `epoch`, and ``train/accuracy`` and ``val/accuracy`` as fractions. `accuracy` is
    the highest val/accuracy, `epochs_to_best` the first epoch that has it, `epochs` the last one. A gap is
    train/accuracy minus val/accuracy of the same epoch: `gap_best` of the best, `gap_last` of the last.
    `f1_macro`, `f1_weighted`, `map` and `f1_rare` are of the best epoch, nan where not reported. Trials
    without a val/accuracy have no row.
    """
    if "val/accuracy" not in epochs:
        return pd.DataFrame(columns=[*COLUMNS, *SCORES.values()], dtype="float64")
    gaps = epochs.get("train/accuracy", math.nan) - epochs["val/accuracy"]
    known = epochs.assign(gap=gaps).dropna(subset=["val/accuracy"]).sort_values(["trial_id", "epoch"])
    known = known.reset_index(drop=True)
    best = known.loc[known.groupby("trial_id")["val/accuracy"].idxmax()].set_index("trial_id")
    last = known.groupby("trial_id").tail(1).set_index("trial_id")
    columns = (best["val/accuracy"], best["epoch"], last["epoch"], best["gap"], last["gap"])
    scores = {name: best.get(metric, math.nan) for metric, name in SCORES.items()}
    return pd.DataFrame(
        {**dict(zip(COLUMNS, columns, strict=True)), **scores}, index=best.index, dtype="float64"
    )


def progression(epochs: pd.DataFrame, study: dict[str, Any], cells: pd.DataFrame) -> pd.DataFrame:
    """Return one row a (cell, epoch): means over its completed trials; of a search, its best config's.

    Columns: `label`, `epoch`, `n` (trials that reached the epoch), and of what the trials report: losses,
    accuracies and `gap`, train/accuracy minus val/accuracy of the same epoch.
    """
    rows = cells.iloc[:1] if study["kind"] == "search" else cells
    rows = rows.drop_duplicates("config_id")
    labels = {
        trial_id: label
        for label, trial_ids in zip(rows["label"], rows["trial_ids"], strict=True)
        for trial_id in trial_ids
    }
    metrics = [m for m in _CURVES if m in epochs]
    mine = epochs[epochs["trial_id"].isin(labels)]
    mine = mine.assign(label=mine["trial_id"].map(labels))
    if {"train/accuracy", "val/accuracy"} <= set(metrics):
        mine["gap"] = mine["train/accuracy"] - mine["val/accuracy"]
        metrics.append("gap")
    grouped = mine.groupby(["label", "epoch"], sort=True)
    frame = grouped[metrics].mean().assign(n=grouped.size()).reset_index()
    order = {label: i for i, label in enumerate(rows["label"])}
    frame = frame.sort_values("label", key=lambda column: column.map(order), kind="stable")
    return frame[["label", "epoch", "n", *metrics]].reset_index(drop=True)
