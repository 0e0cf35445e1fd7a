"""Which config to train in the end: one stated rule, and how sure it is.

The result is the content of `best.json`; its `config` is the record's, so `TrainConfig.from_dict` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from birdnet_core.errors import RunFolderError
from reports import aggregate
from reports.runs import Runs

SCHEMA = 1


def choose(runs: Runs, study: str | None = None) -> dict[str, Any]:
    """Return the content of best.json: the chosen config with its scores, the rule and the runner-up.

    Without `study` the cells of all studies compete, if their metric, split and epochs are equal. Raises
    RunFolderError for an unknown study, for studies that cannot be compared, and when no trial completed.
    """
    chosen = [s for s in runs.studies if study in (None, s["name"])]
    names = ", ".join(dict.fromkeys(s["name"] for s in runs.studies))
    if not chosen:
        raise RunFolderError(f"there is no study {study!r} in these runs; they hold {names}")
    for what, key in _COMPARABLE.items():
        if len({key(s) for s in chosen}) > 1:
            found = ", ".join(f"{s['name']}: {key(s)}" for s in chosen)
            raise RunFolderError(
                f"the studies differ in their {what} ({found}), so their scores cannot be compared; "
                f"name one study of one run (studies: {names})"
            )
    return choose_among(runs, chosen)


_COMPARABLE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "metric": lambda s: s["metric"],
    "direction": lambda s: s["direction"],
    "epochs": lambda s: s["epochs"],
    "split": lambda s: s.get("data", {}).get("split_id"),
}


def rule(metric: str, direction: str) -> str:
    """Return the rule of selection as a sentence."""
    best = "highest" if direction == "maximize" else "lowest"
    return (
        f"The {best} mean over seeds of {metric}, each trial read at its best epoch, "
        "among the cells with no missing seed if there are any, else among all with a completed trial; "
        "a cell whose split leaks only if all do."
    )


def choose_among(runs: Runs, studies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of best.json for comparable studies; see `choose`."""
    metric, direction = studies[0]["metric"], studies[0]["direction"]
    tables = [_candidates(runs, study, metric) for study in studies]
    candidates = (
        pd.concat([t for t in tables if len(t)], ignore_index=True) if any(map(len, tables)) else None
    )
    if candidates is None:
        trials = pd.concat([runs.trials_of(study) for study in studies])
        raise RunFolderError(
            f"no trial of {', '.join(repr(s['name']) for s in studies)} completed with a finite {metric}, "
            f"so there is no best config ({aggregate.status_counts(trials)})"
        )
    honest = candidates[~candidates["is_leaky"]]
    pool = honest if len(honest) else candidates
    pool = pool[pool["is_complete"]] if pool["is_complete"].any() else pool
    ranked = pool.sort_values(metric, ascending=direction == "minimize", kind="stable")
    # Studies that share a run folder share trials: a config that two of them ask for is one candidate.
    ranked = ranked.drop_duplicates(["run", "config_id"])
    best, second = ranked.iloc[0], ranked.iloc[1] if len(ranked) > 1 else None
    trials = runs.trials[(runs.trials["run"] == best["run"]) & (runs.trials["study"] == best["study"])]
    config = trials.loc[trials["trial_id"] == best["trial_ids"][0], "config"].iloc[0]
    return {
        "schema": SCHEMA,
        "config": config,
        "config_id": best["config_id"],
        "study": best["study"],
        "metric": metric,
        "direction": direction,
        "rule": rule(metric, direction),
        "how_sure": _how_sure(best, second, metric, candidates),
        **_scores(best, metric),
        "values": [_null(v) for v in best[f"{metric}:values"]],
        "seeds": best["seeds"],
        "trial_ids": best["trial_ids"],
        "factors": best["factors"],
        "runner_up": None
        if second is None
        else {
            "config_id": second["config_id"],
            "study": second["study"],
            "factors": second["factors"],
            **_scores(second, metric),
        },
        "run": best["run"],
    }


def best_of(runs: Runs, study: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Return the best config of one study, or None and why there is none."""
    try:
        return choose_among(runs, [study]), ""
    except RunFolderError as error:
        return None, str(error)


def _candidates(runs: Runs, study: dict[str, Any], metric: str) -> pd.DataFrame:
    table = aggregate.cells(runs.trials_of(study), study)
    if metric not in table:
        return table.iloc[:0]
    table = table[table[metric].notna()].assign(run=study["run"], study=study["name"])
    complete = [set(study["seeds"]) <= set(seeds) for seeds in table["seeds"]]
    if study.get("kind") == "search":
        complete = [True] * len(table)
    return table.assign(is_complete=pd.Series(complete, index=table.index, dtype=bool))


def _how_sure(
    best: pd.Series[Any], second: pd.Series[Any] | None, metric: str, candidates: pd.DataFrame
) -> str:
    """Return in plain words how much the choice can be trusted."""
    biased = "As the best of several, its validation score is too high on average."
    marked = ""
    if best["is_leaky"]:
        marked = f" Its split leaks ({aggregate.LEAKY_SPLIT}): it will score lower on new recordings."
    if second is None:
        only = "a completed trial" if len(candidates) == 1 else "no missing seed"
        if candidates["is_leaky"].any() and not best["is_leaky"]:
            only = "a completed trial and a split that does not leak"
        return f"Nothing was compared: it is the only config with {only}.{marked}"
    if best["unequal_epochs"] or second["unequal_epochs"]:
        marked += " It and the runner-up were not trained for the same number of epochs."
    if min(len(best["seeds"]), len(second["seeds"])) < 2:
        return f"Not sure: with one seed chance and merit cannot be told apart. {biased}{marked}"
    low, high = f"{metric}:low", f"{metric}:high"
    if best[low] <= second[high] and second[low] <= best[high]:
        return f"Not sure: its 95 % interval overlaps that of the runner-up. {biased}{marked}"
    return f"Fairly sure: its 95 % interval does not overlap that of the runner-up. {biased}{marked}"


def _scores(cell: pd.Series[Any], metric: str) -> dict[str, Any]:
    out = {"mean": cell[metric], "low": cell[f"{metric}:low"], "high": cell[f"{metric}:high"]}
    return {key: _null(float(value)) for key, value in out.items()} | {"n": int(cell["n"])}


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None
