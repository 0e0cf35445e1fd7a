from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from birdnet_core.errors import ConfigError, RunFolderError
from reports import choose, load
from reports.selection.choice import probabilities_of_best

CE, FOCAL, LOGIT = ({"loss.name": name} for name in ("cross_entropy", "focal", "logit_adjusted"))


def test_highest_mean_wins_with_the_config_of_its_record(make_run):
    best = choose(load([make_run([(CE, {0: 0.5, 1: 0.1}), (FOCAL, {0: 0.3, 1: 0.4})])]))
    assert best["factors"] == FOCAL
    assert (best["mean"], best["n"], best["values"], best["repeats"]) == (
        pytest.approx(0.35),
        2,
        [0.3, 0.4],
        [0, 1],
    )
    assert best["config"] == {"model": FOCAL, "training": {"epochs": 4}, "seed": 0}
    assert best["runner_up"]["factors"] == CE
    assert json.loads(json.dumps(best, allow_nan=False)) == best


def test_lowest_wins_when_the_metric_is_minimized(make_run):
    path = make_run([(CE, {0: 2.0}), (FOCAL, {0: 1.5})], metric="val/loss", direction="minimize")
    best = choose(load([path]))
    assert best["factors"] == FOCAL
    assert best["rule"].startswith("By mean: the lowest mean over repeats of val/loss, each trial")


def test_cell_with_a_missing_repeat_does_not_beat_a_complete_one(make_run):
    best = choose(load([make_run([(CE, {0: 0.2, 1: 0.2}), (FOCAL, {0: 0.9, 1: "failed"})])]))
    assert best["factors"] == CE


def test_incomplete_cells_compete_where_none_is_complete(make_run):
    best = choose(load([make_run([(CE, {0: 0.2, 1: "failed"}), (FOCAL, {0: 0.9, 1: "failed"})])]))
    assert best["factors"] == FOCAL


def test_pruned_trial_is_never_chosen(make_run):
    pruned = {"status": "pruned", "epochs": 1, "best_epoch": 1, "metrics": {"val/f1_macro": 0.99}}
    best = choose(load([make_run([(CE, {0: 0.2}), (FOCAL, {0: pruned})], kind="search")]))
    assert best["factors"] == CE
    assert best["low"] is None and best["runner_up"] is None


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({0: 0.3, 1: 0.5}, "Uncertain: its 95 % interval overlaps"),
        ({0: 0.01, 1: 0.0101}, "Fairly certain"),
        ({0: "failed", 1: "failed"}, "Not compared"),
    ],
)
def test_how_sure_follows_from_the_intervals(make_run, second, expected):
    best = choose(load([make_run([(CE, {0: 0.6, 1: 0.601}), (FOCAL, second)])]))
    assert best["how_sure"].startswith(expected)


def test_one_repeat_is_never_sure(make_run):
    best = choose(load([make_run([(CE, {0: 0.9}), (FOCAL, {0: 0.1})])]))
    assert best["how_sure"].startswith("Uncertain: with one repeat")


THREE = [
    (CE, {0: 0.30, 1: 0.50, 2: 0.46}),  # the highest mean, 0.42, with a wide interval
    (FOCAL, {0: 0.40, 1: 0.41, 2: 0.39}),  # the highest lower bound
    (LOGIT, {0: 0.36, 1: 0.38, 2: 0.40}),  # the smallest within a standard error, 0.061, of the first
]


def with_params(cells, counts):
    """Return cells whose trials completed with the given numbers of parameters."""
    return [
        (factors, {seed: {"status": "completed", "metrics": {"val/f1_macro": v}, "n_params": n}
                   for seed, v in ends.items()})
        for (factors, ends), n in zip(cells, counts, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize(("by", "expected"), [("mean", CE), ("lower-bound", FOCAL), ("one-se", LOGIT)])
def test_each_rule_chooses_what_it_says(make_run, by, expected):
    best = choose(load([make_run(with_params(THREE, (900, 500, 100)))]), by=by)
    assert best["factors"] == expected
    assert best["rule"].startswith(f"By {by}: ")
    assert best["runner_up"]["factors"] == (FOCAL if by == "mean" else CE)


def test_one_se_keeps_the_leader_where_no_smaller_cell_is_near(make_run):
    cells = [(CE, {0: 0.50, 1: 0.51, 2: 0.52}), (FOCAL, {0: 0.40, 1: 0.41, 2: 0.42})]
    assert choose(load([make_run(with_params(cells, (900, 100)))]), by="one-se")["factors"] == CE


def test_the_highest_upper_bound_of_a_loss_is_avoided(make_run):
    cells = [(CE, {0: 1.0, 1: 3.0, 2: 1.1}), (FOCAL, {0: 1.8, 1: 1.9, 2: 1.85})]
    run = make_run(cells, metric="val/loss", direction="minimize")
    assert choose(load([run]))["factors"] == CE
    best = choose(load([run]), by="lower-bound")
    assert best["factors"] == FOCAL and "the lowest upper bound of the 95 % interval" in best["rule"]


def test_a_rule_that_cannot_be_applied_says_what_it_needs(make_run):
    runs = load([make_run([(CE, {0: 0.9}), (FOCAL, {0: 0.1})])])
    with pytest.raises(RunFolderError, match="'one-se' needs a cell with two completed repeats"):
        choose(runs, by="one-se")
    with pytest.raises(ConfigError, match="unknown rule 'men'; did you mean 'mean'"):
        choose(runs, by="men")


def test_two_cells_far_apart_are_as_sure_as_the_paired_t_test_says():
    """Little is shrunk there: the probability is near 1 - p / 2, and the lower one's near p / 2."""
    before, after = {0: 0.30, 1: 0.42, 2: 0.35, 3: 0.50}, {0: 0.33, 1: 0.46, 2: 0.36, 3: 0.52}
    one_sided = stats.ttest_rel(list(after.values()), list(before.values()), alternative="greater").pvalue
    chances = probabilities_of_best([before, after], "maximize")
    assert chances == pytest.approx([one_sided, 1 - one_sided], abs=0.03)
    assert probabilities_of_best([before, after], "minimize") == pytest.approx(chances[::-1], abs=0.01)


@pytest.mark.parametrize(("spread", "n_cells"), [(0.01, 5), (0.03, 5), (0.02, 12)])
def test_the_probability_is_right_as_often_as_it_says(spread, n_cells):
    """Simulated studies whose true means are spread little and much against the noise of a mean, 0.012."""
    rng = np.random.default_rng(3)
    claimed, right = [], []
    for _ in range(100):
        truth = rng.normal(0.2, spread, n_cells) + rng.normal(0, 1e-9, n_cells)
        values = truth[:, None] + rng.normal(0, 0.05, 3) + rng.normal(0, 0.02, (n_cells, 3))
        chances = probabilities_of_best([dict(enumerate(map(float, cell))) for cell in values], "maximize")
        leader = int(np.argmax(values.mean(axis=1)))
        claimed.append(chances[leader])
        right.append(leader == truth.argmax())
    assert np.mean(claimed) == pytest.approx(np.mean(right), abs=0.12)


def test_what_cannot_separate_chance_from_merit_has_no_probability(make_run):
    assert probabilities_of_best([{0: 0.3}, {0: 0.2}], "maximize") is None
    assert probabilities_of_best([{0: 0.3, 1: 0.3}, {0: 0.2, 1: 0.2}], "maximize") is None
    assert choose(load([make_run([(CE, {0: 0.9}), (FOCAL, {0: 0.1})])]))["p_best"] is None


def test_best_has_the_probability_of_the_choice(make_run):
    best = choose(load([make_run(THREE)]))
    assert [c["factors"] for c in best["shortlist"]] == [CE, FOCAL, LOGIT]
    assert sum(c["p_best"] for c in best["shortlist"]) == pytest.approx(1)
    assert best["p_best"] == best["shortlist"][0]["p_best"] > 0.4
    assert best["how_sure"].endswith(f"best of the 3 compared is about {best['p_best']:.0%}.")


def test_no_completed_trial_says_what_happened(make_run):
    with pytest.raises(RunFolderError, match=r"'capacity'.*2 failed, 1 running"):
        choose(load([make_run([(CE, {0: "failed", 1: "failed", 2: "running"})])]))


def test_unknown_study_is_named_with_the_known_ones(make_run):
    with pytest.raises(RunFolderError, match=r"'nope'.*capacity"):
        choose(load([make_run([(CE, {0: 0.1})])]), "nope")


def test_studies_of_one_metric_compete(make_run):
    path = make_run([(CE, {0: 0.4})])
    make_run([(CE, {0: 0.4}), (FOCAL, {0: 0.5})], name="loss")
    best = choose(load([path]))
    assert (best["study"], best["factors"]) == ("loss", FOCAL)
    assert best["runner_up"]["factors"] == CE


@pytest.mark.parametrize(
    "change", [{"metric": "val/map"}, {"epochs": 9}, {"data": {"name": "clips", "split_id": "s2"}}]
)
def test_studies_that_cannot_be_compared_do_not_compete(make_run, change):
    path = make_run([(CE, {0: 0.4})])
    make_run([(FOCAL, {0: 0.5})], name="loss", **change)
    runs = load([path])
    with pytest.raises(RunFolderError, match="capacity.*loss.*name one study"):
        choose(runs)
    assert choose(runs, "loss")["factors"] == FOCAL


def test_a_cell_with_one_finite_value_is_never_sure(make_run):
    half = {"status": "completed", "metrics": {"val/f1_macro": float("nan")}}
    best = choose(load([make_run([(CE, {0: 0.9, 1: half}), (FOCAL, {0: half, 1: half})])]))
    assert best["how_sure"].startswith("Not compared")
    best = choose(load([make_run([(CE, {0: 0.9, 1: half}), (FOCAL, {0: 0.1, 1: half})], folder="both")]))
    assert best["how_sure"].startswith("Uncertain: with one repeat")
    assert best["n"] == 1


def test_a_cell_with_a_value_that_is_not_finite_does_not_beat_a_complete_one(make_run):
    half = {"status": "completed", "metrics": {"val/f1_macro": float("nan")}}
    best = choose(load([make_run([(CE, {0: 0.9, 1: half}), (FOCAL, {0: 0.1, 1: 0.2})])]))
    assert best["factors"] == FOCAL


def test_single_trials_of_a_search_do_not_compete_with_repeated_cells(make_run):
    ablation = make_run([(CE, {0: 0.3, 1: 0.3, 2: 0.3}), (FOCAL, {0: 0.2, 1: 0.2, 2: 0.2})])
    search = make_run([({"optim.lr": 0.1}, {0: 0.9})], folder="search", kind="search", name="rates")
    with pytest.raises(RunFolderError, match=r"differ in their kind \(capacity: ablation, rates: search\)"):
        choose(load([ablation, search]))
    assert choose(load([ablation, search]), "capacity")["factors"] == CE
    assert choose(load([ablation, search]), "rates")["factors"] == {"optim.lr": 0.1}


def test_cells_of_one_repeat_do_not_compete_with_cells_of_three(make_run):
    many = make_run([(CE, {0: 0.3, 1: 0.3, 2: 0.3})])
    one = make_run([(FOCAL, {0: 0.9})], folder="one", name="other")
    with pytest.raises(RunFolderError, match=r"differ in their number of repeats \(capacity: 3, other: 1\)"):
        choose(load([many, one]))
