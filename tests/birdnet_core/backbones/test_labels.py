"""A head that starts from the backbone's own classifier: its logits at first, then trained from there."""

import numpy as np
import pytest
import torch

from birdnet_core.backbones.labels import label_rows
from birdnet_core.build import build_feature, input_shape, rehearse
from birdnet_core.config import TrainConfig
from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.errors import ConfigError
from birdnet_core.inference.baselines import zero_shot
from birdnet_core.inference.evaluation import member_probabilities
from birdnet_core.inference.model_folder import read_model
from birdnet_core.training.run import save_model, train
from birdnet_core.training.session import Session


@pytest.fixture(scope="module")
def config(small_config, small_dataset, tmp_path_factory):
    """A linear head on a birdtune model's embeddings, started from that model's last layer."""
    folder = tmp_path_factory.mktemp("backbone") / "model"
    save_model(train(small_config.override({"training.epochs": 2}), small_dataset), folder)
    return small_config.override(
        {
            "features.name": "embedding", "features.backbone": "birdtune", "features.weights": str(folder),
            "model.name": "linear", "model.start": "labels", "training.epochs": 3,
            "training.precision": "fp32", "optim.warmup_epochs": 0,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset(birds, config, cache):
    return Dataset.open(prepare(read_manifest(birds), config, cache=cache, workers=1))


@pytest.fixture(scope="module")
def backbone(config):
    return build_feature(config.features, config.data.sample_rate, config.data.n_samples).backbone


def test_its_logits_are_the_backbones_own_before_the_first_step(config, dataset, backbone):
    session = Session(config, dataset)
    features = torch.cat([some for some, _ in session.train_clips.in_order(16)])
    waveforms = dataset.waveforms(dataset.rows("train")).numpy()
    assert list(backbone.convention.labels) == list(dataset.species)
    with torch.no_grad():
        found = session.model.eval()(features)
    # Embeddings are kept as float16.
    np.testing.assert_allclose(found.numpy(), backbone.label_logits(waveforms), atol=5e-3)


def test_untrained_it_predicts_as_the_zero_shot_baseline(config, dataset, backbone, tmp_path):
    session = train(config.override({"optim.lr": 1e-12, "training.epochs": 1}), dataset)
    save_model(session, tmp_path / "model")
    (found,), _, _ = member_probabilities(read_model(tmp_path / "model"), dataset, "test", "cpu")
    np.testing.assert_allclose(found, zero_shot(backbone, dataset, "test"), atol=5e-3)


def test_weight_decay_pulls_it_back_to_the_labels(config, dataset):
    """What is trained and decays is the difference from the backbone's classifier, which stays as it is."""
    session = Session(config, dataset)
    before = session.model.label_weights.clone()
    far = train(config.override({"optim.lr": 0.1, "optim.weight_decay": 0.0}), dataset).model
    near = train(config.override({"optim.lr": 0.1, "optim.weight_decay": 5.0}), dataset).model
    assert not session.model.head[1].weight.any()
    assert 0 < near.head[1].weight.norm() < far.head[1].weight.norm()
    torch.testing.assert_close(far.label_weights, before)


def test_a_species_without_a_label_starts_as_the_average_of_the_others(backbone):
    first, second, *_ = backbone.convention.labels
    weights, biases = label_rows(backbone, (second, "Alien bird", first))
    known, known_biases = backbone.label_layer()
    np.testing.assert_array_equal(weights[[2, 0]], known[:2])
    np.testing.assert_allclose(weights[1], known[:2].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(biases, [known_biases[1], known_biases[:2].mean(), known_biases[0]], rtol=1e-6)


def test_species_that_the_backbone_does_not_know_are_refused_before_anything_is_made(config):
    with pytest.raises(ConfigError, match=r"none for Alien bird.*model\.start = 'random'.*labels=false"):
        rehearse(config, input_shape(config), ["Alien bird"])


def test_features_without_a_backbone_and_unknown_starts_are_refused(small_config, config):
    other = small_config.override(
        {"features.name": "mel_statistics", "model.name": "linear", "model.start": "labels"}
    )
    with pytest.raises(ConfigError, match=r"takes features\.name = 'embedding', not 'mel_statistics'"):
        rehearse(other, input_shape(other), ["Turdus merula"])
    with pytest.raises(ConfigError, match=r"model\.start = 'zero'; it takes random or labels"):
        rehearse(config.override({"model.start": "zero"}), input_shape(config), ["Turdus merula"])


def test_a_backbone_whose_last_layer_is_not_known_is_refused_by_name(tiny_onnx):
    config = TrainConfig().override(
        {
            "features.name": "embedding", "features.backbone": "onnx", "features.weights": tiny_onnx()[0],
            "model.name": "linear", "model.start": "labels",
        }
    )  # fmt: skip
    with pytest.raises(ConfigError, match="Onnx has no linear layer from its embeddings to labels"):
        rehearse(config, input_shape(config), ["Turdus merula"])
