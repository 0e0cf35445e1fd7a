"""Baselines beside a model: what each computes, on spectrograms and on embeddings."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from birdnet_core.data.feature_store import FeatureStore
from birdnet_core.inference.baselines import (
    logistic_regression,
    nearest_neighbours,
    without_label,
    zero_shot,
)

TRAINED = ("train", "val")


def standardised(x, dataset):
    """Return the training inputs and the test inputs, standardised over the first; and training classes."""
    trained = np.flatnonzero(dataset.splits != "test")
    scaler = StandardScaler().fit(x[trained])
    return scaler.transform(x[trained]), scaler.transform(x[dataset.rows("test")]), dataset.labels[trained]


def over_time(dataset):
    features = dataset.stored_features(np.arange(len(dataset.labels)))
    return np.concatenate([features.mean(3), features.std(3)], axis=1).reshape(len(features), -1)


@pytest.fixture(scope="module")
def embedded(small_dataset):
    """The small dataset with 8 values a clip instead of spectrograms, which name the species with noise."""
    rng = np.random.default_rng(0)
    n = len(small_dataset.labels)
    values = rng.normal(size=(n, 8)) + 2 * np.eye(8)[small_dataset.labels]
    store = FeatureStore(
        small_dataset.folder,
        np.round(values * 1000).astype(np.int16),
        np.full((n, 1), 0.001, np.float32),
        np.zeros((n, 1), np.float32),
        np.ones(n, np.uint64),
    )
    return replace(
        small_dataset,
        features=store,
        input_shape=(8,),
        in_store=np.arange(n),
        mean=np.zeros(8, np.float32),
        std=np.ones(8, np.float32),
    ), np.round(values * 1000) / 1000


def test_logistic_regression_is_on_averages_over_time_of_spectrograms(small_config, small_dataset):
    probabilities = logistic_regression(small_config, small_dataset, TRAINED, "test")
    trained, test, labels = standardised(over_time(small_dataset), small_dataset)
    fitted = LogisticRegression(max_iter=5000).fit(trained, labels)
    np.testing.assert_allclose(
        probabilities[:, fitted.classes_], fitted.predict_proba(test), atol=2e-3
    )  # fmt: skip


def test_logistic_regression_is_on_embeddings_as_they_are(small_config, embedded):
    dataset, values = embedded
    trained, test, labels = standardised(values, dataset)
    fitted = LogisticRegression(max_iter=5000).fit(trained, labels)
    np.testing.assert_allclose(
        logistic_regression(small_config, dataset, TRAINED, "test"), fitted.predict_proba(test), atol=1e-4
    )


def by_hand(trained, test, labels, k, n_classes):
    """Return the votes of the k most similar by the cosine, and one more spread over all classes."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (test, trained)]
    nearest = np.argsort(-unit[0] @ unit[1].T, axis=1)[:, :k]
    votes = np.array([np.bincount(labels[row], minlength=n_classes) for row in nearest])
    return (votes + 1 / n_classes) / (k + 1)


def test_neighbours_are_the_five_most_similar_by_the_cosine(small_config, small_dataset, embedded):
    dataset, values = embedded
    for each, x in ((dataset, values), (small_dataset, over_time(small_dataset))):
        expected = by_hand(*standardised(x, each), 5, len(each.species))
        found = nearest_neighbours(small_config, each, TRAINED, "test")
        np.testing.assert_allclose(found, expected, atol=1e-9)
        assert found.min() > 0 and found.sum(axis=1) == pytest.approx(1)


def test_fewer_training_clips_than_five_are_all_neighbours(small_config, embedded):
    dataset, values = embedded
    some = dataset.rows("train")[:3]
    few = np.where(np.isin(np.arange(len(dataset.splits)), some), "train", "val")
    few[dataset.rows("test")] = "test"
    found = nearest_neighbours(small_config, replace(dataset, splits=few), ("train",), "test")
    votes = np.bincount(dataset.labels[some], minlength=len(dataset.species))
    np.testing.assert_allclose(found, np.tile((votes + 0.25) / 4, (len(found), 1)))


@pytest.mark.parametrize("baseline", [logistic_regression, nearest_neighbours])
def test_baselines_are_fitted_with_a_class_without_training_clips(small_config, small_dataset, baseline):
    is_first = (small_dataset.labels == 0) & (small_dataset.splits != "test")
    dataset = replace(small_dataset, splits=np.where(is_first, "unused", small_dataset.splits))
    found = baseline(small_config, dataset, ("train",), "val")
    assert found.sum(axis=1) == pytest.approx(1) and found.shape[1] == 4
    assert found[:, 0].max() < 0.05


def backbone_of(labels):
    """A backbone that hears the loudness of a window in its first label, and nothing in the others."""

    def label_logits(waveforms):
        logits = np.zeros((len(waveforms), len(labels)), np.float32)
        logits[:, 0] = np.abs(waveforms).mean(axis=1)
        return logits

    return SimpleNamespace(convention=SimpleNamespace(labels=labels), label_logits=label_logits)


def test_zero_shot_is_the_softmax_of_the_labels_of_the_species_alone(small_dataset):
    species = small_dataset.species
    backbone = backbone_of((species[2], "Alien bird", species[0], species[1]))
    rows = small_dataset.rows("test")
    loudness = np.abs(small_dataset.waveforms(rows).numpy()).mean(axis=1)
    of_window = np.exp(loudness) / (np.exp(loudness) + 2)
    steps = []
    found = zero_shot(backbone, small_dataset, "test", lambda *step: steps.append(step))
    assert steps[-1] == ("zero-shot", len(rows), len(rows))
    scored = small_dataset.scored_ids[rows]
    expected = [of_window[scored == each].mean() for each in np.unique(scored)]
    np.testing.assert_allclose(found[:, 2], expected, rtol=1e-5)
    np.testing.assert_allclose(found[:, 0], found[:, 1])
    assert found.sum(axis=1) == pytest.approx(1)


def test_a_species_without_a_label_is_named_and_never_predicted(small_dataset):
    backbone = backbone_of(small_dataset.species[:3])
    assert without_label(backbone, small_dataset) == [small_dataset.species[3]]
    assert (zero_shot(backbone, small_dataset, "test")[:, 3] == 0).all()
