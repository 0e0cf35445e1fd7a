"""The Pareto front of a search with several objectives: configs that no other is better than."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from birdnet_core.records.metrics import objective_direction


def objectives_of(study: dict[str, Any]) -> list[str]:
    """Return the objectives of a search, its metric first; the metric alone for other studies."""
    return [study["metric"], *(study.get("also") or ())]


def pareto_front(cells: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return the cells with a value of every objective, best metric first, with `is_on_front` and `distance`.

    A cell is on the front where no other is at least as good in every objective and better in one. `distance`
    is from the ideal point, which has the best value of every objective, in units of the range that the front
    has in each (Zeleny 1973, compromise programming); nan off the front.
    """
    names = objectives_of(study)
    known = cells[np.isfinite(cells[names].astype(float)).all(axis=1)]
    signs = [-1.0 if objective_direction(name) == "maximize" else 1.0 for name in names]
    costs = known[names].to_numpy(dtype=float) * signs
    order = np.lexsort(costs.T[::-1])
    known, costs = known.iloc[order], costs[order]
    front: list[int] = []
    for i, row in enumerate(costs):  # none of a later row can dominate an earlier one
        others = costs[front]
        if not ((others <= row).all(axis=1) & (others < row).any(axis=1)).any():
            front.append(i)
    distance = np.full(len(known), np.nan)
    if front:
        best, worst = costs[front].min(axis=0), costs[front].max(axis=0)
        width = np.where(worst > best, worst - best, 1.0)
        distance[front] = np.linalg.norm((costs[front] - best) / width, axis=1)
    return known.assign(is_on_front=np.isin(np.arange(len(known)), front), distance=distance)
