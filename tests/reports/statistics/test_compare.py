from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reports import load
from reports.statistics.aggregate import cells
from reports.statistics.compare import hedges_g, holm, interaction, paired_t, sign_flip, to_baseline

CE, FOCAL, LOGIT = ({"loss.name": name} for name in ("cross_entropy", "focal", "logit_adjusted"))


def compared(path):
    runs = load([path])
    study = runs.studies[0]
    return to_baseline(cells(runs.trials_of(study), study), study)


def test_paired_difference_agrees_with_scipy(make_run):
    before, after = [0.10, 0.13, 0.11, 0.15], [0.14, 0.15, 0.16, 0.18]
    row = compared(make_run([(CE, dict(enumerate(before))), (FOCAL, dict(enumerate(after)))])).iloc[0]
    expected = stats.ttest_rel(after, before)
    interval = expected.confidence_interval(0.95)
    assert row["diff"] == pytest.approx(np.mean(after) - np.mean(before))
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert row["p"] == row["p_holm"] == pytest.approx(expected.pvalue)


def test_only_shared_repeats_are_compared(make_run):
    row = compared(make_run([(CE, {0: 0.1, 1: 0.2, 2: 0.9}), (FOCAL, {0: 0.2, 1: 0.4, 2: "failed"})])).iloc[0]
    assert row["n_shared"] == 2
    assert row["diff"] == pytest.approx(0.15)


def test_one_shared_repeat_gives_the_difference_only(make_run):
    row = compared(make_run([(CE, {0: 0.1}), (FOCAL, {0: 0.3})])).iloc[0]
    assert row["diff"] == pytest.approx(0.2)
    assert row[["low", "high", "p", "p_holm", "g"]].isna().all()
    assert "one shared repeat" in row["note"]


def test_no_shared_repeat_gives_nothing(make_run):
    row = compared(make_run([(CE, {0: 0.1, 1: "failed"}), (FOCAL, {0: "failed", 1: 0.3})])).iloc[0]
    assert math.isnan(row["diff"]) and row["note"] == "no shared repeat"


def test_cells_trained_unequally_long_are_not_compared(make_run):
    short = {"status": "completed", "epochs": 2, "best_epoch": 2, "metrics": {"val/f1_macro": 0.9}}
    frame = compared(
        make_run([(CE, {0: 0.1, 1: 0.2}), (FOCAL, {0: short, 1: short}), (LOGIT, {0: 0.3, 1: 0.3})])
    )
    assert math.isnan(frame["diff"].iloc[0]) and "unequal epochs" in frame["note"].iloc[0]
    assert frame["diff"].iloc[1] == pytest.approx(0.15)
    assert frame["p_holm"].iloc[1] == frame["p"].iloc[1], "the row without a test does not count"


def test_differences_that_do_not_vary_have_no_p(make_run):
    row = compared(make_run([(CE, {0: 0.1, 1: 0.2}), (FOCAL, {0: 0.2, 1: 0.3})])).iloc[0]
    assert row["diff"] == pytest.approx(0.1)
    assert math.isnan(row["p"]) and math.isnan(row["low"])


def test_search_has_no_comparisons(make_run):
    assert compared(make_run([(CE, {0: 0.1}), (FOCAL, {0: 0.2})], kind="search")).empty


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, max(0.06, 0.022 * 2), 0.6 * 1
    assert holm([0.02, 0.6, 0.01, 0.022]) == pytest.approx([0.06, 0.6, 0.04, 0.06])
    assert holm([0.5, math.nan, 0.7])[0] == 1.0
    assert holm([]) == []


def test_holm_keeps_the_family_wise_error():
    p = np.random.default_rng(1).uniform(size=(2000, 5))
    false_alarms = np.mean([min(holm(list(row))) < 0.05 for row in p])
    assert 0.03 < false_alarms < 0.065


@pytest.mark.parametrize("n", [2, 3, 10, 40])
def test_paired_t_is_that_of_scipy_to_far_in_the_tail(n):
    rng = np.random.default_rng(n)
    for shift in (0, 0.5, 3, 100):
        d = rng.normal(shift, 1, n)
        assert paired_t(d) == pytest.approx(stats.ttest_1samp(d, 0.0).pvalue, rel=1e-9)


def test_hedges_g_by_hand():
    # n = 3: J(2) = gamma(1) / (1 * gamma(1/2)) = 1 / sqrt(pi); mean 2, s 1.
    assert hedges_g([1.0, 2.0, 3.0]) == pytest.approx(2 / math.sqrt(math.pi))


def test_hedges_g_is_unbiased_where_the_raw_ratio_is_not():
    d = np.random.default_rng(2).normal(1.0, 1.0, size=(20_000, 5))
    raw = d.mean(axis=1) / d.std(axis=1, ddof=1)
    assert np.mean([hedges_g(row) for row in d[:5000]]) == pytest.approx(1.0, abs=0.04)
    assert raw.mean() > 1.15


def test_two_differences_have_no_g():
    assert math.isnan(hedges_g([1.0, 2.0]))


def test_sign_flip_by_hand():
    # Sums over all patterns of 1, 2, 4: +-7, +-5, +-3, +-1.
    assert sign_flip([1.0, 2.0, 4.0]) == 2 / 8
    assert sign_flip([1.0, 2.0, -4.0]) == 1.0, "every sum is at least 1 from zero"
    assert sign_flip([-1.0, 2.0, 4.0]) == 4 / 8
    assert sign_flip([3.0]) == 1.0
    assert math.isnan(sign_flip([]))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 10, 16])
def test_smallest_sign_flip_p_is_2_over_2_to_the_n(n):
    assert sign_flip([0.1 + 0.01 * i for i in range(n)]) == 2 / 2**n


@pytest.mark.parametrize("n", [2, 3, 5, 8, 12])
def test_sign_flip_agrees_with_scipy(n):
    def mean(d, axis):
        return d.mean(axis=axis)

    for seed in range(5):
        d = np.random.default_rng(seed).normal(0.4, 1.0, n)
        expected = stats.permutation_test(
            (d,), mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
        )
        assert sign_flip(list(d)) == pytest.approx(expected.pvalue)


def test_sums_that_are_equal_but_for_rounding_are_as_extreme():
    # Of 0.1, 0.2 and -0.3 two patterns come to 0.6, and all others, as observed, to 0.
    d = [0.1, 0.2, -0.3]
    assert sum(d) != 0 and sign_flip(d) == 1.0
    # Two of the sixteen sums are +-1.2 and eight are +-0.6, as observed; the others are 0.
    assert sign_flip([0.3, 0.1 + 0.2, 0.3, -0.3]) == 10 / 16


def test_many_differences_are_drawn_and_agree_with_all_patterns():
    d = list(np.random.default_rng(5).normal(0.5, 1.0, 18))
    sums = np.zeros(1)
    for one in d:
        sums = np.concatenate([sums + one, sums - one])
    exact = np.mean(np.abs(sums) >= abs(sum(d)) * (1 - 1e-12))
    assert 0.01 < exact < 0.5
    assert sign_flip(d) == pytest.approx(exact, abs=4 * math.sqrt(exact / 9_999))
    assert sign_flip(d) == sign_flip(d)
    assert sign_flip([1.0] * 40) == 1 / 10_000, "never zero"


def test_sign_flip_claims_no_more_than_its_level_whatever_the_distribution():
    rng = np.random.default_rng(6)
    skewed_sizes = rng.lognormal(0, 2, size=(2000, 8)) * rng.choice((-1, 1), size=(2000, 8))
    false_alarms = np.mean([sign_flip(list(d)) <= 0.05 for d in skewed_sizes])
    assert 0.03 < false_alarms < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)  # exact: 12 of 256


def test_sign_flip_and_the_t_test_are_both_given(make_run):
    row = compared(make_run([(CE, {0: 0.1, 1: 0.2, 2: 0.3}), (FOCAL, {0: 0.2, 1: 0.31, 2: 0.42})])).iloc[0]
    assert row["p"] < 0.01 and row["p_sign_flip"] == 0.25
    same = compared(make_run([(CE, {0: 0.1, 1: 0.2}), (FOCAL, {0: 0.2, 1: 0.3})], folder="same")).iloc[0]
    assert math.isnan(same["p"]) and same["p_sign_flip"] == 0.5, "it needs no spread"
    one = compared(make_run([(CE, {0: 0.1}), (FOCAL, {0: 0.2})], folder="one")).iloc[0]
    assert math.isnan(one["p_sign_flip"])


def two_by_two(make_run, **changes):
    corner = [{"model.name": m, "loss.name": loss} for m in ("small", "big") for loss in ("ce", "focal")]
    values = [[0.10, 0.12, 0.11], [0.11, 0.12, 0.13], [0.20, 0.19, 0.21], [0.26, 0.27, 0.24]]
    endings = [dict(enumerate(v)) for v in values]
    factors = {"model.name": ["small", "big"], "loss.name": ["ce", "focal"]}
    path = make_run(list(zip(corner, endings, strict=True)), factors=factors, **changes)
    runs = load([path])
    return interaction(cells(runs.trials_of(runs.studies[0]), runs.studies[0]), runs.studies[0])


def test_interaction_is_the_difference_of_differences_by_seed(make_run):
    found = two_by_two(make_run)
    by_seed = [0.26 - 0.11 - (0.20 - 0.10), 0.27 - 0.12 - (0.19 - 0.12), 0.24 - 0.13 - (0.21 - 0.11)]
    expected = stats.ttest_1samp(by_seed, 0.0)
    assert found["values"] == pytest.approx(by_seed)
    assert found["diff"] == pytest.approx(np.mean(by_seed))
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found["p"] == pytest.approx(expected.pvalue)


def test_simple_effects_are_each_factor_at_each_level_of_the_other(make_run):
    effects = two_by_two(make_run)["simple_effects"]
    assert [e["factor"] for e in effects] == ["model.name", "model.name", "loss.name", "loss.name"]
    assert [e["diff"] for e in effects] == pytest.approx([0.09, 0.41 / 3, 0.01, 0.17 / 3])


def test_interaction_turns_its_sign_with_the_baseline_of_one_factor(make_run):
    turned = two_by_two(make_run, baseline={"model.name": "big", "loss.name": "ce"})
    assert turned["diff"] == pytest.approx(-two_by_two(make_run)["diff"])


def test_design_that_is_not_2x2_has_no_interaction(make_run):
    runs = load(
        [make_run([(CE, {0: 0.1}), (FOCAL, {0: 0.2})], factors={"loss.name": ["cross_entropy", "focal"]})]
    )
    assert interaction(cells(runs.trials_of(runs.studies[0]), runs.studies[0]), runs.studies[0]) is None
