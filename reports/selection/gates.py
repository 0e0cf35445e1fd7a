"""What a study has to reach, and whether its best cell does: PASS, FAIL or UNKNOWN, and then what to do.

A gate is judged by the mean over the seeds of the cell that `selection` chooses. It is UNKNOWN, and never a
FAIL, where there is no such value yet, and where another cell may still reach it.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from birdnet_core.errors import RunFolderError
from birdnet_core.records.metrics import Direction, is_better, metric_direction
from reports.page import tables
from reports.runs import Runs
from reports.selection import choice as selection
from reports.statistics import aggregate

COLUMNS = (
    "criterion", "metric", "target", "stretch", "investigate", "value", "low", "high", "n", "status",
    "is_close", "is_stretch_reached", "note",
)  # fmt: skip

DECISIONS = ("GO", "INVESTIGATE", "NO-GO")


def judge(cells: pd.DataFrame, study: dict[str, Any], best: dict[str, Any] | None) -> pd.DataFrame:
    """Return one row a gate of the study, empty for a study without.

    `criterion` is the gate in words. `value` is the best cell's mean over its `n` seeds, `low` and `high` the
    t interval. `status`: PASS from `target` on (down to it, for a metric that is to be low); FAIL short of
    it; UNKNOWN where the best cell has no finite value, where its split leaks, and short of it while trials
    are missing. `is_close`: short of the target, but not of `investigate`. `note` says what weakens the row.
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
        rows.append(row | _judged(row, direction, chosen, n_missing))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = ["target", "stretch", "investigate", "value", "low", "high"]
    return frame.astype(dict.fromkeys(numbers, float))


def decision(gates: pd.DataFrame) -> str | None:
    """Return what the gates say together; None where there are none.

    GO when all pass; NO-GO when one fails by more than its `investigate` allows; else INVESTIGATE.
    """
    if gates.empty:
        return None
    if (gates["status"] == "PASS").all():
        return "GO"
    return "NO-GO" if ((gates["status"] == "FAIL") & ~gates["is_close"]).any() else "INVESTIGATE"


def verdicts(runs: Runs, name: str | None = None) -> list[dict[str, Any]]:
    """Return of each study with gates its `study`, `decision` and `gates`, the rows of `judge` in JSON types.

    With `name`, of that study alone. Raises RunFolderError where no such study, or none with gates, is there.
    """
    studies = [study for study in runs.studies if name in (None, study["name"])]
    names = ", ".join(study["name"] for study in runs.studies)
    if not studies:
        raise RunFolderError(f"there is no study {name!r} in this run; it holds {names}")
    found = []
    for study in studies:
        cells = aggregate.cells(runs.trials_of(study), study)
        gates = judge(cells, study, selection.best_of(runs, study, cells)[0])
        if not gates.empty:
            rows = tables.plain(gates.to_dict("records"))
            found.append({"study": study["name"], "decision": decision(gates), "gates": rows})
    if not found:
        asked = name or names
        raise RunFolderError(f"{asked} has no gates; a study sets them with `gates` (docs/studies.md)")
    return found


def _judged(
    row: dict[str, Any], direction: Direction, chosen: pd.Series[Any] | None, n_missing: int
) -> dict[str, Any]:
    """Return status, flags and note of a gate, given its value."""
    value = row["value"]
    if chosen is None or not math.isfinite(value):
        why = "no cell is chosen yet" if chosen is None else "the best cell has no value of it"
        return {"status": "UNKNOWN", "note": why}

    def reaches(wanted: float | None) -> bool:
        return wanted is not None and not is_better(wanted, value, direction)

    judged = {"is_stretch_reached": reaches(row["stretch"])}
    if chosen["is_leaky"]:
        note = f"the split leaks ({aggregate.LEAKY_SPLIT}), so the value is not one of new recordings"
        return {"status": "UNKNOWN", "note": note}
    if not reaches(row["target"]):
        judged["is_close"] = reaches(row["investigate"])
        if n_missing:
            return judged | {"status": "UNKNOWN", "note": f"not reached, and {_trials(n_missing)} missing"}
        return judged | {"status": "FAIL", "note": _weakness(row)}
    return judged | {"status": "PASS", "note": _weakness(row)}


def _weakness(row: dict[str, Any]) -> str:
    if not math.isfinite(row["low"]):
        return "one seed: chance may have decided it"
    if row["low"] < row["target"] < row["high"]:
        return "the target is inside the interval: chance may have decided it"
    return ""


def _n_missing(cells: pd.DataFrame, study: dict[str, Any]) -> int:
    """Return how many trials that were planned have not ended."""
    if study["kind"] == "search":
        ended = int(cells[["n", "n_failed", "n_other", "n_pruned"]].to_numpy().sum())
        return max(0, (study["n_trials"] or 0) - ended)
    return int(cells[["n_missing", "n_running"]].to_numpy().sum())


def _trials(n: int) -> str:
    return "one trial is" if n == 1 else f"{n} trials are"
