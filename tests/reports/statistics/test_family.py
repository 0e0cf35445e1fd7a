"""Simultaneous intervals and adjusted p values."""

import numpy as np
import pytest
from scipy import stats

from reports.statistics.family import Tails, joint
from reports.statistics.linear_model import RepeatedScores, fit


def fitted_to(values):
    return fit(RepeatedScores(np.array(values, dtype=float), None, np.shape(values)[1]))


def test_one_contrast_is_not_adjusted():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 7))
    found = joint(fitted_to(values), np.array([[-1.0, 1.0]]))
    known = stats.ttest_rel(values[1], values[0])
    low, high = known.confidence_interval()
    assert found.p[0] == pytest.approx(known.pvalue, abs=0.012)
    assert [found.low[0], found.high[0]] == pytest.approx([low, high], abs=0.03)


def test_two_unrelated_contrasts_have_the_interval_of_sidak():
    rng = np.random.default_rng(1)
    fitted = fitted_to(rng.normal(size=(40, 30)))  # many residuals: nearly normal
    weights = np.zeros((2, 40))
    weights[0, :2], weights[1, 2:4] = (1, -1), (1, -1)
    found = joint(fitted, weights)
    half = (found.high - found.low) / 2 / found.standard_error
    sidak = stats.norm.isf((1 - 0.95**0.5) / 2)
    assert half == pytest.approx([sidak, sidak], abs=0.1)


def test_a_large_family_is_drawn_less_often_and_is_as_wide(monkeypatch):
    values = np.random.default_rng(5).normal(size=(40, 5))
    fitted, weights = fitted_to(values), np.eye(40)[1:] - np.eye(40)[0]
    whole = joint(fitted, weights)
    monkeypatch.setattr("reports.statistics.family.MOST_VALUES", 1)
    few = joint(fitted, weights)
    for found, n_draws in ((whole, 20_000), (few, 5_000)):
        assert found.p * (n_draws + 1) == pytest.approx(np.round(found.p * (n_draws + 1)), abs=1e-6)
    assert few.high - few.low == pytest.approx(whole.high - whole.low, rel=0.02)


def test_an_interval_excludes_zero_exactly_where_p_is_below_the_level():
    rng = np.random.default_rng(2)
    for _ in range(30):
        values = rng.normal(size=(5, 4)) + np.array([0, 0, 1, 2, 3.0])[:, None]
        found = joint(fitted_to(values), np.eye(5)[1:] - np.eye(5)[0])
        excludes = (found.low > 0) | (found.high < 0)
        clear = np.abs(found.p - 0.05) > 0.002
        assert (excludes == (found.p < 0.05))[clear].all()


def test_of_contrasts_without_any_difference_one_is_found_in_five_percent_of_studies():
    rng = np.random.default_rng(3)
    weights = np.vstack([np.eye(6)[1:] - np.eye(6)[0], [[-1, -1, -1, 1, 1, 1]]])
    wrong = 0
    for _ in range(400):
        found = joint(fitted_to(rng.normal(size=(6, 5))), weights, n_draws=2000)
        wrong += bool((found.p < 0.05).any())
    assert 0.015 < wrong / 400 < 0.085


def test_scores_that_do_not_vary_have_no_interval():
    found = joint(fitted_to([[1, 2, 3], [2, 3, 4]]), np.array([[-1.0, 1.0]]))
    assert found.estimate[0] == pytest.approx(1)
    assert np.isnan([found.low[0], found.high[0], found.p[0]]).all()


def test_the_same_scores_have_the_same_intervals():
    values = np.random.default_rng(4).normal(size=(3, 5))
    weights = np.eye(3)[1:] - np.eye(3)[0]
    first, second = (joint(fitted_to(values), weights) for _ in range(2))
    assert (first.low == second.low).all() and (first.p == second.p).all()


def test_estimates_that_others_determine_add_no_errors_of_their_own():
    """Zeros of a covariance are zeros: their roots would be of the size of 1e-9, other on every machine."""
    weights = np.array([[1.0, -1, 0], [0, 1, -1], [1, 0, -1]])
    errors = Tails(weights @ np.diag([1.0, 2, 3]) @ weights.T, 1000).errors
    assert np.abs(errors[0] + errors[1] - errors[2]).max() < 1e-13
