"""Scores of pooled recordings, and what groups of them add, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from reports.statistics.jackknife import STEP, Counts, statistics

N_CLASSES = 7


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    truth = np.minimum(rng.geometric(0.4, 90) - 1, N_CLASSES - 1)
    predicted = np.where(rng.random(90) < 0.6, truth, rng.integers(0, N_CLASSES, 90))
    group = np.unique(rng.integers(0, 40, 90), return_inverse=True)[1]
    fold = (group % 5).astype(int)
    return truth, predicted, group, fold


def by_hand(name, truth, predicted, weight=None):
    given = {"sample_weight": weight, "zero_division": 0}
    if name == "val/accuracy":
        return accuracy_score(truth, predicted, sample_weight=weight)
    if name == "val/f1_rare":
        each = f1_score(truth, predicted, average=None, labels=range(N_CLASSES), **given)
        return each[[c for c in (4, 5, 6) if c in truth]].mean()
    average = {"val/f1_macro": "macro", "val/f1_weighted": "weighted"}[name]
    return f1_score(truth, predicted, average=average, **given)


@pytest.mark.parametrize("name", ["val/f1_macro", "val/f1_rare", "val/f1_weighted", "val/accuracy"])
def test_the_influence_of_a_group_is_how_its_weight_moves_the_score_of_scikit_learn(data, name):
    _, predicted, group, _ = data
    truth = np.arange(90) % N_CLASSES  # no group holds all recordings of a species
    statistic = statistics({"rare": np.array([4, 5, 6])}, N_CLASSES)[name]
    found = Counts(truth, predicted[None], group, N_CLASSES).pooled(statistic)
    assert found.value[0] == pytest.approx(by_hand(name, truth, predicted))
    assert found.influence.sum() == pytest.approx(0, abs=1e-12)
    moved = []
    for g in range(group.max() + 1):
        weight = np.where(group == g, 1 - STEP, 1.0)
        moved.append((found.value[0] - by_hand(name, truth, predicted, weight)) / STEP)
        if name in ("val/accuracy", "val/f1_weighted"):  # their sums of weights change, by a first-order term
            moved[-1] *= 1 - STEP * (group == g).mean()
    assert found.influence[0] == pytest.approx(np.array(moved) - np.mean(moved), abs=1e-9)


def test_a_group_with_all_recordings_of_a_species_moves_the_mean_over_species():
    truth, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 0, 2])
    statistic = statistics({}, N_CLASSES)["val/f1_macro"]
    found = Counts(truth, predicted[None], np.arange(5), N_CLASSES).pooled(statistic)
    mean = (0.8 + 2 / 3 + 1) / 3
    zero = np.array([0.8 - 3.5 / 4.5, 0.8 - 3.5 / 4.5, 0, 0.8 - 4 / 4.75, 0]) / STEP
    one = np.array([0, 0, 2 / 3 - 1.5 / 2.5, 2 / 3 - 2 / 2.75, 0]) / STEP
    moved = (zero + one + np.array([0, 0, 0, 0, 1 - mean])) / 3
    assert found.influence[0] == pytest.approx(moved - moved.mean())


def test_values_of_folds_have_the_mean_of_the_score(data):
    truth, predicted, group, _ = data
    statistic = statistics({}, N_CLASSES)["val/f1_macro"]
    found = Counts(truth, predicted[None], group, N_CLASSES).pooled(statistic)
    pseudo = found.pseudo(np.arange(group.max() + 1) % 5, 5)
    assert pseudo.shape == (1, 5) and pseudo.std() > 0
    assert pseudo.mean() == pytest.approx(by_hand("val/f1_macro", truth, predicted))


def test_the_values_of_folds_of_equal_size_are_their_accuracies(data):
    truth, predicted, _, _ = data
    fold = np.arange(90) % 5
    statistic = statistics({}, N_CLASSES)["val/accuracy"]
    found = Counts(truth, predicted[None], np.arange(90), N_CLASSES).pooled(statistic)
    expected = [(truth == predicted)[fold == k].mean() for k in range(5)]
    assert found.pseudo(fold, 5)[0] == pytest.approx(expected)


def test_the_influences_of_accuracy_are_the_variance_of_a_mean(data):
    truth, predicted, _, _ = data
    statistic = statistics({}, N_CLASSES)["val/accuracy"]
    influence = Counts(truth, predicted[None], np.arange(90), N_CLASSES).pooled(statistic).influence
    right = (truth == predicted).astype(float)
    assert (influence**2).sum() == pytest.approx(right.var() / 90)


def test_of_species_with_two_recordings_the_variance_of_f1_is_not_too_large():
    """Leaving out whole recordings gives a variance three times too large."""
    rng = np.random.default_rng(0)
    n_species = 60
    truth = np.repeat(np.arange(n_species), 2)
    statistic = statistics({}, n_species)["val/f1_macro"]
    values, variances = [], []
    for _ in range(300):
        wrong = rng.random(len(truth)) < 0.05
        predicted = np.where(wrong, rng.integers(0, n_species, len(truth)), truth)
        found = Counts(truth, predicted[None], np.arange(len(truth)), n_species).pooled(statistic)
        values.append(found.value[0])
        variances.append((found.influence**2).sum())
    assert 0.75 < np.mean(variances) / np.var(values) < 1.3


def test_a_stratum_without_species_in_truth_has_no_score(data):
    truth, predicted, group, _ = data
    statistic = statistics({"rare": np.array([], dtype=int)}, N_CLASSES)["val/f1_rare"]
    found = Counts(truth, predicted[None], group, N_CLASSES).pooled(statistic)
    assert np.isnan(found.value).all() and np.isnan(found.pseudo(np.arange(group.max() + 1) * 0, 1)).all()
    assert (found.influence == 0).all()


def test_cells_are_scored_together_as_they_are_one_by_one(data):
    truth, predicted, group, _ = data
    both = np.array([predicted, np.roll(predicted, 7)])
    for name, statistic in statistics({"rare": np.array([4, 5, 6])}, N_CLASSES).items():
        together = Counts(truth, both, group, N_CLASSES).pooled(statistic)
        for cell in range(2):
            alone = Counts(truth, both[[cell]], group, N_CLASSES).pooled(statistic)
            assert together.value[cell] == pytest.approx(by_hand(name, truth, both[cell]))
            assert together.influence[cell] == pytest.approx(alone.influence[0], abs=1e-15)


@pytest.mark.parametrize("name", ["val/f1_macro", "val/f1_rare", "val/f1_weighted", "val/accuracy"])
def test_a_part_of_one_recording_is_looked_up_as_it_would_be_counted(data, name):
    truth, predicted, _, _ = data
    statistic = statistics({"rare": np.array([4, 5, 6])}, N_CLASSES)[name]
    singles = Counts(truth, predicted[None], np.arange(90), N_CLASSES)
    looked_up = singles.pooled(statistic)
    singles.is_alone = np.zeros(90, dtype=bool)
    assert singles.pooled(statistic).influence == pytest.approx(looked_up.influence, abs=1e-15)
