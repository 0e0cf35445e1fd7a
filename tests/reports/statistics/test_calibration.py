"""Do the statistics keep what they promise? Simulated studies whose truth is known."""

import numpy as np
import pytest

from reports.statistics.aggregate import t_interval
from reports.statistics.compare import holm, statistics_of


@pytest.mark.parametrize("n_repeats", [2, 3, 5, 10])
def test_an_interval_covers_the_truth_in_95_of_100_studies(n_repeats):
    draws = np.random.default_rng(n_repeats).normal(0.3, 0.02, (4000, n_repeats))
    covered = [low <= 0.3 <= high for _, low, high in map(t_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("n_repeats", [3, 5])
def test_a_table_without_a_true_difference_claims_one_in_at_most_5_of_100_studies(n_repeats):
    """Five cells that are all alike; seeds differ, as initial weights do, and cells share them."""
    rng = np.random.default_rng(7)
    n_studies, claimed = 2000, 0
    for _ in range(n_studies):
        values = rng.normal(0.2, 0.03, n_repeats) + rng.normal(0, 0.02, (5, n_repeats))
        p = [statistics_of(list(cell - values[0]), 0.2)["p"] for cell in values[1:]]
        claimed += min(holm(p)) < 0.05
    assert 0.02 < claimed / n_studies <= 0.05


def test_pairing_by_seed_finds_what_the_seeds_would_hide():
    rng = np.random.default_rng(1)
    seeds = rng.normal(0.2, 0.10, (500, 5))  # seeds differ far more than the cells do
    before, after = seeds + rng.normal(0, 0.01, (2, 500, 5))
    found = [statistics_of(list(d), 0.2)["p"] < 0.05 for d in after + 0.03 - before]
    assert np.mean(found) > 0.8
