"""Scores of pooled recordings, and what they are without a fold or a group, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from reports.statistics.jackknife import Counts, pooled, statistics

N_CLASSES = 7


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    truth = np.minimum(rng.geometric(0.4, 90) - 1, N_CLASSES - 1)
    predicted = np.where(rng.random(90) < 0.6, truth, rng.integers(0, N_CLASSES, 90))
    group = np.unique(rng.integers(0, 40, 90), return_inverse=True)[1]
    fold = (group % 5).astype(int)
    return truth, predicted, group, fold


def by_hand(name, truth, predicted):
    if name == "val/accuracy":
        return accuracy_score(truth, predicted)
    if name == "val/f1_rare":
        each = f1_score(truth, predicted, average=None, labels=range(N_CLASSES), zero_division=0)
        return each[[c for c in (4, 5, 6) if c in truth]].mean()
    average = {"val/f1_macro": "macro", "val/f1_weighted": "weighted"}[name]
    return f1_score(truth, predicted, average=average, zero_division=0)


@pytest.mark.parametrize("name", ["val/f1_macro", "val/f1_weighted", "val/accuracy", "val/f1_rare"])
def test_a_score_and_each_without_one_group_are_those_of_scikit_learn(data, name):
    truth, predicted, group, _ = data
    statistic = statistics({"rare": np.array([4, 5, 6])}, N_CLASSES)[name]
    value, without = Counts(truth, predicted, group, N_CLASSES).score(statistic)
    assert value == pytest.approx(by_hand(name, truth, predicted))
    for g in range(group.max() + 1):
        rest = group != g
        assert without[g] == pytest.approx(by_hand(name, truth[rest], predicted[rest])), g


def test_pseudo_values_of_folds_have_the_mean_of_the_score_and_influences_the_sum_of_zero(data):
    truth, predicted, group, fold = data
    statistic = statistics({}, N_CLASSES)["val/f1_macro"]
    counts = [Counts(truth, predicted, part, N_CLASSES) for part in (fold, group)]
    found = pooled(*counts, statistic)
    assert found.value == pytest.approx(by_hand("val/f1_macro", truth, predicted))
    assert found.pseudo.mean() == pytest.approx(found.value)
    assert found.pseudo.std() > 0
    assert found.influence.sum() == pytest.approx(0, abs=1e-12)
    assert len(found.influence) == group.max() + 1


def test_the_jackknife_of_accuracy_is_the_variance_of_a_mean(data):
    truth, predicted, _, _ = data
    n = len(truth)
    alone = np.arange(n)
    statistic = statistics({}, N_CLASSES)["val/accuracy"]
    counts = [Counts(truth, predicted, part, N_CLASSES) for part in (alone % 5, alone)]
    influence = pooled(*counts, statistic).influence
    right = (truth == predicted).astype(float)
    assert (influence**2).sum() == pytest.approx(right.var(ddof=1) / n * n / (n - 1), rel=1e-6)


def test_a_stratum_without_species_in_truth_has_no_score(data):
    truth, predicted, group, fold = data
    statistic = statistics({"rare": np.array([], dtype=int)}, N_CLASSES)["val/f1_rare"]
    counts = [Counts(truth, predicted, part, N_CLASSES) for part in (fold, group)]
    found = pooled(*counts, statistic)
    assert np.isnan(found.value) and np.isnan(found.pseudo).all()
    assert (found.influence == 0).all()
