from __future__ import annotations

import json

import pytest

from birdnet_core.errors import ConfigError, RunFolderError
from reports import choose, load
from reports.selection.choice import choose_among, front_in
from reports.statistics.analysis import results
from tests.reports.conftest import config_id_of

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
    assert best["rule"] == "By mean: the lowest val/loss."


def test_of_equal_scores_the_lower_loss_wins(make_run):
    def of(f1, loss):
        return {0: {"status": "completed", "metrics": {"val/f1_macro": f1, "val/loss": loss}}}

    cells = [(LOGIT, of(0.8, 0.1)), (CE, of(0.9, 0.7)), (FOCAL, of(0.9, 0.4))]
    best = choose(load([make_run(cells, kind="search")]))
    assert [each["factors"] for each in best["shortlist"]] == [FOCAL, CE, LOGIT]


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


RARE, SIZE = (
    {"name": "val/f1_rare", "comparison": ">=", "limit": 0.2},
    {"name": "n_params", "comparison": "<=", "limit": 1000},
)


def ended(f1, f1_rare, n_params):
    metrics = {"val/f1_macro": f1, "val/f1_rare": f1_rare}
    return {0: {"status": "completed", "metrics": metrics, "n_params": n_params}}


def test_a_config_that_breaks_a_constraint_is_never_chosen_nor_listed(make_run):
    cells = [(CE, ended(0.3, 0.3, 900)), (FOCAL, ended(0.9, 0.1, 900)), (LOGIT, ended(0.8, 0.3, 1001))]
    path = make_run(cells, kind="search", constraints=[RARE, SIZE])
    best = choose(load([path]))
    assert best["factors"] == CE and best["runner_up"] is None
    assert [each["factors"] for each in best["shortlist"]] == [CE]


def test_where_no_config_is_feasible_the_nearest_is_named_with_its_values(make_run):
    cells = [(CE, ended(0.3, 0.19, 900)), (FOCAL, ended(0.9, 0.1, 2000)), (LOGIT, {0: "infeasible"})]
    path = make_run(cells, kind="search", constraints=[RARE, SIZE])
    words = r"none of the 2 trained configs .* keeps val/f1_rare>=0.2, n_params<=1000.*nearest is .*cross_ent"
    with pytest.raises(RunFolderError, match=f"{words}.*: val/f1_rare is 0.19$"):
        choose(load([path]))


def test_means_over_repeats_decide_in_an_ablation_and_feasible_cells_alone_are_compared(make_run):
    """Of the best cell the mean of F1 of rare species is too low: the best set is of the other two."""
    cells = [
        (factors, {r: ended(f1 + r / 100, rare[r], 900)[0] for r in range(3)})
        for factors, f1, rare in (
            (CE, 0.3, (0.3, 0.2, 0.3)), (FOCAL, 0.9, (0.3, 0.2, 0.0)), (LOGIT, 0.301, (0.1, 0.3, 0.3)),
        )
    ]  # fmt: skip
    best = choose(load([make_run(cells, constraints=[RARE])]))
    assert best["factors"] == LOGIT
    assert set(best["not_worse"]) <= {config_id_of(CE), config_id_of(LOGIT)}
    assert best["how_sure"].startswith(("At 95 %, 2 of 2", "It is the best of 2"))


@pytest.fixture
def fronted(make_run):
    """For F1 and few parameters: two configs on the front, one dominated, the smallest infeasible."""
    cells = [(CE, ended(0.5, 0.3, 400)), (FOCAL, ended(0.6, 0.3, 900)), (LOGIT, ended(0.4, 0.3, 500)),
             ({"loss.name": "other"}, ended(0.5, 0.1, 10))]  # fmt: skip
    return make_run(cells, kind="search", also=["n_params"], constraints=[RARE])


def test_several_objectives_have_a_front_and_a_choice_by_an_explicit_rule_alone(fronted):
    runs = load([fronted])
    front = front_in(runs)
    assert list(front["label"]) == ["#1", "#0", "#2"]
    assert list(front["is_on_front"]) == [True, True, False]
    with pytest.raises(
        ConfigError, match=r"2 objectives \(val/f1_macro, n_params\).*--rule mean or --rule ideal"
    ):
        choose(runs)
    best = choose(runs, by="mean")
    assert best["factors"] == FOCAL
    assert [each["factors"] for each in best["shortlist"]] == [FOCAL, CE]
    assert choose(runs, by="ideal")["rule"].startswith("By ideal: on the Pareto front, the least distance")


def test_the_rule_of_a_front_is_none_of_one_objective(make_run):
    runs = load([make_run([(CE, {0: 0.9}), (FOCAL, {0: 0.1})])])
    assert front_in(runs).empty
    with pytest.raises(ConfigError, match="'ideal' is of several objectives, and 'capacity' has one"):
        choose(runs, by="ideal")


def test_one_repeat_is_never_sure(make_run):
    best = choose(load([make_run([(CE, {0: 0.9}), (FOCAL, {0: 0.1})])]))
    assert best["how_sure"].startswith("Uncertain: with 1 repeat its lead may be chance")
    assert (best["not_worse"], best["regret"]) == ([], None)
    assert [each["may_be_best"] for each in best["shortlist"]] == [None, None]


NEAR, FAR = {"loss.name": "near"}, {"loss.name": "far"}
# The first two may both be the best, the third may not.
THREE = [
    (CE, {0: 0.41, 1: 0.43, 2: 0.39}),
    (NEAR, {0: 0.38, 1: 0.42, 2: 0.40}),
    (FAR, {0: 0.11, 1: 0.13, 2: 0.10}),
]


def with_params(cells, counts):
    """Return cells whose trials completed with the given numbers of parameters."""
    return [
        (factors, {seed: {"status": "completed", "metrics": {"val/f1_macro": v}, "n_params": n}
                   for seed, v in ends.items()})
        for (factors, ends), n in zip(cells, counts, strict=True)
    ]  # fmt: skip


def test_best_has_the_set_that_may_be_the_best_and_what_the_choice_may_lose(make_run):
    best = choose(load([make_run(THREE)]))
    assert best["factors"] == CE
    assert best["not_worse"] == [config_id_of(CE), config_id_of(NEAR)]
    assert [each["factors"] for each in best["shortlist"]] == [CE, NEAR, FAR]
    assert [each["may_be_best"] for each in best["shortlist"]] == [True, True, False]
    lead = 0.40 - 0.41
    assert 0 < best["regret"] < 0.2 and best["regret"] > lead
    assert best["how_sure"] == (
        "At 95 %, 2 of 3 may be the best, this one among them. Against the best it may lose "
        f"{best['regret']:.3f} val/f1_macro at most. Its score is the best of several: too high on average."
    )
    assert json.loads(json.dumps(best, allow_nan=False)) == best


def test_a_leader_that_is_clearly_ahead_is_the_best_and_loses_nothing(make_run):
    best = choose(load([make_run([THREE[0], THREE[2]])]))
    assert (best["not_worse"], best["regret"]) == ([config_id_of(CE)], 0.0)
    assert best["how_sure"].startswith("It is the best of 2 at 95 %.")


def test_the_best_of_a_loss_is_the_lowest(make_run):
    cells = [(factors, {repeat: 1 - v for repeat, v in ends.items()}) for factors, ends in THREE]
    best = choose(load([make_run(cells, metric="val/loss", direction="minimize")]))
    assert best["not_worse"] == [config_id_of(CE), config_id_of(NEAR)] and best["regret"] > 0


@pytest.mark.parametrize(
    ("counts", "expected"), [((900, 500, 100), NEAR), ((500, 900, 100), CE), ((500, 500, 100), CE)]
)
def test_the_cheapest_is_the_smallest_that_may_be_the_best(make_run, counts, expected):
    best = choose(load([make_run(with_params(THREE, counts))]), by="cheapest")
    assert best["factors"] == expected
    assert best["rule"].startswith(
        "By cheapest: the fewest parameters among the configs that may be the best"
    )
    assert best["runner_up"]["factors"] == (CE if expected == NEAR else NEAR)


def test_the_cheapest_is_refused_below_three_repeats_with_what_to_do(make_run):
    runs = load([make_run([(CE, {0: 0.9, 1: 0.8}), (FOCAL, {0: 0.1, 1: 0.1})])])
    with pytest.raises(
        RunFolderError, match=r"takes three repeats.*'capacity' has fewer.*extend RUN --repeats"
    ):
        choose(runs, by="cheapest")
    search = load([make_run([(CE, {0: 0.9}), (FOCAL, {0: 0.1})], kind="search", folder="search")])
    with pytest.raises(RunFolderError, match=r"birdtune best RUN --confirm 10"):
        choose(search, by="cheapest")


@pytest.mark.parametrize("by", ["men", "lower-bound", "one-se"])
def test_a_rule_that_there_is_not_is_named_with_those_that_there_are(make_run, by):
    runs = load([make_run([(CE, {0: 0.9}), (FOCAL, {0: 0.1})])])
    with pytest.raises(ConfigError, match=rf"unknown rule '{by}'.*\(known: mean, cheapest, ideal\)"):
        choose(runs, by=by)


def test_a_cell_that_lacks_a_repeat_competes_by_what_the_model_makes_of_it(make_run):
    """The repeat that it lacks is a hard one, which its mean over the others does not know of."""
    cells = [
        (CE, {0: 0.50, 1: 0.51, 2: 0.10, 3: 0.52}),
        (FOCAL, {0: 0.45, 1: 0.46, 2: "failed", 3: 0.47}),
        (LOGIT, {0: 0.30, 1: 0.31, 2: -0.10, 3: 0.32}),
    ]
    best = choose(load([make_run(cells)]))
    assert best["factors"] == CE and best["runner_up"]["factors"] == FOCAL
    assert best["runner_up"]["mean"] == pytest.approx(0.3575)  # 0.46 over its own three
    assert best["runner_up"]["low"] < best["runner_up"]["mean"] < best["runner_up"]["high"]
    assert [each["mean"] for each in best["shortlist"]] == sorted(
        (each["mean"] for each in best["shortlist"]), reverse=True
    )


def test_a_cell_whose_split_leaks_competes_only_where_all_leak(make_run):
    def of_split(split, value):
        return {
            "status": "completed",
            "metrics": {"val/f1_macro": value},
            "config": {"data": {"split": split}},
        }

    grouped, random = {"data.split": "grouped"}, {"data.split": "random-windows"}
    ends = {split: {r: of_split(split, v + r / 100) for r in range(3)}
            for split, v in (("grouped", 0.2), ("random-windows", 0.9))}  # fmt: skip
    best = choose(load([make_run([(grouped, ends["grouped"]), (random, ends["random-windows"])])]))
    assert best["factors"] == grouped and len(best["shortlist"]) == 1
    assert best["how_sure"].startswith("Not compared: it is the only config that competes.")
    leaky = [(f, ends["random-windows"]) for f in (CE, FOCAL)]
    best = choose(load([make_run(leaky, folder="leaky")]))
    assert len(best["shortlist"]) == 2
    assert "Its split leaks (random-windows): it will score lower on new recordings." in best["how_sure"]


def test_a_cell_trained_unequal_epochs_competes_only_where_none_was_trained_equally(make_run):
    short = {"status": "completed", "epochs": 2, "best_epoch": 2, "metrics": {"val/f1_macro": 0.9}}
    path = make_run([(CE, {0: 0.1, 1: 0.2, 2: 0.1}), (FOCAL, dict.fromkeys(range(3), short))])
    best = choose(load([path]))
    assert best["factors"] == CE and len(best["shortlist"]) == 1
    longer = short | {"epochs": 3, "metrics": {"val/f1_macro": 0.8}}
    path = make_run([(f, dict.fromkeys(range(3), e)) for f, e in ((CE, longer), (FOCAL, short))], folder="b")
    best = choose(load([path]))
    assert best["factors"] == FOCAL and best["how_sure"].endswith(
        "It was not trained for the epochs of the study."
    )


def test_no_completed_trial_says_what_happened(make_run):
    with pytest.raises(RunFolderError, match=r"'capacity'.*2 failed, 1 running"):
        choose(load([make_run([(CE, {0: "failed", 1: "failed", 2: "running"})])]))


def test_unknown_study_is_named_with_the_known_ones(make_run):
    with pytest.raises(RunFolderError, match=r"'nope'.*capacity"):
        choose(load([make_run([(CE, {0: 0.1})])]), "nope")


def test_of_several_studies_one_has_to_be_named(make_run):
    path = make_run([(CE, {0: 0.4})])
    make_run([(CE, {0: 0.4}), (FOCAL, {0: 0.5})], name="loss")
    runs = load([path])
    with pytest.raises(RunFolderError, match=r"hold 2: name one study.*--study \(studies: capacity, loss\)"):
        choose(runs)
    assert choose(runs, "capacity")["factors"] == CE
    assert choose(runs, "loss")["factors"] == FOCAL


def test_studies_of_one_name_in_two_runs_do_not_compete(make_run):
    paths = [make_run([(CE, {0: 0.4})], folder=folder) for folder in ("a", "b")]
    with pytest.raises(RunFolderError, match="hold 2: name one study of one run"):
        choose(load(paths), "capacity")


def test_a_cell_with_one_finite_value_is_never_sure(make_run):
    half = {"status": "completed", "metrics": {"val/f1_macro": float("nan")}}
    best = choose(load([make_run([(CE, {0: 0.9, 1: half}), (FOCAL, {0: half, 1: half})])]))
    assert best["how_sure"].startswith("Not compared")
    best = choose(load([make_run([(CE, {0: 0.9, 1: half}), (FOCAL, {0: 0.1, 1: half})], folder="both")]))
    assert best["how_sure"].startswith("Uncertain: with 1 repeat ")
    assert best["n"] == 1


def test_a_cell_with_a_value_that_is_not_finite_does_not_beat_a_complete_one(make_run):
    half = {"status": "completed", "metrics": {"val/f1_macro": float("nan")}}
    best = choose(load([make_run([(CE, {0: 0.9, 1: half}), (FOCAL, {0: 0.1, 1: 0.2})])]))
    assert best["factors"] == FOCAL


def test_the_level_of_a_page_of_several_studies_is_that_of_its_choice(make_run):
    runs = load([make_run(THREE)])
    study = runs.studies[0]
    trials, cells, analysis = results(runs, study, level=0.975)
    assert choose_among(trials, study, cells, analysis)["how_sure"].startswith("At 97.5 %, 2 of 3 may be")


def folded(make_run, cells, **changes):
    """Write a search in which configs have several folds, each with its predictions left out."""
    return load([make_run(cells, kind="search", **changes)])


def test_of_a_search_by_folds_only_configs_with_all_folds_compete(make_run):
    lucky = (FOCAL, {0: 0.99})
    runs = folded(make_run, [(CE, {0: 0.5, 1: 0.6, 2: 0.7}), lucky, (LOGIT, {0: 0.5, 1: 0.5, 2: 0.6})])
    best = choose(runs)
    assert best["factors"] == CE and best["mean"] == pytest.approx(0.6) and best["n"] == 3
    assert best["low"] < 0.6 < best["high"]
    assert best["how_sure"].startswith("2 of 3 configs have all 3 folds, and they alone compete. ")
    assert FOCAL not in [each["factors"] for each in best["shortlist"]]
    assert config_id_of(CE) in best["not_worse"]


def test_of_a_search_by_folds_that_has_just_begun_configs_with_fewer_compete(make_run):
    best = choose(folded(make_run, [(CE, {0: 0.5, 1: "running", 2: "missing"}), (FOCAL, {0: 0.4})]))
    assert best["factors"] == CE and best["low"] is None
    assert best["how_sure"].startswith("0 of 2 configs have all 3 folds, so that configs with fewer compete.")
