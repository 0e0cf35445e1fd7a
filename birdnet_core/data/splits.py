"""Who is trained on, who is validated on, who is kept for the end.

A split is drawn over groups: recordings that share a recording_id, and where known a recordist or a site,
stay on one side, because a model recognises a recordist's microphone as readily as a bird.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from birdnet_core.data.manifest import SPLITS
from birdnet_core.errors import DataError

RARE_RULE = (
    "a species of one group is in train only: it can be learnt but not scored; "
    "of two groups, in train and val; of three or more, in train, val and test, as far as groups that "
    "hold several species allow"
)
MAX_GROUP_SHARE = 0.5


@dataclass(frozen=True)
class Split:
    """The side of every recording, and how it came about.

    Args:
        sides: ``train``, ``val`` or ``test`` for each row of the manifest, in its order.
        grouped_by: the columns whose values never stand on two sides.
        notes: what the reader of a result must know, in sentences.
    """

    sides: np.ndarray
    grouped_by: tuple[str, ...]
    notes: tuple[str, ...] = ()


def assign_splits(manifest: pd.DataFrame, *, val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Split a manifest by species and groups; a `split` column in it is taken as it is.

    Groups are the connected components of shared recording_id, recordist and site. A column is left out
    when one component of it would hold more than half of all recordings (one person recorded everything):
    it cannot be separated, and `notes` says so. The assignment minimises the chi-square distance between
    the wanted and the given number of recordings of each species on each side, by single moves of groups in
    random order until none helps (iterative stratification in the spirit of Sechidis et al. 2011), under
    `RARE_RULE`. Raises DataError where nothing would be left to validate on.
    """
    if (manifest["split"] != "").all():
        given = manifest["split"].to_numpy(dtype=str)
        missing = [side for side in ("train", "val") if side not in given]
        if missing:
            raise DataError(f"the manifest's split column has no {' and no '.join(missing)} recordings")
        notes = ["the split was given by the manifest, not drawn"]
        known = [c for c in ("recording_id", "recordist", "site") if (manifest[c] != "").any()]
        crossed = [c for c in known if crossing(manifest, given, c)]
        if crossed:
            notes.append(f"LEAKAGE: the given split has the same {' and '.join(crossed)} on several sides")
        return Split(given, tuple(c for c in known if c not in crossed), tuple(notes))

    group, grouped_by, notes = _groups(manifest)
    species = pd.factorize(manifest["species"], sort=True)[0]
    n_species, n_groups = species.max() + 1, group.max() + 1
    counts = np.zeros((n_groups, n_species))
    np.add.at(counts, (group, species), 1)
    groups_of_species = (counts > 0).sum(axis=0)

    wanted_share = np.tile([1 - val_fraction - test_fraction, val_fraction, test_fraction], (n_species, 1))
    wanted_share[groups_of_species == 2] = [1 - val_fraction, val_fraction, 0]
    wanted_share[groups_of_species == 1] = [1, 0, 0]
    # The penalties order the rule's parts: a species to learn first, then to validate, then to test.
    penalty = np.where(wanted_share > 0, [1e9, 1e6, 1e3], 0.0)
    if test_fraction == 0:
        penalty[:, 2] = 0

    # A single move cannot always free a species from a conflict, so small manifests get several starts.
    rng = np.random.default_rng(seed)
    starts = [_stratify(counts, wanted_share, penalty, rng) for _ in range(max(1, min(8, 4000 // n_groups)))]
    side_of_group = min(starts, key=lambda start: start[1])[0]
    sides = np.array(SPLITS)[side_of_group[group]]
    if not (sides == "val").any():
        raise DataError(
            f"{len(manifest)} recordings in {n_groups} groups of {n_species} species leave nothing to "
            f"validate on ({RARE_RULE}); add recordings, or give a split column"
        )
    return Split(sides, grouped_by, tuple(notes))


def crossing(manifest: pd.DataFrame, sides: np.ndarray, column: str) -> list[str]:
    """Return the values of `column` that stand on more than one side: the proof of a split is []."""
    known = manifest[column].to_numpy() != ""
    n_sides = pd.Series(sides[known]).groupby(manifest.loc[known, column].to_numpy()).nunique()
    return sorted(n_sides.index[n_sides > 1])


def _groups(manifest: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Return the group of every recording, the columns it joins, and notes on those it cannot."""
    label = pd.factorize(manifest["recording_id"])[0]
    used, notes = ["recording_id"], []
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
    for group, shared in zip(label[known], value[known], strict=True):
        parent[root(group)] = root(first.setdefault(int(shared), int(group)))
    joined: np.ndarray = pd.factorize(np.array([root(g) for g in label]))[0]
    return joined


def _stratify(
    counts: np.ndarray, wanted_share: np.ndarray, penalty: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return the side of each group and the cost of it all.

    `counts` is [groups, species]; `wanted_share` and `penalty` are [species, sides].
    """
    n_groups, n_sides = len(counts), wanted_share.shape[1]
    species_of = [np.flatnonzero(row) for row in counts]
    total = counts.sum(axis=0)
    wanted = wanted_share * total[:, None]
    given = np.zeros_like(wanted)
    side = np.zeros(n_groups, dtype=int)
    given[:, 0] = total

    def cost(have: np.ndarray, s: np.ndarray) -> float:
        distance = (have - wanted[s]) ** 2 / total[s, None]
        return float(distance.sum() + (penalty[s] * (have == 0)).sum())

    for _ in range(100):
        n_moved = 0
        for g in rng.permutation(n_groups):
            s = species_of[g]
            without = given[s].copy()
            without[:, side[g]] -= counts[g, s]
            costs = []
            for target in range(n_sides):
                have = without.copy()
                have[:, target] += counts[g, s]
                costs.append(cost(have, s))
            best = int(np.argmin(costs))
            if costs[best] < costs[side[g]] - 1e-9:
                given[s] = without
                given[s, best] += counts[g, s]
                side[g] = best
                n_moved += 1
        if n_moved == 0:
            break
    return side, cost(given, np.arange(len(total)))


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
