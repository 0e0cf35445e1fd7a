import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from birdnet_core.metrics import average_windows, f1_per_class, mean_average_precision, score

RNG = np.random.default_rng(0)
STRATA = {"rare": np.array([3, 4]), "medium": np.array([2]), "common": np.array([0, 1])}


def some(n=80, n_classes=6):
    probabilities = RNG.dirichlet(np.ones(n_classes), n)
    return probabilities, RNG.integers(0, 5, n)  # class 5 is never true


def test_scores_are_scikit_learns():
    probabilities, truth = some()
    predicted = probabilities.argmax(1)
    scores = score(probabilities, truth, STRATA)
    assert scores["accuracy"] == sklearn_metrics.accuracy_score(truth, predicted)
    assert scores["loss"] == pytest.approx(
        sklearn_metrics.log_loss(truth, probabilities, labels=np.arange(6))
    )
    for average in ("macro", "weighted"):
        expected = sklearn_metrics.f1_score(truth, predicted, average=average, zero_division=0)
        assert scores[f"f1_{average}"] == expected


def test_f1_macro_averages_the_classes_in_truth_or_prediction():
    # By hand: class 0 has F1 2/3 (1 of 1 found, 1 false), class 1 has 0, class 2 is in neither.
    probabilities = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0]])
    scores = score(probabilities, np.array([0, 1]), {})
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)
    # A class that is predicted and never true pulls the mean down.
    probabilities = np.array([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]])
    assert score(probabilities, np.array([0, 0]), {})["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)


def test_strata_average_their_species_present_in_truth():
    probabilities, truth = some()
    f1 = f1_per_class(probabilities.argmax(1), truth, 6)
    scores = score(probabilities, truth, STRATA | {"rare": np.array([3, 5]), "medium": np.array([5])})
    assert scores["f1_common"] == pytest.approx((f1[0] + f1[1]) / 2)
    assert scores["f1_rare"] == pytest.approx(f1[3])
    assert np.isnan(scores["f1_medium"])


def test_average_precision_by_hand():
    # Ranking of class 0: right, wrong, right -> (1 + 2/3) / 2; of class 1: wrong, right, wrong -> 1/2.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    probabilities[:, 1] = [0.5, 0.4, 0.3]
    assert mean_average_precision(probabilities, np.array([0, 1, 0])) == pytest.approx(
        ((1 + 2 / 3) / 2 + 1 / 2) / 2
    )


def test_windows_of_a_recording_are_averaged():
    windows = np.array([[1.0, 0.0], [0.0, 1.0], [0.2, 0.8]])
    averaged, names = average_windows(windows, np.array([7, 3, 7]))
    assert names.tolist() == [3, 7]
    np.testing.assert_allclose(averaged, [[0, 1], [0.6, 0.4]])


def test_impossible_truth_costs_a_finite_loss():
    assert np.isfinite(score(np.array([[1.0, 0.0]]), np.array([1]), {})["loss"])


@pytest.mark.parametrize(
    ("file", "accuracy", "f1_macro", "f1_weighted"),
    [
        ("phase0_audio_vit_test_predictions.json", 0.3779, 0.1334, 0.3224),
        ("phase0_audio_cnn_test_predictions.json", 0.1384, 0.0198, 0.0814),
    ],
)
def test_the_earlier_works_predictions_score_as_they_were_reported(
    shared, file, accuracy, f1_macro, f1_weighted
):
    stored = json.loads((shared / "seed_results" / file).read_text())
    truth, predicted = np.array(stored["labels"]), np.array(stored["predictions"])
    probabilities = np.eye(89)[predicted]
    scores = score(probabilities, truth, {})
    assert scores["accuracy"] == pytest.approx(accuracy, abs=5e-5)
    assert scores["f1_macro"] == pytest.approx(f1_macro, abs=5e-5)
    assert scores["f1_weighted"] == pytest.approx(f1_weighted, abs=5e-5)
