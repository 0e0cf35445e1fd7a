"""Facts of a dataset's recordings and split, for `data describe`, records and reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from birdnet_core.data.clip_store import Clips
from birdnet_core.data.manifest import SPLITS
from birdnet_core.data.splits import Split, strata
from birdnet_core.records.trial import LEAKAGE


def gather(
    recordings: pd.DataFrame, clips: Clips, split: Split, scored: pd.DataFrame, species: list[str]
) -> dict[str, Any]:
    """Return the facts of a dataset: counts, durations, copies, strata, notes, and skipped files.

    `recordings` is the manifest with its `sha256`; `scored` has the row and the `split` of each recording, or
    of each clip where clips are scored. ``n_train``, ``n_val``, ``n_test`` and ``train_counts`` of each
    species count these. ``duplicates`` has the paths, species and splits of files with the same content.
    """
    duplicates = _duplicates(scored)
    counts = scored["species"][scored["split"] == "train"].value_counts()
    train_counts = {name: int(counts.get(name, 0)) for name in species}
    n_usable = int(clips.is_usable.sum())
    return {
        "n_recordings": n_usable,
        "n_species": len(species),
        **{f"n_{name}": int((split.assigned == name).sum()) for name in SPLITS},
        "n_skipped": len(recordings) - n_usable,
        "durations": _durations(clips.recordings["duration_s"]),
        "sample_rates": _counts_by_rate(clips.recordings["sample_rate"]),
        "duplicates": duplicates,
        "train_counts": train_counts,
        "strata": strata(train_counts),
        "grouped_by": list(split.grouped_by),
        "notes": [*split.notes, *_mislabelled(duplicates), *_absences(scored, species)],
        "skipped": [
            {"path": recordings["path"].iloc[i], "error": error} for i, error in clips.errors.items()
        ],
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
            "splits": [split for split in SPLITS if split in set(same["split"])],
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


def _absences(scored: pd.DataFrame, species: list[str]) -> list[str]:
    """Return a note for each split on which species are missing."""
    notes = []
    for split in SPLITS:
        there = scored["species"][scored["split"] == split]
        missing = sorted(set(species) - set(there))
        if missing and len(there):
            named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            notes.append(f"{len(missing)} of {len(species)} species have no recording in {split}: {named}")
    return notes
