"""Scores of pooled recordings, and what groups of them add, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from reports.statistics import pooled_scores
from reports.statistics.pooled_scores import STEP, Cells, Pooled, statistics

N_CLASSES = 7


def of_cell(cells, statistic, row=0):
    """Return the score of one of the cells, and the influences on it; all others are scored with it."""
    found = cells.some(np.arange(len(cells.predicted))).pooled(statistic)
    assert cells.some(np.array([row])).pooled(statistic).influence == pytest.approx(found.influence[[row]])
    return Pooled(found.value[row], found.influence[row])


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
    found = of_cell(Cells(truth, predicted[None], group, N_CLASSES), statistic)
    assert found.value == pytest.approx(by_hand(name, truth, predicted))
    assert found.influence.sum() == pytest.approx(0, abs=1e-12)
    moved = []
    for g in range(group.max() + 1):
        weight = np.where(group == g, 1 - STEP, 1.0)
        moved.append((found.value - by_hand(name, truth, predicted, weight)) / STEP)
        if name in ("val/accuracy", "val/f1_weighted"):  # their sums of weights change, by a first-order term
            moved[-1] *= 1 - STEP * (group == g).mean()
    assert found.influence == pytest.approx(np.array(moved) - np.mean(moved), abs=1e-9)


def test_a_group_with_all_recordings_of_a_species_moves_the_mean_over_species():
    truth, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 0, 2])
    statistic = statistics({}, N_CLASSES)["val/f1_macro"]
    found = of_cell(Cells(truth, predicted[None], np.arange(5), N_CLASSES), statistic)
    mean = (0.8 + 2 / 3 + 1) / 3
    zero = np.array([0.8 - 3.5 / 4.5, 0.8 - 3.5 / 4.5, 0, 0.8 - 4 / 4.75, 0]) / STEP
    one = np.array([0, 0, 2 / 3 - 1.5 / 2.5, 2 / 3 - 2 / 2.75, 0]) / STEP
    moved = (zero + one + np.array([0, 0, 0, 0, 1 - mean])) / 3
    assert found.influence == pytest.approx(moved - moved.mean())


def test_values_of_folds_have_the_mean_of_the_score(data):
    truth, predicted, group, _ = data
    statistic = statistics({}, N_CLASSES)["val/f1_macro"]
    found = of_cell(Cells(truth, predicted[None], group, N_CLASSES), statistic)
    pseudo = found.pseudo(np.arange(group.max() + 1) % 5, 5)
    assert len(pseudo) == 5 and pseudo.std() > 0
    assert pseudo.mean() == pytest.approx(by_hand("val/f1_macro", truth, predicted))


def test_the_values_of_folds_of_equal_size_are_their_accuracies(data):
    truth, predicted, _, _ = data
    fold = np.arange(90) % 5
    statistic = statistics({}, N_CLASSES)["val/accuracy"]
    found = of_cell(Cells(truth, predicted[None], np.arange(90), N_CLASSES), statistic)
    expected = [(truth == predicted)[fold == k].mean() for k in range(5)]
    assert found.pseudo(fold, 5) == pytest.approx(expected)


def test_the_influences_of_accuracy_are_the_variance_of_a_mean(data):
    truth, predicted, _, _ = data
    statistic = statistics({}, N_CLASSES)["val/accuracy"]
    influence = of_cell(Cells(truth, predicted[None], np.arange(90), N_CLASSES), statistic).influence
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
        found = of_cell(Cells(truth, predicted[None], np.arange(len(truth)), n_species), statistic)
        values.append(found.value)
        variances.append((found.influence**2).sum())
    assert 0.75 < np.mean(variances) / np.var(values) < 1.3


def test_a_stratum_without_species_in_truth_has_no_score(data):
    truth, predicted, group, _ = data
    statistic = statistics({"rare": np.array([], dtype=int)}, N_CLASSES)["val/f1_rare"]
    found = of_cell(Cells(truth, predicted[None], group, N_CLASSES), statistic)
    assert np.isnan(found.value) and np.isnan(found.pseudo(np.zeros(group.max() + 1, dtype=int), 1)).all()
    assert (found.influence == 0).all()


@pytest.mark.parametrize("n_recordings", [2, 8])
def test_what_two_cells_differ_by_has_the_variance_of_exchanging_their_predictions(n_recordings):
    """Between random exchanges, recording by recording, of which the influences are the first-order terms."""
    rng = np.random.default_rng(5)
    n_species = 30
    truth = np.repeat(np.arange(n_species), n_recordings)
    cells = np.array([np.where(rng.random(len(truth)) < 0.3, rng.permutation(truth), truth) for _ in "ab"])
    statistic = statistics({}, n_species)["val/f1_macro"]
    both = Cells(truth, cells, np.arange(len(truth)), n_species)
    own = of_cell(both, statistic).influence - of_cell(both, statistic, 1).influence
    exchanged = []
    for _ in range(400):
        first = np.where(rng.random(len(truth)) < 0.5, *cells)
        second = cells.sum(axis=0) - first
        exchanged.append(f1_score(truth, first, average="macro") - f1_score(truth, second, average="macro"))
    assert 0.8 < (own**2).sum() / np.var(exchanged) < 1.2
    is_alike = cells[0] == cells[1]
    assert own[is_alike] == pytest.approx(own[is_alike][0])  # what centring leaves
    assert np.median(np.abs(own[~is_alike])) > 20 * np.abs(own[is_alike]).max()


def test_a_cell_without_others_has_the_influences_of_the_mean_cell(data):
    truth, predicted, group, _ = data
    statistic = statistics({}, N_CLASSES)["val/f1_macro"]
    alone = of_cell(Cells(truth, predicted[None], group, N_CLASSES), statistic)
    twice = Cells(truth, np.array([predicted, predicted]), group, N_CLASSES)
    assert of_cell(twice, statistic, 1).influence == pytest.approx(alone.influence)


def test_a_cell_that_lacks_recordings_leaves_the_others_their_scores_and_takes_part_where_it_can(data):
    truth, predicted, group, fold = data
    rng = np.random.default_rng(1)
    other = np.where(rng.random(90) < 0.6, truth, rng.integers(0, N_CLASSES, 90))
    statistic = statistics({}, N_CLASSES)["val/f1_macro"]
    part = np.unique(group * 5 + fold, return_inverse=True)[1]
    lacking = Cells(truth, np.array([predicted, np.where(fold == 4, -1, other)]), part, N_CLASSES)
    found = of_cell(lacking, statistic)
    assert found.value == pytest.approx(by_hand("val/f1_macro", truth, predicted))
    whole = of_cell(Cells(truth, np.array([predicted, other]), part, N_CLASSES), statistic)
    is_of_both = np.isin(np.arange(part.max() + 1), part[fold != 4])
    assert np.corrcoef(found.influence[is_of_both], whole.influence[is_of_both])[0, 1] > 0.9
    assert not np.allclose(found.influence[~is_of_both], whole.influence[~is_of_both])


def test_many_classes_and_parts_are_sorted_instead_of_marked(data, monkeypatch):
    truth, predicted, group, _ = data
    statistic = statistics({}, N_CLASSES)["val/f1_macro"]
    marked = of_cell(Cells(truth, predicted[None], group, N_CLASSES), statistic)
    monkeypatch.setattr(pooled_scores, "MOST_KEYS", 0)
    found = of_cell(Cells(truth, predicted[None], group, N_CLASSES), statistic)
    assert found.value == marked.value and found.influence == pytest.approx(marked.influence)


def test_influences_have_the_variance_of_all_exchanges_and_not_of_the_first_order_alone(data):
    truth, _, group, _ = data
    rng = np.random.default_rng(11)
    predicted = np.where(rng.random((3, 90)) < 0.6, truth, rng.integers(0, N_CLASSES, (3, 90)))
    known = statistics({}, N_CLASSES)
    exchanged = {name: [] for name in known}
    for _ in range(3000):
        other = rng.random((3, group.max() + 1)).argsort(axis=0)[:, group]
        cells = Cells(truth, np.take_along_axis(predicted, other, axis=0), group, N_CLASSES)
        for name, statistic in known.items():
            exchanged[name].append(cells.some(np.arange(3)).values(statistic).var(ddof=1))
    cells = Cells(truth, predicted, group, N_CLASSES)
    for name, statistic in known.items():
        first_order = cells.some(np.arange(3)).own(statistic).var(axis=0, ddof=1).sum()
        assert cells.scale(statistic) ** 2 * first_order == pytest.approx(np.mean(exchanged[name]), rel=0.04)
    assert cells.scale(known["val/accuracy"]) == pytest.approx(1)
    assert cells.scale(known["val/f1_macro"]) > 1.02


def test_cells_of_which_only_one_predicted_every_recording_are_not_scaled(data):
    truth, predicted, group, _ = data
    some = np.where(group < 20, predicted, -1)
    cells = Cells(truth, np.stack([predicted, some]), group, N_CLASSES)
    assert cells.scale(statistics({}, N_CLASSES)["val/f1_macro"]) == 1


def test_of_many_cells_of_which_those_exchanged_agree_nothing_is_scaled(data):
    truth, predicted, group, _ = data
    cells = np.repeat(predicted[None], 45, axis=0)
    cells[1] = np.where(group < 5, truth, predicted)  # every second or third cell is exchanged
    assert Cells(truth, cells, group, N_CLASSES).scale(statistics({}, N_CLASSES)["val/accuracy"]) == 1


def test_the_weight_of_a_part_is_its_share_in_the_score_of_a_perfect_cell(data):
    truth, predicted, group, _ = data
    cells = Cells(truth, predicted[None], group, N_CLASSES)
    known = statistics({"rare": np.array([4, 5, 6])}, N_CLASSES)
    size = np.bincount(group) / len(truth)
    assert cells.weight(known["val/accuracy"]) == pytest.approx(size)
    alone = Cells(truth, predicted[None], np.arange(90), N_CLASSES)
    lost = [f1_score(truth, np.where(np.arange(90) == i, -1, truth), average=None, labels=range(N_CLASSES))
            for i in range(90)]  # fmt: skip
    lost = 1 - np.array(lost)
    assert alone.weight(known["val/f1_macro"]) == pytest.approx(lost.sum(axis=1) / lost.sum())
    rare = lost[:, [4, 5, 6]]
    assert alone.weight(known["val/f1_rare"]) == pytest.approx(rare.sum(axis=1) / rare.sum())
    assert np.array([alone.weight(each).sum() for each in known.values()]) == pytest.approx(1)


@pytest.mark.parametrize("name", ["val/accuracy", "val/f1_macro"])
def test_a_large_difference_is_no_less_certain_for_groups_of_unequal_size(name):
    rng = np.random.default_rng(16)
    n_species = 20
    statistic = statistics({}, n_species)[name]
    truth = np.arange(300) % n_species
    differences, variances = [], []
    for _ in range(300):
        group = rng.permutation(np.repeat(np.arange(40), np.resize([1, 1, 1, 27], 40))[:300])
        group = np.unique(group, return_inverse=True)[1]
        right = rng.random((2, 300)) < np.array([[0.85], [0.15]])
        cells = Cells(truth, np.where(right, truth, rng.integers(0, n_species, (2, 300))), group, n_species)
        found = cells.some(np.arange(2)).pooled(statistic)
        differences.append(found.value[0] - found.value[1])
        variances.append(((found.influence[0] - found.influence[1]) ** 2).sum())
    # Centred by the mean over groups, large groups would have most of the difference.
    assert 0.8 < np.mean(variances) / np.var(differences) < 1.25


@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize(
    "shares", [(0.9, 0.9, 0.15), (0.9, 0.9, 0.15, 0.15, 0.15, 0.15), (0.9, 0.9, 0.5, 0.5)]
)
def test_cells_that_are_far_worse_do_not_change_the_variance_of_a_difference_of_good_ones(shares, lacking):
    rng = np.random.default_rng(7)
    n_species = 60
    truth = np.repeat(np.arange(n_species), rng.permutation(np.resize([1, 2, 3, 8], n_species)))
    statistic = statistics({}, n_species)["val/f1_macro"]
    with_worse, alone = [], []
    for _ in range(60):
        is_right = rng.random((len(shares), len(truth))) < np.array(shares)[:, None]
        cells = np.where(is_right, truth, rng.integers(0, n_species, is_right.shape))
        if lacking:
            cells[2:, rng.random(len(truth)) < 0.2] = -1
        for predicted, found in ((cells, with_worse), (cells[:2], alone)):
            of_good = Cells(truth, predicted, np.arange(len(truth)), n_species).some(np.arange(2))
            influence = of_good.pooled(statistic).influence
            found.append(((influence[0] - influence[1]) ** 2).sum())
    # From the mean over all cells it is 0.4 to 0.7 times as large; what is scaled may add a sixth.
    assert 0.9 < np.mean(with_worse) / np.mean(alone) < 1.2


@pytest.mark.parametrize("other", [0.84, 0.8])
def test_a_difference_of_good_cells_that_is_not_zero_is_no_surer_for_bad_ones(other):
    rng = np.random.default_rng(8)
    n_species = 60
    truth = np.repeat(np.arange(n_species), np.resize([1, 2, 3, 8, 14], n_species))
    statistic = statistics({}, n_species)["val/f1_macro"]
    differences, variances = [], []
    for _ in range(250):
        is_right = rng.random((8, len(truth))) < np.array([0.9, other, *6 * [0.15]])[:, None]
        cells = np.where(is_right, truth, rng.integers(0, n_species, is_right.shape))
        found = Cells(truth, cells, np.arange(len(truth)), n_species).some(np.arange(2)).pooled(statistic)
        differences.append(found.value[0] - found.value[1])
        variances.append(((found.influence[0] - found.influence[1]) ** 2).sum())
    # From the mean over all cells 0.4, by way of those that are nearly as good alone 0.6 to 0.8.
    assert 0.8 < np.mean(variances) / np.var(differences) < 1.5


def test_mean_cells_are_of_the_cells_that_predicted_a_part_weighted_by_how_alike_they_are(data):
    truth, predicted, group, _ = data
    rng = np.random.default_rng(4)
    all_cells = np.where(rng.random((4, 90)) < [[0.9], [0.8], [0.7], [0.2]], truth, (truth + 1) % N_CLASSES)
    all_cells[1, group < 25] = -1
    all_cells[3, group > 35] = -1
    cells = Cells(truth, all_cells, group, N_CLASSES)
    share = [(each[each >= 0] == truth[each >= 0]).mean() for each in all_cells]
    assert cells.share == pytest.approx(share)
    near, far = cells.alike(np.array([0.85, 0.9]), np.array([0.05, 0.15]))
    for mean, std, level in ((near, 0.05, 0.85), (far, 0.15, 0.9), (cells.mean, 1e9, 0)):
        weight = np.exp(-(((np.array(share) - level) / std) ** 2) / 2)[:, None] * (all_cells >= 0)
        weight = weight / weight.sum(axis=0)
        hits = np.bincount(truth, (weight * (all_cells == truth)).sum(axis=0), N_CLASSES)
        called = sum(np.bincount(all_cells[i] % N_CLASSES, weight[i], N_CLASSES) for i in range(4))
        assert mean.whole[0] == pytest.approx(hits) and mean.whole[2] == pytest.approx(called)


def test_the_steps_of_own_influences_are_those_of_f1_by_hand(data):
    truth, _, _, _ = data
    rng = np.random.default_rng(2)
    right = rng.random((4, 90)) < np.array([[0.9], [0.88], [0.5], [0.2]])
    predicted = np.where(right, truth, rng.integers(0, N_CLASSES, (4, 90)))
    cells = Cells(truth, predicted, np.arange(90), N_CLASSES)
    statistic = statistics({}, N_CLASSES)["val/f1_macro"]
    one_hot = predicted[:, :, None] == np.arange(N_CLASSES)  # [cells, recordings, classes]
    is_true = truth[:, None] == np.arange(N_CLASSES)

    def f1(called):  # of probabilities to be predicted, [recordings, classes]
        return (2 * (called * is_true).sum(axis=0) / (called + is_true).sum(axis=0)).mean()

    expected = np.zeros((4, 90))
    for i, share in enumerate(cells.share):
        at = round(share / 0.05) * 0.05
        nearer = one_hot[i]
        for std, level in ((0.05, at), (0.15, round(at / 0.15) * 0.15), (1e9, 0)):
            weight = np.exp(-(((cells.share - level) / std) ** 2) / 2)
            mean = np.tensordot(weight / weight.sum(), one_hot, 1)
            for g in range(90):
                exchanged = mean.copy()
                exchanged[g] = nearer[g]
                expected[i, g] += f1(exchanged) - f1(mean)
            nearer = mean
    assert cells.some(np.arange(4)).own_in_steps(statistic) == pytest.approx(expected, abs=1e-12)
    assert cells.some(np.array([2])).own_in_steps(statistic) == pytest.approx(expected[[2]], abs=1e-12)
