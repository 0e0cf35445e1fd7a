from __future__ import annotations

import json

import pytest

from birdnet_core.errors import RunFolderError
from reports import choose, load

CE, FOCAL, LOGIT = ({"loss.name": name} for name in ("cross_entropy", "focal", "logit_adjusted"))


def test_highest_mean_wins_with_the_config_of_its_record(make_run):
    best = choose(load([make_run([(CE, {0: 0.5, 1: 0.1}), (FOCAL, {0: 0.3, 1: 0.4})])]))
    assert best["factors"] == FOCAL
    assert (best["mean"], best["n"], best["values"], best["seeds"]) == (
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
    assert best["rule"].startswith("The lowest mean over seeds of val/loss")


def test_cell_with_a_missing_seed_does_not_beat_a_complete_one(make_run):
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
        ({0: 0.3, 1: 0.5}, "Not sure: its 95 % interval overlaps"),
        ({0: 0.01, 1: 0.0101}, "Fairly sure"),
        ({0: "failed", 1: "failed"}, "Nothing was compared"),
    ],
)
def test_how_sure_follows_from_the_intervals(make_run, second, expected):
    best = choose(load([make_run([(CE, {0: 0.6, 1: 0.601}), (FOCAL, second)])]))
    assert best["how_sure"].startswith(expected)


def test_one_seed_is_never_sure(make_run):
    best = choose(load([make_run([(CE, {0: 0.9}), (FOCAL, {0: 0.1})])]))
    assert best["how_sure"].startswith("Not sure: with one seed")


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
