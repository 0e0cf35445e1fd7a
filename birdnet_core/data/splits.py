"""Splits of a manifest by groups of recordings: a test split, and folds of the rest to validate on.

A split is drawn over groups: recordings that share a recording_id or have the same content, and where known
a recordist or a site, stay together: a model recognises a recordist's microphone as readily as a bird.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from birdnet_core.config import DataConfig
from birdnet_core.data.manifest import SPLITS
from birdnet_core.errors import DataError
from birdnet_core.records.trial import LEAKAGE

UNUSED = "unused"  # neither trained on nor scored, see `RARE_RULE`
ASSIGNED = (*SPLITS, UNUSED)
RARE_RULE = (
    "species recorded in a single group are trained on and never scored; a group that holds others too is "
    "validated for these, and in that repeat its recordings of single-group species are unused (with "
    "data.folds=1 such a group stays in training); species of two groups or more are trained on in every "
    "repeat and validated, and those of three or more are in the test split too, as far as groups that hold "
    "several species allow"
)
MAX_GROUP_SHARE = 0.5
MOST_STARTS = 8

Counts = list[list[tuple[int, int]]]
"""(species, recordings) of every group."""


@dataclass(frozen=True)
class Place:
    """Where a repeat validates: on `fold` of `n_folds`, in the `deal`-th deal; all but `n_folds` from 0."""

    n_folds: int
    deal: int
    fold: int


@dataclass(frozen=True)
class Split:
    """The fold or split of every recording, and how it was drawn. Arrays have the manifest's order.

    Args:
        place: where the repeat validates.
        fold: of each recording, from 0; -1 of those in training in every repeat, and of the test split.
        is_test: whether each recording is of the test split.
        is_validated: whether each recording is validated in the repeat that validates on its fold; False of
            the test split, of those in training in every repeat, and of those of a fold that are unused then.
        grouped_by: the columns of which no value is in two folds or splits.
        given: the manifest's column that decides, ``split`` or ``fold``; "" where the split was drawn.
        labels: of given folds, in their order.
        notes: sentences on limits of the split, for readers of results; the same for every repeat.
    """

    place: Place
    fold: np.ndarray
    is_test: np.ndarray
    is_validated: np.ndarray
    grouped_by: tuple[str, ...]
    given: str = ""
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def assigned(self) -> np.ndarray:
        """``train``, ``val``, ``test`` or ``unused`` for each recording, in the repeat."""
        is_here = self.fold == self.place.fold
        assigned = [self.is_test, is_here & self.is_validated, is_here]
        return np.select(assigned, ["test", "val", UNUSED], "train")


def place_of(manifest: pd.DataFrame, options: DataConfig, repeat: int) -> Place:
    """Return where `repeat` validates.

    Folds that the manifest gives are the same in every deal, and a split that it gives is one fold;
    ``random-windows`` uses neither.
    """
    if options.split == "grouped":
        labels = fold_labels(manifest)
        if labels:
            return Place(len(labels), 0, repeat % len(labels))
        if _is_split_given(manifest):
            return Place(1, 0, 0)
    return Place(options.folds, *divmod(repeat, options.folds)) if options.folds > 1 else Place(1, 0, 0)


def fold_labels(manifest: pd.DataFrame) -> tuple[str, ...]:
    """Return the labels of the manifest's column `fold` in natural order, () where it gives none."""

    def natural(label: str) -> list[tuple[bool, int, str]]:
        return [
            (not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in re.split(r"(\d+)", label) if p
        ]

    return tuple(sorted(set(manifest["fold"]) - {""}, key=natural))


def _is_split_given(manifest: pd.DataFrame) -> bool:
    return bool((manifest["split"] != "").all())


def assign_splits(manifest: pd.DataFrame, options: DataConfig, repeat: int = 0) -> Split:
    """Split a manifest by species and groups; a column `split` or `fold` in it is taken as it is.

    The test split is drawn first, from `split_seed` alone. The rest is dealt into folds, and the repeat
    validates on one of them, see `place_of`; of a single fold, a share of `val_fraction` is drawn.

    Groups are the connected components of shared recording_id, recordist and site, and of shared sha256 where
    the manifest has that column of the files' contents. Recordist or site is left out when one component of
    it would hold more than half of all recordings (one person recorded everything): it cannot be separated,
    and `notes` says so. The assignment minimises the chi-square distance between the wanted and the actual
    number of recordings of each species in each split or fold, by single moves of groups in random order
    until none helps (iterative stratification in the spirit of Sechidis et al. 2011), under `RARE_RULE`.
    Raises DataError where nothing would be left to validate on, or in a fold.
    """
    place = place_of(manifest, options, repeat)
    if fold_labels(manifest) or _is_split_given(manifest):
        return _given(manifest, place)
    group, grouped_by, notes = groups(manifest)
    species = pd.factorize(manifest["species"], sort=True)[0]
    counts = _counts(group, species)
    is_scored = np.ones(species.max() + 1, dtype=bool)
    is_test = np.zeros(len(counts), dtype=bool)
    if options.test_fraction > 0:
        is_test = _draw(counts, _test_aims(counts, options.test_fraction), [options.split_seed]) == 1
    rest = np.flatnonzero(~is_test)
    kept = [counts[g] for g in rest]
    fold = np.full(len(counts), -1)
    if place.n_folds == 1:
        total = np.bincount(species)
        aims = _val_aims(kept, total, options.val_fraction)
        fold[rest] = _draw(kept, aims, [options.split_seed, 1]) - 1
    else:
        is_scored = _totals(kept, len(is_scored))[1] > 1
        fold[rest] = _deal(kept, is_scored, place.n_folds, [options.split_seed, 2, place.deal])
    n_empty = place.n_folds - len(set(fold[fold >= 0]))
    if n_empty:
        n_filled = place.n_folds - n_empty
        where = f" in {n_empty} of {place.n_folds} folds" if n_filled else ""
        fewer = f"set data.folds to at most {n_filled}, " if n_filled else ""
        raise DataError(
            f"{len(manifest)} recordings in {len(counts)} groups of {species.max() + 1} species leave "
            f"nothing to validate on{where} ({RARE_RULE}); {fewer}add recordings, or give a column split "
            "or fold"
        )
    is_validated = (fold[group] >= 0) & is_scored[species]
    return Split(place, fold[group], is_test[group], is_validated, grouped_by, notes=tuple(notes))


def _given(manifest: pd.DataFrame, place: Place) -> Split:
    """Return the split of the manifest's column `fold` or `split`."""
    labels = fold_labels(manifest)
    is_test = (manifest["split"] == "test").to_numpy()
    if labels:
        number = {label: i for i, label in enumerate(labels)}
        fold = np.array([number.get(label, -1) for label in manifest["fold"]])
        if len(labels) == 1:
            raise DataError(f"the manifest's column fold has one fold, {labels[0]!r}; it takes two or more")
        notes = [
            f"the {len(labels)} folds were given by the manifest, not drawn, and data.folds is not used: "
            f"repeat {len(labels)} validates on the fold of repeat 0 again"
        ]
    else:
        missing = [split for split in ("train", "val") if split not in set(manifest["split"])]
        if missing:
            raise DataError(f"the manifest's split column has no {' and no '.join(missing)} recordings")
        fold = np.where(manifest["split"] == "val", 0, -1)
        notes = [
            "the split was given by the manifest, not drawn, and data.folds is not used: all repeats "
            "validate on the same recordings"
        ]
    columns = ("recording_id", "recordist", "site", "sha256")
    known = [c for c in columns if c in manifest and (manifest[c] != "").any()]
    parts = part_names(fold, is_test, place.n_folds)
    crossed = [c for c in known if crossing(manifest, parts, c)]
    if crossed:
        shared = " and ".join("file content" if c == "sha256" else c for c in crossed)
        several = "given folds have" if labels else "given split has"
        notes.append(
            f"{LEAKAGE}: the {several} the same {shared} in several {'folds' if labels else 'splits'}"
        )
    grouped_by = tuple(c for c in known if c not in crossed)
    given = "fold" if labels else "split"
    return Split(place, fold, is_test, fold >= 0, grouped_by, given, labels, tuple(notes))


def scatter_clips(clips: pd.DataFrame, options: DataConfig, repeat: int = 0) -> Split:
    """Split clips at random by species, whatever recordings they are cut from: leakage on purpose.

    `clips` holds the manifest's row of each clip. Every clip is a group of its own in `assign_splits`, under
    the same `RARE_RULE`; columns `split` and `fold` are not used. `notes` counts the clips that share
    something with training when they are validated.
    """
    alone = pd.DataFrame({"species": clips["species"].to_numpy()})
    alone = alone.assign(recording_id=alone.index.astype(str), recordist="", site="", split="", fold="")
    drawn = assign_splits(alone, options, repeat)
    columns = [c for c in ("recording_id", "recordist", "site") if (clips[c] != "").any()]
    shared = dict.fromkeys(columns, 0)
    for fold in range(drawn.place.n_folds):
        val, train = clips[drawn.fold == fold], clips[(drawn.fold != fold) & ~drawn.is_test]
        for column in columns:
            shared[column] += int(val[column].isin(set(train[column]) - {""}).sum())
    in_folds = f"in {drawn.place.n_folds} folds, " if drawn.place.n_folds > 1 else ""
    notes = [
        f"{LEAKAGE}: clips were split at random, on purpose (data.split = random-windows): of "
        f"{int((drawn.fold >= 0).sum())} validation clips {in_folds}"
        f"{' and '.join(f'{n} share a {column}' for column, n in shared.items())} with "
        "training; scores are of single clips, and too high for new recordings"
    ]
    if not clips["path"].duplicated().any():
        notes.append("with one window a recording, clips split at random are recordings split at random")
    notes += [
        f"the manifest's {column} column was not used"
        for column in ("split", "fold")
        if (clips[column] != "").any()
    ]
    return replace(drawn, grouped_by=(), notes=tuple(notes))


def part_names(fold: np.ndarray, is_test: np.ndarray, n_folds: int) -> np.ndarray:
    """Return ``fold 0``, ``fold 1``, ... of each recording; ``train`` in every repeat; or ``test``.

    Of a single fold it is ``val``.
    """
    names = np.array([*(f"fold {i}" for i in range(n_folds)), "train"] if n_folds > 1 else ["val", "train"])
    return np.where(is_test, "test", names[fold])


def crossing(manifest: pd.DataFrame, parts: np.ndarray, column: str) -> list[str]:
    """Return the values of `column` that are in more than one of `parts`; [] where these separate them."""
    known = manifest[column].to_numpy() != ""
    n_parts = pd.Series(parts[known]).groupby(manifest.loc[known, column].to_numpy()).nunique()
    return sorted(n_parts.index[n_parts > 1])


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


def _counts(group: np.ndarray, species: np.ndarray) -> Counts:
    """Return (species, recordings) of every group: few of the groups hold more than one species."""
    held: Counts = [[] for _ in range(int(group.max()) + 1)]
    pairs, n = np.unique(np.stack([group, species], axis=1), axis=0, return_counts=True)
    for (g, s), count in zip(pairs.tolist(), n.tolist(), strict=True):
        held[g].append((s, count))
    return held


@dataclass(frozen=True)
class _Aims:
    """What `_draw` aims at in each part (split or fold) for each species: arrays of [parts, species].

    Args:
        wanted: number of recordings.
        fewest, most: number of groups; each one too few or too many costs `penalty`.
    """

    wanted: np.ndarray
    fewest: np.ndarray
    most: np.ndarray
    penalty: np.ndarray


def _totals(counts: Counts, n_species: int) -> tuple[np.ndarray, np.ndarray]:
    """Return recordings and groups of every species."""
    n_recordings, n_groups = np.zeros((2, n_species), dtype=int)
    for held in counts:
        for s, n in held:
            n_recordings[s] += n
            n_groups[s] += 1
    return n_recordings, n_groups


def _n_species(counts: Counts) -> int:
    return 1 + max(s for held in counts for s, _ in held)


def _test_aims(counts: Counts, test_fraction: float) -> _Aims:
    """Return the aims for what is not of the test split, and for that: two groups of a species stay out."""
    total, n_groups = _totals(counts, _n_species(counts))
    is_tested = n_groups >= 3
    test = test_fraction * total * is_tested
    return _Aims(
        wanted=np.stack([total - test, test]),
        fewest=np.stack([np.minimum(n_groups, 2), is_tested]),
        most=np.stack([n_groups, n_groups]),
        penalty=np.tile([[1e9], [1e3]], len(total)),
    )


def _val_aims(counts: Counts, total: np.ndarray, val_fraction: float) -> _Aims:
    """Return the aims for training and validation; `counts` is without test groups, `total` with them."""
    left, n_groups = _totals(counts, len(total))
    is_validated = n_groups >= 2
    val = np.minimum(val_fraction * total, left) * is_validated
    return _Aims(
        wanted=np.stack([left - val, val]),
        fewest=np.stack([np.ones_like(left), is_validated]),
        most=np.stack([n_groups, n_groups]),
        penalty=np.tile([[1e9], [1e6]], len(total)),
    )


def _deal(counts: Counts, is_scored: np.ndarray, n_folds: int, seed: list[int]) -> np.ndarray:
    """Return the fold of every group; -1 of those that stay in training.

    `is_scored` holds of each species whether it has several groups. Groups are dealt by their recordings of
    such species; those without any stay in training. In the rare case that groups of several species leave
    all groups of a species in one fold, the smallest of them stays in training too.
    """
    scored = [[(s, n) for s, n in held if is_scored[s]] for held in counts]
    fold = np.full(len(counts), -1)
    dealt = [g for g, held in enumerate(scored) if held]
    if not dealt:
        return fold
    # All scored recordings together are one more species, so that folds are of one size.
    n_species = len(is_scored)
    whole = [[*scored[g], (n_species, sum(n for _, n in scored[g]))] for g in dealt]
    total, n_groups = _totals(whole, n_species + 1)
    is_whole = np.arange(n_species + 1) == n_species
    aims = _Aims(
        wanted=np.tile(total / n_folds, (n_folds, 1)),
        fewest=np.tile(is_whole.astype(int), (n_folds, 1)),
        most=np.tile(n_groups - 1, (n_folds, 1)),
        penalty=np.tile(np.where(is_whole, 1e9, 1e6), (n_folds, 1)),
    )
    fold[dealt] = _draw(whole, aims, seed)
    members: list[list[int]] = [[] for _ in range(n_species)]
    for g in dealt:
        for s, _ in scored[g]:
            members[s].append(g)
    for mine in members:
        if mine and len(set(fold[mine])) == 1 and fold[mine[0]] >= 0:
            fold[min(mine, key=lambda g: sum(n for _, n in scored[g]))] = -1
    return fold


def _draw(counts: Counts, aims: _Aims, seed: list[int]) -> np.ndarray:
    """Return the part of each group: of several starts the first that keeps to all aims, or the nearest.

    A single move cannot always free a species from a conflict, so small manifests get several starts.
    """
    rng = np.random.default_rng(seed)
    best, least = np.zeros(len(counts), dtype=int), np.inf
    for _ in range(max(1, min(MOST_STARTS, 4000 // len(counts)))):
        part, distance, penalty = _stratify(counts, aims, rng)
        if distance + penalty < least:
            best, least = part, distance + penalty
        if penalty == 0:
            break
    return best


def _stratify(counts: Counts, aims: _Aims, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """Return the part of each group, the chi-square distance from what is wanted, and the penalties."""
    n_parts, n_species = aims.wanted.shape
    # Plain numbers: numpy would take a hundred times as long over groups of one or two species.
    part = [0] * len(counts)
    n_recordings = np.zeros((n_parts, n_species), dtype=int)
    n_groups = np.zeros((n_parts, n_species), dtype=int)
    n_recordings[0], n_groups[0] = _totals(counts, n_species)
    total = np.maximum(n_recordings[0], 1)
    weight = (1 / total).tolist()
    have, grouped = n_recordings.tolist(), n_groups.tolist()
    want, fewest, most, fine = (x.tolist() for x in (aims.wanted, aims.fewest, aims.most, aims.penalty))

    def joining(held: list[tuple[int, int]], p: int) -> float:
        """Return the change of the cost when a group joins a part."""
        have_here, want_here, groups_here = have[p], want[p], grouped[p]
        fewest_here, most_here, fine_here = fewest[p], most[p], fine[p]
        change = 0.0
        for s, n in held:
            # (have + n - want)^2 - (have - want)^2
            change += n * (n + 2 * (have_here[s] - want_here[s])) * weight[s]
            k = groups_here[s]
            if k >= most_here[s]:
                change += fine_here[s]
            if k < fewest_here[s]:
                change -= fine_here[s]
        return change

    for _ in range(100):
        n_moved = 0
        for g in rng.permutation(len(counts)).tolist():
            held, old = counts[g], part[g]
            for s, n in held:
                have[old][s] -= n
                grouped[old][s] -= 1
            changes = [joining(held, p) for p in range(n_parts)]
            new = changes.index(min(changes))
            if changes[new] > changes[old] - 1e-9:
                new = old
            for s, n in held:
                have[new][s] += n
                grouped[new][s] += 1
            part[g] = new
            n_moved += new != old
        if n_moved == 0:
            break
    off = np.maximum(aims.fewest - grouped, 0) + np.maximum(np.array(grouped) - aims.most, 0)
    distance = ((np.array(have) - aims.wanted) ** 2 / total).sum()
    return np.array(part), float(distance), float((aims.penalty * off).sum())


def strata(counts: dict[str, int]) -> dict[str, list[str]]:
    """Return the species that are rare, medium and common, by their number of recordings.

    The borders are the terciles over species of that number: rare is at or below the first, common above
    the second. Species with equal numbers are always in one stratum, so strata differ in size.
    """
    numbers = np.array(list(counts.values()))
    low, high = np.quantile(numbers, [1 / 3, 2 / 3])
    return {
        "rare": [s for s, n in counts.items() if n <= low],
        "medium": [s for s, n in counts.items() if low < n <= high],
        "common": [s for s, n in counts.items() if n > high],
    }
