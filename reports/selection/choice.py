"""The choice of a config among those that may be the best, and what it may lose against the best one.

The result is the content of `best.json`; its `config` is the record's, so `TrainConfig.from_dict` reads it.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pandas as pd

from birdnet_core.errors import ConfigError, RunFolderError, did_you_mean
from birdnet_core.intervals import LEVEL
from birdnet_core.records.bounds import constraints_of
from birdnet_core.records.metrics import TIES_BY
from reports.runs import Runs
from reports.statistics import aggregate
from reports.statistics.aggregate import by_repeat
from reports.statistics.analysis import Analysis, results
from reports.statistics.front import objectives_of, pareto_front

SCHEMA = 2
RULES = {
    "mean": "the {best} {metric}",
    "cheapest": "the fewest parameters among the configs that may be the best, of equal ones the {best} "
    "{metric}",
    "ideal": "on the Pareto front, the least distance from the best value of every objective, in units of "
    "the range of the front",
}
"""What decides within the set of configs that may be the best, or are on the Pareto front."""
FRONT_RULES = ("mean", "ideal")
"""The rules for a search with several objectives."""
N_SHOWN = 10


def choose(runs: Runs, study: str | None = None, by: str | None = None) -> dict[str, Any]:
    """Return the content of best.json: the chosen config, its scores, what may be as good, and the rule.

    Configs of one study compete, which has to be named where the runs hold several: a search's single trials
    do not compete with the repeated cells of an ablation. `by` is one of `RULES`: ``mean`` if left out, and
    needed for a search with several objectives. Raises RunFolderError for an unknown study, for several, when
    no trial completed, and for ``cheapest`` where too few repeats are there to know what may be the best;
    ConfigError for an unknown rule, or one that the study does not have.
    """
    check_rule(by)
    chosen = one_study(runs, study)
    trials, cells, analysis = results(runs, chosen)
    return choose_among(trials, chosen, cells, analysis, by)


def front_in(runs: Runs, study: str | None = None) -> pd.DataFrame:
    """Return `front_of` a study of `runs`, its configs named by the numbers of their trials."""
    chosen = one_study(runs, study)
    trials, cells, analysis = results(runs, chosen)
    return front_of(trials, chosen, aggregate.numbered(cells), analysis)


def front_of(
    trials: pd.DataFrame, study: dict[str, Any], cells: pd.DataFrame, analysis: Analysis | None
) -> pd.DataFrame:
    """Return `front.pareto_front` of the configs that compete; empty for one objective or no config."""
    if len(objectives_of(study)) > 1:
        with contextlib.suppress(RunFolderError):
            return pareto_front(candidates(trials, study, cells, analysis), study)
    return pd.DataFrame()


def check_rule(by: str | None) -> None:
    """Raise ConfigError for a rule that there is not."""
    if by is not None and by not in RULES:
        raise ConfigError(f"unknown rule {by!r}{did_you_mean(by, RULES)} (known: {', '.join(RULES)})")


def one_study(runs: Runs, name: str | None = None) -> dict[str, Any]:
    """Return the study `name`, or the only one; RunFolderError where there is none, or several fit."""
    found = [study for study in runs.studies if name in (None, study["name"])]
    names = ", ".join(dict.fromkeys(study["name"] for study in runs.studies))
    if not found:
        raise RunFolderError(f"there is no study {name!r} in these runs; they hold {names or 'none'}")
    if len(found) > 1:
        raise RunFolderError(
            f"configs of one study compete, and these runs hold {len(found)}: name one study of one run by "
            f"--study (studies: {names})"
        )
    return found[0]


def best_of(
    runs: Runs, study: dict[str, Any], cells: pd.DataFrame, analysis: Analysis | None
) -> tuple[dict[str, Any] | None, str]:
    """Return the best config of one study, or None and why there is none; see `analysis.results`.

    Of several objectives no rule is the study's own.
    """
    try:
        return choose_among(runs.trials_of(study), study, cells, analysis), ""
    except (ConfigError, RunFolderError) as error:
        return None, str(error)


def choose_among(
    trials: pd.DataFrame,
    study: dict[str, Any],
    cells: pd.DataFrame,
    analysis: Analysis | None,
    by: str | None = None,
) -> dict[str, Any]:
    """Return the content of best.json for a study with its `trials`, `cells` and `analysis`; see `choose`."""
    ranked = candidates(trials, study, cells, analysis)
    objectives = objectives_of(study)
    if len(objectives) > 1:
        if by not in FRONT_RULES:
            raise ConfigError(
                f"{study['name']!r} has {len(objectives)} objectives ({', '.join(objectives)}), and a "
                f"rule chooses one config of the front: give --rule {' or --rule '.join(FRONT_RULES)}"
            )
        ranked = pareto_front(ranked, study)
        ranked = ranked[ranked["is_on_front"]]
        if by == "ideal":
            ranked = ranked.sort_values("distance", kind="stable")
        by = "mean" if by is None else by
    elif by == "ideal":
        raise ConfigError(
            f"the rule 'ideal' is of several objectives, and {study['name']!r} has one: give --rule mean or "
            "--rule cheapest"
        )
    by = by or "mean"
    best = chosen_by(ranked, study, by)
    level = LEVEL if analysis is None else analysis.level
    found = content(best, ranked, study, rule(study, by), config_of(trials, best), level=level)
    if aggregate.is_folded(study):
        n, n_folds = int(aggregate.has_all_repeats(cells, study).sum()), len(study["repeats"])
        compete = "and they alone compete" if n else "so that configs with fewer compete"
        found["how_sure"] = (
            f"{n} of {len(cells)} configs have all {n_folds} folds, {compete}. {found['how_sure']}"
        )
    return found


def candidates(
    trials: pd.DataFrame, study: dict[str, Any], cells: pd.DataFrame, analysis: Analysis | None
) -> pd.DataFrame:
    """Return the cells that compete, best mean first, with `may_be_best` and `regret` where these are known.

    Of equal means the one with the lower `TIES_BY` comes first.
    Cells trained unequal epochs compete where none was trained equally, those whose split leaks where all
    leak. Without a model, and in a search, cells that lack a repeat compete where none is complete. Cells
    that break a constraint of the study never do: RunFolderError, which names the nearest, where all break
    one.
    """
    metric = study["metric"]
    pool = cells[cells[metric].notna()] if metric in cells else cells.iloc[:0]
    if pool.empty:
        raise RunFolderError(
            f"no trial of {study['name']!r} completed with a finite {metric}, so there is no best config "
            f"({aggregate.status_counts(trials)})"
        )
    pool = pool.drop_duplicates("config_id")
    feasible = pool[~pool["is_infeasible"].astype(bool)]
    if feasible.empty:
        raise RunFolderError(_none_feasible(pool, study))
    pool = feasible
    if study["kind"] == "search":
        pool = _whole(pool, study)
    for mark in ("is_leaky", "unequal_epochs"):
        unmarked = pool[~pool[mark].astype(bool)]
        pool = unmarked if len(unmarked) else pool
    known = analysis.best.set_index("config_id") if analysis is not None else pd.DataFrame()
    if len(known) and set(pool["config_id"]) <= set(known.index):
        mine = known.loc[list(pool["config_id"])]
        pool = pool.assign(
            may_be_best=mine["may_be_best"].to_numpy(), regret=mine["regret"].to_numpy(),
            ranked_by=mine["mean"].to_numpy(),
        )  # fmt: skip
    else:
        pool = _whole(pool, study)
        pool = pool.assign(may_be_best=None, regret=math.nan, ranked_by=pool[metric])
    ties = pool[TIES_BY] if TIES_BY in pool else pool["ranked_by"]
    order = [study["direction"] == "minimize", True]
    return pool.assign(ties=ties).sort_values(["ranked_by", "ties"], ascending=order, kind="stable")


def _whole(pool: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return the cells that have every repeat, all where none has."""
    is_whole = aggregate.has_all_repeats(pool, study)
    return pool[is_whole] if is_whole.any() else pool


def _none_feasible(pool: pd.DataFrame, study: dict[str, Any]) -> str:
    """Return in words that no config of `pool` keeps the constraints of the study, and which is nearest."""
    constraints = constraints_of(study)
    rows = pool.to_dict("records")
    excess = [
        sum(bound.excess(value) if math.isfinite(value) else math.inf for bound, value in of.items())
        for of in (aggregate.broken(row, constraints) for row in rows)
    ]
    nearest = rows[excess.index(min(excess))]
    values = ", ".join(
        f"{bound.name} is {value:.6g}" for bound, value in aggregate.broken(nearest, constraints).items()
    )
    return (
        f"none of the {len(rows)} trained configs of {study['name']!r} keeps "
        f"{', '.join(map(str, constraints))}, so there is no best config; the nearest is {nearest['label']} "
        f"({aggregate.label(nearest['factors'])}): {values}"
    )


def chosen_by(ranked: pd.DataFrame, study: dict[str, Any], by: str) -> pd.Series[Any]:
    """Return the row of `ranked`, in the order of the rule or best mean first, that the rule chooses."""
    if by in FRONT_RULES:
        return ranked.iloc[0]
    if ranked["regret"].isna().any():
        raise RunFolderError(
            "the rule 'cheapest' chooses among the configs that may be the best, and it takes "
            f"three repeats to know them; {study['name']!r} has fewer. Choose by 'mean', train more "
            "(birdtune extend RUN --repeats +2), or race the leaders (birdtune best RUN --confirm 10)"
        )
    smallest: pd.Series[Any] = (
        ranked[ranked["may_be_best"].astype(bool)].sort_values("n_params", kind="stable").iloc[0]
    )
    return smallest


def rule(study: dict[str, Any], by: str = "mean") -> str:
    """Return the rule of selection as a sentence."""
    best = "highest" if study["direction"] == "maximize" else "lowest"
    return f"By {by}: {RULES[by].format(best=best, metric=study['metric'])}."


def content(
    best: pd.Series[Any],
    rows: pd.DataFrame,
    study: dict[str, Any],
    rule_text: str,
    config: dict[str, Any],
    confirmed: dict[str, Any] | None = None,
    *,
    level: float = LEVEL,
) -> dict[str, Any]:
    """Return the content of best.json for the row `best` of `rows`, which competed, best mean first.

    `confirmed` describes the race on fresh repeats that `rows` are the result of. The set of configs that may
    be the best holds at `level`, that of a race over all its looks together.
    """
    metric = study["metric"]
    others = rows[rows["config_id"] != best["config_id"]]
    second = others.iloc[0] if len(others) else None
    in_set: list[str] = []
    if rows["regret"].notna().all():
        in_set = list(rows.loc[rows["may_be_best"].astype(bool), "config_id"])
    return {
        "schema": SCHEMA,
        "config": config,
        "config_id": best["config_id"],
        "study": study["name"],
        "metric": metric,
        "direction": study["direction"],
        "rule": rule_text,
        "how_sure": how_sure(best, rows, in_set, study, level=level, is_fresh=confirmed is not None),
        "not_worse": in_set,
        "regret": _null(float(best["regret"])),
        **_scores(best, metric),
        "values": [_null(v) for v in best[f"{metric}:values"]],
        "repeats": best["repeats"],
        "trial_ids": best["trial_ids"],
        "factors": best["factors"],
        "runner_up": None if second is None else brief(second, metric),
        "shortlist": [listed(cell, metric) for _, cell in rows.iloc[:N_SHOWN].iterrows()],
        "confirmed": confirmed,
        "run": study["run"],
    }


def how_sure(
    best: pd.Series[Any],
    rows: pd.DataFrame,
    in_set: list[str],
    study: dict[str, Any],
    *,
    level: float = LEVEL,
    is_fresh: bool = False,
) -> str:
    """Return how certain the choice is, in a sentence or two."""
    metric, percent = study["metric"], f"{100 * level:.3g} %"
    out = []
    if len(rows) == 1:
        out.append("Not compared: it is the only config that competes.")
    elif in_set:
        n = len(in_set)
        if n == 1:
            out.append(f"It is the best of {len(rows)} at {percent}.")
        elif best["config_id"] in in_set:
            out.append(f"At {percent}, {n} of {len(rows)} may be the best, this one among them.")
        if n > 1:
            out.append(f"Against the best it may lose {best['regret']:.3f} {metric} at most.")
    else:
        n_repeats = len(by_repeat(best, metric))
        out.append(
            f"Uncertain: with {n_repeats} repeat{'s' * (n_repeats != 1)} its lead may be chance; from three "
            "on it is known what may be as good."
        )
    if len(rows) > 1:
        on = "of fresh repeats, but it is the highest of the race" if is_fresh else "the best of several"
        out.append(f"Its score is {on}: too high on average.")
    if best["is_leaky"]:
        out.append(f"Its split leaks ({aggregate.LEAKY_SPLIT}): it will score lower on new recordings.")
    if best["unequal_epochs"]:
        out.append("It was not trained for the epochs of the study.")
    return " ".join(out)


def config_of(trials: pd.DataFrame, cell: pd.Series[Any]) -> dict[str, Any]:
    """Return the config of a cell, with repeat and seed of its first completed trial."""
    config: dict[str, Any] = trials.loc[trials["trial_id"] == cell["trial_ids"][0], "config"].iloc[0]
    return config


def brief(cell: pd.Series[Any], metric: str) -> dict[str, Any]:
    return {"config_id": cell["config_id"], "factors": cell["factors"], **_scores(cell, metric)}


def listed(cell: pd.Series[Any], metric: str) -> dict[str, Any]:
    """Return `brief` with what else a shortlist says of a config."""
    is_known = cell["may_be_best"] is not None
    return brief(cell, metric) | {
        "n_params": _null(float(cell["n_params"])),
        "may_be_best": bool(cell["may_be_best"]) if is_known else None,
    }


def _scores(cell: pd.Series[Any], metric: str) -> dict[str, Any]:
    out = {"mean": cell[metric], "low": cell[f"{metric}:low"], "high": cell[f"{metric}:high"]}
    return {key: _null(float(value)) for key, value in out.items()} | {"n": len(by_repeat(cell, metric))}


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None
