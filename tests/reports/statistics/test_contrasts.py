"""Which contrasts a design gives, and with which weights over its cells."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from reports.statistics.contrasts import contrasts, numeric_factors, polynomial, scale_of
from search_spaces.designs import FractionalFactorial, FullFactorial, LeaveOneOut, OneAtATime

GAMMAS = [0.0, 0.5, 1.0, 2.0, 3.0, 5.0]
TWO = {"model.name": ("small", "big"), "loss.name": ("ce", "focal")}
PARTS = {name: ("off", "on") for name in ("mixup", "noise", "shift", "stretch", "pitch")}


def of_design(design, factors, baseline=None):
    """Return the contrasts of a design over these factors, the first level of each being the baseline's."""
    baseline = baseline or {name: levels[0] for name, levels in factors.items()}
    facts = {"kind": design.kind, **design.facts(factors, baseline)}
    listed = {name: list(levels) for name, levels in factors.items()}
    study = {"kind": "ablation", "factors": listed, "baseline": baseline, "design": facts}
    cells = design.cells(factors, baseline)
    found = contrasts(cells, study)
    for contrast in found:
        assert contrast.weights.sum() == pytest.approx(0) and len(contrast.weights) == len(cells)
    signed = np.array([sign * c.weights for c in found for sign in (1, -1)]).round(9)
    assert len(np.unique(signed, axis=0)) == 2 * len(found), "no contrast is there twice"
    return {c.label: c for c in found}, cells


def kinds(found):
    return dict(Counter(c.kind for c in found.values()))


def weights(found):
    return {label: c.weights.tolist() for label, c in found.items()}


def test_a_2x2_design_has_main_effects_their_interaction_and_each_effect_at_the_other_level():
    found, cells = of_design(FullFactorial(), TWO)
    assert [tuple(cell.values()) for cell in cells] == [
        ("small", "ce"), ("small", "focal"), ("big", "ce"), ("big", "focal"),
    ]  # fmt: skip
    # The effects at the baseline's level of the other factor are differences from the baseline already.
    assert weights(found) == {
        "small · focal vs baseline": [-1, 1, 0, 0],
        "big · ce vs baseline": [-1, 0, 1, 0],
        "big · focal vs baseline": [-1, 0, 0, 1],
        "model: big vs small": [-0.5, -0.5, 0.5, 0.5],
        "loss: focal vs ce": [-0.5, 0.5, -0.5, 0.5],
        "model big with loss focal": [1, -1, -1, 1],
        "model: big vs small, at loss focal": [0, -1, 0, 1],
        "loss: focal vs ce, at model big": [0, 0, -1, 1],
    }
    assert [c.cell for c in found.values()] == [1, 2, 3, *[None] * 5]
    assert found["model big with loss focal"].factors == ("model.name", "loss.name")


def test_effects_go_from_the_baselines_level_to_the_other():
    found, _ = of_design(FullFactorial(), TWO, {"model.name": "big", "loss.name": "ce"})
    assert found["model: small vs big"].weights.tolist() == [0.5, 0.5, -0.5, -0.5]
    assert found["model small with loss focal"].weights.tolist() == [-1, 1, 1, -1]


def test_a_6x2_design_has_a_main_effect_a_level_and_trends_over_all_cells():
    found, cells = of_design(FullFactorial(), {"loss.gamma": tuple(GAMMAS), "model.name": ("small", "big")})
    assert kinds(found) == {"baseline": 11, "main": 5 + 1, "interaction": 5, "simple": 5 + 5, "trend": 2}
    expected = [0.5 if c["loss.gamma"] == 2 else -0.5 if c["loss.gamma"] == 0 else 0 for c in cells]
    assert found["loss.gamma: 2 vs 0"].weights.tolist() == expected
    linear, curved = (c.weights for c in found.values() if c.kind == "trend")
    for trend, of_levels in zip((linear, curved), polynomial(GAMMAS), strict=True):
        assert trend.tolist() == pytest.approx(np.repeat(of_levels / 2, 2).tolist())
    assert "loss.gamma, linear from 0 to 5" in found
    # Of a mean that rises by 0.1 a unit of gamma, in both networks.
    assert linear @ [0.1 * c["loss.gamma"] for c in cells] == pytest.approx(0.5)


def test_a_main_effect_of_three_factors_is_the_mean_over_all_combinations_of_the_others():
    factors = {"a": (0, 1), "b": ("x", "y", "z"), "c": (False, True)}
    found, cells = of_design(FullFactorial(), factors)
    # Each pair of factors interacts; effects at one level of the other are of two factors alone.
    assert kinds(found) == {"baseline": 11, "main": 1 + 2 + 1, "interaction": 2 + 1 + 2}
    values = np.array([10 * c["a"] + 3 * (c["b"] == "z") + 2 * c["a"] * c["c"] for c in cells])
    assert found["a: 1 vs 0"].weights @ values == pytest.approx(10 + 1)
    assert found["b: z vs x"].weights @ values == pytest.approx(3)
    assert found["a 1 with c true"].weights @ values == pytest.approx(2)
    assert found["a 1 with b z"].weights @ values == pytest.approx(0)


def test_one_factor_at_a_time_has_differences_from_the_baseline_and_trends_at_its_levels():
    found, cells = of_design(OneAtATime(), {"loss.gamma": (3.0, 0.0, 1.0), "model.name": ("small", "big")})
    assert kinds(found) == {"baseline": 3, "trend": 2}
    linear, _ = polynomial([0.0, 1.0, 3.0])
    assert [c["loss.gamma"] for c in cells] == [3, 0, 1, 3]
    # The other network is no part of it.
    expected = [linear[2], linear[0], linear[1], 0]
    assert found["loss.gamma, linear from 0 to 3"].weights.tolist() == pytest.approx(expected)


def test_a_single_numeric_factor_has_a_trend_and_no_main_effects():
    found, _ = of_design(FullFactorial(), {"optim.lr": (1e-4, 1e-3, 1e-2, 1e-1)})
    assert kinds(found) == {"baseline": 3, "trend": 2}
    assert found["optim.lr (log), linear from 0.0001 to 0.1"].weights.tolist() == pytest.approx(
        [-0.9, -0.3, 0.3, 0.9]
    )
    # Over three even levels the line is the difference between the ends, which is there already.
    three, _ = of_design(FullFactorial(), {"g": (0, 1, 2)})
    assert weights(three) == {
        "g=1 vs baseline": [-1, 1, 0], "g=2 vs baseline": [-1, 0, 1],
        "g, curved from 0 to 2": pytest.approx([-0.5, 1, -0.5]),
    }  # fmt: skip


def test_a_fraction_has_main_effects_with_their_aliases_and_no_interactions():
    found, cells = of_design(FractionalFactorial("III"), PARTS)
    assert len(cells) == 8 and kinds(found) == {"baseline": 7, "main": 5}
    aliases = FractionalFactorial("III").facts(PARTS, dict.fromkeys(PARTS, "off"))["aliases"]
    for letter, name in zip("ABCDE", PARTS, strict=True):
        contrast = found[f"{name}: on vs off"]
        assert contrast.weights.tolist() == [0.25 if c[name] == "on" else -0.25 for c in cells]
        assert list(contrast.aliases) == aliases[letter] != []


def test_leave_one_out_has_differences_from_the_baseline_alone():
    found, cells = of_design(LeaveOneOut(), PARTS, dict.fromkeys(PARTS, "on"))
    assert len(cells) == 7 and kinds(found) == {"baseline": 6}
    assert next(iter(found)) == "mixup=off vs baseline"


def test_a_design_without_a_baseline_and_a_search_have_no_contrasts():
    cells = [{"x": i} for i in range(4)]
    assert contrasts(cells, {"kind": "ablation", "baseline": None, "factors": {"x": None}}) == []
    assert contrasts(cells, {"kind": "search", "baseline": None}) == []
    away = {"kind": "ablation", "baseline": {"x": 9}, "factors": {"x": [0, 1, 2, 3]}}
    assert contrasts(cells, away) == [], "the baseline is none of the cells"
    assert contrasts([{}], {"kind": "ablation", "baseline": {}, "factors": {}}) == []


def test_a_full_design_that_lacks_a_cell_has_differences_from_the_baseline_alone():
    cells = FullFactorial().cells(TWO, {})[:-1]
    found = contrasts(cells, {"kind": "ablation", "baseline": cells[0], "factors": TWO})
    assert [c.kind for c in found] == ["baseline"] * 2


def test_polynomials_of_even_levels_are_those_of_the_textbooks():
    # Tables have (-2, -1, 0, 1, 2) and (2, -1, -2, -1, 2) for five levels, with sums of squares 10 and 14.
    linear, quadratic = polynomial([10, 20, 30, 40, 50])
    assert list(linear) == pytest.approx([4 * w / 10 for w in (-2, -1, 0, 1, 2)])
    assert list(quadratic) == pytest.approx([-4 * w / 14 for w in (2, -1, -2, -1, 2)])


@pytest.mark.parametrize("x", [GAMMAS, [1.0, 2.0, 10.0], [-3.0, -1.0, 4.0, 5.0, 9.0]])
def test_polynomials_are_the_coefficients_of_least_squares(x):
    y = np.random.default_rng(0).normal(size=len(x))
    linear, quadratic = polynomial(x)
    low, high = min(x), max(x)
    slope = np.polyfit(x, y, 1)[0]
    parabola = np.polyfit(x, y, 2)
    middle = np.polyval(parabola, (low + high) / 2)
    assert linear @ y == pytest.approx(slope * (high - low))
    assert quadratic @ y == pytest.approx(
        middle - (np.polyval(parabola, low) + np.polyval(parabola, high)) / 2
    )
    assert [linear.sum(), quadratic.sum(), linear @ quadratic] == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_logarithm_is_taken_where_it_spaces_the_levels_more_evenly():
    assert [scale_of(x) for x in ([1e-4, 3e-4, 1e-3], [32, 64, 128])] == ["log", "log"]
    assert [scale_of(x) for x in (GAMMAS, [1, 2, 3], [0.1, 0.2, 0.3], [-1, 1, 10])] == ["linear"] * 4


def test_numeric_factors_have_three_numbers_or_more():
    factors = {"gamma": [2, 0, 1.5], "lr": [0.1, 0.2], "loss": ["a", "b", "c"], "flag": [True, False, 1],
               "alpha": [None, 0.25, 0.5, 1.0]}  # fmt: skip
    study = {"kind": "ablation", "baseline": {"gamma": 0}, "factors": factors}
    assert numeric_factors(study) == {"gamma": [0, 1.5, 2]}
    assert numeric_factors({**study, "kind": "search"}) == {}
    screen = {**study, "baseline": None, "factors": {"gamma": {"low": 0, "high": 1}}}
    assert numeric_factors(screen) == {}
    assert numeric_factors({**study, "factors": None}) == {}
