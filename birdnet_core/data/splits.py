"""Splits of a manifest into train, val and test, by groups of recordings.

A split is drawn over groups: recordings that share a recording_id or have the same content, and where known
a recordist or a site, stay in one split: a model recognises a recordist's microphone as readily as a bird.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from birdnet_core.data.manifest import SPLITS
from birdnet_core.errors import DataError
from birdnet_core.records.trial import LEAKAGE

RARE_RULE = (
    "species recorded in a single group stay in the training split: the model learns them, but they cannot "
    "be scored; those of two groups are in train and val, those of three or more in train, val and test, as "
    "far as groups that hold several species allow"
)
MAX_GROUP_SHARE = 0.5


@dataclass(frozen=True)
class Split:
    """The split of every recording, and how it was drawn.

    Args:
        assigned: ``train``, ``val`` or ``test`` for each row of the manifest, in its order.
        grouped_by: the columns of which no value is in two splits.
        notes: sentences on limits of the split, for readers of results.
    """

    assigned: np.ndarray
    grouped_by: tuple[str, ...]
    notes: tuple[str, ...] = ()


def assign_splits(manifest: pd.DataFrame, *, val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Split a manifest by species and groups; a `split` column in it is taken as it is.

    Groups are the connected components of shared recording_id, recordist and site, and of shared sha256 where
    the manifest has that column of the files' contents. Recordist or site is left out when one component of
    it would hold more than half of all recordings (one person recorded everything): it cannot be separated,
    and `notes` says so. The assignment minimises the chi-square distance between
    the wanted and the actual number of recordings of each species in each split, by single moves of groups in
    random order until none helps (iterative stratification in the spirit of Sechidis et al. 2011), under
    `RARE_RULE`. Raises DataError where nothing would be left to validate on.
    """
    if (manifest["split"] != "").all():
        given = manifest["split"].to_numpy(dtype=str)
        missing = [split for split in ("train", "val") if split not in given]
        if missing:
            raise DataError(f"the manifest's split column has no {' and no '.join(missing)} recordings")
        notes = ["the split was given by the manifest, not drawn"]
        columns = ("recording_id", "recordist", "site", "sha256")
        known = [c for c in columns if c in manifest and (manifest[c] != "").any()]
        crossed = [c for c in known if crossing(manifest, given, c)]
        if crossed:
            shared = " and ".join("file content" if c == "sha256" else c for c in crossed)
            notes.append(f"{LEAKAGE}: the given split has the same {shared} in several splits")
        return Split(given, tuple(c for c in known if c not in crossed), tuple(notes))

    group, grouped_by, notes = groups(manifest)
    species = pd.factorize(manifest["species"], sort=True)[0]
    n_species, n_groups = int(species.max()) + 1, int(group.max()) + 1
    counts = _counts(group, species)
    groups_of_species = np.bincount([s for held in counts for s, _ in held], minlength=n_species)

    wanted_share = np.tile([1 - val_fraction - test_fraction, val_fraction, test_fraction], (n_species, 1))
    wanted_share[groups_of_species == 2] = [1 - val_fraction, val_fraction, 0]
    wanted_share[groups_of_species == 1] = [1, 0, 0]
    # The penalties rank the rule's parts: each species in train first, then in val, then in test.
    penalty = np.where(wanted_share > 0, [1e9, 1e6, 1e3], 0.0)
    if test_fraction == 0:
        penalty[:, 2] = 0

    # A single move cannot always free a species from a conflict, so small manifests get several starts.
    rng = np.random.default_rng(seed)
    total = np.bincount(species, minlength=n_species)
    n_starts = max(1, min(8, 4000 // n_groups))
    starts = [_stratify(counts, total, wanted_share, penalty, rng) for _ in range(n_starts)]
    split_of_group = min(starts, key=lambda start: start[1])[0]
    splits = np.array(SPLITS)[split_of_group[group]]
    if not (splits == "val").any():
        raise DataError(
            f"{len(manifest)} recordings in {n_groups} groups of {n_species} species leave nothing to "
            f"validate on ({RARE_RULE}); add recordings, or give a split column"
        )
    return Split(splits, grouped_by, tuple(notes))


def scatter_clips(clips: pd.DataFrame, *, val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Split clips at random by species, whatever recordings they are cut from: leakage on purpose.

    `clips` holds the manifest's row of each clip. Every clip is a group of its own in `assign_splits`, under
    the same `RARE_RULE`; a `split` column is not used. `notes` counts the validation clips that share
    something with training.
    """
    alone = pd.DataFrame({"species": clips["species"].to_numpy()})
    alone = alone.assign(recording_id=alone.index.astype(str), recordist="", site="", split="")
    splits = assign_splits(alone, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed).assigned
    train, val = clips[splits == "train"], clips[splits == "val"]
    shared = {
        column: int(val[column].isin(set(train[column]) - {""}).sum())
        for column in ("recording_id", "recordist", "site")
        if (clips[column] != "").any()
    }
    notes = [
        f"{LEAKAGE}: clips were split at random, on purpose (data.split = random-windows): of {len(val)} "
        f"validation clips {' and '.join(f'{n} share a {column}' for column, n in shared.items())} with "
        "training; scores are of single clips, and too high for new recordings"
    ]
    if not clips["path"].duplicated().any():
        notes.append("with one window a recording, clips split at random are recordings split at random")
    if (clips["split"] != "").any():
        notes.append("the manifest's split column was not used")
    return Split(splits, (), tuple(notes))


def crossing(manifest: pd.DataFrame, splits: np.ndarray, column: str) -> list[str]:
    """Return the values of `column` that are in more than one split; [] where the split separates them."""
    known = manifest[column].to_numpy() != ""
    n_splits = pd.Series(splits[known]).groupby(manifest.loc[known, column].to_numpy()).nunique()
    return sorted(n_splits.index[n_splits > 1])


def groups(manifest: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Return the group of every recording, the columns that define it, and notes on those left out.

    The groups are those of `assign_splits`, numbered from 0.
    """
    label = pd.factorize(manifest["recording_id"])[0]
    used, notes = ["recording_id"], []
    if "sha256" in manifest and manifest["sha256"].duplicated().any():
        # Always: copies of one file would be in two splits.
        label = _join(label, pd.factorize(manifest["sha256"])[0], (manifest["sha256"] != "").to_numpy())
        used.append("sha256")
    for column in ("recordist", "site"):
        known = (manifest[column] != "").to_numpy()
        if not known.any():
            continue
        joined = _join(label, pd.factorize(manifest[column])[0], known)
        largest = np.bincount(joined).max() / len(manifest)
        if largest > MAX_GROUP_SHARE:
            notes.append(
                f"the split does not separate {column}s: one group of recordings that share a {column} "
                f"would hold {largest:.0%} of them all, so scores may profit from recognising the {column}"
            )
        else:
            label = joined
            used.append(column)
            if not known.all():
                notes.append(f"{int((~known).sum())} recordings name no {column}")
    return label, tuple(used), notes


def _join(label: np.ndarray, value: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return labels in which groups that share a known value are one group (union-find)."""
    parent = list(range(label.max() + 1))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[int, int] = {}
    for group, shared in zip(label[known].tolist(), value[known].tolist(), strict=True):
        parent[root(group)] = root(first.setdefault(shared, group))
    joined: np.ndarray = pd.factorize(np.array([root(g) for g in label.tolist()]))[0]
    return joined


def _counts(group: np.ndarray, species: np.ndarray) -> list[list[tuple[int, int]]]:
    """Return (species, recordings) of every group: few of the groups hold more than one species."""
    held: list[list[tuple[int, int]]] = [[] for _ in range(int(group.max()) + 1)]
    pairs, n = np.unique(np.stack([group, species], axis=1), axis=0, return_counts=True)
    for (g, s), count in zip(pairs.tolist(), n.tolist(), strict=True):
        held[g].append((s, count))
    return held


def _stratify(
    counts: list[list[tuple[int, int]]],
    total: np.ndarray,
    wanted_share: np.ndarray,
    penalty: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, float]:
    """Return the split of each group and the cost of it all.

    `counts` is that of `_counts`, `total` [species]; `wanted_share` and `penalty` are [species, splits].
    """
    n_splits = wanted_share.shape[1]
    wanted = wanted_share * total[:, None]
    given = np.zeros_like(wanted)
    given[:, 0] = total
    # Plain numbers: numpy would take a hundred times as long over groups of one or two species.
    split = [0] * len(counts)
    have, want, fine = given.T.tolist(), wanted.T.tolist(), penalty.T.tolist()
    weight = (1 / total).tolist()

    def gain(held: list[tuple[int, int]], target: int, sign: int) -> float:
        """Return the change of the cost when a group joins (sign 1) or leaves (-1) a split."""
        have_here, want_here, fine_here = have[target], want[target], fine[target]
        change = 0.0
        for s, n in held:
            before = have_here[s]
            after = before + sign * n
            # (after - want)^2 - (before - want)^2
            change += (after - before) * (after + before - 2 * want_here[s]) * weight[s]
            change += fine_here[s] * ((after == 0) - (before == 0))
        return change

    for _ in range(100):
        n_moved = 0
        for g in rng.permutation(len(counts)).tolist():
            held, old = counts[g], split[g]
            leaving = gain(held, old, -1)
            changes = [0.0 if t == old else leaving + gain(held, t, 1) for t in range(n_splits)]
            best = changes.index(min(changes))
            if changes[best] < -1e-9:
                for s, n in held:
                    have[old][s] -= n
                    have[best][s] += n
                split[g] = best
                n_moved += 1
        if n_moved == 0:
            break
    given = np.array(have).T
    return np.array(split), float(((given - wanted) ** 2 / total[:, None] + penalty * (given == 0)).sum())


def strata(train_counts: dict[str, int]) -> dict[str, list[str]]:
    """Return the species that are rare, medium and common, by their number of training recordings.

    The borders are the terciles over species of that number: rare is at or below the first, common above
    the second. Species with equal numbers are always in one stratum, so strata differ in size.
    """
    counts = np.array(list(train_counts.values()))
    low, high = np.quantile(counts, [1 / 3, 2 / 3])
    return {
        "rare": [s for s, n in train_counts.items() if n <= low],
        "medium": [s for s, n in train_counts.items() if low < n <= high],
        "common": [s for s, n in train_counts.items() if n > high],
    }
