"""Earlier and new experiments in one table, read by one rule: each at its epoch of highest val/accuracy.

Imported experiments are one run each. They stand beside the others and enter no interval, no test and no
choice of the best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from reports.earlier.readers import TEST_SCORES, Imports
from reports.page.tables import count, n_seeds, number
from reports.statistics.aggregate import t_interval

N_SIGMA = 4.0
N_UNKNOWN = 100
_PROGRESS = ["accuracy", "epochs_to_best", "epochs", "gap_best", "gap_last"]
_SCORES = {f"val/{score}": score for score in ("f1_macro", "f1_weighted", "map", "f1_rare")}
COLUMNS = (
    "experiment", "imported", "source", "n", "n_failed", "n_pruned", "is_leaky", "accuracy", "low", "high",
    *_PROGRESS[1:], *_SCORES.values(), *(f"test_{score}" for score in TEST_SCORES), "n_test", "n_params",
    "n_params_per_species", "hours", "gpu_hours", "stored_as",
    "test_stored_as", "file", "test_files", "trial_ids",
)  # fmt: skip

NOTES = (
    "An imported experiment is one run (n = 1): its history does not say how far another seed would have "
    "come. So it has no interval, and it enters no test, no Holm correction and no choice of the best.",
    "Every row is read at its first epoch of highest val/accuracy, new ones too, whatever metric their study "
    "has; of a search, its best config stands here. Epochs count from 1.",
    "Gap: train/accuracy minus val/accuracy of the same epoch, in points. Training accuracy is of clips as "
    "they were seen, so that augmentation or mixing lowers it, and the gap with it, without better "
    "validation.",
    "Rows of different sources may be of different recordings and splits: a difference between them is of "
    "that, too.",
    "Accuracies are shown in percent. A history with a value above 1 was stored in percents, one without in "
    "fractions; a test score above 1 in percents, any other as a fraction.",
    "Test scores are as the imported files store them. This report does not open the test split.",
)


def progress(epochs: pd.DataFrame) -> pd.DataFrame:
    """Return one row a trial: how well it validated, when, and how far training was ahead.

    `epochs` has `trial_id`, `epoch`, and ``train/accuracy`` and ``val/accuracy`` as fractions. `accuracy` is
    the highest val/accuracy, `epochs_to_best` the first epoch that has it, `epochs` the last one. A gap is
    train/accuracy minus val/accuracy of one and the same epoch: `gap_best` of the best, `gap_last` of the
    last. `f1_macro`, `f1_weighted`, `map` and `f1_rare` are of the best epoch, nan where not reported. Trials
    without a val/accuracy have no row.
    """
    if "val/accuracy" not in epochs:
        return pd.DataFrame(columns=[*_PROGRESS, *_SCORES.values()], dtype="float64")
    gaps = epochs.get("train/accuracy", math.nan) - epochs["val/accuracy"]
    known = epochs.assign(gap=gaps).dropna(subset=["val/accuracy"]).sort_values(["trial_id", "epoch"])
    known = known.reset_index(drop=True)
    best = known.loc[known.groupby("trial_id")["val/accuracy"].idxmax()].set_index("trial_id")
    last = known.groupby("trial_id").tail(1).set_index("trial_id")
    columns = (best["val/accuracy"], best["epoch"], last["epoch"], best["gap"], last["gap"])
    scores = {name: best.get(metric, math.nan) for metric, name in _SCORES.items()}
    return pd.DataFrame(
        {**dict(zip(_PROGRESS, columns, strict=True)), **scores}, index=best.index, dtype="float64"
    )


def progression(epochs: pd.DataFrame, study: dict[str, Any], cells: pd.DataFrame) -> pd.DataFrame:
    """Return one row a (cell, epoch): means over its completed trials; of a search, its best config's.

    Columns: `label`, `epoch`, `n` (trials that reached the epoch), and of what the trials report: losses,
    accuracies and `gap`, train/accuracy minus val/accuracy of the same epoch.
    """
    shown = cells.iloc[:1] if study["kind"] == "search" else cells
    shown = shown.drop_duplicates("config_id")
    labels = {
        trial_id: label
        for label, trial_ids in zip(shown["label"], shown["trial_ids"], strict=True)
        for trial_id in trial_ids
    }
    metrics = [m for m in ("train/loss", "val/loss", "train/accuracy", "val/accuracy") if m in epochs]
    mine = epochs[epochs["trial_id"].isin(labels)]
    mine = mine.assign(label=mine["trial_id"].map(labels))
    if {"train/accuracy", "val/accuracy"} <= set(metrics):
        mine["gap"] = mine["train/accuracy"] - mine["val/accuracy"]
        metrics.append("gap")
    grouped = mine.groupby(["label", "epoch"], sort=True)
    frame = grouped[metrics].mean().assign(n=grouped.size()).reset_index()
    order = {label: i for i, label in enumerate(shown["label"])}
    frame = frame.sort_values("label", key=lambda column: column.map(order), kind="stable")
    return frame[["label", "epoch", "n", *metrics]].reset_index(drop=True)


def imported(imports: Imports) -> pd.DataFrame:
    """Return one row an imported experiment, in the order of names; n is 1 and there is no interval."""
    frame = imports.experiments.join(progress(imports.epochs), on="experiment")
    frame = frame.assign(
        imported=True,
        source="imported",
        n=1,
        n_failed=0,
        n_pruned=0,
        is_leaky=False,
        low=math.nan,
        high=math.nan,
    )
    frame = frame.assign(
        trial_ids=pd.Series([[]] * len(frame), frame.index, dtype=object),
        n_params_per_species=math.nan,
        hours=math.nan,
        gpu_hours=math.nan,
    )
    return frame[list(COLUMNS)]


def of_study(study: dict[str, Any], epochs: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell of an ablation, or one for the best config of a search.

    Numbers are means of `progress` over completed trials, `low` and `high` the t interval of the accuracy.
    """
    shown = cells.iloc[:1] if study["kind"] == "search" else cells
    ids = {trial_id for trial_ids in shown["trial_ids"] for trial_id in trial_ids}
    by_trial = progress(epochs[epochs["trial_id"].isin(ids)])
    n_species = (study.get("data") or {}).get("n_species") or math.nan
    rows = []
    for _, cell in shown.iterrows():
        mine = by_trial.reindex(cell["trial_ids"])
        mean, low, high = t_interval(mine["accuracy"].tolist())
        means = {column: mine[column].mean() for column in [*_PROGRESS[1:], *_SCORES.values()]}
        rows.append(
            {
                "experiment": cell["label"],
                "imported": False,
                "source": study["name"],
                **{key: cell[key] for key in ("n", "n_failed", "n_pruned", "is_leaky")},
                "accuracy": mean,
                "low": low,
                "high": high,
                **means,
                "n_params": cell["n_params"],
                "n_params_per_species": cell["n_params"] / n_species,
                "hours": cell["hours"],
                "gpu_hours": cell["gpu_hours"],
                "file": study["run"],
                "trial_ids": cell["trial_ids"],
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def contradictions(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the imported rows whose test accuracy is not that of the model that was validated.

    `z` is the difference of the two shares in standard errors, by Agresti and Caffo (2000, The American
    Statistician 54:280-288): one right and one wrong answer are added to each. The size of the validation
    split is not stored, and taken as `n_test`; where that is not stored either, both are taken as N_UNKNOWN,
    so that only what is far apart is told. Rows with abs(z) of at least N_SIGMA: p below 0.0001, which leaves
    room for the best of many epochs being too high.
    """
    known = rows[rows["test_accuracy"].notna()]
    n = known["n_test"].fillna(N_UNKNOWN).astype(float)
    val, test = ((known[c].astype(float) * n + 1) / (n + 2) for c in ("accuracy", "test_accuracy"))
    variance = (val * (1 - val) + test * (1 - test)) / (n + 2)
    told = known.assign(z=(test - val) / variance**0.5)
    return told.loc[told["z"].abs() >= N_SIGMA]


def warnings(rows: pd.DataFrame) -> list[str]:
    """Return the contradictions in words, to be read before any number."""
    out = []
    for _, row in contradictions(rows).iterrows():
        if math.isfinite(row["n_test"]):
            of, noise = f" of {count(row['n_test'])} predictions", ""
        else:
            of, noise = "", f" even of splits of {N_UNKNOWN}: their sizes are not stored"
        out.append(
            f"{row['experiment']} contradicts itself: validation accuracy {percent(row['accuracy'])} "
            f"({row['file']}, epoch {count(row['epochs_to_best'])}), but test accuracy "
            f"{percent(row['test_accuracy'])}{of} ({', '.join(row['test_files'])}). The difference, "
            f"{points(row['test_accuracy'] - row['accuracy'])} points, is {abs(row['z']):.0f} standard "
            f"errors{noise}. Chance does not explain that; other weights, other data, or another preparation "
            "or order of species may. Find out before either number is used."
        )
    return out


def answer(rows: pd.DataFrame) -> str:
    """Return which imported experiment validated best, and how little that says."""
    mine = rows[rows["imported"].astype(bool)]
    if mine.empty:
        return "No imported experiment could be read."
    best = mine.sort_values("accuracy", ascending=False, kind="stable").iloc[0]
    return (
        f"Highest validation accuracy of {_experiments(len(mine))}: {best['experiment']} with "
        f"{percent(best['accuracy'])} at epoch {count(best['epochs_to_best'])} of {count(best['epochs'])} "
        "(one run, so no interval and no way to tell it from chance)."
    )


def gap_sentences(rows: pd.DataFrame, epochs: pd.DataFrame) -> list[str]:
    """Return what the train-validation gap says of the two best imported experiments, and of all pairs.

    A gap grows while training goes on, so it is told at three epochs: the best of each, the last of each, and
    the last that both have.
    """
    mine = rows[rows["imported"].astype(bool)].sort_values("accuracy", ascending=False, kind="stable")
    if len(mine) < 2:
        return []
    a, b = mine.iloc[0], mine.iloc[1]
    shared = min(a["epochs"], b["epochs"])
    at_shared = [_gap_at(epochs, row["experiment"], shared) for row in (a, b)]
    readings = [(a["gap_best"], b["gap_best"]), (a["gap_last"], b["gap_last"]), (at_shared[0], at_shared[1])]
    best, last, same = (f"{x * 100:.1f} against {y * 100:.1f}" for x, y in readings)
    text = (
        f"Train − validation gap of accuracy of the two best, {a['experiment']} against {b['experiment']}: "
        f"{best} points at the best epochs ({count(a['epochs_to_best'])} and {count(b['epochs_to_best'])}), "
        f"{last} at the last ({count(a['epochs'])} and {count(b['epochs'])}), {same} at epoch "
        f"{count(shared)}, the last that both have. "
    )
    signs = {int(x > y) - int(x < y) for x, y in readings}
    if signs in ({-1}, {1}):
        size = "smaller" if signs == {-1} else "larger"
        text += f"That of {a['experiment']} is the {size} one each time."
    else:
        text += (
            "Which of the two is smaller depends on the epoch at which it is read: that one of them shrank "
            "the gap follows from none of these alone, nor from gaps of different epochs."
        )
    pairs = list(combinations(zip(mine["gap_best"], mine["gap_last"], strict=True), 2))
    turned = sum((x[0] - y[0]) * (x[1] - y[1]) < 0 for x, y in pairs)
    return [
        text,
        f"Of the {len(pairs)} pairs of imported experiments, {turned} have the larger gap at one of the two "
        "epochs, best or last, and the smaller at the other.",
    ]


def _gap_at(epochs: pd.DataFrame, trial_id: str, epoch: float) -> float:
    row = epochs[(epochs["trial_id"] == trial_id) & (epochs["epoch"] == epoch)].iloc[0]
    return float(row["train/accuracy"] - row["val/accuracy"])


def experiment_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return text cells, a row an experiment; accuracies in percent, gaps in points."""
    shown = []
    doubtful = contradictions(rows).index
    for index, row in rows.iterrows():
        stored = row["stored_as"]
        if row["imported"] and row["test_stored_as"]:
            stored = f"{stored}; test: {row['test_stored_as']}"
        files: Sequence[str] = [row["file"], *row["test_files"]] if row["imported"] else [row["file"]]
        shown.append(
            {
                "experiment": row["experiment"]
                + (" (see the warning)" if index in doubtful else "")
                + (" (leaky split)" if row["is_leaky"] else ""),
                "source": row["source"],
                "n": str(row["n"]),
                "failed": str(row["n_failed"]),
                "pruned": str(row["n_pruned"]),
                "best val/accuracy": percent(row["accuracy"]),
                "95 % interval": _interval(row),
                "at epoch": _mean(row["epochs_to_best"]),
                "of epochs": _mean(row["epochs"]),
                "F1-macro": number(row["f1_macro"]),
                "F1-weighted": number(row["f1_weighted"]),
                "mAP": number(row["map"]),
                "F1 rare": number(row["f1_rare"]),
                "gap at best": points(row["gap_best"]),
                "gap at last": points(row["gap_last"]),
                "test accuracy": percent(row["test_accuracy"]),
                "test F1-macro": number(row["test_f1_macro"]),
                "test F1-weighted": number(row["test_f1_weighted"]),
                "test mAP": number(row["test_map"]),
                "parameters": count(row["n_params"]),
                "parameters per species": count(row["n_params_per_species"]),
                "hours": number(row["hours"], "{:.2g}"),
                "GPU-hours": number(row["gpu_hours"], "{:.2g}"),
                "stored as": stored if row["imported"] else "–",
                "from": ", ".join(files),
            }
        )
    return pd.DataFrame(shown, dtype=object)


def percent(value: float) -> str:
    return number(value * 100, "{:.2f} %")


def points(value: float) -> str:
    return number(value * 100, "{:+.1f}").replace("-", "−")


def _mean(value: float) -> str:
    return count(value) if not value % 1 else number(value, "{:.1f}")


def _interval(row: pd.Series[Any]) -> str:
    if row["imported"]:
        return "none: one run"
    if math.isnan(row["low"]):
        return f"none: {n_seeds(1)}" if row["n"] == 1 else "none"
    return f"{percent(row['low'])} to {percent(row['high'])}"


def _experiments(n: int) -> str:
    return "1 imported experiment" if n == 1 else f"{n} imported experiments"
