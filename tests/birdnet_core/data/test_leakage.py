"""Clips split at random: what this does to scores, and that it is said wherever somebody looks."""

import numpy as np
import pandas as pd
import pytest
import soundfile
from sklearn.neighbors import KNeighborsClassifier

from birdnet_core.config import DataConfig, TrainConfig, cautions
from birdnet_core.data.building import short_hash
from birdnet_core.data.dataset import Dataset, prepare, proof_of_split
from birdnet_core.data.manifest import index_folder, read_manifest
from birdnet_core.data.splits import assign_splits, scatter_clips
from birdnet_core.training.metrics import average_windows, score
from birdnet_core.training.session import Session
from tests.settings import SMALL

RATE = 22_050
RANDOM = {"data.split": "random-windows"}
WINDOWS = {**SMALL, "data.windows_per_recording": 4}


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """The manifest of 40 recordings, each of a tone of its own that says nothing about its species."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(5)
    species = rng.permutation(["finch", "tit"] * 20)
    seconds = np.arange(4 * RATE) / RATE
    for n, (bird, hz) in enumerate(zip(species, rng.permutation(np.geomspace(800, 8000, 40)), strict=True)):
        (folder / bird).mkdir(exist_ok=True)
        samples = 0.3 * np.sin(2 * np.pi * hz * seconds) + rng.normal(0, 0.01, len(seconds))
        soundfile.write(folder / bird / f"{n}.wav", samples.astype(np.float32), RATE)
    return index_folder(folder)


def dataset_of(manifest, cache, **changes):
    config = TrainConfig().override({**WINDOWS, **changes})
    return Dataset.open(prepare(manifest, config, cache=cache, workers=1))


def accuracy_of_the_nearest_training_clip(dataset):
    train, val = dataset.rows("train"), dataset.rows("val")
    model = KNeighborsClassifier(1).fit(dataset.stored_features(train).mean(axis=3).reshape(len(train), -1),
                                        dataset.labels[train])  # fmt: skip
    probabilities = model.predict_proba(dataset.stored_features(val).mean(axis=3).reshape(len(val), -1))
    averaged, scored_ids = average_windows(probabilities, dataset.scored_ids[val])
    label_of = dict(zip(dataset.scored_ids.tolist(), dataset.labels.tolist(), strict=True))
    truth = np.array([label_of[scored_id] for scored_id in scored_ids.tolist()])
    assert len(truth) == dataset.facts["n_val"]
    return score(averaged, truth, {})["accuracy"]


def test_recognising_recordings_passes_for_recognising_birds_where_clips_are_split_at_random(tones, cache):
    accuracies = {
        split: [
            accuracy_of_the_nearest_training_clip(
                dataset_of(tones, cache, **{"data.split": split, "data.split_seed": seed})
            )
            for seed in range(4)
        ]
        for split in ("grouped", "random-windows")
    }
    assert min(accuracies["random-windows"]) > 0.95
    assert 0.2 < np.mean(accuracies["grouped"]) < 0.75  # two species, so chance is 0.5


def test_the_two_splits_are_other_datasets_of_the_same_clips(tones, cache):
    grouped, scattered = dataset_of(tones, cache), dataset_of(tones, cache, **RANDOM)
    assert grouped.folder != scattered.folder
    assert grouped.facts["split_id"] != scattered.facts["split_id"]
    assert grouped.facts["data_id"] == scattered.facts["data_id"]
    assert grouped.features.folder == scattered.features.folder
    np.testing.assert_array_equal(grouped.labels, scattered.labels)
    np.testing.assert_array_equal(grouped.recording, scattered.recording)


def test_a_grouped_split_is_what_it_was(birds, small_config, small_dataset):
    manifest = read_manifest(birds).assign(sha256=list(small_dataset.sha256))
    drawn = assign_splits(manifest, small_config.data)
    np.testing.assert_array_equal(small_dataset.splits, drawn.assigned[small_dataset.recording])
    facts = small_dataset.facts
    assert facts["split_id"] == short_hash([manifest["sha256"].tolist(), drawn.assigned.tolist()])
    assert facts["scored"] == "recordings"
    assert not any("LEAKAGE" in note for note in facts["notes"])
    np.testing.assert_array_equal(small_dataset.scored_ids, small_dataset.recording)
    assert cautions(small_config) == []


def test_every_clip_is_scored_by_itself(tones, cache):
    config = TrainConfig().override({**WINDOWS, **RANDOM})
    dataset = dataset_of(tones, cache, **RANDOM)
    probabilities, truth = Session(config, dataset).predict("val")
    val = dataset.rows("val")
    assert len(probabilities) == len(val) == dataset.facts["n_val"]
    np.testing.assert_array_equal(truth, dataset.labels[val])
    assert dataset.facts["n_train"] + dataset.facts["n_val"] + dataset.facts["n_test"] == len(dataset.labels)


def test_the_note_and_the_proof_count_what_is_in_two_splits(birds, cache):
    manifest = read_manifest(birds)
    dataset = dataset_of(manifest, cache, **RANDOM)
    clips = manifest.iloc[dataset.recording].assign(split=dataset.splits)
    clips["part"] = np.where(clips["split"] == "test", 99, dataset.fold)
    n_val = int((dataset.fold >= 0).sum())
    repeats = [(clips[dataset.fold == f], clips[(dataset.fold != f) & (clips["split"] != "test")])
               for f in range(5)]  # fmt: skip
    (note,) = [note for note in dataset.facts["notes"] if note.startswith("LEAKAGE")]
    proof = proof_of_split(manifest, dataset.folder)
    for column in ("recording_id", "recordist"):
        n = sum(value in set(train[column]) for val, train in repeats for value in val[column])
        assert n > n_val / 2
        assert f"{n} share a {column}" in note
        crossing = [v for v, parts in clips.groupby(column)["part"] if parts.nunique() > 1]
        assert proof[column] == {"n": manifest[column].nunique(), "crossing": sorted(crossing)}
    assert f"of {n_val} validation clips in 5 folds, " in note and "data.split = random-windows" in note
    assert dataset.facts["grouped_by"] == []


def test_clips_are_split_at_random_within_each_species(birds, cache):
    dataset = dataset_of(read_manifest(birds), cache, **RANDOM)
    for label in range(len(dataset.species)):
        splits = pd.Series(dataset.splits[dataset.labels == label]).value_counts()
        n = splits.sum()
        assert splits["val"] == pytest.approx(0.85 / 5 * n, abs=1)
        assert splits["test"] == pytest.approx(0.15 * n, abs=1)
    again = dataset_of(read_manifest(birds), cache, **RANDOM, **{"data.split_seed": 1})
    assert (again.splits != dataset.splits).any()


def scattered(manifest):
    return scatter_clips(manifest, DataConfig())


def test_one_window_a_recording_is_a_random_split_of_recordings_and_said_so(birds):
    manifest = read_manifest(birds)
    split = scattered(manifest)
    assert any("recordings split at random" in note for note in split.notes)
    assert split.notes[0].startswith("LEAKAGE") and split.grouped_by == ()
    twice = scattered(manifest.iloc[np.repeat(np.arange(len(manifest)), 2)])
    assert not any("recordings split at random" in note for note in twice.notes)


def test_a_split_column_is_not_used_and_said_so(birds):
    manifest = read_manifest(birds).assign(split=["train", "val", "test", "train"] * 10)
    split = scattered(manifest)
    assert (split.assigned != manifest["split"]).any()
    assert "the manifest's split column was not used" in split.notes
    assert not any("split column" in note for note in scattered(manifest.assign(split="")).notes)
    folded = scattered(manifest.assign(split="", fold=["1", "2"] * 20))
    assert "the manifest's fold column was not used" in folded.notes
    assert folded.place.n_folds == 5 and folded.labels == ()


def test_clips_are_dealt_into_folds_at_random_and_each_is_validated_once(tones, cache):
    config = TrainConfig().override({**WINDOWS, **RANDOM})
    datasets = [
        Dataset.open(prepare(tones, config.override({"repeat": repeat}), cache=cache, workers=1))
        for repeat in (0, 1, 2, 3, 4, 5)
    ]
    *deal, again = datasets
    validated = sum((dataset.splits == "val").astype(int) for dataset in deal)
    np.testing.assert_array_equal(validated, deal[0].splits != "test")
    assert (again.splits != deal[0].splits).any()
    for dataset in datasets:
        np.testing.assert_array_equal(dataset.splits == "test", deal[0].splits == "test")
        assert 0.2 < dataset.facts["n_val"] / (dataset.splits == "train").sum() < 0.3
        # Most recordings have windows in training and in validation.
        val = dataset.recording[dataset.rows("val")]
        assert np.isin(val, dataset.recording[dataset.rows("train")]).mean() > 0.8


def test_a_config_with_leakage_is_cautioned_of():
    (caution,) = cautions(TrainConfig().override(RANDOM))
    assert "data.split = 'random-windows'" in caution and "too high" in caution
