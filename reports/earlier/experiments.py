"""Imported and new experiments in one table, by one rule: each at its epoch of highest val/accuracy.

Imported experiments are one run each. They enter no interval, no test and no choice of the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.page.formats import count, interval, number, percent, points
from reports.page.sentences import GAP
from reports.statistics import progress
from reports.statistics.aggregate import t_interval
from reports.study_report import StudyReport

N_SIGMA = 4.0
N_UNKNOWN = 100
EXPERIMENT_COLUMNS = (
    "experiment", "file", "stored_as", "test_files", "test_accuracy", "test_f1_macro", "test_f1_weighted",
    "test_map", "n_test", "n_params",
)  # fmt: skip
_PROGRESS = (*progress.COLUMNS[1:], *progress.SCORES.values())
COLUMNS = (
    "experiment", "imported", "source", "n", "n_failed", "n_pruned", "is_leaky", "accuracy", "low", "high",
    *_PROGRESS, *EXPERIMENT_COLUMNS[4:], "n_params_per_species", "hours", "gpu_hours", "stored_as", "file",
    "test_files", "trial_ids",
)  # fmt: skip

NOTES = (
    "An imported experiment is one run (n = 1): its variation over repeats is unknown. It has no interval "
    "and enters no test, no Holm correction and no choice of the best.",
    "Every row is at its first epoch of highest val/accuracy, also in studies of another metric; of a "
    "search, the best config is listed. Epochs count from 1.",
    GAP,
    "Rows of different sources may differ in recordings and splits; their differences include that.",
    "Accuracies are in percent. A history with a value above 1 is read as percents, any other as fractions.",
    "Test scores are as the imported files store them. This report does not open the test split.",
)


@dataclass(frozen=True, kw_only=True)
class EarlierWork:
    """The experiments of a folder of earlier work.

    Args:
        folder: as it was given.
        experiments: one row an experiment, by name, with the columns EXPERIMENT_COLUMNS. Test scores are
            fractions, nan where none is stored; `n_test` is the number of stored predictions, else nan;
            `stored_as` is the unit of the file, ``fractions`` or ``percents``.
        epochs: one row an epoch: `trial_id` (the experiment's name), `epoch` from 1, losses as stored and
            accuracies as fractions, named as in a run.
        faults: `file` and `fault` of everything that looks like a result and cannot be used.
        unread: the files and folders that hold no result.
    """

    folder: str
    experiments: pd.DataFrame
    epochs: pd.DataFrame
    faults: list[dict[str, str]]
    unread: list[str]


def experiments(earlier: EarlierWork, reports: Iterable[StudyReport]) -> pd.DataFrame:
    """Return one row an imported experiment, then one a cell of each study, with the columns COLUMNS.

    Numbers of a cell are means of `progress` over its completed trials, `low` and `high` the t interval of
    the accuracy. Of a search only the best config has a row.
    """
    by_experiment = progress.progress(earlier.epochs)
    rows = [
        {
            **row, **by_experiment.loc[row["experiment"]].to_dict(), "imported": True, "source": "imported",
            "n": 1, "n_failed": 0, "n_pruned": 0, "is_leaky": False, "trial_ids": [],
        }
        for row in earlier.experiments.to_dict("records")
    ]  # fmt: skip
    for report in reports:
        rows += _of_study(report)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _of_study(report: StudyReport) -> list[dict[Any, Any]]:
    cells = report.cells.iloc[:1] if report.kind == "search" else report.cells
    by_trial = progress.progress(report.epochs)
    n_species = (report.study.get("data") or {}).get("n_species") or math.nan
    rows: list[dict[Any, Any]] = []
    for cell in cells.to_dict("records"):
        mine = by_trial.reindex(cell["trial_ids"])
        mean, low, high = t_interval(mine["accuracy"].tolist())
        same = ("n", "n_failed", "n_pruned", "is_leaky", "n_params", "hours", "gpu_hours", "trial_ids")
        rows.append(
            {
                **{key: cell[key] for key in same},
                **{column: mine[column].mean() for column in _PROGRESS},
                "experiment": cell["label"],
                "imported": False,
                "source": report.name,
                "accuracy": mean,
                "low": low,
                "high": high,
                "n_params_per_species": cell["n_params"] / n_species,
                "file": report.study["run"],
                "stored_as": "",
                "test_files": [],
            }
        )
    return rows


def contradictions(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the imported rows whose test accuracy contradicts their validation accuracy, with `z`.

    `z` is the difference of the two shares in standard errors, by Agresti and Caffo (2000, The American
    Statistician 54:280-288): one right and one wrong answer are added to each. The size of the validation
    split is not stored, and taken as `n_test`; where that is not stored either, both are taken as N_UNKNOWN.
    Rows with abs(z) of at least N_SIGMA: p below 0.0001, which leaves room for the optimism of the best of
    many epochs.
    """
    known = rows[rows["test_accuracy"].notna()]
    n = known["n_test"].fillna(N_UNKNOWN).astype(float)
    val, test = ((known[c].astype(float) * n + 1) / (n + 2) for c in ("accuracy", "test_accuracy"))
    variance = (val * (1 - val) + test * (1 - test)) / (n + 2)
    scored = known.assign(z=(test - val) / variance**0.5)
    return scored.loc[scored["z"].abs() >= N_SIGMA]


def warnings(rows: pd.DataFrame) -> list[str]:
    """Return the contradictions in words."""
    out = []
    for _, row in contradictions(rows).iterrows():
        of, sizes = f" of {count(row['n_test'])} predictions", ""
        if math.isnan(row["n_test"]):
            of, sizes = "", f" for splits of {N_UNKNOWN} (their sizes are not stored)"
        out.append(
            f"{row['experiment']} contradicts itself: validation accuracy {percent(row['accuracy'])} "
            f"({row['file']}, epoch {count(row['epochs_to_best'])}), but test accuracy "
            f"{percent(row['test_accuracy'])}{of} ({', '.join(row['test_files'])}). The difference of "
            f"{points(row['test_accuracy'] - row['accuracy'])} points is {abs(row['z']):.0f} standard "
            f"errors{sizes}: not chance, but perhaps other weights, data, preparation or order of species. "
            "Find the cause before you use either number."
        )
    return out


def answer(rows: pd.DataFrame) -> str:
    """Return which imported experiment has the highest validation accuracy."""
    mine = rows[rows["imported"].astype(bool)]
    if mine.empty:
        return "No imported experiment could be read."
    best = mine.sort_values("accuracy", ascending=False, kind="stable").iloc[0]
    return (
        f"Highest validation accuracy of {len(mine)} imported experiment{'s' * (len(mine) > 1)}: "
        f"{best['experiment']} with {percent(best['accuracy'])} at epoch {count(best['epochs_to_best'])} of "
        f"{count(best['epochs'])} (one run, so its uncertainty is unknown)."
    )


def experiment_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return text cells, a row an experiment; accuracies in percent, gaps in points."""
    doubtful = contradictions(rows).index
    return pd.DataFrame(
        [
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
                "stored as": row["stored_as"] or "–",
                "from": ", ".join([row["file"], *row["test_files"]]),
            }
            for index, row in rows.iterrows()
        ],
        dtype=object,
    )


def _mean(value: float) -> str:
    return count(value) if not value % 1 else number(value, "{:.1f}")


def _interval(row: pd.Series[Any]) -> str:
    if row["imported"]:
        return "none: one run"
    if math.isnan(row["low"]) and row["n"] == 1:
        return "none: one repeat"
    return interval({key: row[key] * 100 for key in ("low", "high")}, "{:.2f} %")
