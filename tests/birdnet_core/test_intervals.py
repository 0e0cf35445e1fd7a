"""The bootstrap interval around a score."""

import numpy as np
import pytest

from birdnet_core.intervals import bootstrap_interval


def test_it_is_the_middle_of_the_resamples_less_their_bias():
    resamples = np.linspace(0.2, 0.6, 401)  # mean 0.4, middle 95 % from 0.21 to 0.59
    assert bootstrap_interval(0.4, resamples) == pytest.approx((0.21, 0.59))
    assert bootstrap_interval(0.35, resamples) == pytest.approx((0.16, 0.54))


def test_a_value_outside_of_all_its_resamples_lies_in_its_interval():
    low, high = bootstrap_interval(0.7, np.linspace(0.4, 0.6, 401))
    assert low < 0.7 < high and high - low == pytest.approx(0.19)


def test_the_ends_stay_within_what_the_score_can_be():
    assert bootstrap_interval(0.98, np.linspace(0.8, 1, 401), lowest=0, highest=1)[1] == 1
    assert bootstrap_interval(0.02, np.linspace(0, 0.2, 401), lowest=0, highest=1)[0] == 0
    assert bootstrap_interval(0.98, np.linspace(0.8, 1, 401))[1] > 1


def test_resamples_without_a_value_are_left_out():
    some = np.append(np.linspace(0.2, 0.6, 401), [np.nan] * 50)
    assert bootstrap_interval(0.4, some) == pytest.approx((0.21, 0.59))
    assert np.isnan(bootstrap_interval(0.4, np.full(10, np.nan))).all()
