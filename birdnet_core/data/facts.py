"""Facts of a dataset's recordings and split, for `data describe`, records and reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from birdnet_core.data.clip_store import Clips
from birdnet_core.data.splits import ASSIGNED, Split, part_names, strata
from birdnet_core.records.trial import LEAKAGE


def gather(
    recordings: pd.DataFrame, clips: Clips, split: Split, scored: pd.DataFrame, species: list[str]
) -> dict[str, Any]:
    """Return the facts of a dataset: counts, durations, copies, folds, strata, notes, and skipped files.

    `recordings` is the manifest with its `sha256`; `scored` has the row of each recording, or of each clip
    where clips are scored, and its `split`, `fold`, `is_validated` and `group`. ``n_train``, ``n_val``,
    ``n_test``, ``n_unused`` and ``train_counts`` of each species count these in the repeat of the dataset.
    ``strata`` are by all that are not of the test split, so that they are the same in every repeat.
    ``duplicates`` has the paths, species and splits of files with the same content. ``folds``: see `_folds`.
    """
    duplicates = _duplicates(scored)
    train_counts = _counts_of(scored[scored["split"] == "train"], species)
    folds = _folds(split, scored, species)
    n_usable = int(clips.is_usable.sum())
    return {
        "n_recordings": n_usable,
        "n_species": len(species),
        **{f"n_{name}": int((split.assigned == name).sum()) for name in ASSIGNED},
        "n_skipped": len(recordings) - n_usable,
        "durations": _durations(clips.recordings["duration_s"]),
        "sample_rates": _counts_by_rate(clips.recordings["sample_rate"]),
        "duplicates": duplicates,
        "train_counts": train_counts,
        "strata": strata(_counts_of(scored[scored["split"] != "test"], species)),
        "folds": folds,
        "grouped_by": list(split.grouped_by),
        "notes": [*split.notes, *_mislabelled(duplicates), *_absences(folds, scored, species)],
        "skipped": [
            {"path": recordings["path"].iloc[i], "error": error} for i, error in clips.errors.items()
        ],
    }


def _counts_of(rows: pd.DataFrame, species: list[str]) -> dict[str, int]:
    counts = rows["species"].value_counts()
    return {name: int(counts.get(name, 0)) for name in species}


def _folds(split: Split, scored: pd.DataFrame, species: list[str]) -> dict[str, Any]:
    """Return what every repeat is validated on, and what is never.

    ``n`` folds in the deal of number ``deal``, of which the dataset validates on ``fold``; both count from 0.
    ``given`` is the manifest's column that decides, if any, and ``labels`` are those of given folds.
    ``parts`` counts recordings (or clips), species and groups that are validated in each fold, in training in
    every repeat, and of the test split; ``n_unused`` counts what is unused when the fold is validated. Of the
    species, ``never_scored`` have no recording that is validated, ``scored_in_part`` have others in training
    in every repeat, and ``untrained`` have none in training in the repeat of one of the folds.
    """
    n = split.place.n_folds
    parts = part_names(scored["fold"].to_numpy(), (scored["split"] == "test").to_numpy(), n)
    is_unused = (scored["fold"] >= 0) & ~scored["is_validated"]
    n_unused = is_unused.groupby(parts).sum()
    by_part = scored[~is_unused].groupby(parts[~is_unused])
    order = [*(f"fold {i}" for i in range(n)), "train", "val", "test"]
    known = scored[scored["split"] != "test"].groupby("species")
    last, n_parts = known["fold"].max(), known["fold"].nunique()
    is_validated, is_in_full = known["is_validated"].any(), known["is_validated"].all()

    def named(which: pd.Series[bool]) -> list[str]:
        return sorted(which.index[which])

    return {
        "n": n,
        "deal": split.place.deal,
        "fold": split.place.fold,
        "given": split.given,
        "labels": list(split.labels),
        "parts": {
            part: {
                "n": len(by_part.get_group(part)),
                "n_species": int(by_part.get_group(part)["species"].nunique()),
                "n_groups": int(by_part.get_group(part)["group"].nunique()),
                "n_unused": int(n_unused[part]),
            }
            for part in order
            if part in by_part.groups
        },
        "never_scored": sorted(set(species) - set(named(is_validated))),
        "scored_in_part": named(is_validated & ~is_in_full) if n > 1 else [],
        "untrained": sorted({*named((n_parts == 1) & (last >= 0)), *(set(species) - set(known.groups))}),
    }


def _durations(seconds: np.ndarray) -> dict[str, float]:
    return {
        "total_h": round(float(seconds.sum()) / 3600, 4),
        "min_s": round(float(seconds.min()), 3),
        "median_s": round(float(np.median(seconds)), 3),
        "max_s": round(float(seconds.max()), 3),
    }


def _counts_by_rate(rates: np.ndarray) -> dict[str, int]:
    """Return recordings per sample rate, commonest first; text keys, as JSON has them."""
    return {str(rate): int(n) for rate, n in pd.Series(rates).value_counts().items()}


def _duplicates(scored: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the paths, species and splits of every set of recordings with the same content."""
    files = scored.drop_duplicates("path")
    copied = files["sha256"][files["sha256"].duplicated()]
    copies = scored[scored["sha256"].isin(set(copied))]
    return [
        {
            "paths": same["path"].unique().tolist(),
            "species": sorted(set(same["species"])),
            "splits": [split for split in ASSIGNED if split in set(same["split"])],
        }
        for _, same in copies.groupby("sha256", sort=False)
    ]


def _mislabelled(duplicates: list[dict[str, Any]]) -> list[str]:
    """Return a note if copies of one recording carry several species: one of the labels is wrong."""
    mixed = [" and ".join(copies["species"]) for copies in duplicates if len(copies["species"]) > 1]
    if not mixed:
        return []
    return [
        f"{LEAKAGE}: {len(mixed)} recordings of the same content are listed under several species ({mixed[0]}"
        f"{', ...' if len(mixed) > 1 else ''}); remove the wrong copies"
    ]


def _absences(folds: dict[str, Any], scored: pd.DataFrame, species: list[str]) -> list[str]:
    """Return notes on the species that are not in training, not scored, scored in part, or not tested."""
    tested = set(scored["species"][scored["split"] == "test"])
    when = "" if folds["n"] == 1 else " when one of the folds is validated"
    found = {
        f"have no training recording{when}": folds["untrained"],
        "have no validation recording" if folds["n"] == 1 else "are never scored": folds["never_scored"],
        "are scored in part: the rest of their recordings are in training in every repeat": folds[
            "scored_in_part"
        ],
        "have no test recording": sorted(set(species) - tested) if tested else [],
    }
    return [
        f"{len(names)} of {len(species)} species {_agreeing(what, len(names))}: {few(names)}"
        for what, names in found.items()
        if names
    ]


def _agreeing(what: str, n: int) -> str:
    """Return a verb and what follows for `n` species."""
    verb, rest = what.split(" ", 1)
    one = {"have": "has", "are": "is"}
    return f"{one[verb] if n == 1 else verb} {rest}"


def few(names: list[str]) -> str:
    """Return the first five names, in words."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
