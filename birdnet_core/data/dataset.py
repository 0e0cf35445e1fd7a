"""A manifest prepared for training: `prepare` makes its stores, split and facts, `Dataset` opens them."""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
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
from birdnet_core.data.clip_store import Clips, ClipStore, build_clips
from birdnet_core.data.facts import gather
from birdnet_core.data.feature_store import (
    CHUNK,
    FeatureStore,
    build_feature_store,
    channel_statistics,
    is_worth_storing,
    store_folder,
)
from birdnet_core.data.splits import (
    ASSIGNED,
    Split,
    assign_splits,
    crossing,
    groups,
    part_names,
    place_of,
    scatter_clips,
)
from birdnet_core.errors import DataError, RunFolderError
from birdnet_core.records.files import read_json, write_json
from birdnet_core.records.trial import Validation

FORMAT = 5  # of a dataset's folder


@dataclass(frozen=True)
class Dataset:
    """The clips of one manifest under one config, split as in its repeat.

    Args:
        features: the store that holds those of every clip, mapped and shared by all who open it; None where
            they are not stored but computed from `clips`.
        input_shape: channels, bins and frames of a clip's features; of embeddings, dim.
        in_store: the row of every clip in `clips` and in `features`, which hold those of other datasets too.
        labels, recording: class index and recording index of every clip.
        sha256: the content of every recording of the manifest; "" for one that could not be read.
        splits: ``train``, ``val``, ``test`` or ``unused`` (`splits.RARE_RULE`) of every clip.
        fold: of every clip, from 0; -1 of those in training in every repeat, and of the test split.
        group: the number of the group of every clip's recording (`splits.groups`), the same in every repeat.
        species: the name of each class.
        mean, std: of every channel, or value of an embedding, over the training clips; 0 and 1 where the
            feature is not to be standardised by them.
        facts: of the recordings and the split, see `facts.gather`.
    """

    folder: Path
    clips_folder: Path
    features: FeatureStore | None
    input_shape: tuple[int, ...]
    in_store: np.ndarray
    labels: np.ndarray
    recording: np.ndarray
    sha256: tuple[str, ...]
    splits: np.ndarray
    fold: np.ndarray
    group: np.ndarray
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
                fold, group = arrays["fold"], arrays["group"]
            shape = tuple(map(int, meta["input_shape"]))
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
            shape,
            in_store,
            labels,
            recording,
            tuple(sha.decode() for sha in sha256.tolist()),
            np.array(ASSIGNED)[splits],
            fold,
            group,
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
        """Return the stored features of `clips`, float32 [clips, *input_shape]."""
        if self.features is None:
            raise DataError(f"the dataset {str(self.folder)!r} was prepared without features")
        return self.features.read(self.in_store[clips])

    @functools.cached_property
    def embeddings(self) -> torch.Tensor:
        """The standardised embeddings of every clip, float32 [clips, dim], held in memory from now on."""
        assert self.features is not None
        mean, std = (torch.from_numpy(x)[None] for x in (self.mean, self.std))
        whole = torch.empty(len(self.in_store), *self.input_shape)
        for first in range(0, len(whole), CHUNK):
            rows = self.in_store[first : first + CHUNK]
            values, scale, offset = (
                torch.from_numpy(np.array(x[rows]))
                for x in (self.features.values, self.features.scale, self.features.offset)
            )
            whole[first : first + CHUNK] = standardised(values, scale, offset, mean, std)
        return whole

    @property
    def scored_ids(self) -> np.ndarray:
        """The recording with which each clip is scored; the clip itself where clips were split at random."""
        return np.arange(len(self.recording)) if self.facts["scored"] == "clips" else self.recording

    def rows(self, *splits: str) -> np.ndarray:
        """Return the clips of one of the `splits`, or of several of them, in their order."""
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


def standardised(
    values: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Return (values * scale + offset - mean) / std with one multiplication and one addition a value."""
    return values.float().mul_(scale / std).add_((offset - mean) / std)


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
    """Return the folder of the dataset of `manifest` under `config`, made unless it is there.

    Recordings that cannot be decoded are left out and listed under `skipped` in the facts (`facts.gather`); a
    species that loses all of its recordings is not a class. Raises DataError where nothing is left, and
    ConfigError, before anything is made, for options that the feature refuses.

    The work is shared by `workers` processes of low priority, by default one for each CPU. When several calls
    need the same dataset at once, as trials do that start on one node, one call makes it and the others wait
    for it.
    """
    cache = default_cache() if cache is None else Path(cache).absolute()
    input_shape(config)  # builds the feature, which checks its options
    stored = _build_stores(manifest, config, cache, n_cpus() if workers is None else workers, progress)
    recordings = manifest.assign(sha256=stored.clips.sha256)
    data_id = short_hash(recordings.drop(columns="path").to_numpy().tolist())
    left_out = np.flatnonzero(~stored.clips.is_usable).tolist()
    options = config.data
    # Another repeat may be the same split: of a single fold, or where the folds are given.
    place = place_of(recordings[stored.clips.is_usable], options, config.repeat)
    drawn = [options.split, options.split_seed, options.test_fraction, *astuple(place)]
    drawn += [options.val_fraction] if place.n_folds == 1 else []
    folder = cache / "datasets" / short_hash([FORMAT, data_id, left_out, stored.features.name, *drawn])
    if _is_made(folder, stored.is_stored):
        return folder
    with locked(folder):
        if is_whole(folder):
            meta = read_json(folder / "dataset.json")
            meta["is_stored"] = stored.is_stored or meta["is_stored"]
            write_json(folder / "dataset.json", meta)
        else:
            split = _split(recordings, stored, config)
            _write(folder, recordings, config, stored, split, data_id)
    return folder


@dataclass(frozen=True)
class _Stored:
    """The clips of a manifest in their stores.

    `in_store` is the row of every clip there, `recording` the recording that it was cut from, `features` the
    folder of the feature store, which has these clips only if `is_stored`.
    """

    clips: Clips
    in_store: np.ndarray
    recording: np.ndarray
    features: Path
    is_stored: bool


def _build_stores(
    manifest: pd.DataFrame, config: TrainConfig, cache: Path, workers: int, progress: Progress
) -> _Stored:
    """Decode the recordings that the clip store lacks, and compute features if they are to be stored."""
    with Workers(workers) as pool:
        clips = build_clips(manifest["path"].tolist(), config.data, cache, workers=pool, progress=progress)
        in_store, recording = clips.rows()
        wanted = config.runtime.features
        is_stored = wanted == "stored" or (
            wanted == "auto" and is_worth_storing(clips.store, config.features)
        )
        if is_stored:
            build_feature_store(
                clips.store, in_store, config.features, cache, workers=pool, progress=progress
            )
    return _Stored(clips, in_store, recording, store_folder(clips.store, config.features, cache), is_stored)


@dataclass(frozen=True)
class _Split:
    """The split of a dataset.

    `scored` has the row of each recording or clip that is scored, with its `split`, `fold`, `group` and
    `is_validated`, and `of_clip` these of each clip.
    """

    drawn: Split
    scored: pd.DataFrame
    of_clip: pd.DataFrame
    split_id: str


def _split(recordings: pd.DataFrame, stored: _Stored, config: TrainConfig) -> _Split:
    """Draw the split over the recordings that were decoded, or over their clips (``random-windows``)."""
    usable = stored.clips.is_usable
    recordings = recordings.reset_index(drop=True)
    scored = recordings[usable]
    scored = scored.assign(group=groups(scored)[0])
    if config.data.split == "random-windows":
        of_clip = scored.loc[stored.recording]
        drawn = scatter_clips(of_clip, config.data, config.repeat)
        scored = of_clip = _assigned(of_clip, drawn)
        identity = [stored.recording.tolist(), of_clip["split"].tolist()]
    else:
        drawn = assign_splits(scored, config.data, config.repeat)
        scored = _assigned(scored, drawn)
        of_clip = scored.loc[stored.recording]
        identity = [scored["split"].reindex(recordings.index, fill_value="").tolist()]
    split_id = short_hash([recordings["sha256"].tolist(), *identity])
    return _Split(drawn, scored, of_clip, split_id)


def _assigned(rows: pd.DataFrame, drawn: Split) -> pd.DataFrame:
    return rows.assign(split=drawn.assigned, fold=drawn.fold, is_validated=drawn.is_validated)


def _write(
    folder: Path, recordings: pd.DataFrame, config: TrainConfig, stored: _Stored, split: _Split, data_id: str
) -> None:
    """Write the dataset's arrays, then dataset.json, which makes it whole."""
    clips = stored.clips
    labels, species = pd.factorize(recordings["species"].where(clips.is_usable), sort=True)
    mean, std = [0.0], [1.0]
    feature = build_feature(config.features, config.data.sample_rate, config.data.n_samples)
    if getattr(feature, "standardise", None) == "train":
        of_train = stored.in_store[split.of_clip["split"] == "train"]
        features = stored.features if stored.is_stored else None
        mean, std = channel_statistics(_stored_features(clips.store, features, config, of_train))
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / "clips.npz.new"
    with open(new, "wb") as file:
        np.savez(
            file,
            in_store=stored.in_store,
            clip_ids=clips.store.windows["clip_id"][stored.in_store],
            labels=labels[stored.recording],
            recording=stored.recording,
            splits=np.array([ASSIGNED.index(name) for name in split.of_clip["split"]], dtype=np.int8),
            fold=split.of_clip["fold"].to_numpy(dtype=np.int8),
            group=split.of_clip["group"].to_numpy(dtype=np.int32),
            sha256=np.array(clips.sha256, dtype="S64"),
        )
        to_disk(file)
    os.replace(new, folder / "clips.npz")
    write_json(
        folder / "dataset.json",
        {
            "format": FORMAT,
            "clips": clips.store.key,
            "features": stored.features.name,
            "is_stored": stored.is_stored,
            "input_shape": input_shape(config),
            "species": species.tolist(),
            "mean": mean,
            "std": std,
            "facts": {
                "data_id": data_id,
                "split_id": split.split_id,
                "scored": "clips" if config.data.split == "random-windows" else "recordings",
                "n_clips": len(stored.recording),
                **gather(recordings, clips, split.drawn, split.scored, species.tolist()),
            },
        },
    )


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
    """Return the manifest's row of every recording, or clip, that a dataset scores, and how it is split.

    `split`, `fold` and `group` are those of `Dataset`. Recordings that were left out have no row.
    """
    dataset = Dataset.open(folder)
    first = np.unique(dataset.scored_ids, return_index=True)[1]
    rows = manifest.iloc[dataset.recording[first]]
    return rows.assign(split=dataset.splits[first], fold=dataset.fold[first], group=dataset.group[first])


def validation_split(manifest: pd.DataFrame, folder: Path) -> Validation:
    """Return the validation split of a dataset, in the order in which a `Session` predicts it."""
    number = pd.factorize(manifest["recording_id"])[0]
    scored = scored_rows(manifest.assign(number=number), folder)
    scored = scored[scored["split"] == "val"]
    species = list(Dataset.open(folder).species)
    return Validation(
        species=species,
        truth=pd.Categorical(scored["species"], categories=species).codes.tolist(),
        recording=scored["number"].tolist(),
        group=scored["group"].tolist(),
    )


def proof_of_split(manifest: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Return how many groups the split of a dataset separates, and every value found in two of its parts.

    For the groups, and each of recording_id, recordist and site that the manifest names: ``n`` distinct
    values and the ``crossing`` ones, found in two folds, or in a fold and in training in every repeat or the
    test split; [] where the split separates them.
    """
    scored = scored_rows(manifest, folder)
    scored["group"] = scored["group"].astype(str)
    n_folds = Dataset.open(folder).facts["folds"]["n"]
    parts = part_names(scored["fold"].to_numpy(), (scored["split"] == "test").to_numpy(), n_folds)
    return {
        column: {
            "n": int(scored.loc[scored[column] != "", column].nunique()),
            "crossing": crossing(scored, parts, column),
        }
        for column in ("group", "recording_id", "recordist", "site")
        if (scored[column] != "").any()
    }
