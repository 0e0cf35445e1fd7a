"""Gates: targets of a study, and whether the interval of its best cell lies above or below them.

A gate is open while the interval holds the target, while there is no interval, and while trials are missing.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from birdnet_core.errors import RunFolderError
from birdnet_core.records.files import without_nan
from birdnet_core.records.metrics import Direction, is_better, metric_direction
from reports.runs import Runs
from reports.selection import choice
from reports.statistics import aggregate
from reports.statistics.analysis import results

COLUMNS = (
    "criterion", "metric", "target", "stretch", "value", "low", "high", "n", "status", "is_stretch_reached",
    "note",
)  # fmt: skip

DECISIONS = ("GO", "INVESTIGATE", "NO-GO")


def gate_results(cells: pd.DataFrame, study: dict[str, Any], best: dict[str, Any] | None) -> pd.DataFrame:
    """Return one row a gate of the study, empty for a study without.

    `criterion` is the gate in words. `value`, `low` and `high` are of the best cell, over its `n` repeats.
    `status`: PASS where the whole interval reaches the target, FAIL where none of it does, else OPEN, for
    which `note` is the reason. `is_stretch_reached`: the whole interval reaches `stretch`.
    """
    rows = []
    chosen = cells[cells["config_id"] == best["config_id"]].iloc[0] if best else None
    n_missing = _n_missing(cells, study)
    for gate in study.get("gates") or []:
        metric, direction = gate["metric"], metric_direction(gate["metric"])
        row = {
            **gate,
            "criterion": f"{metric} {'>=' if direction == 'maximize' else '<='} {gate['target']:g}",
            "value": math.nan, "low": math.nan, "high": math.nan, "n": 0, "is_stretch_reached": False,
        }  # fmt: skip
        if chosen is not None and metric in cells:
            row |= {"value": chosen[metric], "low": chosen[f"{metric}:low"], "high": chosen[f"{metric}:high"]}
            row["n"] = sum(map(math.isfinite, chosen[f"{metric}:values"]))
        rows.append(row | _status(row, direction, chosen, n_missing))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(("target", "stretch", "value", "low", "high"), float))


def decision(gates: pd.DataFrame) -> str | None:
    """Return the decision on `gate_results`; None where there are none.

    GO if all pass; NO-GO if one fails; else INVESTIGATE.
    """
    if gates.empty:
        return None
    if (gates["status"] == "PASS").all():
        return "GO"
    return "NO-GO" if (gates["status"] == "FAIL").any() else "INVESTIGATE"


def verdicts(runs: Runs, name: str | None = None) -> list[dict[str, Any]]:
    """Return `study`, `decision` and `gates`, the rows of `gate_results`, of each study with gates.

    With `name`, of that study alone. Raises RunFolderError where no such study, or none with gates, is there.
    """
    studies = [study for study in runs.studies if name in (None, study["name"])]
    names = ", ".join(study["name"] for study in runs.studies)
    if not studies:
        raise RunFolderError(f"there is no study {name!r} in this run; it holds {names}")
    found = []
    for study in studies:
        _, cells, analysis = results(runs, study)
        gates = gate_results(cells, study, choice.best_of(runs, study, cells, analysis)[0])
        if not gates.empty:
            rows = without_nan(gates.to_dict("records"))
            found.append({"study": study["name"], "decision": decision(gates), "gates": rows})
    if not found:
        raise RunFolderError(
            f"{name or names} has no gates; a study sets them with `gates` (docs/studies.md)"
        )
    return found


def _status(
    row: dict[str, Any], direction: Direction, chosen: pd.Series[Any] | None, n_missing: int
) -> dict[str, Any]:
    """Return status and note of a gate, and whether `stretch` is reached."""
    if chosen is None or not math.isfinite(row["value"]):
        why = "no best cell yet" if chosen is None else "the best cell has no value of this metric"
        return {"status": "OPEN", "note": why}
    if chosen["is_leaky"]:
        note = f"the split leaks ({aggregate.LEAKY_SPLIT}), so the value does not hold for new recordings"
        return {"status": "OPEN", "note": note}
    if not math.isfinite(row["low"]):
        return {"status": "OPEN", "note": "fewer than three repeats: no interval"}
    if row["low"] == row["high"]:
        return {"status": "OPEN", "note": "the repeats have equal scores: an interval without a width"}
    worst, best = ("low", "high") if direction == "maximize" else ("high", "low")

    def reaches(bound: str, wanted: float | None) -> bool:
        return wanted is not None and not is_better(wanted, row[bound], direction)

    stretch = {"is_stretch_reached": reaches(worst, row["stretch"])}
    if reaches(worst, row["target"]):
        return stretch | {"status": "PASS", "note": ""}
    if reaches(best, row["target"]):
        return {"status": "OPEN", "note": "the interval holds the target"}
    if n_missing:
        return {"status": "OPEN", "note": f"not reached, and {_trials(n_missing)} missing"}
    return {"status": "FAIL", "note": ""}


def _n_missing(cells: pd.DataFrame, study: dict[str, Any]) -> int:
    """Return how many trials that were planned have not ended."""
    if study["kind"] == "search":
        ended = cells[["n", "n_failed", "n_other", "n_pruned", "n_infeasible"]].to_numpy().any(axis=1)
        return max(0, (study["n_trials"] or 0) - int(ended.sum()))
    return int(cells[["n_missing", "n_running"]].to_numpy().sum())


def _trials(n: int) -> str:
    return "one trial is" if n == 1 else f"{n} trials are"
