"""A manifest made ready to train on: features on disk, labels, the split, and what must be told of them."""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from birdnet_core.build import build_feature, input_shape
from birdnet_core.config import TrainConfig
from birdnet_core.data.building import (
    Progress,
    Workers,
    default_cache,
    locked,
    n_cpus,
    no_progress,
    short_hash,
    to_disk,
)
from birdnet_core.data.clip_store import ClipStore, build_clips
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
from birdnet_core.errors import DataError, RunFolderError
from birdnet_core.records.files import read_json, write_json
from birdnet_core.records.trial import LEAKAGE, Validation

FORMAT = 3  # of a dataset's folder


@dataclass(frozen=True)
class Dataset:
    """The clips of one manifest under one config.

    Args:
        features: the store that holds those of every clip, mapped and shared by all who open it; None where
            they are not stored but computed from `clips`.
        input_shape: channels, bins and frames of a clip's features.
        in_store: the row of every clip in `clips` and in `features`, which hold those of other datasets too.
        labels, recording: class index and recording index of every clip.
        sha256: the content of every recording of the manifest; "" for one that could not be read.
        splits: ``train``, ``val`` or ``test`` of every clip.
        species: the name of each class.
        mean, std: of every channel over the training clips; 0 and 1 where the feature is not to be
            standardised by them.
        facts: what `data describe` prints and records keep, see `prepare`.
    """

    folder: Path
    clips_folder: Path
    features: FeatureStore | None
    input_shape: tuple[int, int, int]
    in_store: np.ndarray
    labels: np.ndarray
    recording: np.ndarray
    sha256: tuple[str, ...]
    splits: np.ndarray
    species: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    facts: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Dataset:
        """Map the dataset that `prepare` wrote to `folder`.

        Raises DataError where it is not whole: not there, of another version, cut short by a kill, or without
        the stores that it was made with.
        """
        folder = Path(folder).absolute()
        fault = f"the dataset {str(folder)!r} cannot be used"
        try:
            meta = read_json(folder / "dataset.json")
        except RunFolderError as error:
            raise DataError(f"{fault}: {error}; prepare the recordings again") from None
        if meta.get("format") != FORMAT:
            raise DataError(f"{fault}: it is of another version of birdtune; prepare the recordings again")
        try:
            with np.load(folder / "clips.npz") as arrays:
                in_store, labels, recording = arrays["in_store"], arrays["labels"], arrays["recording"]
                splits, sha256, clip_ids = arrays["splits"], arrays["sha256"], arrays["clip_ids"]
            channels, bins, frames = meta["input_shape"]
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{fault}: clips.npz: {error}; prepare the recordings again") from None
        cache = folder.parent.parent
        try:
            clips = ClipStore.open(cache / "clips" / meta["clips"])
            features = FeatureStore.open(cache / "features" / meta["features"]) if meta["is_stored"] else None
        except DataError as error:
            raise DataError(f"{fault}: {error}") from None
        if not all(store.holds(in_store, clip_ids) for store in (clips, features) if store):
            raise DataError(f"{fault}: its stores were lost and made anew; prepare the recordings again")
        return cls(
            folder,
            clips.folder,
            features,
            (channels, bins, frames),
            in_store,
            labels,
            recording,
            tuple(sha.decode() for sha in sha256.tolist()),
            np.array(SPLITS)[splits],
            tuple(meta["species"]),
            np.array(meta["mean"], dtype=np.float32),
            np.array(meta["std"], dtype=np.float32),
            meta["facts"],
        )

    @functools.cached_property
    def clips(self) -> ClipStore:
        """The store of the waveforms that the features are computed from."""
        return ClipStore.open(self.clips_folder)

    def waveforms(self, clips: np.ndarray) -> torch.Tensor:
        """Return the waveforms of `clips`, float32 [clips, samples]."""
        return self.clips.read(self.in_store[clips])

    def stored_features(self, clips: np.ndarray) -> np.ndarray:
        """Return the stored features of `clips`, float32 [clips, channels, bins, frames]."""
        if self.features is None:
            raise DataError(f"the dataset {str(self.folder)!r} was prepared without features")
        return self.features.read(self.in_store[clips])

    @property
    def scored_ids(self) -> np.ndarray:
        """What each clip is scored as part of: its recording; itself where clips were split at random."""
        return np.arange(len(self.recording)) if self.facts["scored"] == "clips" else self.recording

    def rows(self, *splits: str) -> np.ndarray:
        """Return the clips of ``train``, ``val`` or ``test``, or of several of them, in their order."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def class_counts(self, *splits: str) -> np.ndarray:
        """Return the number of clips of every class on the given splits together."""
        return np.bincount(self.labels[self.rows(*splits)], minlength=len(self.species))

    def strata(self) -> dict[str, np.ndarray]:
        """Return the class indices of the rare, medium and common species."""
        index = {name: i for i, name in enumerate(self.species)}
        return {
            name: np.array([index[s] for s in members], dtype=int)
            for name, members in self.facts["strata"].items()
        }


def is_whole(folder: str | Path) -> bool:
    """Return whether `Dataset.open` accepts `folder`."""
    try:
        Dataset.open(folder)
    except DataError:
        return False
    return True


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
    recordings, clips and species, of what is scored in each split and in training per species, durations,
    recordings per sample rate, files of equal content (paths, species and splits of each), strata, the
    columns that the split is grouped by, notes on it, and what was skipped. Raises DataError where nothing
    is left, and ConfigError, before anything is made, for options that the feature refuses.

    The work is shared by `workers` processes, by default one for each CPU, which give way to what else runs.
    Of several calls that want the same at once, as the trials that start on a node, one makes it with its
    workers; the others wait, and take what it has made.
    """
    cache = default_cache() if cache is None else Path(cache).absolute()
    shape = input_shape(config)
    with Workers(n_cpus() if workers is None else workers) as pool:
        clips = build_clips(manifest["path"].tolist(), config.data, cache, workers=pool, progress=progress)
        in_store, recording = clips.rows()
        features = store_folder(clips.store, config.features, cache)
        pays = is_worth_storing(clips.store, config.features)
        is_stored = config.runtime.features == "stored" or (config.runtime.features == "auto" and pays)
        if is_stored:
            build_feature_store(
                clips.store, in_store, config.features, cache, workers=pool, progress=progress
            )
    usable = clips.is_usable
    described = manifest.drop(columns="path").assign(sha256=clips.sha256)
    data_id = short_hash(described.to_numpy().tolist())
    options = config.data
    drawn = {"val_fraction": options.val_fraction, "test_fraction": options.test_fraction}
    left_out = np.flatnonzero(~usable).tolist()
    key = short_hash(
        [FORMAT, data_id, left_out, features.name, options.split, options.split_seed, *drawn.values()]
    )
    folder = cache / "datasets" / key
    if _is_made(folder, is_stored):
        return folder
    with locked(folder):
        if is_whole(folder):
            meta = read_json(folder / "dataset.json")
            write_json(folder / "dataset.json", {**meta, "is_stored": is_stored or meta["is_stored"]})
        else:
            recordings = manifest.assign(sha256=described["sha256"])
            if options.split == "random-windows":
                scored = recordings.iloc[recording]
                split = scatter_clips(scored, **drawn, seed=options.split_seed)
                split_of_clip = split.assigned
                drawn_splits = [recording.tolist(), split_of_clip.tolist()]
            else:
                scored = recordings[usable]
                split = assign_splits(scored.reset_index(drop=True), **drawn, seed=options.split_seed)
                splits = np.full(len(manifest), "", dtype="<U5")
                splits[usable] = split.assigned
                split_of_clip = splits[recording]
                drawn_splits = [splits.tolist()]
            scored = scored.assign(split=split.assigned)
            labels, species = pd.factorize(manifest["species"].where(usable), sort=True)
            duplicates = _duplicates(scored)
            counts = scored["species"][scored["split"] == "train"].value_counts()
            train_counts = {str(s): int(counts.get(s, 0)) for s in species}
            facts = {
                "data_id": data_id,
                "split_id": short_hash([described["sha256"].tolist(), *drawn_splits]),
                "scored": "clips" if options.split == "random-windows" else "recordings",
                "n_recordings": int(usable.sum()),
                "n_clips": len(recording),
                "n_species": len(species),
                **{f"n_{name}": int((split.assigned == name).sum()) for name in SPLITS},
                "n_skipped": int((~usable).sum()),
                "durations": _durations(clips.recordings["duration_s"]),
                "sample_rates": _counts_by_rate(clips.recordings["sample_rate"]),
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
            mean, std = [0.0], [1.0]
            if config.features.kwargs.get("standardise") == "train":
                of_train = in_store[split_of_clip == "train"]
                stored = features if is_stored else None
                mean, std = channel_statistics(_stored_features(clips.store, stored, config, of_train))
            folder.mkdir(parents=True, exist_ok=True)
            new = folder / "clips.npz.new"
            with open(new, "wb") as file:
                np.savez(
                    file,
                    in_store=in_store,
                    clip_ids=clips.store.windows["clip_id"][in_store],
                    labels=labels[recording],
                    recording=recording,
                    splits=np.array([SPLITS.index(name) for name in split_of_clip], dtype=np.int8),
                    sha256=np.array(clips.sha256, dtype="S64"),
                )
                to_disk(file)
            os.replace(new, folder / "clips.npz")
            write_json(
                folder / "dataset.json",
                {
                    "format": FORMAT,
                    "clips": clips.store.key,
                    "features": features.name,
                    "is_stored": is_stored,
                    "input_shape": shape,
                    "species": species.tolist(),
                    "mean": mean,
                    "std": std,
                    "facts": facts,
                },
            )
    return folder


def _is_made(folder: Path, is_stored: bool) -> bool:
    """Return whether a dataset is whole, and has its features stored if `is_stored` asks for that."""
    return is_whole(folder) and (not is_stored or Dataset.open(folder).features is not None)


def _stored_features(
    clips: ClipStore, stored: Path | None, config: TrainConfig, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the features of `rows`, read where they are stored, computed elsewhere.

    Stores are opened for every batch: pages stay in the process's memory as long as they are mapped.
    """
    feature = build_feature(config.features, clips.sample_rate, clips.samples.shape[1])
    for first in range(0, len(rows), CHUNK):
        some = rows[first : first + CHUNK]
        if stored is not None:
            yield FeatureStore.open(stored).read(some)
        else:
            with torch.inference_mode():
                yield feature(ClipStore.open(clips.folder).read(some)).numpy()


def scored_rows(manifest: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return the manifest's row and the `split` of everything that a dataset scores: recordings, or clips.

    Recordings that were left out have no row.
    """
    dataset = Dataset.open(folder)
    first = np.unique(dataset.scored_ids, return_index=True)[1]
    return manifest.iloc[dataset.recording[first]].assign(split=dataset.splits[first])


def validation_split(manifest: pd.DataFrame, folder: Path) -> Validation:
    """Return the validation split of a dataset, in the order in which a `Session` predicts it."""
    scored = scored_rows(manifest, folder)
    scored = scored[scored["split"] == "val"]
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
    usable = np.isin(np.arange(len(manifest)), dataset.recording)
    recordings = manifest.assign(sha256=dataset.sha256)[usable]
    of_recording = np.full(len(manifest), -1)
    of_recording[usable] = groups(recordings.reset_index(drop=True))[0]
    of_clip: np.ndarray = of_recording[dataset.recording]
    return of_clip


def proof_of_split(manifest: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Return how many groups the split of a dataset separates, and every value found in two splits.

    For each of recording_id, recordist and site that the manifest names: ``n`` distinct values and the
    ``crossing`` ones, which are [] where the split holds.
    """
    scored = scored_rows(manifest, folder)
    return {
        column: {
            "n": int(scored.loc[scored[column] != "", column].nunique()),
            "crossing": crossing(scored, scored["split"].to_numpy(), column),
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
        f"{LEAKAGE}: {len(mixed)} recordings stand under several species with the same content ({mixed[0]}"
        f"{', ...' if len(mixed) > 1 else ''}); remove the wrong copies"
    ]


def _absences(scored: pd.DataFrame, species: pd.Index) -> list[str]:
    """Return a note for each split on which species are missing."""
    notes = []
    for split in SPLITS:
        there = scored["species"][scored["split"] == split]
        missing = sorted(set(species) - set(there))
        if missing and len(there):
            named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            notes.append(f"{len(missing)} of {len(species)} species have no recording in {split}: {named}")
    return notes
