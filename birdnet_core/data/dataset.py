"""A manifest made ready to train on: features on disk, labels, the split, and what must be told of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from birdnet_core.build import build_feature, picture_shape
from birdnet_core.config import TrainConfig
from birdnet_core.data.building import Progress, Workers, default_cache, locked, no_progress, short_hash
from birdnet_core.data.clip_store import ClipStore, build_clip_store
from birdnet_core.data.feature_store import (
    CHUNK,
    FeatureStore,
    build_feature_store,
    channel_statistics,
    is_worth_storing,
    store_folder,
)
from birdnet_core.data.manifest import SPLITS
from birdnet_core.data.splits import assign_splits, crossing, groups, scatter_clips, strata
from birdnet_core.records import LEAKAGE, Validation, read_json, write_json


@dataclass(frozen=True)
class Dataset:
    """The clips of one manifest under one config.

    Args:
        features: of every clip, mapped from disk and shared by all who open it; None where they are not
            stored but computed from `clips`.
        input_shape: channels, bins and frames of a clip's features.
        labels, recording: class index and recording index of every clip.
        sides: ``train``, ``val`` or ``test`` of every clip.
        species: the name of each class.
        mean, deviation: of every channel over the training clips; 0 and 1 where the feature is not to be
            standardised by them.
        facts: what `data describe` prints and records keep, see `prepare`.
    """

    folder: Path
    clips_folder: Path
    features: FeatureStore | None
    input_shape: tuple[int, int, int]
    labels: np.ndarray
    recording: np.ndarray
    sides: np.ndarray
    species: tuple[str, ...]
    mean: np.ndarray
    deviation: np.ndarray
    facts: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Dataset:
        """Map the dataset that `prepare` wrote to `folder`."""
        folder = Path(folder)
        meta = read_json(folder / "dataset.json")
        with np.load(folder / "clips.npz") as arrays:
            labels, recording, sides = arrays["labels"], arrays["recording"], arrays["sides"]
        cache = folder.parent.parent
        stored = cache / "features" / meta["features"]
        channels, bins, frames = meta["input_shape"]
        return cls(
            folder,
            cache / "clips" / meta["clips"],
            FeatureStore.open(stored) if stored.exists() else None,
            (channels, bins, frames),
            labels,
            recording,
            np.array(SPLITS)[sides],
            tuple(meta["species"]),
            np.array(meta["mean"], dtype=np.float32),
            np.array(meta["deviation"], dtype=np.float32),
            meta["facts"],
        )

    @functools.cached_property
    def clips(self) -> ClipStore:
        """The waveforms that the features are computed from."""
        return ClipStore.open(self.clips_folder)

    @property
    def units(self) -> np.ndarray:
        """What each clip is scored as part of: its recording; itself where clips were split at random."""
        return np.arange(len(self.recording)) if self.facts["scored"] == "clips" else self.recording

    def rows(self, *sides: str) -> np.ndarray:
        """Return the clips of ``train``, ``val`` or ``test``, or of several of them, in their order."""
        return np.flatnonzero(np.isin(self.sides, sides))

    def class_counts(self, *sides: str) -> np.ndarray:
        """Return the number of clips of every class on the given sides together."""
        return np.bincount(self.labels[self.rows(*sides)], minlength=len(self.species))

    def strata(self) -> dict[str, np.ndarray]:
        """Return the class indices of the rare, medium and common species."""
        index = {name: i for i, name in enumerate(self.species)}
        return {
            name: np.array([index[s] for s in members], dtype=int)
            for name, members in self.facts["strata"].items()
        }


def prepare(
    manifest: pd.DataFrame,
    config: TrainConfig,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Return the folder of the dataset of `manifest` under `config`, making what is not there yet.

    Recordings that cannot be decoded are left out and listed under `skipped` in the facts; a species that
    loses all of its recordings is no class. The facts: data_id (content, labels and groups of the manifest),
    split_id, what is scored (``recordings``, or ``clips`` where these were split at random), counts of
    recordings, clips and species, of what is scored on each side and in training per species, durations,
    recordings per sample rate, files of equal content (paths, species and sides of each), strata, the columns
    that the split is grouped by, notes on it, and what was skipped. Raises DataError where nothing is left.
    """
    cache = default_cache() if cache is None else Path(cache)
    with Workers((os.cpu_count() or 1) if workers is None else workers) as pool:
        clips = build_clip_store(
            manifest["path"].tolist(), config.data, cache, workers=pool, progress=progress
        )
        features = store_folder(clips, config.features, cache)
        pays = is_worth_storing(clips, config.features)
        if config.runtime.features == "stored" or (config.runtime.features == "auto" and pays):
            build_feature_store(clips, config.features, cache, workers=pool, progress=progress)
    described = manifest.drop(columns="path").assign(sha256=clips.sha256)
    data_id = short_hash(described.to_numpy().tolist())
    options = config.data
    drawn = {"val_fraction": options.val_fraction, "test_fraction": options.test_fraction}
    key = short_hash([data_id, features.name, options.split, options.split_seed, *drawn.values()])
    folder = cache / "datasets" / key
    with locked(folder):
        if not (folder / "dataset.json").exists():
            usable = clips.n_windows > 0
            _, recording = clips.rows()
            recordings = manifest.assign(sha256=described["sha256"])
            if options.split == "random-windows":
                scored = recordings.iloc[recording]
                split = scatter_clips(scored, **drawn, seed=options.split_seed)
                side_of_clip = split.sides
                drawn_sides = [recording.tolist(), side_of_clip.tolist()]
            else:
                scored = recordings[usable]
                split = assign_splits(scored.reset_index(drop=True), **drawn, seed=options.split_seed)
                sides = np.full(len(manifest), "", dtype="<U5")
                sides[usable] = split.sides
                side_of_clip = sides[recording]
                drawn_sides = [sides.tolist()]
            scored = scored.assign(side=split.sides)
            labels, species = pd.factorize(manifest["species"].where(usable), sort=True)
            duplicates = _duplicates(scored)
            counts = scored["species"][scored["side"] == "train"].value_counts()
            train_counts = {str(s): int(counts.get(s, 0)) for s in species}
            facts = {
                "data_id": data_id,
                "split_id": short_hash([described["sha256"].tolist(), *drawn_sides]),
                "scored": "clips" if options.split == "random-windows" else "recordings",
                "n_recordings": int(usable.sum()),
                "n_clips": len(recording),
                "n_species": len(species),
                **{f"n_{side}": int((split.sides == side).sum()) for side in SPLITS},
                "n_skipped": int((~usable).sum()),
                "durations": _durations(clips.recordings["duration_s"][usable]),
                "sample_rates": _counts_by_rate(clips.recordings["sample_rate"][usable]),
                "duplicates": duplicates,
                "train_counts": train_counts,
                "strata": strata(train_counts),
                "grouped_by": list(split.grouped_by),
                "notes": [
                    *split.notes,
                    *_mislabelled(duplicates),
                    *_absences(scored, species),
                ],
                "skipped": [
                    {"path": manifest["path"].iloc[i], "error": error} for i, error in clips.errors.items()
                ],
            }
            mean, deviation = [0.0], [1.0]
            if config.features.kwargs.get("standardise") == "train":
                of_train = np.flatnonzero(side_of_clip == "train")
                mean, deviation = channel_statistics(_pictures(clips, features, config, of_train))
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(
                folder / "clips.npz",
                labels=labels[recording],
                recording=recording,
                sides=np.array([SPLITS.index(side) for side in side_of_clip], dtype=np.int8),
            )
            write_json(
                folder / "dataset.json",
                {
                    "clips": clips.key,
                    "features": features.name,
                    "input_shape": picture_shape(config.features, clips.sample_rate, clips.samples.shape[1]),
                    "species": species.tolist(),
                    "mean": mean,
                    "deviation": deviation,
                    "facts": facts,
                },
            )
    return folder


def _pictures(
    clips: ClipStore, stored: Path, config: TrainConfig, wanted: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the features of the clips `wanted`, read where they are stored, computed elsewhere.

    Stores are opened for every batch: pages stay in the process's memory as long as they are mapped.
    """
    feature = build_feature(config.features, clips.sample_rate, clips.samples.shape[1])
    rows, _ = clips.rows()
    for first in range(0, len(wanted), CHUNK):
        some = wanted[first : first + CHUNK]
        if stored.exists():
            yield FeatureStore.open(stored).read(some)
        else:
            with torch.inference_mode():
                yield feature(ClipStore.open(clips.folder).read(rows[some])).numpy()


def scored_rows(manifest: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return the manifest's row and the `side` of everything that a dataset scores: recordings, or clips.

    Recordings that were left out have no row.
    """
    dataset = Dataset.open(folder)
    first = np.unique(dataset.units, return_index=True)[1]
    return manifest.iloc[dataset.recording[first]].assign(side=dataset.sides[first])


def validation_side(manifest: pd.DataFrame, folder: Path) -> Validation:
    """Return the validation side of a dataset, in the order in which a `Session` predicts it."""
    scored = scored_rows(manifest, folder)
    scored = scored[scored["side"] == "val"]
    species = list(Dataset.open(folder).species)
    return Validation(
        species=species,
        truth=pd.Categorical(scored["species"], categories=species).codes.tolist(),
        recording=pd.factorize(scored["recording_id"])[0].tolist(),
    )


def groups_of(manifest: pd.DataFrame, dataset: Dataset) -> np.ndarray:
    """Return the group of every clip of `dataset`, which was made of `manifest`: what a split keeps together.

    Recordings of one group are not independent of each other (`splits.groups`).
    """
    usable = dataset.clips.n_windows > 0
    recordings = manifest.assign(sha256=dataset.clips.sha256)[usable]
    of_recording = np.full(len(manifest), -1)
    of_recording[usable] = groups(recordings.reset_index(drop=True))[0]
    of_clip: np.ndarray = of_recording[dataset.recording]
    return of_clip


def proof_of_split(manifest: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Return how many groups the split of a dataset separates, and every value found on two sides.

    For each of recording_id, recordist and site that the manifest names: ``n`` distinct values and the
    ``crossing`` ones, which are [] where the split holds.
    """
    scored = scored_rows(manifest, folder)
    return {
        column: {
            "n": int(scored.loc[scored[column] != "", column].nunique()),
            "crossing": crossing(scored, scored["side"].to_numpy(), column),
        }
        for column in ("recording_id", "recordist", "site")
        if (scored[column] != "").any()
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
    """Return the paths, species and sides of every set of recordings with the same content."""
    files = scored.drop_duplicates("path")
    copied = files["sha256"][files["sha256"].duplicated()]
    copies = scored[scored["sha256"].isin(set(copied))]
    return [
        {
            "paths": same["path"].unique().tolist(),
            "species": sorted(set(same["species"])),
            "sides": [side for side in SPLITS if side in set(same["side"])],
        }
        for _, same in copies.groupby("sha256", sort=False)
    ]


def _mislabelled(duplicates: list[dict[str, Any]]) -> list[str]:
    """Return a note if copies of one recording carry several species: one of the labels is wrong."""
    mixed = [" and ".join(copies["species"]) for copies in duplicates if len(copies["species"]) > 1]
    if not mixed:
        return []
    return [
        f"{LEAKAGE}: {len(mixed)} recordings stand under several species with the same content ({mixed[0]}"
        f"{', ...' if len(mixed) > 1 else ''}); remove the wrong copies"
    ]


def _absences(scored: pd.DataFrame, species: pd.Index) -> list[str]:
    """Return a note for each side on which species are missing."""
    notes = []
    for side in SPLITS:
        there = scored["species"][scored["side"] == side]
        missing = sorted(set(species) - set(there))
        if missing and len(there):
            named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            notes.append(f"{len(missing)} of {len(species)} species have no recording in {side}: {named}")
    return notes
