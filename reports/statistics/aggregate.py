"""Trials of a study become cells: one row a configuration, with its mean over repeats and its interval.

Functions take the frames of `runs` and return frames. Only completed trials enter a mean; all others are
counted in the row of their cell.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

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
    quantile = _t_quantile((1 + level) / 2, finite.size - 1)
    half = quantile * float(finite.std(ddof=1)) / math.sqrt(finite.size)
    return mean, mean - half, mean + half


@functools.lru_cache(maxsize=1024)
def _t_quantile(share: float, freedom: int) -> float:
    return float(stats.t.ppf(share, freedom))


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
    groups = _by_config(trials)
    nothing = _Group(trials.iloc[:0])
    planned: list[tuple[str, dict[str, Any]]] = [
        (cell["config_id"], cell["factors"]) for cell in study.get("cells") or []
    ]
    known = {config_id for config_id, _ in planned}
    planned += [(key, group["factors"][0]) for key, group in groups.items() if key not in known]
    names = labels([factors for _, factors in planned], study)
    metrics = [m for m in METRICS if m in trials]
    completed = {config_id: group.completed() for config_id, group in groups.items()}
    lengths_of = {config_id: set(_lengths(done, study)) for config_id, done in completed.items()}
    lengths = set[int]().union(*lengths_of.values())
    rows = []
    constraints = constraints_of(study)
    for (config_id, factors), name in zip(planned, names, strict=True):
        group = groups.get(config_id, nothing)
        own = lengths_of.get(config_id, set())
        row: dict[str, Any] = {
            "label": name,
            "factors": factors,
            "config_id": config_id,
            "number": group["number"].min() if len(group) else math.nan,
            **_counts(group, study),
            "unequal_epochs": len(lengths) > 1 and own not in (set(), {study["epochs"]}),
            "is_leaky": LEAKY_SPLIT in (*factors.values(), *_splits(group)),
        }
        row |= _summary(completed.get(config_id, nothing), metrics)
        is_trained = bool(row["n"])
        row["is_infeasible"] = bool(broken(row, constraints) if is_trained else row["n_infeasible"])
        rows.append(row)
    columns = [f"{m}{part}" for m in metrics for part in ("", ":low", ":high", ":values")]
    return pd.DataFrame(rows, columns=[*_CELL_COLUMNS, *columns])


_CELL_COLUMNS = (
    "label", "factors", "config_id", "number", "n", "n_failed", "n_other", "n_pruned",
    "n_infeasible", "n_running", "n_missing", "unequal_epochs", "is_leaky", "is_infeasible", "repeats",
    "trial_ids", "n_params", "epochs_to_best", "epochs_min", "epochs_max", "hours", "gpu_hours",
)  # fmt: skip


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


def species(trials: pd.DataFrame, study: dict[str, Any], config_ids: Sequence[str]) -> pd.DataFrame:
    """Return F1 a species, the mean over each config's completed trials, rarest species first.

    Columns: `species`, `n_train` (nan where the study lacks it), then one a config_id. A species has nan
    where no completed trial of the config reports it.
    """
    done = trials[trials["status"] == "completed"]
    means = {
        config_id: pd.DataFrame(list(done.loc[done["config_id"] == config_id, "f1_per_species"])).mean()
        for config_id in config_ids
    }
    frame = pd.DataFrame(means, columns=list(config_ids), dtype=float)
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


class _Group:
    """Rows of the trial frame as arrays: slicing frames would take minutes where there are 10,000 configs."""

    def __init__(self, rows: pd.DataFrame | dict[str, np.ndarray]) -> None:
        self.columns = (
            {str(name): rows[name].to_numpy() for name in rows} if isinstance(rows, pd.DataFrame) else rows
        )

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["status"])

    def at(self, chosen: np.ndarray) -> _Group:
        """Return the rows that an index or a mask chooses."""
        return _Group({name: values[chosen] for name, values in self.columns.items()})

    def completed(self) -> _Group:
        return self.at(self["status"] == "completed")


def _by_config(trials: pd.DataFrame) -> dict[str, _Group]:
    """Return the trials of each config by repeat, configs in the order of their first trial."""
    ordered = trials.sort_values(["repeat", "seed"], kind="stable")
    everything = _Group(ordered)
    places = ordered.groupby("config_id", sort=False).indices
    return {
        str(config_id): everything.at(np.asarray(places[config_id]))
        for config_id in trials["config_id"].unique()
    }


def _splits(group: _Group) -> list[str]:
    """Return how the data of each trial was split; trials without a record are left out."""
    return [config["data"]["split"] for config in group["config"] if "split" in config.get("data", {})]


def _lengths(done: _Group, study: dict[str, Any]) -> list[int]:
    rows = zip(done["epochs"], done["best_epoch"], done["config"], strict=True)
    return [trained_length(int(e), float(best), config, study["epochs"]) for e, best, config in rows]


def _counts(group: _Group, study: dict[str, Any]) -> dict[str, int]:
    status = Counter(group["status"])
    planned = Counter(study["repeats"] if study.get("kind") == "ablation" else ())
    return {
        "n": status["completed"],
        "n_failed": sum(status[s] for s in FAILED),
        "n_other": status[OTHER_TRAINING],
        "n_pruned": status["pruned"],
        "n_infeasible": status["infeasible"],
        "n_running": status[RUNNING],
        "n_missing": (planned - Counter(group["repeat"])).total(),
    }


def _or_nan(summary: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    return float(summary(values)) if np.isfinite(values.astype(float)).any() else math.nan


def _summary(done: _Group, metrics: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "repeats": [int(repeat) for repeat in done["repeat"]],
        "trial_ids": [str(trial_id) for trial_id in done["trial_id"]],
        "n_params": _or_nan(np.nanmax, done["n_params"]),
        "epochs_to_best": _or_nan(np.nanmean, done["best_epoch"]),
        "epochs_min": _or_nan(np.min, done["epochs"]),
        "epochs_max": _or_nan(np.max, done["epochs"]),
        "hours": _or_nan(np.nanmean, done["seconds"]) / 3600,
        "gpu_hours": _or_nan(np.nanmean, done["seconds"] * done["gpus"]) / 3600,
    }
    for metric in metrics:
        values = [float(v) for v in done[metric]]
        mean, low, high = t_interval(values)
        out |= {metric: mean, f"{metric}:low": low, f"{metric}:high": high, f"{metric}:values": values}
    return out
