"""Gates: targets of a study, whether its best cell reaches them, and the decision that follows.

The value of a gate is the mean over repeats of the cell that `choice` chooses. Its status is UNKNOWN instead
of FAIL while there is no such value, or while missing trials may still reach the target.
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

COLUMNS = (
    "criterion", "metric", "target", "stretch", "investigate", "value", "low", "high", "n", "status",
    "is_close", "is_stretch_reached", "note",
)  # fmt: skip

DECISIONS = ("GO", "INVESTIGATE", "NO-GO")


def gate_results(cells: pd.DataFrame, study: dict[str, Any], best: dict[str, Any] | None) -> pd.DataFrame:
    """Return one row a gate of the study, empty for a study without.

    `criterion` is the gate in words. `value` is the best cell's mean over its `n` repeats, `low` and `high`
    the t interval. `status`: PASS at `target` or better, FAIL short of it; UNKNOWN where the best cell has no
    finite value, where its split leaks, and short of the target while trials are missing. `is_close`: short
    of the target, but not of `investigate`. `note` names what weakens the result.
    """
    rows = []
    chosen = cells[cells["config_id"] == best["config_id"]].iloc[0] if best else None
    n_missing = _n_missing(cells, study)
    for gate in study.get("gates") or []:
        metric, direction = gate["metric"], metric_direction(gate["metric"])
        row = {
            **gate,
            "criterion": f"{metric} {'>=' if direction == 'maximize' else '<='} {gate['target']:g}",
            "value": math.nan, "low": math.nan, "high": math.nan, "n": 0,
            "is_close": False, "is_stretch_reached": False,
        }  # fmt: skip
        if chosen is not None and metric in cells:
            row |= {"value": chosen[metric], "low": chosen[f"{metric}:low"], "high": chosen[f"{metric}:high"]}
            row["n"] = sum(map(math.isfinite, chosen[f"{metric}:values"]))
        rows.append(row | _status(row, direction, chosen, n_missing))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = ["target", "stretch", "investigate", "value", "low", "high"]
    return frame.astype(dict.fromkeys(numbers, float))


def decision(gates: pd.DataFrame) -> str | None:
    """Return the decision on `gate_results`; None where there are none.

    GO if all pass; NO-GO if one fails and is not close; else INVESTIGATE.
    """
    if gates.empty:
        return None
    if (gates["status"] == "PASS").all():
        return "GO"
    return "NO-GO" if ((gates["status"] == "FAIL") & ~gates["is_close"]).any() else "INVESTIGATE"


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
        cells = aggregate.cells(runs.trials_of(study), study)
        gates = gate_results(cells, study, choice.best_of(runs, study, cells)[0])
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
    """Return status, flags and note of a gate, given its value."""
    value = row["value"]
    if chosen is None or not math.isfinite(value):
        why = "no best cell yet" if chosen is None else "the best cell has no value of this metric"
        return {"status": "UNKNOWN", "note": why}

    def reaches(wanted: float | None) -> bool:
        return wanted is not None and not is_better(wanted, value, direction)

    flags = {"is_stretch_reached": reaches(row["stretch"])}
    if chosen["is_leaky"]:
        note = f"the split leaks ({aggregate.LEAKY_SPLIT}), so the value does not hold for new recordings"
        return {"status": "UNKNOWN", "note": note}
    if not reaches(row["target"]):
        flags["is_close"] = reaches(row["investigate"])
        if n_missing:
            return flags | {"status": "UNKNOWN", "note": f"not reached, and {_trials(n_missing)} missing"}
        return flags | {"status": "FAIL", "note": _weakness(row)}
    return flags | {"status": "PASS", "note": _weakness(row)}


def _weakness(row: dict[str, Any]) -> str:
    if not math.isfinite(row["low"]):
        return "one repeat: it may be chance"
    if row["low"] < row["target"] < row["high"]:
        return "the target lies within the interval: it may be chance"
    return ""


def _n_missing(cells: pd.DataFrame, study: dict[str, Any]) -> int:
    """Return how many trials that were planned have not ended."""
    if study["kind"] == "search":
        ended = int(cells[["n", "n_failed", "n_other", "n_pruned"]].to_numpy().sum())
        return max(0, (study["n_trials"] or 0) - ended)
    return int(cells[["n_missing", "n_running"]].to_numpy().sum())


def _trials(n: int) -> str:
    return "one trial is" if n == 1 else f"{n} trials are"
