"""Effects of simulated results, whose truth is known and whose statistics numpy and scipy give again."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from reports import load
from reports.statistics.aggregate import cells
from reports.statistics.compare import holm
from reports.statistics.effects import main_effects, rank_correlations
from search_spaces.designs import FractionalFactorial, FullFactorial, LatinHypercube, OneAtATime, Range

FACTORS = {"loss.name": ("ce", "focal"), "mixup": ("off", "on"), "noise": ("off", "on"), "lr": (0.1, 0.2)}
BASELINE = {name: levels[0] for name, levels in FACTORS.items()}
# Of the other level against the baseline's, and of both being at the other level.
MAIN = {"loss.name": 0.05, "mixup": -0.02, "noise": 0.0, "lr": 0.01}


def signs_of(cell, factors):
    return np.array([1 if cell[name] == levels[1] else -1 for name, levels in factors.items()])


def simulated(design, factors, main, *, interaction=0.0, n_repeats=4, noise=0.003):
    """Return cells with values at each seed: half of each effect up or down, and half of A x B's."""
    rng = np.random.default_rng(3)
    baseline = {name: levels[0] for name, levels in factors.items()}
    out = []
    for cell in design.cells(factors, baseline):
        signs = signs_of(cell, factors)
        mean = 0.4 + signs @ np.array(list(main.values())) / 2 + interaction * signs[:2].prod() / 2
        out.append((cell, {seed: float(mean + noise * rng.normal()) for seed in range(n_repeats)}))
    return out


def effects_of(path):
    runs = load([path])
    study = runs.studies[0]
    table = cells(runs.trials_of(study), study)
    return main_effects(table, study), rank_correlations(table, study)


def listed(factors):
    return {name: list(levels) for name, levels in factors.items()}


def with_design(design, factors, baseline):
    return {"kind": design.kind, **design.facts(factors, baseline)}


def test_main_effects_of_a_full_factorial_are_the_regression_coefficients_of_each_seed(make_run):
    found = simulated(FullFactorial(), FACTORS, MAIN)
    frame, _ = effects_of(make_run(found, factors=listed(FACTORS)))
    signs = np.array([signs_of(cell, FACTORS) for cell, _ in found])
    values = np.array([list(endings.values()) for _, endings in found])
    coefficients = np.linalg.lstsq(np.column_stack([np.ones(16), signs]), values, rcond=None)[0]
    effects = 2 * coefficients[1:]  # from - to + is two units
    tested = [stats.ttest_1samp(of_factor, 0.0) for of_factor in effects]
    assert list(frame["factor"]) == list(FACTORS)
    assert list(frame["diff"]) == pytest.approx(effects.mean(axis=1))
    for row, t in zip(frame.itertuples(), tested, strict=True):
        assert (row.low, row.high) == pytest.approx(tuple(t.confidence_interval(0.95)))
        assert row.p == pytest.approx(t.pvalue)
        assert row.n_shared == 4
    assert list(frame["p_holm"]) == pytest.approx(holm([t.pvalue for t in tested]))
    assert list(frame["diff"]) == pytest.approx(list(MAIN.values()), abs=0.003)
    assert frame["letter"].isna().all() and not any(frame["aliases"])


def test_an_effect_goes_from_the_baseline_to_the_other_level(make_run):
    turned = {**BASELINE, "loss.name": "focal"}
    found = simulated(FullFactorial(), FACTORS, MAIN, noise=0.0)
    frame, _ = effects_of(make_run(found, factors=listed(FACTORS), baseline=turned))
    assert tuple(frame[["minus", "plus"]].iloc[0]) == ("focal", "ce")
    assert frame["diff"].iloc[0] == pytest.approx(-0.05)


def test_an_aliased_interaction_adds_to_a_main_effect_with_the_stated_sign(make_run):
    """A and B interact; in resolution III some factor is aliased with that, and its row names it."""
    factors = {f"f{i}": ("off", "on") for i in range(5)}
    main = dict.fromkeys(factors, 0.0) | {"f0": 0.1}
    design = FractionalFactorial("III")
    found = simulated(design, factors, main, interaction=0.04, noise=0.0)
    facts = with_design(design, factors, found[0][0])
    frame, _ = effects_of(make_run(found, factors=listed(factors), design=facts))
    aliased = [row for row in frame.itertuples() if "AB" in [a.lstrip("-") for a in row.aliases]]
    assert len(found) == 8 and len(aliased) == 1
    (row,) = aliased
    sign = -1 if "-AB" in row.aliases else 1
    assert row.diff == pytest.approx(sign * 0.04)
    assert facts["letters"][row.letter] == row.factor
    others = frame[frame["factor"] != row.factor]
    assert list(others["diff"]) == pytest.approx([0.1, 0.0, 0.0, 0.0])


def test_in_resolution_four_main_effects_are_free_of_two_factor_interactions(make_run):
    design = FractionalFactorial("IV")
    found = simulated(design, FACTORS, MAIN, interaction=0.3, noise=0.0)
    facts = with_design(design, FACTORS, BASELINE)
    frame, _ = effects_of(make_run(found, factors=listed(FACTORS), design=facts))
    assert len(found) == 8
    assert list(frame["diff"]) == pytest.approx(list(MAIN.values()))
    assert list(frame["letter"]) == ["A", "B", "C", "D"] and not any(frame["aliases"])


def test_only_seeds_that_completed_in_every_cell_count(make_run):
    found = simulated(FullFactorial(), FACTORS, MAIN, n_repeats=3)
    values = np.array([list(endings.values()) for _, endings in found])
    found[5][1][2] = "failed"
    frame, _ = effects_of(make_run(found, factors=listed(FACTORS)))
    loss = np.array([signs_of(cell, FACTORS)[0] for cell, _ in found])
    by_seed = values[loss > 0].mean(axis=0) - values[loss < 0].mean(axis=0)
    assert set(frame["n_shared"]) == {2}
    assert frame["diff"].iloc[0] == pytest.approx(by_seed[:2].mean())


def test_a_cell_without_a_completed_trial_leaves_no_main_effect(make_run):
    found = simulated(FullFactorial(), FACTORS, MAIN)
    found[3] = (found[3][0], dict.fromkeys(range(4), "failed"))
    frame, _ = effects_of(make_run(found, factors=listed(FACTORS)))
    assert frame["diff"].isna().all() and set(frame["note"]) == {"no shared repeat"}


def test_one_repeat_gives_main_effects_without_intervals(make_run):
    frame, _ = effects_of(
        make_run(simulated(FullFactorial(), FACTORS, MAIN, n_repeats=1), factors=listed(FACTORS))
    )
    assert frame["diff"].notna().all()
    assert frame[["low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert set(frame["note"]) == {"one shared repeat: no interval"}


def test_main_effects_are_not_computed_over_cells_trained_unequally_long(make_run):
    found = simulated(FullFactorial(), FACTORS, MAIN, n_repeats=2)
    short = {"status": "completed", "epochs": 2, "best_epoch": 2, "metrics": {"val/f1_macro": 0.9}}
    found[0][1][0] = short
    frame, _ = effects_of(make_run(found, factors=listed(FACTORS)))
    assert frame["diff"].isna().all() and set(frame["note"]) == {"not computed: trained unequal epochs"}


@pytest.mark.parametrize(
    ("design", "factors"),
    [
        (OneAtATime(), FACTORS),
        (FullFactorial(), {"loss.name": ("ce", "focal")}),
        (FullFactorial(), {"loss.name": ("ce", "focal"), "lr": (0.1, 0.2, 0.3)}),
    ],
)
def test_designs_whose_differences_to_the_baseline_say_it_all_have_no_main_effects(make_run, design, factors):
    found = simulated(design, factors, dict.fromkeys(factors, 0.1))
    frame, ranks = effects_of(make_run(found, factors=listed(factors)))
    assert frame.empty and ranks.empty


def test_a_two_level_design_that_is_not_balanced_has_no_main_effects(make_run):
    found = simulated(FullFactorial(), FACTORS, MAIN)[:-1]
    assert effects_of(make_run(found, factors=listed(FACTORS)))[0].empty


def test_false_alarms_over_all_main_effects_are_as_rare_as_stated():
    """Holm over seven factors without effect: at most 5 % of studies have a significant one."""
    rng = np.random.default_rng(5)
    signs = np.array(list(product((-1, 1), repeat=3)))
    signs = np.column_stack([signs[:, s].prod(axis=1) for n in (1, 2, 3) for s in combinations(range(3), n)])
    effects = np.einsum("cf,ncs->nfs", signs, rng.normal(size=(1500, 8, 4))) / 4
    p = stats.ttest_1samp(effects, 0.0, axis=-1).pvalue
    assert np.mean([min(holm(list(row))) < 0.05 for row in p]) < 0.065


RANGES = {
    "optim.lr": Range(1e-4, 1e-2, log=True),
    "dropout": Range(0.0, 0.8),
    "width": Range(1, 9, integer=True),
}


def screened(n=20, noise=0.01, **more):
    """Return cells of a Latin hypercube whose metric rises with the learning rate alone."""
    rng = np.random.default_rng(6)
    found = []
    for cell in LatinHypercube(n).cells({**RANGES, **more}, {}):
        mean = 0.3 + 0.1 * (math.log10(cell["optim.lr"]) + 4)
        found.append((cell, {seed: float(mean + noise * rng.normal()) for seed in range(2)}))
    return found


def test_rank_correlations_are_spearmans_over_the_means_of_cells(make_run):
    found = screened()
    _, frame = effects_of(make_run(found, factors={}, baseline=None))
    assert frame.empty, "a study file that names no factor has none"
    _, frame = effects_of(make_run(found, folder="b", factors=dict.fromkeys(RANGES), baseline=None))
    means = [np.mean(list(endings.values())) for _, endings in found]
    for row in frame.itertuples():
        expected = stats.spearmanr([cell[row.factor] for cell, _ in found], means)
        assert row.rho == pytest.approx(expected.statistic)
        assert row.p == pytest.approx(expected.pvalue, abs=0.02)
        assert row.n_cells == 20
    assert list(frame["p_holm"]) == pytest.approx(holm(list(frame["p"])))
    assert list(frame["p_holm"] < 0.05) == [True, False, False]
    assert frame["low"].iloc[0] > 0


def test_the_interval_of_a_rank_correlation_is_the_published_one(make_run):
    """The example of ci.spear in the R package statpsych, which has Bonett and Wright's interval."""
    y = [21, 4, 9, 12, 35, 18, 10, 22, 24, 1, 6, 8, 13, 16, 19]
    x = [67, 28, 30, 28, 52, 40, 25, 37, 44, 10, 14, 20, 28, 40, 51]
    # A cell a point: the second factor keeps those of equal x apart.
    found = [({"x": a, "i": i}, {0: float(b)}) for i, (a, b) in enumerate(zip(x, y, strict=True))]
    _, frame = effects_of(make_run(found, factors={"x": None}, baseline=None))
    row = frame.iloc[0]
    assert (row["rho"], row["low"], row["high"]) == pytest.approx((0.8699639, 0.5840951, 0.9638297), abs=1e-6)


def test_p_of_few_cells_is_exact(make_run):
    # Of the 24 orders of four cells only one gives rho = 1, and one -1.
    found = [({"x": i}, {0: i / 10}) for i in range(1, 5)]
    _, frame = effects_of(make_run(found, factors={"x": None}, baseline=None))
    assert frame["p"].iloc[0] == pytest.approx(2 / 24)
    assert frame["rho"].iloc[0] == pytest.approx(1) and math.isnan(frame["low"].iloc[0])
    assert frame["note"].iloc[0] == "in perfect order: no interval"


@pytest.mark.parametrize(
    ("found", "note"),
    [
        ([({"x": i}, {0: i / 10}) for i in range(3)], "fewer than four cells"),
        ([({"x": "abcde"[i]}, {0: i / 10}) for i in range(5)], "its levels are no numbers"),
        ([({"x": i % 2 == 0, "i": i}, {0: i / 10}) for i in range(5)], "its levels are no numbers"),
        ([({"x": i}, {0: 0.5}) for i in range(5)], "the factor or the metric does not vary"),
    ],
)
def test_a_rank_correlation_that_cannot_be_says_why(make_run, found, note):
    _, frame = effects_of(make_run(found, factors={"x": None}, baseline=None))
    assert frame["note"].tolist() == [note]
    assert frame[["rho", "low", "high", "p", "p_holm"]].isna().all(axis=None)


def test_cells_that_failed_are_no_part_of_a_rank_correlation(make_run):
    found = [({"x": i}, {0: "failed" if i == 2 else i / 10}) for i in range(6)]
    _, frame = effects_of(make_run(found, factors={"x": None}, baseline=None))
    assert frame["n_cells"].iloc[0] == 5


def test_rank_correlations_are_not_computed_over_cells_trained_unequally_long(make_run):
    short = {"status": "completed", "epochs": 2, "best_epoch": 2, "metrics": {"val/f1_macro": 0.9}}
    found = [({"x": i}, {0: short if i == 2 else i / 10}) for i in range(6)]
    _, frame = effects_of(make_run(found, factors={"x": None}, baseline=None))
    assert frame["note"].tolist() == ["not computed: trained unequal epochs"]
