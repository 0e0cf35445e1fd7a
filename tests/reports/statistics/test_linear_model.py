"""The model of cells and repeats: textbook cases, missing values, unequal spreads, shared recordings."""

import numpy as np
import pytest
from scipy import stats

from reports.statistics import linear_model
from reports.statistics.linear_model import RepeatedScores, fit


def scores(values, influence=None, n_distinct=None):
    values = np.array(values, dtype=float)
    return RepeatedScores(values, influence, n_distinct or values.shape[1])


def test_two_cells_are_a_paired_t_test():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 6)) + 5 * rng.normal(size=6)
    fitted = fit(scores(values))
    weights = np.array([[-1.0, 1.0]])
    t = (weights @ fitted.means / np.sqrt(fitted.variance(weights)))[0]
    known = stats.ttest_rel(values[1], values[0])
    assert t == pytest.approx(known.statistic)
    assert fitted.degrees(weights) == pytest.approx(known.df)


def test_equal_spreads_are_pooled_as_in_a_randomised_block_design(monkeypatch):
    monkeypatch.setattr(linear_model, "EQUAL_ABOVE", -1)
    values = np.array([[9.0, 12, 10], [11, 14, 15], [8, 9, 13], [12, 15, 14]])
    fitted = fit(scores(values))
    # The residual mean square by sums of squares: total less cells less repeats.
    n, r = values.shape
    total = ((values - values.mean()) ** 2).sum()
    of_cells = r * ((values.mean(1) - values.mean()) ** 2).sum()
    of_repeats = n * ((values.mean(0) - values.mean()) ** 2).sum()
    square = (total - of_cells - of_repeats) / ((n - 1) * (r - 1))
    assert fitted.has_equal_spread and fitted.spread == pytest.approx([square] * n)
    weights = np.array([[1, -1, 0, 0], [0.5, 0.5, -0.5, -0.5]])
    assert fitted.variance(weights) == pytest.approx([2 * square / r, square / r])
    assert fitted.degrees(weights) == pytest.approx([6, 6])


def test_a_missing_value_is_fitted_by_least_squares():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 5)) + 3 * rng.normal(size=5)
    values[2, 3] = np.nan
    fitted = fit(scores(values))
    cell, repeat = np.nonzero(np.isfinite(values))
    design = np.hstack([np.eye(4)[cell], np.eye(5)[repeat][:, 1:]])
    coefficients, squares, rank, _ = np.linalg.lstsq(design, values[np.isfinite(values)], rcond=None)
    weights = np.array([[1.0, 0, -1, 0]])
    assert (weights @ fitted.means)[0] == pytest.approx(coefficients[0] - coefficients[2])
    covariance = np.linalg.inv(design.T @ design)[:4, :4] * squares[0] / (len(cell) - rank)
    if fitted.has_equal_spread:
        assert fitted.variance(weights)[0] == pytest.approx((weights @ covariance @ weights.T)[0, 0])
        assert fitted.degrees(weights)[0] == pytest.approx(len(cell) - rank)
    assert fitted.spread.mean() == pytest.approx(squares[0] / (len(cell) - rank), rel=0.5)


def test_a_noisy_cell_keeps_its_spread_to_itself():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(6, 8)) * np.array([20, 1, 1, 1, 1, 1.0])[:, None]
    fitted = fit(scores(values))
    assert not fitted.has_equal_spread
    noisy, others = fitted.spread[0], fitted.spread[1:]
    assert noisy == pytest.approx(400, rel=0.9) and (others < noisy).all()
    of_noisy, of_others = fitted.degrees(np.array([[1, -1, 0, 0, 0, 0], [0, 1, -1, 0, 0, 0.0]]))
    assert of_noisy < of_others


def test_own_spreads_are_without_bias():
    rng = np.random.default_rng(3)
    true = np.array([1.0, 4, 9, 1])
    found = []
    for _ in range(2000):
        values = rng.normal(size=(4, 5)) * np.sqrt(true)[:, None] + rng.normal(size=5)
        residuals = values - values.mean(1)[:, None] - values.mean(0) + values.mean()
        found.append(linear_model._own_spreads(residuals, np.ones((4, 5), dtype=bool))[0])
    assert np.mean(found, axis=0) == pytest.approx(true, rel=0.1)


def of_recordings(rng, n_cells, n_repeats, n_groups, n_folds, spread):
    """Return scores that are means of what cells make of recordings, with their influences."""
    hard = rng.normal(0, spread, (n_cells, n_groups))
    values, influence = np.zeros((n_cells, n_repeats)), np.zeros((n_cells, n_repeats, n_groups))
    for repeat in range(n_repeats):
        if repeat % n_folds == 0:
            fold = rng.permutation(n_groups) % n_folds
        here = np.flatnonzero(fold == repeat % n_folds)
        values[:, repeat] = hard[:, here].mean(axis=1)
        influence[:, repeat, here] = (hard[:, here] - hard.mean(axis=1, keepdims=True)) / len(here)
    return hard, RepeatedScores(values, influence, n_folds)


def test_recordings_that_are_validated_again_make_no_mean_more_certain():
    rng = np.random.default_rng(4)
    weights = np.array([[1.0, -1, 0]])
    once, often = [], []
    for _ in range(40):
        _, five = of_recordings(rng, 3, 5, 100, 5, 1.0)
        _, twenty = of_recordings(rng, 3, 20, 100, 5, 1.0)
        once.append(fit(five).variance(weights)[0])
        often.append(fit(twenty).variance(weights)[0])
    # A little more than 2 / 100: a training's part of the spread that is estimated as negative counts as 0.
    assert 0.019 < np.mean(once) < 0.028
    assert 0.019 < np.mean(often) < 0.028, "twenty repeats are the same 100 recordings"


def test_without_influences_repeats_beyond_the_folds_add_nothing():
    rng = np.random.default_rng(5)
    values = rng.normal(size=(3, 20))
    weights = np.array([[1.0, -1, 0]])
    known, unknown = fit(scores(values)), fit(scores(values, n_distinct=5))
    assert unknown.variance(weights)[0] == pytest.approx(4 * known.variance(weights)[0])


def test_cells_that_find_the_same_recordings_hard_are_compared_by_what_they_differ_in():
    rng = np.random.default_rng(6)
    covered = []
    weights = np.array([[1, 1, 1, -1, -1, -1]]) / 3
    for _ in range(300):
        common = rng.normal(size=(2, 200))
        hard = common[[0, 0, 0, 1, 1, 1]] + 0.2 * rng.normal(size=(6, 200))
        values, influence = np.zeros((6, 5)), np.zeros((6, 5, 200))
        for repeat in range(5):
            here = slice(40 * repeat, 40 * repeat + 40)
            values[:, repeat] = hard[:, here].mean(axis=1)
            influence[:, repeat, here] = (hard[:, here] - hard[:, here].mean(axis=1, keepdims=True)) / 40
        fitted = fit(RepeatedScores(values, influence, 5))
        half = stats.t.ppf(0.975, fitted.degrees(weights)) * np.sqrt(fitted.variance(weights))
        covered.append(abs(weights @ fitted.means) <= half)
    assert np.mean(covered) > 0.92, "a pooled residual would cover 0.7 of them"


def test_where_recordings_explain_the_residuals_the_degrees_of_freedom_are_theirs(monkeypatch):
    monkeypatch.setattr(linear_model, "EQUAL_ABOVE", -1)
    rng = np.random.default_rng(2)
    n_cells, n_repeats, n_groups = 4, 3, 90
    repeat = np.arange(n_groups) % n_repeats
    influence = rng.normal(size=(n_cells, n_repeats, n_groups))
    influence *= repeat == np.arange(n_repeats)[:, None]
    weights = np.array([[1.0, -1, 0, 0]])

    def degrees(values):
        return fit(scores(values, influence)).degrees(weights)[0]

    smooth = rng.normal(size=(n_cells, n_repeats))  # with far less spread than sums of 30 influences
    assert degrees(smooth) == pytest.approx(n_groups - 1)
    of_repeats = (n_cells - 1) * (n_repeats - 1)
    assert degrees(100 * smooth) < 1.5 * of_repeats


def test_a_spread_that_recordings_explain_is_not_counted_again_cell_by_cell(monkeypatch):
    monkeypatch.setattr(linear_model, "EQUAL_ABOVE", 2)  # each cell has its own spread
    rng = np.random.default_rng(8)
    weights = np.eye(12)[1:] - np.eye(12)[0]
    found = []
    for _ in range(100):
        _, alone = of_recordings(rng, 12, 3, 90, 3, 1.0)
        found.append(fit(alone).variance(weights).mean())
    # That all together are above it by chance, adds a fifth; cell by cell it was two fifths.
    assert 1 < np.mean(found) / (2 / 90) < 1.3


def test_deals_in_which_cells_find_other_recordings_hard_make_means_more_certain():
    rng = np.random.default_rng(10)
    weights = np.eye(7)[1:] - np.eye(7)[0]
    found = []
    for _ in range(100):
        deals = [of_recordings(rng, 7, 5, 60, 5, 1.0)[1].influence for _ in range(4)]
        moved = np.concatenate(deals, axis=1).transpose(1, 0, 2) / 20
        covariance = linear_model._of_recordings(linear_model._within(moved), moved.sum(axis=0))
        found.append((weights @ covariance * weights).sum(axis=1).mean())
    # What stays of covariances that are zero would add a quarter, and half of that is taken back.
    assert 1 < np.mean(found) / (2 / 60 / 4) < 1.18


@pytest.mark.parametrize("values", [np.ones((3, 2)), np.ones((1, 5)), np.full((2, 4), np.nan)])
def test_there_is_no_model_of_two_repeats_or_one_cell_or_none(values):
    assert fit(scores(values)) is None


def test_pairs_are_the_contrasts_of_two_cells():
    rng = np.random.default_rng(7)
    _, repeated = of_recordings(rng, 5, 10, 60, 5, 1.0)
    noise = rng.normal(size=(5, 10)) * np.array([1, 1, 1, 1, 30])[:, None] * 0.1
    for values in (repeated.values, repeated.values + noise):
        fitted = fit(RepeatedScores(values, repeated.influence, 5))
        for cell in range(5):
            variance, freedom = fitted.pairs(cell)
            others = np.delete(np.arange(5), cell)
            weights = np.eye(5)[others] - np.eye(5)[cell]
            assert variance[others] == pytest.approx(fitted.variance(weights))
            assert freedom[others] == pytest.approx(fitted.degrees(weights))


def test_the_sum_of_squares_of_few_groups_makes_up_for_their_mean():
    rng = np.random.default_rng(12)
    weights = np.array([[1.0, -1]])
    found = []
    for _ in range(400):
        _, alone = of_recordings(rng, 2, 3, 6, 3, 1.0)
        found.append((weights @ fit(alone).of_recordings * weights).sum())
    assert np.mean(found) == pytest.approx(2 / 6, rel=0.1), "without the factor of 6 / 5, 0.28"


def test_a_cell_that_finds_the_same_recordings_hard_in_every_deal_keeps_its_variance():
    rng = np.random.default_rng(13)
    n_cells, n_groups, n_deals = 12, 60, 4
    weights = np.eye(n_cells)[1:] - np.eye(n_cells)[0]
    found = []
    for _ in range(60):
        same = np.zeros((n_cells, n_groups))
        same[0] = rng.normal(size=n_groups)
        deals = [np.concatenate([same[:1], rng.normal(size=(n_cells - 1, n_groups))]) for _ in range(n_deals)]
        moved = np.array([deal * (np.arange(n_groups) % 5 == k) for deal in deals for k in range(5)])
        moved /= n_groups * n_deals
        covariance = linear_model._of_recordings(linear_model._within(moved), moved.sum(axis=0))
        found.append((weights @ covariance * weights).sum(axis=1).mean())
    assert np.mean(found) == pytest.approx((1 + 1 / n_deals) / n_groups, rel=0.08)


def test_a_noisy_cell_keeps_what_training_adds_to_it(monkeypatch):
    monkeypatch.setattr(linear_model, "EQUAL_ABOVE", 2)
    rng = np.random.default_rng(14)
    weights = np.eye(12)[1:] - np.eye(12)[0]
    found = []
    for _ in range(200):
        _, alone = of_recordings(rng, 12, 5, 100, 5, 1.0)
        noise = np.zeros((12, 5))
        noise[0] = rng.normal(0, (4 * 5 / 100) ** 0.5, 5)  # four times what recordings add to a repeat
        noisy = RepeatedScores(alone.values + noise, alone.influence, 5)
        found.append(fit(noisy).variance(weights).mean())
    assert np.mean(found) == pytest.approx(2 / 100 + 4 / 100, rel=0.1)


def test_variances_are_lowered_by_one_number_to_a_sum():
    values = np.array([5.0, -1, 2, 0.5])
    assert linear_model._lowered(values, 6.5) == pytest.approx([14 / 3, 0, 5 / 3, 1 / 6])
    assert linear_model._lowered(values, 2.0) == pytest.approx([2, 0, 0, 0])
    assert linear_model._lowered(values, 9.0) == pytest.approx([5, 0, 2, 0.5])
    assert linear_model._lowered(values, -1.0) == pytest.approx([0, 0, 0, 0])
    # a sum that is lost in the rounding of the values
    assert linear_model._lowered(values, 1e-30) == pytest.approx([0, 0, 0, 0])


def test_a_few_repeats_that_agree_by_chance_do_not_hide_what_training_may_add():
    rng = np.random.default_rng(15)
    _, alone = of_recordings(rng, 4, 3, 90, 3, 1.0)
    fitted = fit(alone)
    scaled = [fit(RepeatedScores(alone.values * by, alone.influence, 3)) for by in np.linspace(0.1, 3, 60)]
    shares = [each.of_spread[0, 0] * 3 / each.spread[0] for each in scaled]
    excess = [each.spread.mean() / fitted.spread.mean() for each in scaled]
    assert shares[0] == 0 and shares[-1] == pytest.approx(1)
    assert (np.diff(excess) > 0).all() and (np.diff(shares) > -1e-9).all()
