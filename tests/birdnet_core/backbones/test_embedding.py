"""Embeddings as features: the data follow the backbone, other weights are refused, heads train on them."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from birdnet_core.build import build_feature, feature_shape, input_shape, rehearse
from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.errors import BirdtuneError, ConfigError
from birdnet_core.inference.classifier import Classifier
from birdnet_core.inference.evaluation import member_probabilities
from birdnet_core.inference.model_folder import read_model
from birdnet_core.training.run import save_model, train
from birdnet_core.training.session import Session

HEADS = ("linear", "mlp", "prototype")
EMBEDDED = {
    "features.name": "embedding", "features.backbone": "onnx", "model.name": "linear", "training.epochs": 3,
    "optim.warmup_epochs": 0, "training.precision": "fp32", "data.windows_per_recording": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tiny_onnx_in, tmp_path_factory):
    return tiny_onnx_in(tmp_path_factory.mktemp("weights"))[0]


@pytest.fixture(scope="module")
def config(weights):
    return TrainConfig().override({**EMBEDDED, "features.weights": weights})


@pytest.fixture(scope="module")
def dataset(birds, config, cache):
    return Dataset.open(prepare(read_manifest(birds), config, cache=cache, workers=1))


@pytest.fixture
def own_config(tiny_onnx):
    """A config with weights of its own, which a test may replace."""
    return TrainConfig().override({**EMBEDDED, "features.weights": tiny_onnx()[0]})


def test_the_data_follow_the_backbone_and_go_back_with_other_features(config):
    assert (config.data.sample_rate, config.data.window_s, config.data.highpass_hz) == (8_000, 0.5, 0.0)
    assert len(config.features.kwargs["weights_hash"]) == 16
    assert input_shape(config) == (6,)
    back = config.override({"features.name": "mfcc", "model.name": "audio_cnn"})
    assert back.data == dataclasses.replace(TrainConfig().data, windows_per_recording=2)


def test_a_setting_that_contradicts_the_backbone_is_an_error_that_names_both(config):
    with pytest.raises(ConfigError, match=r"data\.sample_rate = 8000 .*not 22050"):
        input_shape(config.override({"data.sample_rate": 22_050}))
    with pytest.raises(ConfigError, match=r"data\.highpass_hz = 500, .* takes 0;"):
        input_shape(config.override({"data.highpass_hz": 500.0}))
    given = {**EMBEDDED, "features.weights": config.features.kwargs["weights"], "data.window_s": 1.0}
    with pytest.raises(ConfigError, match=r"data\.window_s = 0\.5, not 8000 and 1;"):
        input_shape(TrainConfig().override(given))


def test_a_config_is_known_by_the_content_of_the_weights(own_config, tiny_onnx, tmp_path):
    config = own_config
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    for file in ("weights.onnx", "weights.json"):
        (tmp_path / f"moved{file[7:]}").write_bytes((tmp_path / file).read_bytes())
    moved = config.override({"features.weights": str(tmp_path / "moved.onnx")})
    assert moved.config_id == config.config_id
    other = TrainConfig().override({**EMBEDDED, "features.weights": tiny_onnx(seed=1)[0]})
    assert other.config_id != config.config_id


def test_other_weights_than_those_of_the_config_are_refused(own_config, tiny_onnx):
    config = own_config
    tiny_onnx(seed=1)
    with pytest.raises(ConfigError, match="other weights than those of this config"):
        build_feature(dataclasses.replace(config.features), 8_000, 4_000)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.name": "audio_cnn"}, r"'audio_cnn' takes spectrograms.*\[6\].*linear, mlp, prototype"),
        (
            {"augment.spec_augment.p": 0.5},
            r"'spec_augment' changes spectrograms.*augment\.spec_augment\.p = 0",
        ),
    ],
)
def test_what_needs_spectrograms_is_refused_by_name(config, change, words):
    with pytest.raises(ConfigError, match=words):
        rehearse(config.override(change), input_shape(config), list("abcd"))


def test_a_head_is_refused_on_spectrograms(small_config):
    config = small_config.override({"model.name": "linear"})
    with pytest.raises(ConfigError, match="'linear' takes embeddings.*audio_cnn"):
        rehearse(config, input_shape(config), list("abcd"))


def test_stored_embeddings_are_those_of_the_clips_and_standardised_by_the_training_split(config, dataset):
    rows = np.arange(len(dataset.in_store))
    feature = build_feature(config.features, 8_000, 4_000)
    expected = feature(dataset.waveforms(rows)).numpy()
    stored = dataset.stored_features(rows)
    assert stored.shape == (len(rows), 6)
    np.testing.assert_allclose(stored, expected, atol=1e-3 * np.abs(expected).max())
    of_train = stored[dataset.rows("train")]
    np.testing.assert_allclose(dataset.mean, of_train.mean(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dataset.std, of_train.std(axis=0), rtol=1e-4, atol=1e-4)
    session = Session(config, dataset)
    batches = [features for features, _ in session.train_clips.in_order(7)]
    inputs = torch.cat(batches)
    np.testing.assert_allclose(inputs.mean(0), np.zeros(6), atol=1e-4)
    np.testing.assert_allclose(inputs.std(0, correction=0), np.ones(6), atol=1e-4)


# What changes targets, losses and sampling goes with embeddings as it does with spectrograms.
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"augment.mixup.p": 0.6},
        {"loss.class_weights": "sqrt"},
        {"loss.name": "focal", "loss.gamma": 2.0},
        {"loss.name": "logit_adjusted"},
        {"loss.label_smoothing": 0.1},
        {"training.sampling": "class_balanced"},
        {"training.ema_decay": 0.9},
        {"augment.gain.p": 0.5},
    ],
    ids=lambda change: next(iter(change.values()), "plain") if change else "plain",
)
def test_every_head_trains_and_continues_to_the_last_digit(config, dataset, tmp_path, head, change):
    config = config.override({"model.name": head, **change})
    whole = train(config, dataset).progress.history
    session = Session(config, dataset)
    session.step()
    session.save(tmp_path / "session.pt")
    session = Session.load(tmp_path / "session.pt", dataset)
    while not session.finished:
        session.step()

    def without_time(rows):
        # As text, in which a nan, of a stratum that is not validated, equals another.
        return [{key: repr(value) for key, value in row.items() if key != "epoch_s"} for row in rows]

    assert without_time(session.progress.history) == without_time(whole)
    assert len(whole) == 3


def test_prototypes_start_as_the_means_of_their_classes(config, dataset):
    session = Session(config.override({"model.name": "prototype"}), dataset)
    clips = session.train_clips
    features = torch.cat([some for some, _ in clips.in_order(16)])
    for label, prototype in enumerate(session.model.prototypes.detach()):
        mean = features[clips.labels == label].mean(0)
        cosine = torch.nn.functional.cosine_similarity(mean, prototype, dim=0)
        assert cosine == pytest.approx(1, abs=1e-5)


def test_a_saved_model_predicts_as_in_training_and_refuses_other_weights(
    own_config, dataset, tiny_onnx, tmp_path, birds
):
    config = own_config  # the weights of `dataset`, at another place
    session = train(config, dataset)
    save_model(session, tmp_path / "model")
    model = read_model(tmp_path / "model")
    assert model.input_shape == (6,)
    assert len(model.mean) == 6
    probabilities, _, _ = member_probabilities(model, dataset, "val", "cpu")
    np.testing.assert_allclose(probabilities[0], session.predict("val")[0], atol=1e-5)
    recording = read_manifest(birds)["path"].iloc[0]
    table = Classifier.load(tmp_path / "model").predict_recordings([recording], top_k=1)
    assert len(table) == 1
    for file in ("weights.onnx", "weights.json"):
        (tmp_path / f"moved{file[7:]}").write_bytes((tmp_path / file).read_bytes())
    tiny_onnx(seed=1)
    with pytest.raises(BirdtuneError, match="other weights than those of this config"):
        Classifier.load(tmp_path / "model")
    moved = Classifier.load(tmp_path / "model", weights=str(tmp_path / "moved.onnx"))
    again = moved.predict_recordings([recording], top_k=1)
    assert again["probability"].tolist() == table["probability"].tolist()
    with pytest.raises(BirdtuneError, match="other weights"):
        Classifier.load(tmp_path / "model", weights=str(tmp_path / "weights.onnx"))


def test_a_model_of_birdtune_gives_the_inputs_of_its_last_layer(small_config, small_dataset, tmp_path):
    session = train(small_config.override({"training.epochs": 1}), small_dataset)
    save_model(session, tmp_path / "model")
    flat = {"features.name": "embedding", "features.backbone": "birdtune", "model.name": "linear"}
    config = small_config.override({**flat, "features.weights": str(tmp_path / "model")})
    assert config.data.sample_rate == small_config.data.sample_rate
    feature = build_feature(config.features, config.data.sample_rate, config.data.n_samples)
    waveforms = small_dataset.waveforms(small_dataset.rows("val"))
    embeddings = feature(waveforms)
    assert embeddings.shape[1:] == feature_shape(
        config.features, config.data.sample_rate, config.data.n_samples
    )
    last = read_model(tmp_path / "model").networks()[0].head[-1]
    logits = torch.from_numpy(feature.backbone.label_logits(waveforms.numpy()))
    torch.testing.assert_close(last(embeddings), logits, rtol=1e-5, atol=1e-5)
    classifier = Classifier.load(tmp_path / "model", device="cpu")
    expected = classifier.probabilities(waveforms)
    if classifier.precision == "fp32":
        np.testing.assert_allclose(torch.softmax(logits, 1).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("weights", [None, "no-such-folder"])
def test_a_model_folder_that_is_not_there_is_refused_by_name(weights):
    flat = {"features.name": "embedding", "features.backbone": "birdtune", "features.weights": weights}
    with pytest.raises(ConfigError, match=r"features\.weights"):
        TrainConfig().override(flat)
