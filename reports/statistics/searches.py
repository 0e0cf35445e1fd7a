"""One search repeated with several seeds: how much its outcome varies."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from reports.study_report import StudyReport

SAME = ("name", "metric", "also", "epochs", "space", "base", "repeats", "scheduler", "sampler", "constraints")
"""What searches share that are repeats of one another."""


def repeated_searches(reports: Iterable[StudyReport]) -> list[pd.DataFrame]:
    """Return a frame for every search that several runs hold with different seeds, a row a run.

    Columns: `study`, `metric`, `run`, `seed`, `n_trials`, the `factors` of the best config, and its `best`
    value of the metric. Searches are repeats of one another where they are the same but for the seed, on the
    same recordings, and none or all began with configs of another. One without a best config is left
    out, and of one seed the first counts.
    """
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for report in reports:
        study = report.study
        if study["kind"] != "search" or report.best is None:
            continue
        same = {name: study.get(name) for name in SAME} | {
            "data_id": (study.get("data") or {}).get("data_id"),
            "is_warm": bool(study.get("warm_start")),
        }
        row = {
            "study": report.name, "metric": report.metric, "run": study["run"], "seed": study["seed"],
            "n_trials": len(report.sampled), "factors": report.best["factors"], "best": report.best["mean"],
        }  # fmt: skip
        groups.setdefault(json.dumps(same, sort_keys=True), {}).setdefault(study["seed"], row)
    return [pd.DataFrame(list(rows.values())) for rows in groups.values() if len(rows) > 1]
