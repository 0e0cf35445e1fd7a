"""What a reader sees of a frame: text cells, and CSV, Markdown or LaTeX booktabs of them.

A CSV keeps every column at full precision; the other two are for reading and print a dash for what is absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports.runs import FAILED, OTHER_TRAINING, RUNNING
from reports.statistics import aggregate, compare, trend

SCORES = {
    "val/accuracy": "accuracy",
    "val/f1_macro": "F1-macro",
    "val/f1_weighted": "F1-weighted",
    "val/map": "mAP",
}
STRATA = {metric: f"F1 {name}" for metric, name in trend.STRATA.items()}

MOST_COLUMNS = 20  # cells side by side in a table

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "[": "{[}",  # at the start of a row it would be an option of the \\ before
    "<": r"\textless{}", ">": r"\textgreater{}", "·": r"$\cdot$", "−": r"$-$", "–": "--", "→": r"$\to$",
})  # fmt: skip
_MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {c: f"\\{c}" for c in r"\|*`[]"})


def to_csv(frame: pd.DataFrame) -> str:
    """Return numbers at full precision, an absent one as an empty field."""
    return frame.to_csv(index=False, lineterminator="\n")


def to_markdown(frame: pd.DataFrame) -> str:
    """Return a pipe table of text cells."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "".join(
        f"| {' | '.join(c if c == '---' else escape_markdown(c) for c in line)} |\n" for line in lines
    )


def to_latex(frame: pd.DataFrame, caption: str) -> str:
    """Return a booktabs table of text cells; the document needs \\usepackage{booktabs}."""
    lines = [" & ".join(escape_latex(str(c)) for c in row) + r" \\" for row in frame.astype(str).to_numpy()]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(frame.columns) - 1)}}}",
            r"\toprule",
            " & ".join(escape_latex(str(c)) for c in frame.columns) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it is; a line break becomes a space."""
    return " ".join(text.split()).translate(_LATEX)


def escape_markdown(text: str) -> str:
    """Return text that Markdown prints as it is, inside a table too; a line break becomes a space."""
    return " ".join(str(text).split()).translate(_MARKDOWN)


def cell_table(cells: pd.DataFrame, study: dict[str, Any], best: dict[str, Any] | None) -> pd.DataFrame:
    metric = study["metric"]
    baseline = compare.baseline_of(cells, study)
    n_species = (study.get("data") or {}).get("n_species")
    rows = []
    for index, cell in zip(cells.index, cells.to_dict("records"), strict=True):
        marks = []
        if best and cell["config_id"] == best["config_id"]:
            marks.append("best")
        if baseline is not None and index == baseline.name:
            marks.append("baseline")
        if cell["is_leaky"]:
            marks.append("leaky split")
        if cell["unequal_epochs"]:
            marks.append("unequal epochs")
        row = {"cell": cell["label"] + (f" ({', '.join(marks)})" if marks else "")}
        if study["kind"] == "search" or aggregate.is_screen(study):
            row |= {key: aggregate.show(value) for key, value in cell["factors"].items()}
        row[metric] = number(cell.get(metric, math.nan))
        row["95 % interval"] = _interval(cell, metric)
        row |= {"n": str(cell["n"]), "failed": str(cell["n_failed"]), "pruned": str(cell["n_pruned"])}
        if cells["n_other"].any():
            row[OTHER_TRAINING] = str(cell["n_other"])
        more = {**SCORES, **STRATA}
        row |= {title: number(cell[m]) for m, title in more.items() if m in cells and m != metric}
        row["parameters"] = count(cell["n_params"])
        if n_species:
            row["parameters per species"] = count(cell["n_params"] / n_species)
        row["epochs"] = span(cell["epochs_min"], cell["epochs_max"])
        row["to best"] = number(cell["epochs_to_best"], "{:.1f}")
        row["hours"] = number(cell["hours"], "{:.2g}")
        if cells["gpu_hours"].any():
            row["GPU-hours"] = number(cell["gpu_hours"], "{:.2g}")
        rows.append(row)
    return pd.DataFrame(rows, dtype=object).fillna("–")


def _interval(cell: Mapping[Hashable, Any], metric: str) -> str:
    if cell["n"] == 0:
        return "none: no completed trial"
    if math.isnan(cell.get(f"{metric}:low", math.nan)):
        return "none: one seed" if cell["n"] == 1 else "none: fewer than two finite values"
    return f"{number(cell[f'{metric}:low'])} to {number(cell[f'{metric}:high'])}"


def choice_table(best: dict[str, Any]) -> pd.DataFrame:
    """Return text cells of a best.json's shortlist, a row a config that was compared."""
    rows = []
    for each in best["shortlist"]:
        mark = " (chosen)" if each["config_id"] == best["config_id"] else ""
        rows.append(
            {
                "config": aggregate.label(each["factors"]) + mark,
                best["metric"]: number(_nan(each["mean"])),
                "95 % interval": "none"
                if each["low"] is None
                else f"{number(each['low'])} to {number(each['high'])}",
                "fresh seeds": str(each["n"]),
                "truly best": _share(each["p_best"]),
                "parameters": count(_nan(each["n_params"])),
            }
        )
    return pd.DataFrame(rows, dtype=object)


def _share(probability: float | None) -> str:
    if probability is None:
        return "–"
    if 0.005 <= probability <= 0.995:
        return f"{probability:.0%}"
    return "< 1%" if probability < 0.5 else "> 99%"


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def comparison_table(comparisons: pd.DataFrame, interaction: dict[str, Any] | None) -> pd.DataFrame:
    rows = [
        {
            "difference": f"{row['label']} − baseline",
            "diff": signed(row["diff"]),
            "95 % interval": signed_interval(row),
            "p": p_value(row["p"]),
            "p (sign flip)": p_value(row["p_sign_flip"]),
            "p (Holm)": p_value(row["p_holm"]),
            "g": signed(row["g"], "{:+.2f}"),
            "shared seeds": str(row["n_shared"]),
            "note": row["note"],
        }
        for _, row in comparisons.iterrows()
    ]
    if interaction is not None:
        for row in interaction["simple_effects"]:
            rows.append(
                {
                    "difference": f"simple effect of {row['factor']}: {row['label']}",
                    "diff": signed(row["diff"]),
                    "95 % interval": signed_interval(row),
                    "shared seeds": str(row["n_shared"]),
                    "note": row["note"],
                }
            )
        rows.append(
            {
                "difference": f"interaction {' × '.join(interaction['factors'])}",
                "diff": signed(interaction["diff"]),
                "95 % interval": signed_interval(interaction),
                "p": p_value(interaction["p"]),
                "p (sign flip)": p_value(interaction["p_sign_flip"]),
                "shared seeds": str(len(interaction["seeds"])),
                "note": interaction["note"],
            }
        )
    return _without_empty_note(rows)


def effect_table(effects: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for _, row in effects.iterrows():
        levels = f"{aggregate.show(row['minus'])} → {aggregate.show(row['plus'])}"
        cell = {
            "factor": f"{row['letter'] or ''} {row['factor']}".strip(),
            "change": levels,
            "effect": signed(row["diff"]),
            "95 % interval": signed_interval(row),
            "p": p_value(row["p"]),
            "p (Holm)": p_value(row["p_holm"]),
            "g": signed(row["g"], "{:+.2f}"),
            "shared seeds": str(row["n_shared"]),
        }
        if row["letter"]:
            cell["aliased with"] = ", ".join(row["aliases"]) or "no two-factor interaction"
        rows.append(cell | {"note": row["note"]})
    return _without_empty_note(rows)


def gate_table(gates: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "criterion": row["criterion"],
            "status": row["status"],
            "value": number(row["value"]),
            "95 % interval": interval(row),
            "n": str(row["n"]),
            "closer look from": number(row["investigate"], "{:g}"),
            "stretch": _stretch(row),
            "note": row["note"],
        }
        for _, row in gates.iterrows()
    ]
    frame = _without_empty_note(rows)
    is_asked = bool(gates["investigate"].notna().any())
    return frame if is_asked else frame.drop(columns="closer look from", errors="ignore")


def interval(row: Any) -> str:
    return f"{number(row['low'])} to {number(row['high'])}" if math.isfinite(row["low"]) else "none"


def _stretch(row: Any) -> str:
    if not math.isfinite(row["stretch"]):
        return "–"
    return f"{row['stretch']:g}, {'reached' if row['is_stretch_reached'] else 'not reached'}"


def trend_table(trends: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for _, row in trends.iterrows():
        cell = {"metric": row["metric"], "over": trend.axis_title(row["factor"], row["scale"])}
        if trends["group"].any():
            cell["with"] = row["group"]
        if row["levels"]:
            levels = f"{aggregate.show(row['levels'][0])} to {aggregate.show(row['levels'][-1])}"
        else:
            levels = "none"
        cell |= {"levels": levels, "trend": row["term"], "effect": signed(row["diff"])}
        cell |= {"95 % interval": signed_interval(row), "p": p_value(row["p"])}
        cell |= {"p (Holm)": p_value(row["p_holm"]), "shared seeds": str(row["n_shared"])}
        rows.append(cell | {"note": row["note"]})
    return _without_empty_note(rows)


def level_table(means: pd.DataFrame) -> pd.DataFrame:
    """Return one row a level of each numeric factor, with mean and interval of each metric."""
    has_groups = means["group"].any()
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in means.to_dict("records"):
        cell = rows.setdefault(
            (row["factor"], row["group"], row["level"]),
            {
                "factor": row["factor"],
                "level": aggregate.show(row["level"]),
                **({"with": row["group"]} if has_groups else {}),
                "seeds": 0,
            },
        )
        cell["seeds"] = max(cell["seeds"], row["n"])
        cell[row["metric"]] = f"{number(row['mean'])} ({interval(row)})"
    table = pd.DataFrame(list(rows.values()), dtype=object).fillna("–")
    return table.assign(seeds=table["seeds"].astype(str)) if len(table) else table


def correlation_table(correlations: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "factor": row["factor"],
            "rank correlation": signed(row["rho"], "{:+.2f}"),
            "95 % interval": signed_interval(row, "{:+.2f}"),
            "p": p_value(row["p"]),
            "p (Holm)": p_value(row["p_holm"]),
            "cells": str(row["n_cells"]),
            "note": row["note"],
        }
        for _, row in correlations.iterrows()
    ]
    return _without_empty_note(rows)


def importance_table(importances: pd.DataFrame) -> pd.DataFrame:
    """Return text cells of `importance.importances`; none where it has no importance of any parameter."""
    if importances["importance"].isna().all():
        return pd.DataFrame()
    rows = [
        {
            "parameter": row["parameter"],
            "importance": number(row["importance"], "{:.2f}"),
            "95 % of resamples": _resamples(row),
            "trials with it": count(row["n"]),
            "note": row["note"],
        }
        for _, row in importances.iterrows()
    ]
    return _without_empty_note(rows)


def _resamples(row: Any) -> str:
    return f"{row['low']:.2f} to {row['high']:.2f}" if math.isfinite(row["low"]) else "none"


def progression_table(progression: pd.DataFrame) -> pd.DataFrame:
    """Return text cells of `experiments.progression`; accuracies in percent, gaps in points."""
    titles = {"label": "cell", "epoch": "epoch", "n": "n"}
    text = {title: progression[key].astype(str) for key, title in titles.items()}
    for key in ("train/accuracy", "val/accuracy"):
        if key in progression:
            text[key] = progression[key].map(lambda value: number(value * 100, "{:.2f} %"))
    if "gap" in progression:
        text["gap"] = progression["gap"].map(lambda value: signed(value * 100, "{:+.1f}"))
    for key in ("train/loss", "val/loss"):
        if key in progression:
            text[key] = progression[key].map(number)
    return pd.DataFrame(text, dtype=object)


def resource_table(arms: pd.DataFrame) -> pd.DataFrame:
    """Return text cells of `resources.by_arm`, with a row of all arms below where there are several."""
    if len(arms) > 1:
        whole = arms.drop(columns=["arm", "peak_memory_mb"]).sum().to_dict()
        whole |= {"arm": "all", "peak_memory_mb": arms["peak_memory_mb"].max()}
        arms = pd.concat([arms, pd.DataFrame([whole])], ignore_index=True)
    has_reused = bool(arms["n_reused"].any()) if len(arms) else False
    rows = []
    for _, arm in arms.iterrows():
        row = {"arm": arm["arm"], "trials": count(arm["n_trials"]), "completed": count(arm["n_completed"])}
        if has_reused:
            row["reused"] = count(arm["n_reused"])
        row["epochs"] = count(arm["epochs"])
        row["at full length"] = count(arm["full_epochs"])
        row["hours"] = number(arm["hours"], "{:.2f}")
        row["not completed"] = number(arm["lost_hours"], "{:.2f}")
        row["GPU-hours"] = number(arm["gpu_hours"], "{:.2f}")
        row["CPU-hours"] = number(arm["cpu_hours"], "{:.2f}")
        row["peak memory"] = number(arm["peak_memory_mb"], "{:,.0f} MB")
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _without_empty_note(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, dtype=object).fillna("")
    return frame if rows and any(frame["note"]) else frame.drop(columns="note", errors="ignore")


def trial_table(trials: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    metric = study["metric"]
    rows = [
        {
            "trial": trial["trial_id"],
            "number": str(trial["number"]),
            "cell": aggregate.label(trial["factors"]),
            "seed": str(trial["seed"]),
            "status": trial["status"] + (" (reused)" if trial["reused"] else ""),
            metric: number(trial.get(metric, math.nan)),
            "best epoch": count(trial["best_epoch"]),
            "epochs": str(trial["epochs"]),
            "hours": number(trial["seconds"] / 3600, "{:.2g}"),
            "peak memory": number(trial["peak_memory_mb"], "{:,.0f} MB"),
        }
        for trial in trials.to_dict("records")
    ]
    return pd.DataFrame(rows, dtype=object)


def species_table(
    trials: pd.DataFrame, study: dict[str, Any], cells: pd.DataFrame, best: dict[str, Any] | None
) -> pd.DataFrame:
    """Return F1 a species: of every cell of an ablation, or of its best and its baseline where there are more
    than a table can hold; of the best config of a search."""
    shown = cells[cells["n"] > 0].drop_duplicates("config_id")
    if study["kind"] == "search" or len(shown) > MOST_COLUMNS:
        baseline = compare.baseline_of(cells, study)
        named = {(best or {}).get("config_id"), None if baseline is None else baseline["config_id"]}
        shown = shown[shown["config_id"].isin(named)]
    frame = aggregate.species(trials, study, list(shown["config_id"]))
    names = dict(zip(shown["config_id"], shown["label"], strict=True))
    n_train = f"training {study.get('data', {}).get('scored', 'recordings')}"
    text = frame.rename(columns={**names, "n_train": n_train}).astype(object)
    for column, source in zip(text.columns, frame.columns, strict=True):
        if source != "species":
            text[column] = [count(v) if source == "n_train" else number(v) for v in frame[source]]
    return text if len(shown) else text.iloc[:0]


def recording_table(by_recording: pd.DataFrame) -> pd.DataFrame:
    """Return F1 of all species and of the strata, with its interval over recordings."""
    rows = [
        {
            "cell": row["cell"],
            "species": row["name"],
            "validation recordings": count(row["n_val"]),
            "F1": number(row["f1"]),
            "95 % interval over recordings": interval(row),
        }
        for _, row in by_recording.iterrows()
        if row["kind"] != "species"
    ]
    return pd.DataFrame(rows, dtype=object)


def confusion_table(confused: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "truth": row["truth"],
            "told as": row["predicted"],
            "recordings": number(row["count"], "{:.1f}"),
            "of": count(row["n_val"]),
            "share": f"{row['share']:.0%}",
        }
        for _, row in confused.iterrows()
    ]
    return pd.DataFrame(rows, dtype=object)


def cell_numbers(cells: pd.DataFrame) -> pd.DataFrame:
    factors = pd.DataFrame(list(cells["factors"]), index=cells.index, dtype=object)
    frame = pd.concat([cells[["label"]], factors, cells.drop(columns=["label", "factors"])], axis=1)
    return with_lists_as_text(frame)


def trial_numbers(trials: pd.DataFrame) -> pd.DataFrame:
    factors = pd.DataFrame(list(trials["factors"]), index=trials.index, dtype=object)
    hidden = ["factors", "config", "f1_per_species", "provenance", "traceback"]
    return with_lists_as_text(pd.concat([trials.drop(columns=hidden), factors], axis=1))


def with_lists_as_text(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.copy()
    for column in frame.columns:
        frame[column] = [
            json.dumps(plain(v), ensure_ascii=False) if isinstance(v, (list, dict)) else v
            for v in frame[column]
        ]
    return frame


def failure_table(trials: pd.DataFrame) -> pd.DataFrame:
    lost = trials[trials["status"].isin([*FAILED, RUNNING])]
    rows = [
        {
            "trial": trial["trial_id"],
            "cell": aggregate.label(trial["factors"]),
            "status": trial["status"],
            "epochs": str(trial["epochs"]),
            "error": _last_line(trial["error"]) or ("not ended" if trial["status"] == RUNNING else "–"),
        }
        for _, trial in lost.iterrows()
    ]
    return pd.DataFrame(rows, dtype=object)


def _last_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return lines[-1].strip() if lines else ""


def plain(value: Any) -> Any:
    """Return a value of JSON types only; what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float, form: str = "{:.4f}") -> str:
    text = form.format(value) if math.isfinite(value) else "–"
    return f"−{text[1:]}" if text.startswith("-") else text


def signed(value: float, form: str = "{:+.4f}") -> str:
    return number(value, form)


def signed_interval(row: Any, form: str = "{:+.4f}") -> str:
    if not math.isfinite(row["low"]):
        return "none"
    return f"{signed(row['low'], form)} to {signed(row['high'], form)}"


def p_value(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def span(low: float, high: float) -> str:
    return count(low) if low == high or not math.isfinite(low) else f"{count(low)}–{count(high)}"


def n_seeds(n: int) -> str:
    return "one seed" if n == 1 else f"{n} seeds"
