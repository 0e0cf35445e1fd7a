"""What early stopping was worth in a search, by the trials that it would have ended and let train on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from birdnet_core.intervals import LEVEL
from birdnet_core.records.metrics import metric_direction
from reports.statistics.aggregate import sampled

TOP = 1 / 3
N_RESAMPLES = 2000
N_PAIRS = 2e8  # of trials, in all resamples together: with many trials fewer resamples do
LEAST_WHOLE, MOST_WHOLE = 4, 1000
"""Of fewer whole trials no correlation is computed, and of more that of a random sample of them."""


@dataclass(frozen=True, kw_only=True)
class Audits:
    """What the audited trials of a search say of those that were ended.

    Args:
        rule: the scheduler's name.
        n_ended: trials that it ended early. n_audited: those that it would have ended, trained whole.
        n_spared: trials that it would have ended, but for early epochs that did not clearly predict the end.
        epochs_saved: epochs that the ended trials did not train, and their share of all budgets.
        n_wrong: audited trials among the best third of all trials. wrong_low, wrong_high: the exact interval
            of their share (Clopper and Pearson 1934).
        best: the best value of the search. best_audited: of the audited trials, nan without any.
        first_rung: the epoch from which trials are compared. rung_metric: the metric that compares them.
        correlation: Kendall's rank correlation of the trials by their best `rung_metric` up to `first_rung`
            and by their best value at the end, positive where the one predicts the other; each audited trial
            counts for as many as it was drawn from. nan below `LEAST_WHOLE` trials.
        low, high: its bootstrap interval over trials (Efron and Tibshirani 1993, section 13.3).
    """

    rule: str
    n_ended: int
    n_audited: int
    n_spared: int
    epochs_saved: int
    share_saved: float
    n_wrong: int
    wrong_low: float
    wrong_high: float
    best: float
    best_audited: float
    first_rung: int
    rung_metric: str
    correlation: float
    low: float
    high: float

    @property
    def is_predictive(self) -> bool:
        """Whether early epochs clearly predict the end: the whole interval of the correlation is above 0."""
        return self.low > 0


def audits_of(trials: pd.DataFrame, epochs: pd.DataFrame, study: dict[str, Any]) -> Audits | None:
    """Return what the audits of a search say; None where nothing would have ended early, or without audits.

    `trials` and `epochs` are rows of `runs.Runs` of the study. Of several folds only the first counts, on
    which alone trials are ended early.
    """
    share, metric = study.get("audit") or 0.0, study["metric"]
    mine = sampled(trials, study).drop_duplicates("trial_id")
    ended = mine[mine["status"] == "pruned"]
    whole = mine[(mine["status"] == "completed") & mine.get(metric, pd.Series(dtype=float)).notna()]
    audited = whole["audited_at"].notna().to_numpy()
    n_spared = int(mine["spared_at"].notna().sum())
    if study["kind"] != "search" or not share or not (len(ended) or audited.any() or n_spared):
        return None
    sign = 1.0 if study["direction"] == "maximize" else -1.0
    end = sign * whole[metric].to_numpy(dtype=float)
    weight = np.where(audited, 1 / share, 1.0)
    n_audited = int(audited.sum())
    n_wrong = int(_is_top(end, weight)[audited].sum())
    interval = None
    if n_audited:
        from scipy.stats import binomtest  # a second, which other reports do without

        interval = binomtest(n_wrong, n_audited).proportion_ci(LEVEL)
    first = int(study["grace_epochs"])
    rung_metric = study["rung_metric"]
    early = _best_by(epochs, whole["trial_id"], rung_metric, first)
    known = np.isfinite(early)
    correlation, low, high = _correlation(early[known], end[known], weight[known])
    budget = int(study["epochs"])
    saved = int((budget - ended["epochs"]).sum())
    return Audits(
        rule=str(study["scheduler"]),
        n_ended=len(ended),
        n_audited=n_audited,
        n_spared=n_spared,
        epochs_saved=saved,
        share_saved=saved / (budget * len(mine)),
        n_wrong=n_wrong,
        wrong_low=float(interval.low) if interval else math.nan,
        wrong_high=float(interval.high) if interval else math.nan,
        best=sign * float(end.max()) if len(end) else math.nan,
        best_audited=sign * float(end[audited].max()) if n_audited else math.nan,
        first_rung=first,
        rung_metric=rung_metric,
        correlation=correlation,
        low=low,
        high=high,
    )


def _is_top(end: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return whether less than a third of all trials, by the weights of the whole ones, are better."""
    above = (end[:, None] < end) @ weight
    return np.asarray(above < TOP * weight.sum())


def _best_by(epochs: pd.DataFrame, trial_ids: pd.Series, metric: str, epoch: int) -> np.ndarray:
    """Return the best value of each trial up to `epoch`, negated if lower is better; nan without any."""
    sign = 1.0 if metric_direction(metric) == "maximize" else -1.0
    there = epochs[(epochs["epoch"] <= epoch) & epochs["trial_id"].isin(trial_ids)]
    best = (sign * there[metric]).groupby(there["trial_id"]).max()
    return best.reindex(trial_ids).to_numpy(dtype=float)


def _correlation(early: np.ndarray, end: np.ndarray, weight: np.ndarray) -> tuple[float, float, float]:
    """Return Kendall's tau-b under weights of the trials, and its interval."""
    rng = np.random.default_rng(0)
    if len(end) > MOST_WHOLE:
        some = rng.choice(len(end), MOST_WHOLE, replace=False)
        early, end, weight = early[some], end[some], weight[some]
    n = len(end)
    if n < LEAST_WHOLE:
        return math.nan, math.nan, math.nan
    first, last = (np.sign(np.subtract.outer(values, values)) for values in (early, end))
    products = first * last, first * first, last * last

    def tau(times: np.ndarray) -> float:
        """Return tau-b where trial i counts `times`[i] times."""
        both, a, b = (float(times @ product @ times) for product in products)
        return both / math.sqrt(a * b) if a and b else math.nan

    n_resamples = int(min(N_RESAMPLES, N_PAIRS / n**2))
    drawn = np.array(
        [tau(weight * np.bincount(rng.integers(0, n, n), minlength=n)) for _ in range(n_resamples)]
    )
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return tau(weight), math.nan, math.nan
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return tau(weight), float(low), float(high)
