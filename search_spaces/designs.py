"""Which combinations of the factors' levels an ablation trains.

A design takes the levels of each factor and a baseline cell, and returns cells, each with one level of every
factor. It knows neither configs nor repeats; every cell is crossed with the same repeats later. Its `facts`
describe what the cells can estimate, for the study's file, the summary before a sweep, and reports.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import combinations, product
from operator import xor
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from birdnet_core.errors import ConfigError
from search_spaces.faults import Fault

Cell = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, from which a `LatinHypercube` or a search samples.

    `log` spreads them evenly in their logarithm. `integer` takes whole numbers, both ends included.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"{self} is empty; it takes two finite numbers, low below high")
        if self.log and self.low <= 0:
            raise ConfigError(f"{self} has no logarithm; with log, low is above 0")
        if self.integer and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ConfigError(f"{self} is not of whole numbers; with integer, low and high are whole")

    def __str__(self) -> str:
        return f"the range from {self.low!r} to {self.high!r}"

    def at(self, shares: NDArray[np.float64]) -> list[float]:
        """Return the numbers at `shares` of the way from low to high, each from 0 to below 1."""
        # A whole number owns half a unit below and above it, so that the ends are as likely as the others.
        margin = 0.5 if self.integer else 0.0
        low, high = self.low - margin, self.high + margin
        values = low * (high / low) ** shares if self.log else low + (high - low) * shares
        if self.integer:
            return [int(v) for v in np.clip(np.rint(values), self.low, self.high)]
        return [float(v) for v in values]


Levels = Mapping[str, tuple[Any, ...] | Range]


class Design(ABC):
    """A rule for choosing cells.

    `kind` is the design's standard name, as tables and files print it. A design with `has_baseline` has the
    baseline among its cells; one without takes ranges and an empty baseline. A design without factors has a
    single cell, of no choices.
    """

    kind: ClassVar[str]
    has_baseline: ClassVar[bool] = True
    has_factors: ClassVar[bool] = True

    @abstractmethod
    def cells(self, levels: Levels, baseline: Cell) -> list[Cell]:
        """Return the cells, for levels in which `faults` finds none."""

    def faults(self, levels: Levels) -> list[Fault]:
        """Return why the design cannot be made of these levels."""
        return []

    def facts(self, levels: Levels, baseline: Cell) -> dict[str, Any]:
        """Return what readers need to know of the design, as JSON values; ``notes`` are for printing."""
        return {"notes": []}


@dataclass(frozen=True)
class SingleConfig(Design):
    """One config, compared with nothing: only its repeats, or seeds, differ."""

    kind = "single config"
    has_factors = False

    def cells(self, levels: Levels, baseline: Cell) -> list[Cell]:
        return [{}]

    def faults(self, levels: Levels) -> list[Fault]:
        text = f"a {self.kind} varies nothing; leave out {', '.join(levels)}"
        return [Fault(("factors",), text)] if levels else []


@dataclass(frozen=True)
class FullFactorial(Design):
    """Every combination, the last factor varying fastest."""

    kind = "full factorial"

    def cells(self, levels: Levels, baseline: Cell) -> list[Cell]:
        return [dict(zip(levels, values, strict=True)) for values in product(*_listed(levels).values())]


@dataclass(frozen=True)
class OneAtATime(Design):
    """The baseline, and every cell that differs from it in one factor."""

    kind = "one factor at a time"

    def cells(self, levels: Levels, baseline: Cell) -> list[Cell]:
        changed = [
            {**baseline, name: level}
            for name, values in _listed(levels).items()
            for level in values
            if level != baseline[name]
        ]
        return [baseline, *changed]

    def facts(self, levels: Levels, baseline: Cell) -> dict[str, Any]:
        note = "Each cell differs from the baseline in one factor: interactions are not estimated."
        return {"notes": [note]}


@dataclass(frozen=True)
class LeaveOneOut(Design):
    """The baseline, which has every component, and for each component the cell without it.

    A component is a factor of two levels: the baseline has it, and the other level is without it.
    `include_none` adds the cell with no component at all.
    """

    kind = "leave one out"

    include_none: bool = True

    def cells(self, levels: Levels, baseline: Cell) -> list[Cell]:
        without = {name: other for name, (_, other) in _two_levels(levels, baseline).items()}
        cells = [baseline, *({**baseline, name: level} for name, level in without.items())]
        # With one component, leaving it out leaves none.
        return [*cells, without] if self.include_none and len(without) > 1 else cells

    def faults(self, levels: Levels) -> list[Fault]:
        return _not_two_levels(self.kind, levels)

    def facts(self, levels: Levels, baseline: Cell) -> dict[str, Any]:
        none = ", the last all of them" if self.include_none and len(levels) > 1 else ""
        note = f"Each cell but the baseline leaves one component out{none}; "
        return {"notes": [f"{note}the effect of a component is measured with all the others present."]}


# Without I, which stands for the mean in defining relations.
LETTERS = "ABCDEFGHJKLMNOP"
_MEANING = {
    3: "main effects are aliased with two-factor interactions",
    4: "main effects are free of two-factor interactions, some of which are aliased with each other",
    5: "main effects and two-factor interactions are free of each other",
}
_RESOLUTIONS = {"III": 3, "IV": 4, "V": 5}
# How many factors are searched in less than a second, whatever their number of base factors.
_MOST_FACTORS = {"III": 15, "IV": 15, "V": 12}
_ROMAN = {3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII"}


@dataclass(frozen=True)
class FractionalFactorial(Design):
    """A regular 2^(k-p) fraction of the full factorial over k factors of two levels.

    It has the fewest cells that reach the `resolution`: in resolution III no main effect is aliased with
    another, in IV none with a two-factor interaction, in V no two-factor interaction with another. Of the
    fractions of that size it has minimum aberration, the fewest words of the shortest length (Fries and
    Hunter 1980, Technometrics 22:601-608). The sign - is the baseline's level, and the fraction is the one
    that holds the baseline; hence a defining word of odd length is negative.
    """

    kind = "fractional factorial"

    resolution: Literal["III", "IV", "V"] = "IV"

    def cells(self, levels: Levels, baseline: Cell) -> list[Cell]:
        pairs = _two_levels(levels, baseline)
        columns = fraction(len(levels), _RESOLUTIONS[self.resolution])
        n_base = max(columns).bit_length()
        runs = [sum(bit << i for i, bit in enumerate(bits)) for bits in product((0, 1), repeat=n_base)]
        return [
            {
                name: pair[(run & column).bit_count() % 2]
                for (name, pair), column in zip(pairs.items(), columns, strict=True)
            }
            for run in runs
        ]

    def faults(self, levels: Levels) -> list[Fault]:
        if self.resolution not in _RESOLUTIONS:
            accepted = ", ".join(repr(r) for r in _RESOLUTIONS)
            text = f"resolution = {self.resolution!r} of a {self.kind} is unknown; it takes {accepted}"
            return [Fault(("design",), text)]
        most = _MOST_FACTORS[self.resolution]
        faults = _not_two_levels(self.kind, levels)
        if len(levels) > most:
            text = (
                f"a {self.kind} of resolution {self.resolution} takes at most {most} factors, and there are "
                f"{len(levels)}; leave some out, or use a leave-one-out design"
            )
            faults.append(Fault(("design",), text))
        return faults

    def facts(self, levels: Levels, baseline: Cell) -> dict[str, Any]:
        """Return resolution, generators, defining relation and aliases up to two-factor interactions.

        `resolution` is the one that the fraction reaches, null for all combinations. `aliases` has every main
        effect and one effect of each group of aliased two-factor interactions, with the other effects of up
        to two factors that it is aliased with: ``{"A": ["-BC"], "BE": ["CD"]}``.
        """
        k = len(levels)
        columns = fraction(k, _RESOLUTIONS[self.resolution])
        n_base = max(columns).bit_length()
        words = defining_words(columns)
        order = words[0].bit_count() if words else None
        letters = dict(zip(LETTERS, levels, strict=False))
        generators = [f"{LETTERS[i]} = {_signed(columns[i], columns[i] | 1 << i)}" for i in range(n_base, k)]
        relation = [_signed(word, word) for word in words]
        aliases = _aliases(columns)
        if order is None:
            smaller = f"no smaller fraction of {k} factors has resolution {self.resolution}"
            notes = [f"All {2**k} combinations, since {smaller}: no effect is aliased with another."]
        else:
            pairs = _two_levels(levels, baseline)
            signs = (f"{a} {name} (- {pairs[name][0]}, + {pairs[name][1]})" for a, name in letters.items())
            start = " = ".join(relation[:7])
            more = f" and {len(relation) - 7} more" if len(relation) > 7 else ""
            chains = [" = ".join((effect, *others)) for effect, others in aliases.items() if others]
            notes = [
                f"2^({k}-{k - n_base}), {2**n_base} of {2**k} combinations, resolution {_ROMAN[order]}: "
                f"{_MEANING.get(order, _MEANING[5])}.",
                f"Letters: {', '.join(signs)}.",
                f"Generators: {', '.join(generators)}. Defining relation: I = {start}{more}.",
                f"Aliases up to two-factor interactions, signed: {'; '.join(chains) or 'none'}.",
            ]
        return {
            "n_full": 2**k, "resolution": order and _ROMAN[order], "letters": letters,
            "generators": generators, "defining_relation": relation, "aliases": aliases, "notes": notes,
        }  # fmt: skip


@cache
def fraction(n_factors: int, resolution: int) -> tuple[int, ...]:
    """Return the fraction with the fewest cells that reaches `resolution`, a column for each factor.

    A column is a set of base factors, as bits: the factor takes its other level where an odd number of them
    do. The base factors come first, with one bit each.
    """
    for n_base in range(1, n_factors):
        added = _minimum_aberration(n_factors, n_base, resolution)
        if added is not None:
            return (*(1 << i for i in range(n_base)), *added)
    return tuple(1 << i for i in range(n_factors))


def _minimum_aberration(n_factors: int, n_base: int, resolution: int) -> tuple[int, ...] | None:
    """Return the columns of the added factors with minimum aberration, or None where none has `resolution`.

    The search covers all sets of columns, in the order of falling weight. The heaviest column may hold the
    first base factors, since they can be renamed. A set is abandoned once it has more short words than the
    best one, since no further column takes words away.
    """
    n_added = n_factors - n_base
    columns = [c for c in range(2**n_base) if c.bit_count() >= resolution - 1]
    columns.sort(key=lambda c: (-c.bit_count(), c))
    best: tuple[list[int], tuple[int, ...]] | None = None

    def extend(chosen: tuple[int, ...], words: list[int], lengths: list[int], start: int) -> None:
        nonlocal best
        if len(chosen) == n_added:
            best = (lengths, chosen)
            return
        for i in range(start, len(columns) - (n_added - len(chosen)) + 1):
            column = columns[i]
            if not chosen and i and columns[i - 1].bit_count() == column.bit_count():
                continue
            word = column | 1 << (n_base + len(chosen))
            new = [word, *(word ^ other for other in words)]
            if min(w.bit_count() for w in new) < resolution:
                continue
            more = lengths.copy()
            for w in new:
                more[w.bit_count()] += 1
            if best is None or more < best[0]:
                extend((*chosen, column), words + new, more, i + 1)

    extend((), [], [0] * (n_factors + 1), 0)
    return best[1] if best else None


def defining_words(columns: Sequence[int]) -> list[int]:
    """Return the words of the defining relation, each a set of factors as bits, the shortest first."""
    words: list[int] = []
    for i in range(max(columns).bit_length(), len(columns)):
        word = columns[i] | 1 << i
        words += [word, *(word ^ other for other in words)]
    return sorted(words, key=lambda word: (word.bit_count(), _letters(word)))


def _aliases(columns: Sequence[int]) -> dict[str, list[str]]:
    """Return which effects of one or two factors have the same column; see `FractionalFactorial.facts`."""
    factors = [1 << i for i in range(len(columns))]
    groups: dict[int, list[int]] = {}
    for effect in (*factors, *(a | b for a, b in combinations(factors, 2))):
        column = reduce(xor, (c for c, factor in zip(columns, factors, strict=True) if factor & effect))
        groups.setdefault(column, []).append(effect)
    return {
        _letters(first): [_signed(other, first ^ other) for other in others]
        for first, *others in groups.values()
        if others or first in factors
    }


def _letters(effect: int) -> str:
    return "".join(letter for i, letter in enumerate(LETTERS) if effect >> i & 1)


def _signed(effect: int, word: int) -> str:
    """Return the letters of `effect` with the sign of the defining word that it follows from."""
    return "-" * (word.bit_count() % 2) + _letters(effect)


@dataclass(frozen=True)
class LatinHypercube(Design):
    """`n` cells that fill the space: each n-th part of every factor holds one of them.

    A factor is a `Range`, or values that are used equally often. The design is the draw of 200 whose factors
    are least correlated. It screens many factors: there is no baseline, and all factors vary at once.
    """

    kind = "Latin hypercube"
    has_baseline = False

    n: int
    seed: int = 0

    def cells(self, levels: Levels, baseline: Cell) -> list[Cell]:
        rng = np.random.default_rng((self.seed, 1))
        columns: list[list[Any]] = []
        for values, at in zip(levels.values(), self._positions(levels), strict=True):
            if isinstance(values, Range):
                columns.append(values.at((at + rng.random(self.n)) / self.n))
            else:
                columns.append([values[i] for i in at])
        return [dict(zip(levels, point, strict=True)) for point in zip(*columns, strict=True)]

    def faults(self, levels: Levels) -> list[Fault]:
        faults = []
        for name, value, least in (("n", self.n, 2), ("seed", self.seed, 0)):
            given = f"{name} = {value!r} of a {self.kind}"
            if type(value) is not int:
                text = f"{given} is not accepted; it takes a whole number"
                return [Fault(("design",), text)]
            if value < least:
                faults.append(Fault(("design",), f"{given} is out of range; it takes {least} or more"))
        for name, values in _listed(levels).items():
            if len(values) > self.n >= 2:
                text = (
                    f"a {self.kind} of n = {self.n} would miss levels of {name!r}, which has {len(values)}; "
                    f"n takes {len(values)} or more"
                )
                faults.append(Fault(("factors", name), text))
        return faults

    def facts(self, levels: Levels, baseline: Cell) -> dict[str, Any]:
        r = _largest_correlation(self._positions(levels))
        return {
            "seed": self.seed,
            "largest_correlation": r,
            "notes": [
                f"{self.n} cells spread over the whole space (seed {self.seed}), for screening: there is no "
                f"baseline, and all factors vary at once. Two factors are correlated by {r:.2f} at most."
            ],
        }

    def _positions(self, levels: Levels) -> NDArray[np.int64]:
        """Return which n-th part of a range, or which of its levels, each cell has, [factors, cells]."""
        rng = np.random.default_rng((self.seed, 0))
        parts = [self.n if isinstance(values, Range) else len(values) for values in levels.values()]
        draws = (np.stack([rng.permutation(self.n) * m // self.n for m in parts]) for _ in range(200))
        return min(draws, key=_largest_correlation)


def _largest_correlation(positions: NDArray[np.int64]) -> float:
    if len(positions) < 2:
        return 0.0
    correlations = np.atleast_2d(np.corrcoef(positions))
    return float(np.abs(correlations[np.triu_indices(len(positions), 1)]).max())


def _listed(levels: Levels) -> dict[str, tuple[Any, ...]]:
    """Return the levels of the factors that list them."""
    return {name: values for name, values in levels.items() if not isinstance(values, Range)}


def _two_levels(levels: Levels, baseline: Cell) -> dict[str, tuple[Any, Any]]:
    """Return the baseline's level and the other one of each factor."""
    pairs = {}
    for name, (a, b) in _listed(levels).items():
        pairs[name] = (a, b) if a == baseline[name] else (b, a)
    return pairs


def _not_two_levels(kind: str, levels: Levels) -> list[Fault]:
    return [
        Fault(
            ("factors", name),
            f"factor {name!r} has {len(values)} levels, and a {kind} design takes factors of exactly two",
        )
        for name, values in _listed(levels).items()
        if len(values) != 2
    ]
