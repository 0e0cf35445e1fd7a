"""The tables of the page as text cells, each from the frame that a statistic returned."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import pandas as pd

from birdnet_core.records.metrics import METRICS
from reports.page.formats import (
    count,
    form_of,
    interval,
    number,
    objective,
    p_value,
    percent,
    points,
    signed,
    signed_interval,
    span,
    time_unit,
    with_sign,
)
from reports.runs import FAILED, OTHER_TRAINING, RUNNING
from reports.statistics import aggregate
from reports.statistics.front import objectives_of
from reports.statistics.linear_model import LEAST_REPEATS
from reports.statistics.predictions import f1_of_species, predictions_of
from reports.study_report import StudyReport

MOST_COLUMNS = 20  # cells side by side in a table
N_FACTORS = 5  # of a search, that its table has room for
N_PAPER = 20  # rows of a table for a paper


def cell_table(cells: pd.DataFrame, study: dict[str, Any], best: dict[str, Any] | None) -> pd.DataFrame:
    metric = study["metric"]
    baseline = aggregate.baseline_of(cells, study)
    n_species = (study.get("data") or {}).get("n_species")
    scores = {m: METRICS[m].title for m in METRICS if m.startswith("val/") and m not in ("val/loss", metric)}
    forms = {m: form_of(cells[f"{m}:low"], cells[f"{m}:high"]) for m in (metric, *scores) if m in cells}
    unit, factor = time_unit(float(cells["hours"].max()))
    rows = []
    single = [name for name in cells if not str(name).endswith((":values", "repeats", "trial_ids"))]
    for index, cell in zip(cells.index, cells[single].to_dict("records"), strict=True):
        marks = {
            "best": best and cell["config_id"] == best["config_id"],
            "baseline": baseline is not None and index == baseline.name,
            "leaky split": cell["is_leaky"],
            "unequal epochs": cell["unequal_epochs"],
            "infeasible": cell["is_infeasible"],
        }
        marked = ", ".join(mark for mark, is_set in marks.items() if is_set)
        row = {"cell": cell["label"] + (f" ({marked})" if marked else "")}
        row[metric] = number(cell.get(metric, math.nan), forms.get(metric, "{:.3f}"))
        row["95 % interval"] = _cell_interval(cell, metric, forms.get(metric, "{:.3f}"))
        if study["kind"] == "search" or aggregate.is_screen(study):
            row |= {key: aggregate.show(value) for key, value in cell["factors"].items()}
        row |= {"n": str(cell["n"]), "failed": str(cell["n_failed"]), "pruned": str(cell["n_pruned"])}
        if cells["n_other"].any():
            row[OTHER_TRAINING] = str(cell["n_other"])
        row |= {title: number(cell[m], forms[m]) for m, title in scores.items() if m in cells}
        row["parameters"] = count(cell["n_params"])
        if n_species:
            row["parameters per species"] = count(cell["n_params"] / n_species)
        row["epochs"] = span(cell["epochs_min"], cell["epochs_max"])
        row["to best"] = number(cell["epochs_to_best"], "{:.1f}")
        row[unit] = number(cell["hours"] * factor, "{:.2g}")
        if cells["gpu_hours"].any():
            row[f"GPU-{unit}"] = number(cell["gpu_hours"] * factor, "{:.2g}")
        rows.append(row)
    return _frame(rows, "–")


def front_table(front: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return a row a config of the Pareto front, best metric first; `front` is of `front.pareto_front`."""
    if front.empty:
        return front
    return _frame(
        {
            "cell": row["label"],
            **{name: objective(row[name], name) for name in objectives_of(study)},
            "distance": number(row["distance"], "{:.2f}"),
            **{key: aggregate.show(value) for key, value in row["factors"].items()},
        }
        for row in front[front["is_on_front"]].to_dict("records")
    ).replace("", "–")


def search_table(searches: pd.DataFrame) -> pd.DataFrame:
    """Return a row a run of one search, with its best config; `searches` is of `repeated_searches`."""
    return _frame(
        {
            "run": row["run"],
            "seed": str(row["seed"]),
            "trials": count(row["n_trials"]),
            f"best {row['metric']}": number(row["best"]),
            "best config": aggregate.label(row["factors"]),
        }
        for row in searches.to_dict("records")
    )


def first_columns(table: pd.DataFrame, study: dict[str, Any]) -> tuple[str, ...]:
    """Return the columns of `cell_table` that fit a page: the score, what varied, and what weakens it."""
    if not len(table):
        return ()
    is_known = not table["95 % interval"].str.startswith("none").all()
    place = list(table.columns).index
    varied = list(table.columns)[place("95 % interval") + 1 : place("n")][:N_FACTORS]
    counted = [name for name in ("failed", "pruned") if (table[name] != "0").any()]
    times = [name for name in ("hours", "minutes", "seconds") if name in table]
    others = ["accuracy", "F1 rare", "parameters", *times] if len(varied) < 3 else times
    return ("cell", study["metric"], *["95 % interval"] * is_known, *varied, "n", *counted, *others)


def _cell_interval(cell: Mapping[Hashable, Any], metric: str, form: str) -> str:
    if cell["n_infeasible"]:
        return "none: not trained"
    if cell["n"] == 0:
        return "none: no completed trial"
    if math.isnan(cell.get(f"{metric}:low", math.nan)):
        return "none: fewer than three repeats" if cell["n"] < LEAST_REPEATS else "none: not all folds"
    return interval({part: cell[f"{metric}:{part}"] for part in ("low", "high")}, form)


def choice_table(best: dict[str, Any]) -> pd.DataFrame:
    """Return a row a config of a race on fresh repeats: those of the last round, then those that left."""
    return _frame(
        {
            "config": aggregate.label(each["factors"])
            + (" (chosen)" if each["config_id"] == best["config_id"] else ""),
            best["metric"]: number(_nan(each["mean"])),
            "95 % interval": interval({key: _nan(each[key]) for key in ("low", "high")}),
            "fresh repeats": str(each["n"]),
            "may be the best": _YES[each["may_be_best"]],
            "parameters": count(_nan(each["n_params"])),
        }
        for each in (*best["shortlist"], *best["confirmed"]["left"])
    )


_YES = {None: "–", True: "yes", False: "no"}


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def contrast_table(contrasts: pd.DataFrame) -> pd.DataFrame:
    """Return a row a contrast, what it is of and what may be claimed of it."""
    has_aliases = any(contrasts["aliases"])
    form = with_sign(form_of(contrasts["low"], contrasts["high"]))
    return _frame(
        {
            "difference": row["label"],
            "kind": row["kind"],
            "estimate": signed(row["estimate"], form),
            "simultaneous interval": signed_interval(row, form),
            "p (adjusted)": p_value(row["p"]),
            "verdict": row["verdict"] or "–",
            **({"aliased with": ", ".join(row["aliases"]) or "–"} if has_aliases else {}),
            "note": row["note"],
        }
        for row in contrasts.to_dict("records")
    )


def gate_table(gate_results: pd.DataFrame) -> pd.DataFrame:
    form = form_of(gate_results["low"], gate_results["high"])
    return _frame(
        {
            "criterion": row["criterion"],
            "status": row["status"],
            "value": number(row["value"], form),
            "95 % interval": interval(row, form),
            "n": str(row["n"]),
            "stretch": _stretch(row),
            "note": row["note"],
        }
        for _, row in gate_results.iterrows()
    )


def _stretch(row: Any) -> str:
    if not math.isfinite(row["stretch"]):
        return "–"
    return f"{row['stretch']:g}, {'reached' if row['is_stretch_reached'] else 'not reached'}"


def level_table(means: pd.DataFrame) -> pd.DataFrame:
    """Return a row a level of each numeric factor, with mean and interval of each metric."""
    has_groups = means["group"].any()
    form = form_of(means["low"], means["high"])
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in means.to_dict("records"):
        cell = rows.setdefault(
            (row["factor"], row["group"], row["level"]),
            {
                "factor": row["factor"],
                "level": aggregate.show(row["level"]),
                **({"with": row["group"]} if has_groups else {}),
                "repeats": 0,
            },
        )
        cell["repeats"] = max(cell["repeats"], row["n"])
        cell[row["metric"]] = f"{number(row['mean'], form)} ({interval(row, form)})"
    return _frame(rows.values(), "–").astype(str)


def correlation_table(correlations: pd.DataFrame) -> pd.DataFrame:
    return _frame(
        {
            "factor": row["factor"],
            "rank correlation": signed(row["rho"], "{:+.2f}"),
            "95 % interval": signed_interval(row, "{:+.2f}"),
            "cells": str(row["n_cells"]),
            "note": row["note"],
        }
        for row in correlations.to_dict("records")
    )


def importance_table(importances: pd.DataFrame) -> pd.DataFrame:
    """Return a row a parameter; no row where the importance of none is known."""
    if importances["importance"].isna().all():
        return pd.DataFrame()
    return _frame(
        {
            "parameter": row["parameter"],
            "importance": number(row["importance"], "{:.2f}"),
            "95 % of resamples": interval(row, "{:.2f}"),
            "p (adjusted)": p_value(row["p"]),
            "trials with it": count(row["n"]),
            "note": row["note"],
        }
        for _, row in importances.iterrows()
    )


def progression_table(progression: pd.DataFrame) -> pd.DataFrame:
    """Return a row a (cell, epoch); accuracies in percent, gaps in points."""
    titles = {"label": "cell", "trial_id": "experiment", "epoch": "epoch", "n": "n"}
    text = {title: progression[key].astype(str) for key, title in titles.items() if key in progression}
    for key in ("train/accuracy", "val/accuracy", "gap", "train/loss", "val/loss"):
        if key in progression:
            form = points if key == "gap" else percent if "accuracy" in key else number
            text[key] = progression[key].map(form)
    return pd.DataFrame(text, dtype=object)


def resource_table(arms: pd.DataFrame) -> pd.DataFrame:
    """Return a row an arm, and one for all of them where there are several."""
    if len(arms) > 1:
        whole = arms.drop(columns=["arm", "peak_memory_mb"]).sum().to_dict()
        whole |= {"arm": "all", "peak_memory_mb": arms["peak_memory_mb"].max()}
        arms = pd.concat([arms, pd.DataFrame([whole])], ignore_index=True)
    has_reused = bool(arms["n_reused"].any())
    columns = ["hours", "lost_hours", "gpu_hours", "cpu_hours"]
    unit, factor = time_unit(float(arms[columns].to_numpy(dtype=float).max(initial=0)))
    arms = arms.assign(**arms[columns] * factor)
    return _frame(
        {
            "arm": arm["arm"],
            "trials": count(arm["n_trials"]),
            "completed": count(arm["n_completed"]),
            **({"reused": count(arm["n_reused"])} if has_reused else {}),
            "epochs": count(arm["epochs"]),
            "at full length": count(arm["full_epochs"]),
            unit: number(arm["hours"], "{:.2f}"),
            "not completed": number(arm["lost_hours"], "{:.2f}"),
            f"GPU-{unit}": number(arm["gpu_hours"], "{:.2f}"),
            f"CPU-{unit}": number(arm["cpu_hours"], "{:.2f}"),
            "peak memory": number(arm["peak_memory_mb"], "{:,.0f} MB"),
        }
        for _, arm in arms.iterrows()
    )


def trial_table(trials: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    metric = study["metric"]
    unit, factor = time_unit(float(trials["seconds"].max()) / 3600)
    return _frame(
        {
            "trial": trial["trial_id"],
            metric: number(trial.get(metric, math.nan), "{:.3f}"),
            "number": str(trial["number"]),
            "cell": aggregate.label(trial["factors"]),
            "repeat": str(trial["repeat"]),
            "seed": str(trial["seed"]),
            "status": trial["status"] + (" (reused)" if trial["reused"] else ""),
            "read at epoch": count(trial["read_epoch"]),
            "epochs": str(trial["epochs"]),
            unit: number(trial["seconds"] / 3600 * factor, "{:.2g}"),
            "peak memory": number(trial["peak_memory_mb"], "{:,.0f} MB"),
        }
        for trial in trials.to_dict("records")
    )


def failure_table(trials: pd.DataFrame) -> pd.DataFrame:
    return _frame(
        {
            "trial": trial["trial_id"],
            "cell": aggregate.label(trial["factors"]),
            "status": trial["status"],
            "epochs": str(trial["epochs"]),
            "error": _last_line(trial["error"]) or ("not ended" if trial["status"] == RUNNING else "–"),
        }
        for trial in trials[trials["status"].isin([*FAILED, RUNNING])].to_dict("records")
    )


def _last_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return lines[-1].strip() if lines else ""


def species_table(
    trials: pd.DataFrame, study: dict[str, Any], cells: pd.DataFrame, best: dict[str, Any] | None
) -> tuple[pd.DataFrame, bool]:
    """Return validation F1, a row a species and a column a cell, and whether it is of predictions.

    Of a search the best config's; of an ablation of more than `MOST_COLUMNS` cells the best and the baseline.
    Where a cell has no predictions, F1 of all is as the records of their trials have it.
    """
    columns = cells[cells["n"] > 0].drop_duplicates("config_id")
    if study["kind"] == "search" or len(columns) > MOST_COLUMNS:
        baseline = aggregate.baseline_of(cells, study)
        named = {(best or {}).get("config_id"), None if baseline is None else baseline["config_id"]}
        columns = columns[columns["config_id"].isin(named)]
    found = {config_id: predictions_of(trials, config_id, study) for config_id in columns["config_id"]}
    known = {config_id: f1_of_species(each) for config_id, each in found.items() if each is not None}
    has_all = len(known) == len(found)
    means = known if has_all else {c: aggregate.recorded_f1(trials, c) for c in columns["config_id"]}
    frame = aggregate.species(means, study)
    names = dict(zip(columns["config_id"], columns["label"], strict=True))
    n_train = f"training {study.get('data', {}).get('scored', 'recordings')}"
    text = frame.rename(columns={**names, "n_train": n_train}).astype(object)
    for column, source in zip(text.columns, frame.columns, strict=True):
        if source != "species":
            text[column] = [count(v) if source == "n_train" else number(v, "{:.3f}") for v in frame[source]]
    return (text if len(columns) else text.iloc[:0]), has_all


def recording_table(by_recording: pd.DataFrame) -> pd.DataFrame:
    """Return F1 of all species and of the strata, with its interval over recordings."""
    form = form_of(by_recording["low"], by_recording["high"]) if len(by_recording) else ""
    return _frame(
        {
            "cell": row["cell"],
            "species": f"all species, {row['name']}" if row["kind"] == "seen" else row["name"],
            "validation recordings": count(row["n_val"]),
            "F1": number(row["f1"], form),
            "95 % interval over recordings": interval(row, form),
        }
        for _, row in by_recording.iterrows()
        if row["kind"] != "species"
    )


def confusion_table(confusions: pd.DataFrame) -> pd.DataFrame:
    return _frame(
        {
            "truth": row["truth"],
            "predicted as": row["predicted"],
            "recordings": count(row["count"]) if row["count"] % 1 == 0 else number(row["count"], "{:.1f}"),
            "of": count(row["n_val"]),
            "share": f"{math.floor(100 * row['share'] + 0.5)}%",  # as Vega rounds in the figure
        }
        for _, row in confusions.iterrows()
    )


def paper_table(report: StudyReport) -> pd.DataFrame:
    """Return a table of at most seven columns: the cells, or the best trials, with what a paper reports.

    That is the score with its interval, the difference from the baseline with its own, F1 of rare species,
    and the repeats.
    """
    metric, cells = report.metric, report.cells
    if metric not in cells or not cells[metric].notna().any():
        return pd.DataFrame()
    contrasts = report.analysis.contrasts if report.analysis is not None else pd.DataFrame({"cell": []})
    versus = {row["cell"]: row for row in contrasts.to_dict("records") if row["cell"] is not None}
    ranked = cells[metric].sort_values(ascending=report.study["direction"] == "minimize", kind="stable")
    form = form_of(cells[f"{metric}:low"], cells[f"{metric}:high"])
    rows = []
    first = ranked.index[:N_PAPER]
    places = cells.index.get_indexer(first).tolist()
    for place, cell in zip(places, cells.loc[first].to_dict("records"), strict=True):
        bounds = {part: cell[f"{metric}:{part}"] for part in ("low", "high")}
        name = f"{cell['label']}: {aggregate.label(cell['factors'])}" if not versus else cell["label"]
        row = {"cell": name, METRICS[metric].title: number(cell[metric], form)}
        row["95 % interval"] = interval(bounds, form)
        if versus and place in versus:
            row["difference"] = signed(versus[place]["estimate"], with_sign(form))
            row["its interval"] = signed_interval(versus[place], with_sign(form))
        elif versus:
            row |= {"difference": "baseline", "its interval": "–"}
        if "val/f1_rare" in cells:
            row["F1 rare"] = number(cell["val/f1_rare"], form)
        rows.append(row | {"n": str(cell["n"])})
    return _frame(rows, "–").replace("none", "–")


def cell_numbers(cells: pd.DataFrame) -> pd.DataFrame:
    """Return `cells` for a CSV, with a column a factor."""
    factors = pd.DataFrame(list(cells["factors"]), index=cells.index, dtype=object)
    return pd.concat([cells[["label"]], factors, cells.drop(columns=["label", "factors"])], axis=1)


def trial_numbers(trials: pd.DataFrame) -> pd.DataFrame:
    """Return `trials` for a CSV, with a column a factor."""
    factors = pd.DataFrame(list(trials["factors"]), index=trials.index, dtype=object)
    hidden = ["factors", "config", "f1_per_species", "provenance", "traceback"]
    return pd.concat([trials.drop(columns=hidden), factors], axis=1)


def _frame(rows: Iterable[dict[str, Any]], absent: str = "") -> pd.DataFrame:
    """Return rows of text cells as a frame, without the column `note` if all notes are empty."""
    frame = pd.DataFrame(list(rows), dtype=object).fillna(absent)
    has_no_note = "note" in frame and not any(frame["note"])
    return frame.drop(columns="note") if has_no_note else frame
