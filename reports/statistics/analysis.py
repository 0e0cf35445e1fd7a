"""The statistics of a study, once: scores, contrasts, what may be claimed of them, and the best set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import special

from birdnet_core.intervals import LEVEL
from birdnet_core.records.bounds import constraints_of
from reports.runs import Runs
from reports.statistics import aggregate
from reports.statistics import contrasts as design
from reports.statistics.best_set import best_set
from reports.statistics.family import joint
from reports.statistics.linear_model import LEAST_REPEATS, Fit, RepeatedScores, fit
from reports.statistics.repeats import Repeats, read, repeats_of

CONTRAST_COLUMNS = (
    "kind", "metric", "label", "factors", "cell", "estimate", "low", "high", "p", "verdict", "aliases",
    "note",
)  # fmt: skip
FEW_REPEATS = f"fewer than {LEAST_REPEATS} repeats"
FEW_FOLDS = f"fewer than {LEAST_REPEATS} folds, which the manifest gives"
MOST_REPEATS = 1000  # that a planned number of repeats may be
Choice = Literal["mean", "cheapest"]


@dataclass(frozen=True)
class Analysis:
    """What the repeats of a study say of its metric.

    Args:
        repeats: the trials that it rests on. scores: of each metric, the score of each cell and its repeats.
        fitted: the model of the study's metric, None where too few repeats are there. rough: the same of two
            repeats or more, from which further ones are planned.
        contrasts: a row each, with simultaneous intervals and adjusted p values at `level`. `verdict` is
            ``higher`` or ``lower`` where the interval excludes 0, else None; `note` is the reason for a nan.
        best: a row a cell of the study that keeps its constraints: `config_id`, whether it `may_be_best`, and
            `regret`, the most that the best one may be ahead of it. Empty without a model.
        infeasible: the config_ids that break a constraint of the study.
    """

    repeats: Repeats
    scores: dict[str, tuple[np.ndarray, RepeatedScores]]
    fitted: Fit | None
    rough: Fit | None
    contrasts: pd.DataFrame
    best: pd.DataFrame
    level: float
    infeasible: frozenset[str] = frozenset()

    @property
    def claims(self) -> pd.DataFrame:
        """The contrasts that are differences by their simultaneous interval."""
        found: pd.DataFrame = self.contrasts[self.contrasts["verdict"].notna()]
        return found


def results(
    runs: Runs, study: dict[str, Any], *, level: float = LEVEL
) -> tuple[pd.DataFrame, pd.DataFrame, Analysis | None]:
    """Return the trials of a study as they are read, its cells with their scores, and the analysis.

    Of a search there is one of the configs that have all folds, and none where the search has one fold.
    """
    trials = read(runs.trials_of(study), runs.epochs_of(study), study)
    cells = aggregate.cells(trials, study)
    compared = cells
    if study["kind"] == "search":
        is_whole = aggregate.has_all_repeats(cells, study)
        if not (aggregate.is_folded(study) and is_whole.any()):
            return trials, cells, None
        compared = cells[is_whole]
    analysis = analyse(trials, compared, study, level=level)
    return trials, scored(cells, analysis, study["metric"]), analysis


def analyse(
    trials: pd.DataFrame, cells: pd.DataFrame, study: dict[str, Any], *, level: float = LEVEL
) -> Analysis:
    """Return the analysis of repeated cells; `trials` are of `repeats.read`, `cells` of `aggregate.cells`.

    Cells that were trained unequal epochs, or have no completed trial, are left out of the model.
    """
    config_ids = list(dict.fromkeys(cells["config_id"]))
    repeats = repeats_of(trials, config_ids, study)
    metric = study["metric"]
    scores = {name: (means, found) for name, means, found in repeats.scores(influential=metric)}
    if metric not in scores:
        return Analysis(repeats, scores, None, None, _frame([]), pd.DataFrame(columns=_BEST_COLUMNS), level)
    means, of_metric = scores[metric]
    unequal = set(cells.loc[cells["unequal_epochs"].astype(bool), "config_id"])
    used = np.array([c not in unequal for c in config_ids], dtype=bool) & np.isfinite(means)
    fitted = rough = None
    if used.sum() > 1:
        fitted = fit(of_metric.cells(used))
        rough = fitted or fit(of_metric.cells(used), least=2)
    place = {config_id: i for i, config_id in enumerate(config_ids)}
    rows = [place[config_id] for config_id in cells["config_id"]]  # of the config of each cell
    why = {
        config_id: "trained unequal epochs" if config_id in unequal else "no completed trial"
        for config_id in np.array(config_ids)[~used]
    }
    found = design.contrasts(list(cells["factors"]), study)
    few = FEW_FOLDS if repeats.are_folds_given and len(repeats.repeats) >= LEAST_REPEATS else FEW_REPEATS
    feasible = used & ~_breaking(config_ids, cells, scores, study)
    compared = fitted
    if not np.array_equal(feasible, used):
        compared = fit(of_metric.cells(feasible)) if feasible.sum() > 1 else None
    with ThreadPoolExecutor(1) as pool:  # both draw for seconds where there are hundreds of cells
        chosen = pool.submit(_best, config_ids, feasible, compared, study["direction"], level)
        frame = _contrasts(found, cells, rows, (means, of_metric), used, fitted, metric, why, few, level)
        best = chosen.result()
    infeasible = frozenset(np.array(config_ids)[used & ~feasible])
    return Analysis(repeats, scores, fitted, rough, frame, best, level, infeasible)


def _breaking(
    config_ids: list[str],
    cells: pd.DataFrame,
    scores: dict[str, tuple[np.ndarray, RepeatedScores]],
    study: dict[str, Any],
) -> np.ndarray:
    """Return whether the scores of each config break a constraint of the study."""
    constraints = constraints_of(study)
    if not constraints:
        return np.zeros(len(config_ids), dtype=bool)
    rows = {row["config_id"]: row for row in cells.to_dict("records")}
    known = [rows[c] | {m: means[i] for m, (means, _) in scores.items()} for i, c in enumerate(config_ids)]
    return np.array([bool(aggregate.broken(row, constraints)) for row in known])


def _contrasts(
    found: list[design.Contrast],
    cells: pd.DataFrame,
    rows: list[int],
    scores: tuple[np.ndarray, RepeatedScores],
    used: np.ndarray,
    fitted: Fit | None,
    metric: str,
    why: dict[str, str],
    few: str,
    level: float,
) -> pd.DataFrame:
    # Two cells may be one config, which then has the weights of both.
    means, of_metric = scores
    to_configs = np.zeros((len(rows), len(used)))
    to_configs[np.arange(len(rows)), rows] = 1
    labels, ids, is_leaky = (cells[name].to_numpy() for name in ("label", "config_id", "is_leaky"))
    is_used = used[rows]
    out: list[dict[str, Any]] = []
    for contrast in found:
        weights = contrast.weights @ to_configs
        of = contrast.weights != 0
        lacking = of & ~is_used
        reasons = sorted({why[config_id] for config_id in ids[lacking]})
        note = f"{', '.join(reasons)}: {', '.join(labels[lacking])}" if reasons else ""
        if not note and len(set(is_leaky[of])) > 1:
            note = "one leaks, and is scored by clip"
        estimate = math.nan if reasons else float(weights @ np.nan_to_num(means))
        out.append(
            {
                "kind": contrast.kind, "metric": metric, "label": contrast.label,
                "factors": list(contrast.factors), "cell": contrast.cell, "estimate": estimate,
                "low": math.nan, "high": math.nan, "p": math.nan, "verdict": None,
                "aliases": list(contrast.aliases), "note": note, "weights": weights,
            }
        )  # fmt: skip
    n_repeats = int(np.isfinite(of_metric.values[used]).any(axis=0).sum()) if used.any() else 0
    if n_repeats >= LEAST_REPEATS:
        few = "the cells share fewer than three repeats"
    tested = [row for row in out if math.isfinite(row["estimate"]) and np.any(row["weights"])]
    if fitted is None:
        for row in tested:
            row["note"] = "; ".join(filter(None, [row["note"], few]))
    elif tested:
        together = joint(fitted, np.array([row["weights"][used] for row in tested]), level=level)
        for i, row in enumerate(tested):
            row |= {"estimate": together.estimate[i], "low": together.low[i], "high": together.high[i]}
            row["p"] = together.p[i]
            if math.isnan(row["low"]):
                row["note"] = "; ".join(filter(None, [row["note"], "the scores do not vary"]))
            elif row["low"] > 0 or row["high"] < 0:
                row["verdict"] = "higher" if row["low"] > 0 else "lower"
    return _frame(out)


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    # As objects, or pandas would make nan of None, and floats of whole numbers next to it.
    frame = pd.DataFrame(rows, columns=list(CONTRAST_COLUMNS), dtype=object)
    return frame.astype(dict.fromkeys(("estimate", "low", "high", "p"), float))


_BEST_COLUMNS = ["config_id", "mean", "may_be_best", "regret"]


def _best(
    config_ids: list[str], used: np.ndarray, fitted: Fit | None, direction: str, level: float
) -> pd.DataFrame:
    if fitted is None:
        return pd.DataFrame(columns=_BEST_COLUMNS)
    found = best_set(fitted, sign=1 if direction == "maximize" else -1, level=level)
    return pd.DataFrame(
        {
            "config_id": np.array(config_ids)[used],
            "mean": fitted.means,
            "may_be_best": found.is_in,
            "regret": found.regret,
        }
    )


def scored(cells: pd.DataFrame, analysis: Analysis, of_model: str) -> pd.DataFrame:
    """Return `cells` with the score of every metric and its interval over repeats (`interval`).

    A score that follows from predicted classes is of the recordings of all folds together; see
    `Repeats.scores`. The values of single repeats stay those of their folds. The study's metric is as the
    model has it: where a cell lacks a repeat, its mean and interval are moved by what that repeat does to the
    others. Cells that the analysis does not compare keep their means, and have no interval.
    """
    ids = analysis.repeats.config_ids
    place = {config_id: i for i, config_id in enumerate(ids)}
    mine = cells["config_id"].isin(ids)
    rows = [place[config_id] for config_id in cells.loc[mine, "config_id"]]
    of_cell = dict(zip(analysis.best["config_id"], analysis.best["mean"], strict=True))
    is_infeasible = cells["config_id"].isin(analysis.infeasible) | (cells["is_infeasible"] & ~mine)
    cells = cells.assign(is_infeasible=is_infeasible.astype(bool))
    for metric, (means, found) in analysis.scores.items():
        if metric in cells and np.isfinite(found.values).any():
            bounds = np.array([interval(found, i) for i in range(len(means))])
            if metric == of_model:
                adjusted = np.array([of_cell.get(c, m) for c, m in zip(ids, means, strict=True)])
                bounds, means = bounds + (adjusted - means)[:, None], adjusted
            # Student's t does not know that no score lies beyond 0 and 1.
            bounds = bounds.clip(0, math.inf if metric.endswith("loss") else 1)
            names = [metric, f"{metric}:low", f"{metric}:high"]
            cells.loc[mine, names] = np.column_stack([means, bounds])[rows]
            cells.loc[~mine, names[1:]] = math.nan
    return cells


def interval(scores: RepeatedScores, cell: int, level: float = LEVEL) -> tuple[float, float]:
    """Return low and high of a cell's mean over repeats; nan below `LEAST_REPEATS` repeats.

    Student's t over the repeats. Recordings that several repeats validated add what they have in common, or
    repeats beyond those that validated different recordings add nothing where influences are not known.
    """
    known = np.isfinite(scores.values[cell])
    n = int(known.sum())
    if n < LEAST_REPEATS:
        return math.nan, math.nan
    values = scores.values[cell][known]
    variance = float(values.var(ddof=1)) / min(n, scores.n_distinct)
    if scores.influence is not None:
        variance = float(values.var(ddof=1)) / n
        moved = scores.influence[cell][known] / n
        variance += max(0.0, float((moved.sum(axis=0) ** 2).sum() - (moved**2).sum()))
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * math.sqrt(variance)
    return float(values.mean()) - half, float(values.mean()) + half


def repeats_for(analysis: Analysis, differences: Sequence[float]) -> list[int | None]:
    """Return how many repeats each difference of two cells would take to show, None where no number would do.

    From the spread of this study: so many that the half-width of an interval of a comparison with the first
    cell, alone, is no wider, at its average over the others; a difference of just this size is found half of
    the time. Recordings that are validated again add nothing: their part of the variance stays that of all of
    them once every fold has been validated.
    """
    fitted, repeats = analysis.rough, analysis.repeats
    if fitted is None or len(fitted.means) < 2:
        return [None] * len(differences)
    n = len(fitted.means)
    pairs = np.eye(n)[1:] - np.eye(n)[0]
    now, n_folds = len(repeats.repeats), repeats.n_folds
    if repeats.are_folds_given:  # a repeat is a fold, and there are no others
        now = min(now, n_folds)
    of_recordings = float(((pairs @ fitted.of_recordings) * pairs).sum(axis=1).mean())
    of_recordings *= min(now, n_folds) / n_folds  # once every recording was validated
    of_training = max(0.0, 2 * float(fitted.spread.mean()) - of_recordings * n_folds)  # in one repeat
    freedom = float(np.median(fitted.degrees(pairs)))
    most = n_folds + 1 if repeats.are_folds_given else MOST_REPEATS
    found: list[int | None] = [None] * len(differences)
    for number in reversed(range(LEAST_REPEATS, most)):
        variance = of_training / number + of_recordings * n_folds / min(number, n_folds)
        quantile = special.stdtrit(max(1.0, freedom * (number - 1) / max(1, now - 1)), (1 + LEVEL) / 2)
        half = quantile * math.sqrt(variance)
        found = [number if half <= d else known for d, known in zip(differences, found, strict=True)]
    return found
