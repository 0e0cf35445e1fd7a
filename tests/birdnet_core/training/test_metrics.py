import json
import time

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from birdnet_core.inference.calibration import calibration_error
from birdnet_core.records.metrics import METRICS, TEST_METRICS
from birdnet_core.training.metrics import Scores, average_windows, f1_per_class, likeliest, score

RNG = np.random.default_rng(0)
STRATA = {"rare": np.array([3, 4]), "medium": np.array([2]), "common": np.array([0, 1])}


def some(n=80, n_classes=6, decimals=None):
    """Probabilities, of which with few decimals many are equal, and classes; class 5 is never true."""
    probabilities = RNG.dirichlet(np.ones(n_classes), n)
    if decimals is not None:
        probabilities = probabilities.round(decimals) + 0.01
        probabilities /= probabilities.sum(1, keepdims=True)
        probabilities = probabilities.round(2)
    return probabilities, RNG.integers(0, 5, n)


@pytest.mark.parametrize("decimals", [None, 1])
def test_the_likeliest_classes_are_those_of_a_sort(decimals):
    probabilities, _ = some(n_classes=30, decimals=decimals)
    predicted = probabilities.argmax(1)
    top, probability = likeliest(probabilities, predicted)
    assert top.shape == probability.shape == (80, 10)
    assert top[:, 0].tolist() == predicted.tolist()  # of equal ones too
    assert all(len(set(classes)) == 10 for classes in top.tolist())
    expected = np.sort(probabilities, axis=1)[:, ::-1][:, :10].astype(np.float16)
    np.testing.assert_array_equal(probability, expected)
    np.testing.assert_array_equal(probability, np.take_along_axis(probabilities, top, 1).astype(np.float16))


def test_classes_that_are_equally_likely_keep_the_predicted_one_first():
    top, probability = likeliest(np.full((3, 20), 0.05), np.array([0, 7, 19]))
    assert top[:, 0].tolist() == [0, 7, 19] and np.ptp(probability) == 0


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_scores_are_scikit_learns(decimals, is_weighted):
    """With ties, with weights that are no whole numbers, with a class that is never true."""
    probabilities, truth = some(decimals=decimals)
    weights = RNG.uniform(0.1, 3, len(truth)) if is_weighted else None
    predicted = probabilities.argmax(1)
    of_truth = probabilities[np.arange(len(truth)), truth]
    is_class = truth[:, None] == np.arange(5)
    by_weight = {"sample_weight": weights}
    f1 = {
        average: sklearn_metrics.f1_score(truth, predicted, average=average, zero_division=0, **by_weight)
        for average in ("macro", "weighted")
    }
    of_classes = sklearn_metrics.f1_score(
        truth, predicted, labels=np.arange(6), average=None, zero_division=0, **by_weight
    )
    expected = {
        "loss": np.average(-np.log(of_truth), weights=weights),
        "accuracy": sklearn_metrics.accuracy_score(truth, predicted, **by_weight),
        "f1_macro": f1["macro"],
        "f1_weighted": f1["weighted"],
        "f1_rare": of_classes[[3, 4]].mean(),
        "f1_medium": of_classes[2],
        "f1_common": of_classes[[0, 1]].mean(),
        "map": sklearn_metrics.average_precision_score(
            is_class, probabilities[:, :5], average="macro", **by_weight
        ),
        "auroc": sklearn_metrics.roc_auc_score(is_class, probabilities[:, :5], average="macro", **by_weight),
        "ece": calibration_error(probabilities, truth, weights),
    }
    scores = Scores(probabilities, truth, STRATA)(weights)
    assert {f"test/{name}" for name in scores} == set(TEST_METRICS)
    if decimals is None:  # scikit-learn ranks equal probabilities the other way round
        expected["top5"] = sklearn_metrics.top_k_accuracy_score(
            truth, probabilities, k=5, labels=np.arange(6), **by_weight
        )
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, rel=1e-9), name
    np.testing.assert_allclose(f1_per_class(predicted, truth, 6, weights), of_classes, rtol=1e-12)
    if not is_weighted:
        of_validation = score(probabilities, truth, STRATA)
        assert of_validation == {name: scores[name] for name in of_validation}
        assert {f"val/{name}" for name in of_validation} == {m for m in METRICS if m.startswith("val/")}


@pytest.mark.parametrize("seed", range(20))
def test_rankings_of_many_classes_are_scikit_learns(seed):
    """More classes than most have recordings; among equal probabilities of 0, as networks give them."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(40, 0.05), 60).round(2)
    truth = rng.integers(0, 40, 60)
    present = np.unique(truth)
    is_class = truth[:, None] == present
    scores = Scores(probabilities, truth, {})()
    assert scores["map"] == pytest.approx(
        sklearn_metrics.average_precision_score(is_class, probabilities[:, present], average="macro")
    )
    assert scores["auroc"] == pytest.approx(
        sklearn_metrics.roc_auc_score(is_class, probabilities[:, present], average="macro")
    )


@pytest.mark.parametrize("decimals", [None, 1])
def test_weights_count_recordings_several_times_or_not_at_all(decimals):
    probabilities, truth = some(decimals=decimals)
    weights = RNG.integers(0, 4, len(truth))
    weights[truth == 2] = 0  # a class that a resample has lost
    weighted = Scores(probabilities, truth, STRATA)(weights)
    rows = np.repeat(np.arange(len(truth)), weights)
    repeated = Scores(probabilities[rows], truth[rows], STRATA)()
    assert np.isnan(weighted["f1_medium"]) and np.isnan(repeated["f1_medium"])
    for name, value in repeated.items():
        assert weighted[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name


def test_one_class_alone_has_no_roc_curve():
    probabilities, _ = some(n=5)
    scores = Scores(probabilities, np.zeros(5, dtype=int), STRATA)()
    assert np.isnan(scores["auroc"]) and scores["map"] == 1


def test_scoring_a_thousand_species_does_not_cost_a_sort_of_them_by_scikit_learn():
    # 5,000 recordings of 1,000 species took 10 s an epoch by scikit-learn, and take a fifth of a second.
    probabilities = RNG.dirichlet(np.full(1000, 0.1), 1500)
    truth = RNG.integers(0, 1000, 1500)
    start = time.process_time()
    scores = score(probabilities, truth, {})
    ours = time.process_time() - start
    present = np.unique(truth)
    start = time.process_time()
    expected = sklearn_metrics.average_precision_score(
        truth[:, None] == present, probabilities[:, present], average="macro"
    )
    assert ours < (time.process_time() - start) / 2
    assert scores["map"] == pytest.approx(expected)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_probabilities_that_are_not_finite_are_refused(broken):
    probabilities, truth = some()
    probabilities[3:5, 2] = broken
    with pytest.raises(ValueError, match=r"2 of 80 recordings have probabilities that are not finite"):
        score(probabilities, truth, STRATA)


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
    scores = score(probabilities, np.array([0, 1, 0]), {})
    assert scores["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


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
