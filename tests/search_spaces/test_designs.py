"""Designs as matrices: their facts agree with what numpy computes from their columns."""

from collections import Counter
from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from birdnet_core.errors import ConfigError
from search_spaces.designs import (
    LETTERS,
    FractionalFactorial,
    FullFactorial,
    LatinHypercube,
    LeaveOneOut,
    OneAtATime,
    Range,
)

RESOLUTIONS = {"III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7}
FRACTIONS = [(k, r) for k in range(2, 13) for r in ("III", "IV", "V")]
# Of the smallest fractions: NIST/SEMATECH e-Handbook, table 5.3.3.4.7, and Dataplot's table DEXRES4.
RUNS = {
    "III": {3: 4, 4: 8, 5: 8, 6: 8, 7: 8, 8: 16, 9: 16, 10: 16, 11: 16, 12: 16},
    "IV": {3: 8, 4: 8, 5: 16, 6: 16, 7: 16, 8: 16, 9: 32, 10: 32, 11: 32, 12: 32},
    "V": {4: 16, 5: 16, 6: 32, 7: 64, 8: 64, 9: 128, 10: 128, 11: 128, 12: 256},
}


def two_levels(k):
    """Return k factors of levels "-" and "+", with the baseline all "-"."""
    levels = {f"f{i}": ("-", "+") for i in range(k)}
    return levels, dict.fromkeys(levels, "-")


def matrix(design, k):
    """Return the design over k two-level factors as -1 and +1, [cells, factors]."""
    cells = design.cells(*two_levels(k))
    return np.array([[1 if level == "+" else -1 for level in cell.values()] for cell in cells])


def model(signs, order):
    """Return the columns of the mean and of all effects of up to `order` factors."""
    k = signs.shape[1]
    effects = [subset for n in range(order + 1) for subset in combinations(range(k), n)]
    return np.column_stack([signs[:, subset].prod(axis=1) for subset in effects])


def words_of(signs):
    """Return every set of factors whose columns multiply to a constant, with that constant."""
    k = signs.shape[1]
    found = {}
    for mask in range(1, 2**k):
        subset = [i for i in range(k) if mask >> i & 1]
        column = signs[:, subset].prod(axis=1)
        if abs(column.sum()) == len(column):
            found["".join(LETTERS[i] for i in subset)] = int(column[0])
    return found


def column_of(effect, signs):
    """Return the column of an effect such as "-BC"."""
    sign = -1 if effect.startswith("-") else 1
    return sign * signs[:, [LETTERS.index(letter) for letter in effect.lstrip("-")]].prod(axis=1)


@pytest.mark.parametrize("sizes", [(2,), (2, 3), (2, 2, 2), (4, 3, 2)])
def test_a_full_factorial_has_every_combination_once_and_every_level_equally_often(sizes):
    levels = {f"f{i}": tuple(range(n)) for i, n in enumerate(sizes)}
    cells = FullFactorial().cells(levels, dict.fromkeys(levels, 0))
    assert Counter(tuple(cell.values()) for cell in cells) == Counter(product(*levels.values()))
    for name, values in levels.items():
        assert Counter(cell[name] for cell in cells) == dict.fromkeys(values, len(cells) // len(values))


def test_a_full_factorial_of_two_levels_estimates_every_effect_of_every_order():
    assert np.linalg.matrix_rank(model(matrix(FullFactorial(), 4), 4)) == 2**4


@pytest.mark.parametrize("sizes", [(2,), (3, 2), (2, 2, 2, 2), (4, 3)])
def test_one_at_a_time_has_the_baseline_and_one_cell_a_further_level(sizes):
    levels = {f"f{i}": tuple(range(n)) for i, n in enumerate(sizes)}
    baseline = {name: values[-1] for name, values in levels.items()}
    cells = OneAtATime().cells(levels, baseline)
    assert len(cells) == 1 + sum(n - 1 for n in sizes)
    assert cells[0] == baseline
    assert {sum(cell[f] != baseline[f] for f in cell) for cell in cells[1:]} == {1}
    assert len({tuple(cell.items()) for cell in cells}) == len(cells)


@pytest.mark.parametrize("k", range(1, 8))
def test_one_at_a_time_and_leave_one_out_estimate_all_main_effects_and_no_more(k):
    for design in (OneAtATime(), LeaveOneOut(include_none=False)):
        signs = matrix(design, k)
        assert len(signs) == np.linalg.matrix_rank(model(signs, 1)) == 1 + k


@pytest.mark.parametrize("k", range(2, 8))
def test_leave_one_out_leaves_each_component_out_once_and_then_all(k):
    n_left_out = (matrix(LeaveOneOut(), k) > 0).sum(axis=1)
    assert list(n_left_out) == [0, *[1] * k, k]
    assert np.array_equal(matrix(LeaveOneOut(), k)[1:-1] > 0, np.eye(k, dtype=bool))


def test_without_a_component_is_the_other_level_than_the_baselines():
    cells = LeaveOneOut().cells({"mixup": ("off", "on"), "noise": (0.5, 0)}, {"mixup": "on", "noise": 0.5})
    assert cells == [
        {"mixup": "on", "noise": 0.5},
        {"mixup": "off", "noise": 0.5},
        {"mixup": "on", "noise": 0},
        {"mixup": "off", "noise": 0},
    ]


@pytest.mark.parametrize("design", [LeaveOneOut(), FractionalFactorial()])
def test_only_factors_of_two_levels_are_left_out_or_fractioned(design):
    faults = design.faults({"a": (1, 2), "b": (1, 2, 3)})
    assert [fault.place for fault in faults] == [("factors", "b")]
    assert "'b' has 3 levels" in faults[0].text and design.kind in faults[0].text


@pytest.mark.parametrize(("k", "resolution"), FRACTIONS)
def test_a_fraction_is_balanced_and_orthogonal_and_holds_the_baseline_first(k, resolution):
    signs = matrix(FractionalFactorial(resolution), k)
    n = len(signs)
    assert len({tuple(row) for row in signs}) == n
    assert (signs.sum(axis=0) == 0).all()
    assert np.array_equal(signs.T @ signs, n * np.eye(k))
    assert (signs[0] == -1).all()


@pytest.mark.parametrize(("k", "resolution"), FRACTIONS)
def test_a_fraction_estimates_the_effects_that_its_resolution_promises(k, resolution):
    signs = matrix(FractionalFactorial(resolution), k)
    assert np.linalg.matrix_rank(model(signs, 1)) == 1 + k
    pairs = k * (k - 1) // 2
    if resolution == "IV":
        # Free of two-factor interactions: regressed upon all of those, no main effect loses anything.
        two = model(signs, 2)[:, 1 + k :]
        assert np.array_equal(signs.T @ two, np.zeros((k, pairs)))
    if resolution == "V":
        assert np.linalg.matrix_rank(model(signs, 2)) == 1 + k + pairs


@pytest.mark.parametrize(("k", "resolution"), FRACTIONS)
def test_the_stated_defining_relation_is_the_whole_one_and_its_shortest_word_the_resolution(k, resolution):
    design = FractionalFactorial(resolution)
    facts = design.facts(*two_levels(k))
    found = words_of(matrix(design, k))
    assert sorted(facts["defining_relation"]) == sorted(
        "-" * (sign < 0) + word for word, sign in found.items()
    )
    assert facts["n_full"] == 2**k
    if found:
        shortest = min(map(len, found))
        assert RESOLUTIONS[facts["resolution"]] == shortest >= RESOLUTIONS[resolution]
    else:
        assert facts["resolution"] is None


@pytest.mark.parametrize(("k", "resolution"), FRACTIONS)
def test_generators_give_the_columns_of_the_factors_that_they_add(k, resolution):
    design = FractionalFactorial(resolution)
    signs = matrix(design, k)
    generators = [line.split(" = ") for line in design.facts(*two_levels(k))["generators"]]
    assert len(generators) == k - int(np.log2(len(signs)))
    for factor, effect in generators:
        assert np.array_equal(column_of(factor, signs), column_of(effect, signs))


@pytest.mark.parametrize(("k", "resolution"), FRACTIONS)
def test_aliases_are_the_effects_of_up_to_two_factors_with_equal_columns(k, resolution):
    design = FractionalFactorial(resolution)
    signs = matrix(design, k)
    aliases = design.facts(*two_levels(k))["aliases"]
    stated = {
        frozenset({effect, *(other.lstrip("-") for other in others)}) for effect, others in aliases.items()
    }
    effects = [*LETTERS[:k], *("".join(pair) for pair in combinations(LETTERS[:k], 2))]
    columns = {effect: column_of(effect, signs) for effect in effects}
    groups = {frozenset(e for e in effects if abs(columns[e] @ columns[f]) == len(signs)) for f in effects}
    assert stated == {group for group in groups if len(group) > 1 or min(map(len, group)) == 1}
    for effect, others in aliases.items():
        for other in others:
            assert np.array_equal(columns[effect], column_of(other, signs))


@pytest.mark.parametrize(("resolution", "k", "n_runs"), [(r, k, n) for r in RUNS for k, n in RUNS[r].items()])
def test_a_fraction_has_as_few_cells_as_the_published_one(resolution, k, n_runs):
    assert len(matrix(FractionalFactorial(resolution), k)) == n_runs


def word_lengths(rows):
    """Return how many defining words of each length from 1 a linear design has, [designs, lengths].

    By the identity of MacWilliams, from the number of factors at their other level in each cell: `rows` is
    [designs, cells, factors] of 0 and 1.
    """
    k = rows.shape[-1]
    weights = rows.sum(axis=-1)

    def krawtchouk(n, w):
        return sum((-1) ** s * comb(w, s) * comb(k - w, n - s) for s in range(n + 1))

    table = np.array([[krawtchouk(n, w) for n in range(1, k + 1)] for w in range(k + 1)])
    return table[weights].sum(axis=-2) // rows.shape[-2]


def every_fraction(k, n_base):
    """Return every choice of columns for the factors beyond the base, [designs, cells, factors]."""
    base = np.array(list(product((0, 1), repeat=n_base)), dtype=np.int8)
    subsets = [s for n in range(2, n_base + 1) for s in combinations(range(n_base), n)]
    added = np.stack([base[:, s].sum(axis=1) % 2 for s in subsets], axis=1).astype(np.int8)
    chosen = np.array(list(combinations(range(len(subsets)), k - n_base)))
    return np.concatenate(
        [np.broadcast_to(base, (len(chosen), *base.shape)), added[:, chosen].swapaxes(0, 1)], axis=-1
    )


@pytest.mark.parametrize(
    ("k", "resolution"),
    [(k, r) for r, most in (("III", 12), ("IV", 10), ("V", 9)) for k in range(3, most + 1)],
)
def test_no_other_fraction_is_smaller_or_has_fewer_short_words(k, resolution):
    ours = (matrix(FractionalFactorial(resolution), k) + 1) // 2
    n_base = int(np.log2(len(ours)))
    (own,) = word_lengths(ours[None])
    if n_base < k:
        found = word_lengths(every_fraction(k, n_base))
        assert min(map(tuple, found)) == tuple(own)
    short = RESOLUTIONS[resolution] - 1
    if 2 ** (n_base - 1) > k:
        assert word_lengths(every_fraction(k, n_base - 1))[:, :short].any(axis=1).all()


def test_notes_of_a_fraction_have_resolution_letters_generators_and_aliases_in_words():
    design = FractionalFactorial("III")
    levels = {"loss.name": ("ce", "focal"), "mixup": ("off", "on"), "noise": ("off", "on")}
    facts = design.facts(levels, {"loss.name": "ce", "mixup": "off", "noise": "off"})
    assert facts["letters"] == {"A": "loss.name", "B": "mixup", "C": "noise"}
    assert facts["notes"] == [
        "2^(3-1), 4 of 8 combinations, resolution III: main effects are aliased with two-factor "
        "interactions.",
        "Letters: A loss.name (- ce, + focal), B mixup (- off, + on), C noise (- off, + on).",
        "Generators: C = -AB. Defining relation: I = -ABC.",
        "Aliases up to two-factor interactions, signed: A = -BC; B = -AC; C = -AB.",
    ]


def test_where_no_fraction_reaches_the_resolution_all_combinations_are_the_design():
    facts = FractionalFactorial("V").facts(*two_levels(4))
    assert facts["resolution"] is None and facts["generators"] == []
    assert facts["notes"] == [
        "All 16 combinations, since no smaller fraction of 4 factors has resolution V: no effect is aliased "
        "with another."
    ]


@pytest.mark.parametrize(
    ("resolution", "k", "words"),
    [
        ("II", 4, "'II' of a fractional factorial is unknown; it takes 'III', 'IV', 'V'"),
        ("IV", 16, "takes at most 15 factors, and there are 16"),
        ("V", 13, "takes at most 12 factors, and there are 13"),
    ],
)
def test_a_fraction_that_cannot_be_made_names_what_can(resolution, k, words):
    (fault,) = FractionalFactorial(resolution).faults(two_levels(k)[0])
    assert words in fault.text


RANGES = {"lr": Range(1e-4, 1e-2, log=True), "dropout": Range(0.0, 0.8), "epochs": Range(1, 20, integer=True)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [2, 7, 20])
def test_a_latin_hypercube_has_one_cell_in_each_part_of_each_factor(n, seed):
    cells = LatinHypercube(n, seed).cells(RANGES, {})
    dropout = np.array([cell["dropout"] for cell in cells])
    log_lr = np.log10([cell["lr"] for cell in cells])
    assert sorted(np.floor(dropout / 0.8 * n)) == list(range(n))
    assert sorted(np.floor((log_lr + 4) / 2 * n)) == list(range(n))


def test_whole_numbers_of_a_range_are_drawn_equally_often_both_ends_among_them():
    cells = LatinHypercube(40).cells(RANGES, {})
    epochs = [cell["epochs"] for cell in cells]
    assert Counter(epochs) == dict.fromkeys(range(1, 21), 2)
    assert {type(e) for e in epochs} == {int}
    logged = LatinHypercube(60).cells({"width": Range(1, 64, log=True, integer=True)}, {})
    assert {1, 64} <= {cell["width"] for cell in logged} <= set(range(1, 65))


@pytest.mark.parametrize(("n", "n_levels"), [(6, 3), (7, 3), (20, 6), (5, 5)])
def test_levels_of_a_latin_hypercube_are_used_equally_often_up_to_one(n, n_levels):
    levels = {"a": tuple("abcdef"[:n_levels]), "b": (True, False), "lr": Range(0.1, 0.2)}
    cells = LatinHypercube(n).cells(levels, {})
    for name, size in (("a", n_levels), ("b", 2)):
        counts = Counter(cell[name] for cell in cells)
        assert len(counts) == size and max(counts.values()) - min(counts.values()) <= 1


def test_the_same_seed_gives_the_same_latin_hypercube_and_another_another():
    assert LatinHypercube(9, 4).cells(RANGES, {}) == LatinHypercube(9, 4).cells(RANGES, {})
    assert LatinHypercube(9, 4).cells(RANGES, {}) != LatinHypercube(9, 5).cells(RANGES, {})


def test_factors_of_a_latin_hypercube_are_correlated_less_than_those_of_a_plain_draw():
    levels = {f"f{i}": Range(0.0, 1.0) for i in range(4)}
    rng = np.random.default_rng(0)
    upper = np.triu_indices(4, 1)
    plain = [np.abs(np.corrcoef(rng.random((4, 12)))[upper]).max() for _ in range(50)]
    for seed in range(5):
        design = LatinHypercube(12, seed)
        cells = design.cells(levels, {})
        stratum = np.floor(12 * np.array([list(cell.values()) for cell in cells]))
        largest = np.abs(np.corrcoef(stratum.T)[upper]).max()
        assert design.facts(levels, {})["largest_correlation"] == pytest.approx(largest)
        assert largest < np.quantile(plain, 0.05)


def test_a_latin_hypercube_of_one_factor_has_no_correlation():
    assert LatinHypercube(3).facts({"lr": Range(0.0, 1.0)}, {})["largest_correlation"] == 0.0


@pytest.mark.parametrize(
    ("design", "words"),
    [
        (LatinHypercube(1), "n = 1 of a Latin hypercube is out of range; it takes 2 or more"),
        (LatinHypercube(4, seed=-1), "seed = -1 of a Latin hypercube is out of range; it takes 0 or more"),
        (LatinHypercube(2), "would miss levels of 'loss', which has 3; n takes 3 or more"),
    ],
)
def test_a_latin_hypercube_that_cannot_be_drawn_gives_the_reason(design, words):
    (fault,) = design.faults({"loss": ("a", "b", "c"), "lr": Range(0.0, 1.0)})
    assert words in fault.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"low": 1.0, "high": 1.0}, "is empty; it takes two finite numbers, low below high"),
        ({"low": 0.0, "high": float("inf")}, "is empty"),
        ({"low": 0.0, "high": 1.0, "log": True}, "has no logarithm; with log, low is above 0"),
        ({"low": 0.5, "high": 3, "integer": True}, "with integer, low and high are whole"),
    ],
)
def test_a_range_without_numbers_in_it_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Range(**arguments)
