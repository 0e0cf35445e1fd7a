"""The cells of an ablation over their repeats: read at epochs that other repeats chose, scored together.

A trial that is read at its own best epoch is read at its luckiest, and the noisier a cell's epochs are, the
luckier. So repeat r is read at the epoch at which the other repeats of its cell are best on average, by a
smoothed curve: a single lucky epoch of one repeat would otherwise choose where all the others are read, and
make their errors alike.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from birdnet_core.errors import RunFolderError
from birdnet_core.records.metrics import METRICS
from birdnet_core.records.run_folder import RunFolder
from birdnet_core.records.seen import SEEN
from birdnet_core.records.trial import Validation
from reports.statistics.aggregate import is_folded
from reports.statistics.linear_model import RepeatedScores
from reports.statistics.pooled_scores import AT_ONCE, Cells, SomeCells, statistics

N_THREADS = 2


def read(trials: pd.DataFrame, epochs: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return the trials of a study with `read_epoch`, and every metric as it was at that epoch.

    The epoch of a completed trial of an ablation is the best one, by the study's metric, of the mean over the
    other completed repeats of its config, smoothed by a moving average over a fifth of the epochs. A repeat
    that ended before counts with its last epoch. So is a trial of a search by folds. A config with one
    completed repeat is read at its own best epoch.
    """
    read_epoch = trials["best_epoch"].to_numpy(dtype=float, copy=True)
    metric, sign = study["metric"], 1 if study["direction"] == "maximize" else -1
    is_single = study["kind"] == "search" and not is_folded(study)
    if is_single or metric not in epochs or not len(epochs):
        return trials.assign(read_epoch=read_epoch)
    done = np.flatnonzero(trials["status"] == "completed")
    names = trials["trial_id"].to_numpy()
    rows_of = epochs.groupby("trial_id", sort=False).indices
    numbers, values = epochs["epoch"].to_numpy(), epochs[metric].to_numpy(dtype=float) * sign
    metrics = [name for name in METRICS if name in epochs and name in trials]
    all_values, at_epoch = (
        epochs[metrics].to_numpy(dtype=float),
        trials[metrics].to_numpy(dtype=float, copy=True),
    )
    for mine in trials.iloc[done].groupby("config_id", sort=False).indices.values():
        rows = {int(i): rows_of[names[i]] for i in done[mine] if names[i] in rows_of}
        # Only curves that are whole can be averaged epoch by epoch.
        rows = {i: at for i, at in rows.items() if np.array_equal(numbers[at], np.arange(1, len(at) + 1))}
        if len(rows) < 2:
            continue
        length = max(map(len, rows.values()))
        last = np.arange(length)
        curves = np.array([values[at[np.minimum(last, len(at) - 1)]] for at in rows.values()])
        known = np.isfinite(curves)
        window = _window(length)
        smoothed = np.where(known, curves, 0.0) @ window / np.maximum(known @ window, 1e-9)
        total = np.where(known.all(axis=0), smoothed.sum(axis=0), -np.inf)
        for (i, at), curve in zip(rows.items(), smoothed, strict=True):
            epoch = min(int(np.argmax(total - curve)), len(at) - 1)
            read_epoch[i] = epoch + 1
            at_epoch[i] = all_values[at[epoch]]
    at_read = dict(zip(metrics, at_epoch.T, strict=True))
    return trials.assign(read_epoch=read_epoch, **at_read)


@functools.lru_cache(maxsize=64)
def _window(n: int) -> np.ndarray:
    """Return 1 where two of n epochs are at most a tenth of n apart, else 0, [epochs, epochs]."""
    epoch = np.arange(n)
    found: np.ndarray = (np.abs(epoch[:, None] - epoch) <= round(n / 10)).astype(float)
    return found


@dataclass(frozen=True)
class Repeats:
    """The completed trials of cells, with their predictions where the run folder has them.

    Args:
        config_ids: of each cell. repeats: their numbers.
        trials: [cells, repeats]: the place of the trial in the frame it comes from, -1 where there is none.
        n_folds: of a deal; repeats r and r' with equal r // n_folds validate disjoint recordings.
        are_folds_given: by the manifest, so that every deal has the same.
        metrics: [cells, repeats] of each metric, at the epochs read.
        deals: what was predicted in the repeats of each deal; None where predictions are missing.
        strata: the classes of each.
    """

    config_ids: list[str]
    repeats: list[int]
    n_folds: int
    are_folds_given: bool
    metrics: dict[str, np.ndarray]
    deals: list[Deal] | None
    strata: dict[str, np.ndarray]
    n_classes: int
    n_groups: int

    def scores(self, *, influential: str) -> Iterator[tuple[str, np.ndarray, RepeatedScores]]:
        """Yield each metric, its score of each cell, and what a model of all repeats is fitted to.

        Scores that follow from the predicted classes are of all recordings of a deal together, the mean over
        deals weighted by their repeats; others are means over repeats. Influences of groups of recordings
        come with the metric `influential` alone: they are large.
        """
        n_distinct = min(self.n_folds, len(self.repeats)) if self.n_folds > 1 else len(self.repeats)
        known = statistics(self.strata, self.n_classes) if self.deals is not None else {}
        known = {metric: statistic for metric, statistic in known.items() if metric in self.metrics}
        shape = (len(self.config_ids), len(self.repeats))
        found = {metric: np.full(shape, np.nan) for metric in known}
        influence = np.zeros((*shape, self.n_groups)) if influential in known else None

        def score(deal: Deal) -> None:
            for cells, part, predicted in deal.together(self.n_classes):
                n_folds = len(part.columns)
                for metric, statistic in known.items():
                    scored = np.ix_(cells, part.columns)
                    if n_folds == 1 and metric != influential:  # influences sum to 0 in the only fold
                        found[metric][scored] = predicted.values(statistic)[:, None]
                        continue
                    each = predicted.pooled(statistic, in_steps=metric == influential)
                    found[metric][scored] = each.pseudo(part.part_fold, n_folds)
                    if metric == influential and influence is not None:
                        place = cells[:, None], part.columns[part.part_fold], part.part_group
                        influence[place] = n_folds * each.influence

        # Deals have repeats of their own, and numpy gives Python's lock up for most of the time.
        with ThreadPoolExecutor(N_THREADS) as pool:
            list(pool.map(score, self.deals or () if known else ()))
        for metric, values in self.metrics.items():
            of_metric = found.get(metric, values)
            moved = influence if metric == influential else None
            scores = RepeatedScores(of_metric, moved, n_distinct)
            yield metric, _means(of_metric), self._by_fold(scores) if self.are_folds_given else scores

    def _by_fold(self, scores: RepeatedScores) -> RepeatedScores:
        """Return the mean over the repeats of each fold, as one repeat.

        They were trained on the same recordings: what these do to a cell is in all of them, and does not
        cancel.
        """
        fold = np.unique([repeat % self.n_folds for repeat in self.repeats], return_inverse=True)[1]
        each = [fold == k for k in range(fold.max() + 1)] if len(fold) else []
        values = np.array([_means(scores.values[:, of]) for of in each]).reshape(len(each), -1).T
        influence = None
        if scores.influence is not None:
            counts = [np.maximum(np.isfinite(scores.values[:, of]).sum(axis=1), 1) for of in each]
            influence = np.stack(
                [
                    scores.influence[:, of].sum(axis=1) / n[:, None]
                    for of, n in zip(each, counts, strict=True)
                ],
                axis=1,
            )
        return RepeatedScores(values, influence, len(each))


def _means(values: np.ndarray) -> np.ndarray:
    """Return the mean over repeats of each cell, nan where it has none."""
    counts = np.isfinite(values).sum(axis=1)
    found: np.ndarray = np.divide(
        np.nansum(values, axis=1), counts, out=np.full(len(values), np.nan), where=counts > 0
    )
    return found


@dataclass(frozen=True)
class Part:
    """The recordings that were validated in the repeats `columns` of one deal, and what a cell predicted.

    `fold` is the place in `columns` of each recording's repeat, `part` numbers groups within repeats, of
    which `part_group` and `part_fold` name the group and the place of the repeat; `seen` is as in
    `Validation`.
    """

    species: list[str]
    columns: np.ndarray
    truth: np.ndarray
    recording: np.ndarray
    group: np.ndarray
    fold: np.ndarray
    part: np.ndarray
    part_group: np.ndarray
    part_fold: np.ndarray
    seen: dict[str, np.ndarray]
    predicted: np.ndarray

    def by_recording(self) -> Part:
        """Return the same in the order of recordings, whatever fold each is in."""
        order = np.argsort(self.recording, kind="stable")
        names = ("truth", "predicted", "recording", "group", "fold", "part")
        return replace(
            self,
            **{name: getattr(self, name)[order] for name in names},
            seen={name: values[order] for name, values in self.seen.items()},
        )

    def seen_by(self, weights_hash: str) -> np.ndarray | None:
        """Return the word of `records.seen` of each recording, None where it is not known of the weights."""
        return None if weights_hash not in self.seen else np.array(SEEN)[self.seen[weights_hash]]


@dataclass(frozen=True)
class Deal:
    """The predictions of all cells in the repeats of one deal.

    Args:
        columns: the places of its repeats. splits: the validation split of each cell (row) in each repeat
            (column). predicted: the classes that it predicted, where it did.
    """

    columns: list[int]
    splits: dict[tuple[int, int], Validation]
    predicted: dict[tuple[int, int], np.ndarray]
    _known: dict[tuple[int, ...], Part] = field(default_factory=dict, repr=False)

    def of_cell(self, cell: int) -> Part | None:
        """Return what a cell predicted in this deal, None where it has no completed trial in it."""
        columns = self._columns_of(cell)
        if not columns:
            return None
        predicted = np.concatenate([self.predicted[cell, column] for column in columns]).astype(int)
        return replace(self._recordings(cell, columns), predicted=predicted)

    def _columns_of(self, cell: int) -> list[int]:
        return [column for column in self.columns if (cell, column) in self.predicted]

    def _recordings(self, cell: int, columns: list[int]) -> Part:
        """Return the recordings of a cell in these columns, without what it predicted."""
        of = [self.splits[cell, column] for column in columns]
        key = tuple(map(id, of))  # most cells share their splits
        if key not in self._known:
            self._known[key] = _part(of, columns)
        return self._known[key]

    def together(self, n_classes: int) -> Iterator[tuple[np.ndarray, Part, SomeCells]]:
        """Yield cells with the same splits, their recordings, and what they predicted, among all with these.

        A cell that lacks a repeat is among others, with the recordings of its own repeats alone.
        """
        numbers = sorted({cell for cell, column in self.predicted if column in self.columns})
        alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for cell in numbers:
            splits = tuple((column, id(self.splits[cell, column])) for column in self._columns_of(cell))
            alike.setdefault(splits, []).append(cell)
        for splits, mine in alike.items():
            part = self._recordings(mine[0], [column for column, _ in splits])
            with_splits = [
                other
                for other in numbers
                if any(id(self.splits.get((other, column))) == split for column, split in splits)
            ]
            predicted = np.full((len(with_splits), len(part.truth)), -1, dtype=np.int32)
            for place, (column, split) in enumerate(splits):
                of_fold = slice(*np.searchsorted(part.fold, [place, place + 1]))
                for row, other in enumerate(with_splits):
                    if id(self.splits.get((other, column))) == split:
                        predicted[row, of_fold] = self.predicted[other, column]
            cells = Cells(part.truth, predicted, part.part, n_classes)
            rows = np.flatnonzero(np.isin(with_splits, mine))
            rows = rows[np.argsort(cells.share[rows], kind="stable")]  # those that are alike, together
            at_once = max(1, AT_ONCE // len(part.truth))
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                yield np.array(with_splits)[some], part, cells.some(some)


def _part(of: list[Validation], columns: list[int]) -> Part:
    group, fold = (
        np.concatenate([split.group for split in of]).astype(int),
        np.repeat(np.arange(len(of)), [len(split.truth) for split in of]),
    )
    pairs, part = np.unique(group * len(of) + fold, return_inverse=True)
    known = set.intersection(*(set(split.seen) for split in of))
    return Part(
        species=of[0].species,
        columns=np.array(columns),
        truth=np.concatenate([split.truth for split in of]).astype(int),
        recording=np.concatenate([split.recording for split in of]).astype(int),
        group=group,
        fold=fold,
        part=part,
        part_group=pairs // len(of),
        part_fold=pairs % len(of),
        seen={name: np.concatenate([split.seen[name] for split in of]).astype(int) for name in sorted(known)},
        predicted=np.zeros(0, dtype=int),
    )


def repeats_of(trials: pd.DataFrame, config_ids: Sequence[str], study: dict[str, Any]) -> Repeats:
    """Return the completed trials of the cells `config_ids`; `trials` are of `read`.

    Predictions are left out unless every completed trial has its own, and all agree on the species. Raises
    RunFolderError for files that do not fit each other.
    """
    done = trials[(trials["status"] == "completed") & trials["config_id"].isin(list(config_ids))]
    row = {config_id: i for i, config_id in enumerate(config_ids)}
    numbers = sorted({int(r) for r in done["repeat"]})
    column = {number: i for i, number in enumerate(numbers)}
    metrics = {m: np.full((len(row), len(column)), np.nan) for m in METRICS if m in done}
    places = [(row[c], column[int(r)]) for c, r in zip(done["config_id"], done["repeat"], strict=True)]
    for metric, values in metrics.items():
        values[tuple(np.array(places, dtype=int).reshape(-1, 2).T)] = done[metric]
    data = study.get("data") or {}
    folds = data.get("folds") or {}
    n_folds, are_folds_given = int(folds.get("n", 1)), folds.get("given") == "fold"
    found = _predictions(done, places)
    deals: list[Deal] | None = None
    n_classes = n_groups = 0
    strata: dict[str, np.ndarray] = {}
    if found is not None:
        splits, predicted = found
        species = next(iter(splits.values())).species
        n_classes = len(species)
        each = {id(split): split for split in splits.values()}.values()  # most trials share theirs
        n_groups = 1 + max(max(split.group, default=0) for split in each)
        deals = []
        for number in sorted({r // n_folds for r in numbers}):
            columns = [column[r] for r in numbers if r // n_folds == number]
            deals.append(Deal(columns, splits, predicted))
        index = {name: i for i, name in enumerate(species)}
        strata = {
            name: np.array([index[s] for s in members if s in index], dtype=int)
            for name, members in (data.get("strata") or {}).items()
        }
    return Repeats(
        list(config_ids), numbers, n_folds, are_folds_given, metrics, deals, strata, n_classes, n_groups
    )


def _predictions(
    done: pd.DataFrame, places: list[tuple[int, int]]
) -> tuple[dict[tuple[int, int], Validation], dict[tuple[int, int], np.ndarray]] | None:
    """Return split and predicted classes of every completed trial at the epoch that it is read at."""
    splits: dict[tuple[int, int], Validation] = {}
    predicted: dict[tuple[int, int], np.ndarray] = {}
    known: dict[tuple[str, str], Validation | None] = {}
    folders: dict[str, RunFolder] = {}
    epochs = np.nan_to_num(done["read_epoch"].to_numpy(dtype=float)).astype(int).tolist()
    facts = (done[name] for name in ("run", "trial_id", "provenance"))
    for place, epoch, run, trial_id, provenance in zip(places, epochs, *facts, strict=True):
        split_id = str(provenance.get("split_id"))
        if run not in folders:
            folders[run] = RunFolder(run)
        folder = folders[run]
        if (run, split_id) not in known:
            known[run, split_id] = folder.validation(split_id)
        split, classes = known[run, split_id], folder.predicted_classes(trial_id, epoch)
        if split is None or classes is None:
            return None
        if len(classes) != len(split.truth):
            raise RunFolderError(
                f"{run}: the predictions of {trial_id} are of {len(classes)} recordings, and its validation "
                f"split {split_id} holds {len(split.truth)}; one of its files was altered"
            )
        if classes.max(initial=0) >= len(split.species):
            raise RunFolderError(
                f"{run}: the predictions of {trial_id} name class {classes.max()}, and its validation split "
                f"{split_id} has {len(split.species)}; one of its files was altered"
            )
        splits[place], predicted[place] = split, classes
    if not splits or len({tuple(split.species) for split in splits.values()}) > 1:
        return None
    return splits, predicted
