"""Do the statistics keep what they promise? Simulated studies whose truth is known."""

import numpy as np
import pytest

from reports.statistics.aggregate import t_interval
from reports.statistics.family import joint
from reports.statistics.linear_model import RepeatedScores, fit

VS_FIRST = np.eye(5)[1:] - np.eye(5)[0]


def claimed(values):
    """Return which of four cells differ from the first, by [cells, repeats] of five cells."""
    found = joint(fit(RepeatedScores(values, None, values.shape[1])), VS_FIRST, n_draws=2000)
    return (found.low > 0) | (found.high < 0)


@pytest.mark.parametrize("n_repeats", [2, 3, 5, 10])
def test_an_interval_covers_the_truth_in_95_of_100_studies(n_repeats):
    draws = np.random.default_rng(n_repeats).normal(0.3, 0.02, (4000, n_repeats))
    covered = [low <= 0.3 <= high for _, low, high in map(t_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("n_repeats", [3, 5])
def test_a_table_without_a_true_difference_claims_one_in_at_most_5_of_100_studies(n_repeats):
    """Five cells that are all alike; repeats differ, as folds do, and cells share them."""
    rng = np.random.default_rng(7)
    n_studies = 400
    found = [
        claimed(rng.normal(0.2, 0.03, n_repeats) + rng.normal(0, 0.02, (5, n_repeats))).any()
        for _ in range(n_studies)
    ]
    assert 0.01 < np.mean(found) < 0.05 + 2 * (0.05 * 0.95 / n_studies) ** 0.5


def test_cells_that_share_their_repeats_show_what_the_repeats_would_hide():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(100):
        repeats = rng.normal(0.2, 0.10, 5)  # they differ far more than the cells do
        values = repeats + rng.normal(0, 0.01, (5, 5))
        values[4] += 0.03
        found.append(claimed(values))
    assert np.mean(found, axis=0)[3] > 0.8 and np.mean(found, axis=0)[:3].max() < 0.06
