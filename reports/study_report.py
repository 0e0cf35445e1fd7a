"""Everything that a report computes of one study, computed once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from birdnet_core.intervals import LEVEL
from reports.runs import Runs
from reports.selection import choice, gates
from reports.statistics import aggregate, importance, levels, resources, screening
from reports.statistics.analysis import Analysis, results
from reports.statistics.audits import Audits, audits_of
from reports.statistics.predictions import Predictions, confusions, f1_intervals, predictions_of
from reports.statistics.progress import progression


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """The results of one study: the page, its tables and figures, and report.json read nothing else.

    Args:
        study: the content of the study's file, as `runs.Runs` holds it.
        trials, epochs: its rows of `runs.Runs`.
        cells: of `aggregate.cells`; of a search, best first, each named by the number of its trial.
        best: the content of best.json; None where `no_best` is the reason.
        front: of `choice.front_of`, with the names of `cells`; empty for one objective.
        analysis: what its repeats say of the metric; None of a search with one fold.
        rank_correlations: of `screening`. level_means: of `levels`. importance: of `importance.importances`.
        audits: of `audits.audits_of`; None where no trial was ended early, or none was to be audited.
        resources: of `resources.by_arm`. usage: of `resources.against_budget`.
        progression: of `progress.progression`. gate_results: of `gates.gate_results`.
        predictions: of the best cell and the baseline, by the cell's name; empty where the run holds none.
        by_recording: of `predictions.f1_intervals`, with the name of the `cell`.
        confusions: of `predictions.confusions`, of the first of `predictions`.
    """

    study: dict[str, Any]
    trials: pd.DataFrame
    epochs: pd.DataFrame
    cells: pd.DataFrame
    best: dict[str, Any] | None
    no_best: str
    front: pd.DataFrame
    analysis: Analysis | None
    rank_correlations: pd.DataFrame
    level_means: pd.DataFrame
    importance: pd.DataFrame
    audits: Audits | None
    resources: pd.DataFrame
    usage: dict[str, float | None]
    progression: pd.DataFrame
    gate_results: pd.DataFrame
    predictions: dict[str, Predictions]
    by_recording: pd.DataFrame
    confusions: pd.DataFrame

    @property
    def name(self) -> str:
        return str(self.study["name"])

    @property
    def metric(self) -> str:
        return str(self.study["metric"])

    @property
    def kind(self) -> Literal["search", "screen", "comparison"]:
        """Return ``screen`` for an ablation without a baseline, ``comparison`` for any other ablation."""
        if self.study["kind"] == "search":
            return "search"
        return "screen" if aggregate.is_screen(self.study) else "comparison"

    @property
    def sampled(self) -> pd.DataFrame:
        """The trials of `aggregate.sampled`: one for each config of a search."""
        return aggregate.sampled(self.trials, self.study)

    @property
    def scored(self) -> str:
        """Return what one score is of: ``recordings``, or ``clips`` where these were split at random."""
        return str((self.study.get("data") or {}).get("scored", "recordings"))


def study_report(runs: Runs, study: dict[str, Any], *, level: float = LEVEL) -> StudyReport:
    """Return the results of one of the studies of `runs`; claims and the best set hold at `level`."""
    epochs = runs.epochs_of(study)
    trials, cells, analysis = results(runs, study, level=level)
    best, no_best = choice.best_of(runs, study, cells, analysis)
    if study["kind"] == "search":
        cells = _ranked(cells, study)
    predictions = _predictions(trials, cells, study, best)
    strata = (study.get("data") or {}).get("strata") or {}
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda each: f1_intervals(each, strata), predictions.values()))
    by_recording = [each.assign(cell=name) for name, each in zip(predictions, found, strict=True)]
    return StudyReport(
        study=study,
        trials=trials,
        epochs=epochs,
        cells=cells,
        best=best,
        no_best=no_best,
        front=choice.front_of(trials, study, cells, analysis),
        analysis=analysis,
        rank_correlations=screening.rank_correlations(cells, study),
        level_means=levels.level_means(cells, study),
        importance=importance.importances(trials, epochs, study),
        audits=audits_of(runs.trials_of(study), epochs, study),
        resources=resources.by_arm(trials, epochs, study, cells),
        usage=resources.against_budget(runs, study),
        progression=progression(epochs, study, cells),
        gate_results=gates.gate_results(cells, study, best),
        predictions=predictions,
        by_recording=pd.concat(by_recording, ignore_index=True) if by_recording else pd.DataFrame(),
        confusions=confusions(next(iter(predictions.values()))) if predictions else pd.DataFrame(),
    )


def _ranked(cells: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return the configs of a search, named by trial number: best first, those that do not compete last."""
    cells = aggregate.numbered(cells)
    if study["metric"] in cells:
        cells = cells.sort_values(
            study["metric"], ascending=study["direction"] == "minimize", kind="stable", na_position="last"
        )
        lacks_folds = ~aggregate.has_all_repeats(cells, study)
        cells = cells.iloc[np.lexsort([lacks_folds, cells["is_infeasible"].to_numpy(dtype=bool)])]
    return cells.reset_index(drop=True)


def _predictions(
    trials: pd.DataFrame, cells: pd.DataFrame, study: dict[str, Any], best: dict[str, Any] | None
) -> dict[str, Predictions]:
    """Return the predictions of the best cell and of the baseline, where the run holds them."""
    baseline = aggregate.baseline_of(cells, study)
    roles: dict[str, list[str]] = {}
    if best is not None:
        roles.setdefault(best["config_id"], []).append("best")
    if baseline is not None:
        roles.setdefault(baseline["config_id"], []).append("baseline")
    found = {}
    for config_id, names in roles.items():
        cell = cells[cells["config_id"] == config_id].iloc[0]
        if predictions := predictions_of(trials, config_id, study):
            found[f"{cell['label']} ({', '.join(names)})"] = predictions
    return found
