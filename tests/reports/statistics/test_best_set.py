"""The set of cells that may be the best, and the bound on what a choice may lose."""

import numpy as np
import pytest

from reports.statistics.best_set import best_set
from reports.statistics.linear_model import RepeatedScores, fit


def fitted_to(values):
    return fit(RepeatedScores(np.array(values, dtype=float), None, np.shape(values)[1]))


def test_a_cell_that_is_far_ahead_is_alone():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 5)) + np.array([0, 0, 30, 0])[:, None]
    found = best_set(fitted_to(values))
    assert found.is_in.tolist() == [False, False, True, False]
    assert found.regret[2] == 0
    lead = values.mean(axis=1)[2] - values.mean(axis=1)
    assert (found.regret[[0, 1, 3]] > lead[[0, 1, 3]]).all()


def test_where_lower_is_better_the_lowest_is_ahead():
    values = np.random.default_rng(0).normal(size=(3, 5)) + np.array([0, 30, 60])[:, None]
    assert best_set(fitted_to(values), sign=-1).is_in.tolist() == [True, False, False]


def test_the_truly_best_is_in_the_set_and_the_bound_holds():
    rng = np.random.default_rng(1)
    in_set = bounded = 0
    bounds = []
    for _ in range(300):
        true = rng.normal(0, 0.7, 8)
        fitted = fitted_to(rng.normal(size=(8, 5)) + true[:, None])
        found = best_set(fitted)
        chosen = int(fitted.means.argmax())
        in_set += bool(found.is_in[true.argmax()])
        bounded += true.max() - true[chosen] <= found.regret[chosen]
        bounds.append(found.regret[chosen])
    assert in_set / 300 >= 0.92 and bounded / 300 >= 0.95
    assert np.mean(bounds) < 1.6, "in units of one repeat's spread"


def test_cells_that_do_not_vary_are_compared_by_their_means():
    found = best_set(fitted_to([[1, 2, 3], [2, 3, 4], [2, 3, 4]]))
    assert found.is_in.tolist() == [False, True, True]
    assert found.regret == pytest.approx([1, 0, 0])
