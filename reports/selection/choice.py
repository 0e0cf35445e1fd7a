"""The choice of a config by one of three rules, and its uncertainty.

The result is the content of `best.json`; its `config` is the record's, so `TrainConfig.from_dict` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from birdnet_core.errors import ConfigError, RunFolderError, did_you_mean
from reports.runs import Runs
from reports.statistics import aggregate
from reports.statistics.compare import by_repeat

SCHEMA = 2
RULES = {
    "mean": "the {best} mean over repeats of {metric}",
    "lower-bound": "the {best} {bound} bound of the 95 % interval of {metric} over repeats",
    "one-se": "the fewest parameters among the cells within one standard error of the {best} mean over "
    "repeats of {metric}, of equal ones the {best} mean",
}
"""What may decide; `one-se` is the rule of Breiman, Friedman, Olshen and Stone (1984, section 3.4.3)."""
N_SHOWN = 10


def choose(runs: Runs, study: str | None = None, by: str = "mean") -> dict[str, Any]:
    """Return the content of best.json: the chosen config with its scores, the rule and the runner-up.

    Without `study` the cells of all studies compete, if their kind, metric, split, epochs and number of
    repeats are equal: the best of many single trials is chance compared with a mean of three. `by` is one of
    `RULES`.
    Raises RunFolderError for an unknown study, for studies that cannot be compared, when no trial completed,
    and for a rule that needs two repeats where no cell has them; ConfigError for an unknown rule.
    """
    check_rule(by)
    return choose_among(runs, comparable(runs, study), by)


def check_rule(by: str) -> None:
    """Raise ConfigError for a rule that there is not."""
    if by not in RULES:
        raise ConfigError(f"unknown rule {by!r}{did_you_mean(by, RULES)} (known: {', '.join(RULES)})")


def comparable(runs: Runs, study: str | None = None) -> list[dict[str, Any]]:
    """Return the studies named `study`, or all; RunFolderError where they cannot be compared, or none is."""
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
    return chosen


_COMPARABLE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "kind": lambda s: s.get("kind"),
    "number of repeats": lambda s: len(s["repeats"]),
    "metric": lambda s: s["metric"],
    "direction": lambda s: s["direction"],
    "epochs": lambda s: s["epochs"],
    "split": lambda s: s.get("data", {}).get("split_id"),
}


def rule(metric: str, direction: str, by: str = "mean") -> str:
    """Return the rule of selection as a sentence."""
    best, bound = ("highest", "lower") if direction == "maximize" else ("lowest", "upper")
    return (
        f"By {by}: {RULES[by].format(best=best, bound=bound, metric=metric)}, each trial read at its best "
        "epoch, among the cells with no missing repeat if there are any, else among all with a completed "
        "trial; a cell whose split leaks only if all do."
    )


def choose_among(
    runs: Runs,
    studies: Sequence[dict[str, Any]],
    by: str = "mean",
    cells: Sequence[pd.DataFrame] | None = None,
) -> dict[str, Any]:
    """Return the content of best.json for comparable studies; see `choose`.

    `cells` are those of `aggregate` of each study, where they are known already.
    """
    metric, direction = studies[0]["metric"], studies[0]["direction"]
    candidates, ranked = ranked_candidates(runs, studies, cells)
    best = chosen_by(ranked, metric, direction, by)
    return content(best, ranked, studies[0], rule(metric, direction, by), config_of(runs, best), candidates)


def content(
    best: pd.Series[Any],
    rows: pd.DataFrame,
    study: dict[str, Any],
    rule_text: str,
    config: dict[str, Any],
    candidates: pd.DataFrame,
    confirmed: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of best.json for the row `best` of `rows`, which were compared, the leaders first.

    `study` is one of those compared, `rule_text` the rule as a sentence, `candidates` all rows before any was
    left out. `confirmed` describes the race on fresh repeats that `rows` are the result of.
    """
    metric, direction = study["metric"], study["direction"]
    others = rows[rows["config_id"] != best["config_id"]]
    second = others.iloc[0] if len(others) else None
    chances = probabilities_of_best([by_repeat(cell, metric) for cell in rows.to_dict("records")], direction)
    p_best = chances[list(rows["config_id"]).index(best["config_id"])] if chances else None
    sure = _how_sure(best, second, metric, candidates, is_fresh=confirmed is not None)
    return {
        "schema": SCHEMA,
        "config": config,
        "config_id": best["config_id"],
        "study": best["study"],
        "metric": metric,
        "direction": direction,
        "rule": rule_text,
        "how_sure": sure + _chance(p_best, len(rows)),
        "p_best": p_best,
        **_scores(best, metric),
        "values": [_null(v) for v in best[f"{metric}:values"]],
        "repeats": best["repeats"],
        "trial_ids": best["trial_ids"],
        "factors": best["factors"],
        "runner_up": None if second is None else brief(second, metric) | {"study": second["study"]},
        "shortlist": [
            brief(cell, metric)
            | {"n_params": _null(float(cell["n_params"])), "p_best": chances[i] if chances else None}
            for i, (_, cell) in enumerate(rows.iloc[:N_SHOWN].iterrows())
        ],
        "confirmed": confirmed,
        "run": best["run"],
    }


def ranked_candidates(
    runs: Runs, studies: Sequence[dict[str, Any]], cells: Sequence[pd.DataFrame] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return all candidates of comparable studies, and those that compete, best mean first."""
    metric, direction = studies[0]["metric"], studies[0]["direction"]
    known: Sequence[pd.DataFrame | None] = cells or [None] * len(studies)
    tables = [candidates_of(runs, study, metric, table) for study, table in zip(studies, known, strict=True)]
    if not any(map(len, tables)):
        trials = pd.concat([runs.trials_of(study) for study in studies])
        raise RunFolderError(
            f"no trial of {', '.join(repr(s['name']) for s in studies)} completed with a finite {metric}, "
            f"so there is no best config ({aggregate.status_counts(trials)})"
        )
    candidates = pd.concat([t for t in tables if len(t)], ignore_index=True)
    honest = candidates[~candidates["is_leaky"]]
    pool = honest if len(honest) else candidates
    pool = pool[pool["is_complete"]] if pool["is_complete"].any() else pool
    ranked = pool.sort_values(metric, ascending=direction == "minimize", kind="stable")
    # Studies that share a run folder share trials: a config of two of them is one candidate.
    return candidates, ranked.drop_duplicates(["run", "config_id"])


def config_of(runs: Runs, cell: pd.Series[Any]) -> dict[str, Any]:
    """Return the config of a cell, with repeat and seed of its first completed trial."""
    trials = runs.trials[(runs.trials["run"] == cell["run"]) & (runs.trials["study"] == cell["study"])]
    config: dict[str, Any] = trials.loc[trials["trial_id"] == cell["trial_ids"][0], "config"].iloc[0]
    return config


def brief(cell: pd.Series[Any], metric: str) -> dict[str, Any]:
    return {"config_id": cell["config_id"], "factors": cell["factors"], **_scores(cell, metric)}


def chosen_by(ranked: pd.DataFrame, metric: str, direction: str, by: str) -> pd.Series[Any]:
    """Return the row of `ranked`, best mean first, that the rule chooses."""
    if by == "mean":
        return ranked.iloc[0]
    bound = f"{metric}:low" if direction == "maximize" else f"{metric}:high"
    bounded = ranked[ranked[bound].notna()]
    if bounded.empty:
        raise RunFolderError(
            f"the rule {by!r} needs a cell with two completed repeats or more, and there is none; "
            "choose by 'mean', or train more repeats (birdtune extend RUN --repeats +2)"
        )
    if by == "lower-bound":
        bounded = bounded.sort_values(bound, ascending=direction == "minimize", kind="stable")
    lead: pd.Series[Any] = bounded.iloc[0]
    if by == "lower-bound":
        return lead
    values = list(by_repeat(lead, metric).values())
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    near = bounded[(bounded[metric] - lead[metric]).abs() <= error]
    smallest: pd.Series[Any] = near.sort_values("n_params", kind="stable").iloc[0]
    return smallest


def probabilities_of_best(
    cells: Sequence[Mapping[int, float]], direction: str, seed: int = 0
) -> list[float] | None:
    """Return for each cell the probability that its true mean is the best of them.

    A cell is its values by repeat. Values are normal around mean + effect of the repeat, with one variance
    for all cells: where all have the same repeats these effects are removed (two-way layout, residual degrees
    of freedom (k - 1)(n - 1)), else the variance is pooled within cells. True means are normal around a
    common one, as in Gelman et al. (2013, Bayesian Data Analysis, section 5.4), with a flat prior on it and
    on their spread tau: without this shrinkage the leader of many noisy cells would look surer than it is.
    The probability is the share of 10,000 draws in which a cell leads; the variance is drawn by its own
    posterior, s^2 df / chi2(df), tau on a grid. None for fewer than two cells, one repeat each, or values
    that do not vary.
    """
    n = np.array([len(cell) for cell in cells], dtype=float)
    if len(cells) < 2 or n.min() < 1:
        return None
    means = np.array([np.mean(list(cell.values())) for cell in cells])
    residuals = [np.array([cell[s] for s in sorted(cell)]) - m for cell, m in zip(cells, means, strict=True)]
    freedom = int(n.sum()) - len(cells)
    if len({tuple(sorted(cell)) for cell in cells}) == 1:
        table = np.array(residuals)
        residuals = list(table - table.mean(axis=0))
        freedom = (len(cells) - 1) * (int(n[0]) - 1)
    squares = float(sum((r**2).sum() for r in residuals))
    if freedom < 1 or squares <= freedom * (1e-12 * float(np.abs(means).max())) ** 2:
        return None
    rng = np.random.default_rng(seed)
    n_variances, n_each = 200, 50
    leads = np.zeros(len(cells))
    largest = 3 * float(means.std()) + 3 * math.sqrt(squares / freedom)
    taus = largest * (np.arange(100) + 0.5) / 100
    for quantile in (np.arange(n_variances) + 0.5) / n_variances:
        errors = squares / stats.chi2.ppf(quantile, freedom) / n  # variances of the means
        total = errors + taus[:, None] ** 2
        common_variance = 1 / (1 / total).sum(axis=1)
        common = common_variance * (means / total).sum(axis=1)
        logs = 0.5 * np.log(common_variance) - 0.5 * (
            np.log(total) + (means - common[:, None]) ** 2 / total
        ).sum(axis=1)
        weights = np.exp(logs - logs.max())
        drawn = rng.choice(len(taus), n_each, p=weights / weights.sum())
        center = common[drawn] + np.sqrt(common_variance[drawn]) * rng.standard_normal(n_each)
        kept = taus[drawn, None] ** 2 / total[drawn]  # how much of its own mean a cell keeps
        truth = center[:, None] + kept * (means - center[:, None])
        truth += np.sqrt(kept * errors) * rng.standard_normal(truth.shape)
        leader = truth.argmax(axis=1) if direction == "maximize" else truth.argmin(axis=1)
        leads += np.bincount(leader, minlength=len(cells))
    return [float(share) for share in leads / leads.sum()]


def _chance(p_best: float | None, n_compared: int) -> str:
    if p_best is None:
        return ""
    return f" The probability that it is the best of the {n_compared} compared is about {p_best:.0%}."


def best_of(runs: Runs, study: dict[str, Any], cells: pd.DataFrame) -> tuple[dict[str, Any] | None, str]:
    """Return the best config of one study, or None and why there is none; `cells` are of `aggregate`."""
    try:
        return choose_among(runs, [study], cells=[cells]), ""
    except RunFolderError as error:
        return None, str(error)


def candidates_of(
    runs: Runs, study: dict[str, Any], metric: str, cells: pd.DataFrame | None = None
) -> pd.DataFrame:
    table = aggregate.cells(runs.trials_of(study), study) if cells is None else cells
    if metric not in table:
        return table.iloc[:0]
    table = table[table[metric].notna()].assign(run=study["run"], study=study["name"])
    complete = [set(study["repeats"]) <= set(by_repeat(cell, metric)) for cell in table.to_dict("records")]
    if study.get("kind") == "search":
        complete = [True] * len(table)
    return table.assign(is_complete=pd.Series(complete, index=table.index, dtype=bool))


def _how_sure(
    best: pd.Series[Any],
    second: pd.Series[Any] | None,
    metric: str,
    candidates: pd.DataFrame,
    *,
    is_fresh: bool = False,
) -> str:
    """Return how certain the choice is, in a sentence or two."""
    biased = "As the best of several, its validation score is too high on average."
    if is_fresh:
        biased = "Its score is of fresh repeats."
    marked = ""
    if best["is_leaky"]:
        marked = f" Its split leaks ({aggregate.LEAKY_SPLIT}): it will score lower on new recordings."
    if second is None:
        only = "a completed trial" if len(candidates) == 1 else "no missing repeat"
        if candidates["is_leaky"].any() and not best["is_leaky"]:
            only = "a completed trial and a split that does not leak"
        return f"Not compared: it is the only config with {only}.{marked}"
    if best["unequal_epochs"] or second["unequal_epochs"]:
        marked += " It and the runner-up were not trained for the same number of epochs."
    # A completed trial may have no finite value, and then adds nothing to the spread.
    if min(len(by_repeat(best, metric)), len(by_repeat(second, metric))) < 2:
        return (
            f"Uncertain: with one repeat, the difference from the runner-up may be chance. {biased}{marked}"
        )
    low, high = f"{metric}:low", f"{metric}:high"
    if best[low] <= second[high] and second[low] <= best[high]:
        return f"Uncertain: its 95 % interval overlaps that of the runner-up. {biased}{marked}"
    return f"Fairly certain: its 95 % interval does not overlap that of the runner-up. {biased}{marked}"


def _scores(cell: pd.Series[Any], metric: str) -> dict[str, Any]:
    out = {"mean": cell[metric], "low": cell[f"{metric}:low"], "high": cell[f"{metric}:high"]}
    n = sum(map(math.isfinite, cell[f"{metric}:values"]))
    return {key: _null(float(value)) for key, value in out.items()} | {"n": n}


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None
