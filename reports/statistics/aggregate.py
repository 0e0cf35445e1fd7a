"""Trials of a study become cells: one row a configuration, with its mean over repeats and its interval.

Functions take the frames of `runs` and return frames. Only completed trials enter a mean; all others are
counted in the row of their cell.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from birdnet_core.intervals import LEVEL
from birdnet_core.records.bounds import Bound, constraints_of
from birdnet_core.records.metrics import METRICS
from reports.runs import FAILED, OTHER_TRAINING, RUNNING

LEAKY_SPLIT = "random-windows"


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """Return mean, low and high of Student's t interval, mean -+ t(n - 1) * s / sqrt(n).

    `s` is the sample standard deviation (n - 1 in the denominator). nan values are left out. With one value
    low and high are nan, since one repeat has no spread; with none all three are.
    """
    finite = np.array([v for v in values if math.isfinite(v)], dtype=float)
    if finite.size == 0:
        return math.nan, math.nan, math.nan
    mean = float(finite.mean())
    if finite.size == 1:
        return mean, math.nan, math.nan
    quantile = float(special.stdtrit(finite.size - 1, (1 + level) / 2))
    half = quantile * float(finite.std(ddof=1)) / math.sqrt(finite.size)
    return mean, mean - half, mean + half


def cells(trials: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return one row a cell of an ablation, or a sampled config of a search, in the order of the study.

    `n` completed trials enter the means; `n_failed` (failed, diverged, killed), `n_other` (completed, but no
    sample of the config: `runs.OTHER_TRAINING`), `n_pruned`, `n_infeasible` (not trained), `n_running` and
    `n_missing` (planned, never started) do not. `repeats`, `trial_ids` and ``<metric>:values`` are lists over
    the completed trials, by repeat. A metric has the columns ``<metric>`` (mean), ``<metric>:low`` and
    ``<metric>:high`` (`t_interval`), at each trial's best epoch. `epochs_to_best`, `hours` and `gpu_hours`
    are means over completed trials. `unequal_epochs`: see `trained_length`. `label` is short and unique: all
    factors, or of more than three those that differ from the baseline's, or a number where there is none.
    `is_leaky`: clips were split at random. `is_infeasible`: the means break a constraint of the study, or the
    config was not trained because it does.
    """
    ordered = trials.sort_values(["repeat", "seed"], kind="stable")
    first = ordered.drop_duplicates("config_id").set_index("config_id")["factors"]
    planned: list[tuple[str, dict[str, Any]]] = [
        (cell["config_id"], cell["factors"]) for cell in study.get("cells") or []
    ]
    known = {config_id for config_id, _ in planned}
    planned += [(key, first[key]) for key in trials["config_id"].unique() if key not in known]
    ids = [config_id for config_id, _ in planned]
    done = ordered[ordered["status"] == "completed"]
    lengths = _lengths(done, study)
    is_unequal = len(set().union(*lengths.values())) > 1
    leaky = _leaky(trials)
    found = pd.DataFrame(
        {
            "label": labels([factors for _, factors in planned], study),
            "factors": [factors for _, factors in planned],
            "config_id": ids,
            "number": ordered.groupby("config_id")["number"].min().reindex(ids).to_numpy(),
            **_counts(ordered, ids, study),
            "unequal_epochs": [is_unequal and lengths.get(key, set()) not in (set(), {study["epochs"]})
                               for key in ids],
            "is_leaky": [key in leaky or LEAKY_SPLIT in factors.values() for key, factors in planned],
            **_summary(done, ids, [m for m in METRICS if m in trials]),
        }
    )  # fmt: skip
    is_infeasible = (found["n"] == 0) & (found["n_infeasible"] > 0)
    if constraints := constraints_of(study):
        breaks = [bool(row["n"] and broken(row, constraints)) for row in found.to_dict("records")]
        is_infeasible |= np.array(breaks, dtype=bool)
    found.insert(list(found).index("is_leaky") + 1, "is_infeasible", is_infeasible)
    return found


def has_all_repeats(cells: pd.DataFrame, study: dict[str, Any]) -> np.ndarray:
    """Return whether each cell has a value of the study's metric in every repeat of the study."""
    repeats, metric = set(study["repeats"]), study["metric"]
    return np.array(
        [repeats <= set(by_repeat(cell, metric)) for cell in cells.to_dict("records")], dtype=bool
    )


def is_folded(study: dict[str, Any]) -> bool:
    """Return whether a study is a search that trains promising configs on further folds."""
    return study["kind"] == "search" and len(study["repeats"]) > 1


def sampled(trials: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return the trials of a search on the first fold, which every config has; of an ablation all trials."""
    return trials[trials["repeat"] == study["repeats"][0]] if is_folded(study) else trials


def broken(values: Mapping[Any, Any], constraints: Sequence[Bound]) -> dict[Bound, float]:
    """Return the constraints that a row of values breaks, each with its value; nan where it is unknown."""
    of = {bound: float(values.get(bound.name, math.nan)) for bound in constraints}
    return {bound: value for bound, value in of.items() if not bound.holds(value)}


def numbered(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the configs of a search, named by the numbers of their trials."""
    return cells.assign(label=[f"#{number:.0f}" for number in cells["number"]])


def trained_length(epochs: int, best_epoch: float, config: dict[str, Any], budget: int) -> int:
    """Return how long a completed trial counts as trained, in epochs.

    A trial that its own patience ended counts as the whole budget: every cell was given the same chance and
    is read at its best epoch. Any other trial counts as the epochs it trained. A cell is marked
    `unequal_epochs` when the study's lengths differ and one of the cell's is not the study's budget.
    """
    training = config.get("training", {})
    budget = training.get("stop_after") or training.get("epochs", budget)
    patience = training.get("patience", 0)
    is_stopped = patience > 0 and epochs < budget and epochs - best_epoch >= patience
    return budget if is_stopped else epochs


def recorded_f1(trials: pd.DataFrame, config_id: str) -> pd.Series[Any]:
    """Return F1 by species, the mean over a config's completed trials, each at its own best epoch."""
    mine = trials[(trials["status"] == "completed") & (trials["config_id"] == config_id)]
    return pd.DataFrame(list(mine["f1_per_species"])).mean()


def species(means: Mapping[str, pd.Series[Any]], study: dict[str, Any]) -> pd.DataFrame:
    """Return F1 by species of each config_id in a frame, rarest species first.

    Columns: `species`, `n_train` (nan where the study lacks it), then one a config_id. A species has nan
    where a config has no F1 of it.
    """
    frame = pd.DataFrame(dict(means), columns=list(means), dtype=float)
    counts = study.get("data", {}).get("train_counts") or {}
    frame.insert(0, "n_train", [float(counts.get(name, math.nan)) for name in frame.index])
    frame.insert(0, "species", frame.index.astype(object))
    return frame.sort_values(["n_train", "species"]).reset_index(drop=True)


def status_counts(trials: pd.DataFrame) -> str:
    """Return ``"3 completed, 1 failed"``, the commonest status first."""
    counts = Counter(str(s) for s in trials["status"])
    return ", ".join(f"{n} {status}" for status, n in counts.most_common()) or "no trials"


def label(factors: dict[str, Any]) -> str:
    """Return a short name of a cell: ``"audio_cnn · focal"``, ``"lr=0.001"``.

    The key of a component's name is left out, since the name suffices.
    """
    endings = Counter(key.rpartition(".")[2] for key in factors)
    parts = []
    for key, value in factors.items():
        ending = key.rpartition(".")[2]
        name = ending if endings[ending] == 1 else key
        if len(ending) == 1:  # a probability p of an augmentation would read as a p value
            name = ".".join(key.split(".")[-2:])
        parts.append(show(value) if ending == "name" else f"{name}={show(value)}")
    return " · ".join(parts) or "base"


def show(value: Any) -> str:
    """Return a factor's value as a user would type it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def labels(cells: list[dict[str, Any]], study: dict[str, Any]) -> list[str]:
    """Return a short name of each of a study's cells, or of parts of them: see `label` in `cells`."""
    baseline = study.get("baseline")
    if is_screen(study):
        return [f"#{i}" for i in range(1, len(cells) + 1)]
    if baseline and len(baseline) > 3:
        return [label({k: v for k, v in cell.items() if v != baseline.get(k)}) for cell in cells]
    return [label(cell) for cell in cells]


def baseline_of(cells: pd.DataFrame, study: dict[str, Any]) -> pd.Series[Any] | None:
    """Return the row of the cell that the study names as its baseline, or None."""
    baseline = study.get("baseline")
    if study.get("kind") != "ablation" or not baseline:
        return None
    for _, cell in cells.iterrows():
        if is_at(cell["factors"], baseline):
            return cell
    return None


def is_at(factors: dict[str, Any], levels: dict[str, Any]) -> bool:
    """Return whether a cell with these `factors` has these `levels`."""
    return all(name in factors and factors[name] == level for name, level in levels.items())


def by_repeat(cell: pd.Series[Any] | Mapping[Hashable, Any], metric: str) -> dict[int, float]:
    """Return the finite values of a row of a cell table."""
    pairs = zip(cell["repeats"], cell[f"{metric}:values"], strict=True)
    return {repeat: value for repeat, value in pairs if math.isfinite(value)}


def is_screen(study: dict[str, Any]) -> bool:
    """Return whether a study is an ablation without a baseline: points spread over the space."""
    return study.get("kind") == "ablation" and study.get("baseline") is None


def is_validated(study: dict[str, Any]) -> bool:
    """Return whether a study kept the validation split to validate on; final training does not."""
    return bool(study.get("base", {}).get("training.train_on", "train") == "train")


def _leaky(trials: pd.DataFrame) -> set[str]:
    """Return the configs whose trials, by their records, had their clips split at random."""
    pairs = zip(trials["config_id"], trials["config"], strict=True)
    return {key for key, config in pairs if config.get("data", {}).get("split") == LEAKY_SPLIT}


def _lengths(done: pd.DataFrame, study: dict[str, Any]) -> dict[str, set[int]]:
    """Return the lengths of the completed trials of each config; see `trained_length`."""
    found: dict[str, set[int]] = {}
    names = ("config_id", "epochs", "best_epoch", "config")
    for key, epochs, best, config in zip(*(done[name] for name in names), strict=True):
        found.setdefault(key, set()).add(trained_length(int(epochs), float(best), config, study["epochs"]))
    return found


def _counts(trials: pd.DataFrame, ids: list[str], study: dict[str, Any]) -> dict[str, Any]:
    """Return how many trials of the configs `ids` ended in each way, [configs] each."""
    of = trials["config_id"]

    def count(*statuses: str) -> np.ndarray:
        n = trials["status"].isin(statuses).groupby(of).sum().reindex(ids, fill_value=0)
        return n.to_numpy(dtype="int64")

    planned = Counter(study["repeats"] if study.get("kind") == "ablation" else ())
    repeats = trials["repeat"].groupby(of).agg(Counter).to_dict() if planned else {}
    return {
        "n": count("completed"),
        "n_failed": count(*FAILED),
        "n_other": count(OTHER_TRAINING),
        "n_pruned": count("pruned"),
        "n_infeasible": count("infeasible"),
        "n_running": count(RUNNING),
        "n_missing": [(planned - repeats.get(key, Counter())).total() for key in ids],
    }


def _summary(done: pd.DataFrame, ids: list[str], metrics: list[str]) -> dict[str, Any]:
    """Return what the completed trials of the configs `ids` have in the mean, and single by single."""
    by_config = done.groupby("config_id", sort=False)
    places = [[int(i) for i in by_config.indices.get(key, ())] for key in ids]

    def lists(name: str) -> list[list[Any]]:
        values = done[name].tolist()
        return [[values[i] for i in at] for at in places]

    hours = done["seconds"] / 3600
    of = {
        "n_params": by_config["n_params"].max(),
        "epochs_to_best": by_config["best_epoch"].mean(),
        "epochs_min": by_config["epochs"].min(),
        "epochs_max": by_config["epochs"].max(),
        "hours": hours.groupby(done["config_id"]).mean(),
        "gpu_hours": (hours * done["gpus"]).groupby(done["config_id"]).mean(),
    }
    out: dict[str, Any] = {"repeats": lists("repeat"), "trial_ids": lists("trial_id")}
    out |= {name: values.reindex(ids).to_numpy(dtype=float) for name, values in of.items()}
    for metric in metrics:
        finite = done[metric].where(np.isfinite(done[metric])).groupby(done["config_id"])
        table = finite.agg(["count", "mean", "std"]).reindex(ids)
        n, mean, std = table.to_numpy(dtype=float).T
        half = special.stdtrit(n - 1, (1 + LEVEL) / 2) * std / np.sqrt(n)  # as `t_interval`
        out |= {metric: mean, f"{metric}:low": mean - half, f"{metric}:high": mean + half}
        out[f"{metric}:values"] = lists(metric)
    return out
