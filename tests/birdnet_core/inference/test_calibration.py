import numpy as np
import pytest
from scipy import optimize, special

from birdnet_core.inference.calibration import calibration_error, fit_temperature, reliability, tempered

RNG = np.random.default_rng(1)


def logits(n=300, n_classes=6, scale=1.0):
    """Logits, and classes drawn from their softmax: calibrated at temperature 1."""
    values = 2 * RNG.normal(size=(n, n_classes))
    truth = np.array([RNG.choice(n_classes, p=p) for p in special.softmax(values, axis=1)])
    return scale * values, truth


def test_temperature_divides_the_logits():
    values, _ = logits()
    expected = special.softmax(values / 2.5, axis=1)
    np.testing.assert_allclose(tempered(special.softmax(values, axis=1), 2.5), expected, rtol=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_is_that_of_the_lowest_log_loss(scale):
    values, truth = logits(scale=scale)

    def loss(log_t):
        return -special.log_softmax(values / np.exp(log_t), axis=1)[np.arange(len(truth)), truth].mean()

    expected = np.exp(optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)
    found = fit_temperature(special.softmax(values, axis=1), truth)
    assert found == pytest.approx(expected, rel=1e-3)
    # The classes were drawn from the logits before they were scaled.
    assert found == pytest.approx(scale, rel=0.25)


def test_probabilities_that_are_always_right_have_the_coldest_temperature_and_useless_ones_the_hottest():
    always = np.full((20, 3), 0.1)
    always[:, 1] = 0.8
    assert fit_temperature(always, np.full(20, 1)) == pytest.approx(0.05)
    assert fit_temperature(always, np.full(20, 0)) == pytest.approx(20)
    assert np.isfinite(tempered(np.array([[1.0, 0.0]]), 0.05)).all()


def test_reliability_and_ece_by_hand():
    # Two of four recordings promise 0.9, one of them is right; two promise 0.6, both are right.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    truth = np.array([0, 1, 0, 1])
    rows = [row for row in reliability(probabilities, truth) if row["n"]]
    assert [(row["n"], row["accuracy"]) for row in rows] == [(2, 1.0), (2, 0.5)]
    assert [row["confidence"] for row in rows] == pytest.approx([0.6, 0.9])
    assert all(row["low"] < row["confidence"] <= row["high"] for row in rows)
    assert calibration_error(probabilities, truth) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    # The wrong one counted three times: 1/4 right of four that promise 0.9, and two of six recordings.
    weights = np.array([1, 3, 1, 1])
    expected = 4 / 6 * (0.9 - 0.25) + 2 / 6 * (1 - 0.6)
    assert calibration_error(probabilities, truth, weights) == pytest.approx(expected)


def test_the_bins_hold_every_recording_once():
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5], [2 / 3, 1 / 3]])
    rows = reliability(probabilities, np.array([0, 0, 1]))
    assert (len(rows), sum(row["n"] for row in rows)) == (15, 3)
    empty = [row for row in rows if not row["n"]]
    assert all(row["confidence"] is None and row["accuracy"] is None for row in empty)
