"""The contrasts that a study looks at: differences between its cells, as weights over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any, Literal

import numpy as np

from reports.statistics.aggregate import is_at, is_screen, labels, show

Kind = Literal["baseline", "main", "interaction", "trend", "simple"]
Cell = dict[str, Any]


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of the means of cells whose weights sum to 0.

    Args:
        kind: ``baseline``: a cell less the baseline. ``main``: a level of a factor less the baseline's level,
            the mean over all combinations of the others. ``simple``: the same at one level of the other
            factor. ``interaction``: how much the difference between two levels of a factor differs between
            two levels of another. ``trend``: over the levels of a numeric factor (`polynomial`).
        label: in a few words, what is compared with what.
        weights: [cells].
        factors: the factors that it is of; none for ``baseline``.
        cell: place of the cell of ``baseline``.
        aliases: of a fractional design, the interactions that a main effect is confounded with.
    """

    kind: Kind
    label: str
    weights: np.ndarray
    factors: tuple[str, ...] = ()
    cell: int | None = None
    aliases: tuple[str, ...] = field(default=())


def contrasts(cells: Sequence[Cell], study: dict[str, Any]) -> list[Contrast]:
    """Return the contrasts of an ablation with these cells, none for a design without a baseline.

    Main effects are those of designs in which every combination of two factors' levels has as many cells;
    interactions those of full designs, simple effects those of full designs of two factors. A contrast whose
    weights another has already is left out.
    """
    baseline = study.get("baseline")
    if study.get("kind") != "ablation" or is_screen(study) or not baseline:
        return []
    place = next((i for i, cell in enumerate(cells) if is_at(cell, baseline)), None)
    if place is None:
        return []
    found: list[Contrast] = []
    unit = np.eye(len(cells))
    for i, label in enumerate(labels(list(cells), study)):
        if i != place:
            found.append(Contrast("baseline", f"{label} vs baseline", unit[i] - unit[place], cell=i))
    # Trials that the study's file does not name are cells, too, whatever their factors.
    named = [name for name in cells[place] if name in baseline and all(name in cell for cell in cells)]
    levels = {name: list(dict.fromkeys(cell[name] for cell in cells)) for name in named}
    levels = {name: of for name, of in levels.items() if len(of) > 1}
    is_full = len(cells) == math.prod(len(of) for of in levels.values())
    if len(levels) > 1 and _is_balanced(cells, levels):
        found += _main(cells, study, levels, baseline)
        if is_full:
            for pair in combinations(levels, 2):
                found += _interactions(cells, levels, baseline, pair)
        if is_full and len(levels) == 2:
            found += _simple(cells, levels, baseline)
    for name in numeric_factors(study):
        if name in levels:
            found += _trends(cells, levels, name, baseline, is_full=is_full)
    return _distinct(found)


def numeric_factors(study: dict[str, Any]) -> dict[str, list[float]]:
    """Return the factors of an ablation whose three or more levels are all numbers, with these in order."""
    if study.get("kind") != "ablation" or is_screen(study):
        return {}
    out = {}
    for name, given in (study.get("factors") or {}).items():
        is_numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in given)
        if is_numeric and len(set(given)) >= 3:
            out[name] = sorted(set(given))
    return out


def scale_of(levels: Sequence[float]) -> str:
    """Return ``log`` if the logarithms of the levels are spaced more evenly than the levels, else ``linear``.

    `levels` are in order. How uneven a spacing is: its largest step over its smallest. Levels of which one is
    zero or less are linear.
    """
    if levels[0] <= 0:
        return "linear"
    return "log" if _unevenness([math.log(v) for v in levels]) < _unevenness(levels) else "linear"


def polynomial(places: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the linear and the quadratic trend over three or more `places`, [levels] each.

    These are the orthogonal polynomial contrasts for places at any distance (Robson 1959, Biometrics
    15:187-191), scaled to the unit of the metric. With u the places mapped onto -1 to 1 and c = u - mean(u):

    - linear: 2 c / sum(c^2), the change along the least-squares line from the first place to the last;
    - quadratic: -q / sum(q^2), where q is c^2 less its regression on 1 and c: how far the least-squares
      parabola lies, in the middle between first and last place, above the straight line between its own ends.
    """
    x = np.asarray(places, dtype=float)
    u = 2 * (x - x.min()) / (x.max() - x.min()) - 1
    c = u - u.mean()
    q = c**2 - (c**2).mean() - c * (c**3).sum() / (c**2).sum()
    return 2 * c / (c**2).sum(), -q / (q**2).sum()


def _unevenness(values: Sequence[float]) -> float:
    steps = [after - before for before, after in pairwise(values)]
    return max(steps) / min(steps)


def _is_balanced(cells: Sequence[Cell], levels: dict[str, list[Any]]) -> bool:
    """Return whether every combination of the levels of two factors has as many cells."""
    for a, b in combinations(levels, 2):
        counts = {sum(cell[a] == x and cell[b] == y for cell in cells) for x in levels[a] for y in levels[b]}
        if len(counts) > 1 or counts == {0}:
            return False
    return True


def _mean(cells: Sequence[Cell], at: dict[str, Any]) -> np.ndarray:
    """Return the weights of the mean over the cells with these levels."""
    chosen = np.array([is_at(cell, at) for cell in cells], dtype=float)
    return np.asarray(chosen / chosen.sum())


def _short(name: str) -> str:
    """Return a factor's name as a label has it: without ``.name``, since the level says what it is."""
    return name.removesuffix(".name")


def _main(
    cells: Sequence[Cell], study: dict[str, Any], levels: dict[str, list[Any]], baseline: Cell
) -> list[Contrast]:
    design = study.get("design") or {}
    letter_of = {name: letter for letter, name in (design.get("letters") or {}).items()}
    found = []
    for name, of_factor in levels.items():
        aliases = tuple((design.get("aliases") or {}).get(letter_of.get(name), ()))
        for level in of_factor:
            if level != baseline[name]:
                weights = _mean(cells, {name: level}) - _mean(cells, {name: baseline[name]})
                label = f"{_short(name)}: {show(level)} vs {show(baseline[name])}"
                found.append(Contrast("main", label, weights, (name,), aliases=aliases))
    return found


def _interactions(
    cells: Sequence[Cell], levels: dict[str, list[Any]], baseline: Cell, pair: tuple[str, str]
) -> list[Contrast]:
    a, b = pair
    mean = {
        (i, j): _mean(cells, {a: x, b: y}) for i, x in enumerate(levels[a]) for j, y in enumerate(levels[b])
    }
    i_base, j_base = levels[a].index(baseline[a]), levels[b].index(baseline[b])
    found = []
    for i, x in enumerate(levels[a]):
        for j, y in enumerate(levels[b]):
            if i == i_base or j == j_base:
                continue
            corners = mean[i, j] - mean[i, j_base] - mean[i_base, j] + mean[i_base, j_base]
            label = f"{_short(a)} {show(x)} with {_short(b)} {show(y)}"
            found.append(Contrast("interaction", label, corners, pair))
    return found


def _simple(cells: Sequence[Cell], levels: dict[str, list[Any]], baseline: Cell) -> list[Contrast]:
    found = []
    for name in levels:
        (other,) = set(levels) - {name}
        for at in levels[other]:
            for level in levels[name]:
                if level == baseline[name]:
                    continue
                weights = _mean(cells, {name: level, other: at})
                weights = weights - _mean(cells, {name: baseline[name], other: at})
                label = (
                    f"{_short(name)}: {show(level)} vs {show(baseline[name])}, at {_short(other)} {show(at)}"
                )
                found.append(Contrast("simple", label, weights, (name,)))
    return found


def _trends(
    cells: Sequence[Cell], levels: dict[str, list[Any]], name: str, baseline: Cell, *, is_full: bool
) -> list[Contrast]:
    """Return the trends of a factor over all cells of a full design, else with the others as the baseline."""
    others = {} if is_full else {key: level for key, level in baseline.items() if key != name}
    of_factor = sorted(
        level for level in levels[name] if any(is_at(c, {**others, name: level}) for c in cells)
    )
    if len(of_factor) < 3:
        return []
    scale = scale_of(of_factor)
    places = [math.log(v) for v in of_factor] if scale == "log" else of_factor
    at_levels = np.array([_mean(cells, {**others, name: level}) for level in of_factor])
    on = f"{_short(name)} (log)" if scale == "log" else _short(name)
    return [
        Contrast(
            "trend",
            f"{on}, {term} from {show(of_factor[0])} to {show(of_factor[-1])}",
            w @ at_levels,
            (name,),
        )
        for term, w in zip(("linear", "curved"), polynomial(places), strict=True)
    ]


def _distinct(found: list[Contrast]) -> list[Contrast]:
    """Return the contrasts without those whose weights, or their negatives, an earlier one has."""
    kept: dict[bytes, Contrast] = {}
    for contrast in found:
        first = contrast.weights[np.flatnonzero(contrast.weights)[0]]
        kept.setdefault((np.round(contrast.weights * np.sign(first), 9) + 0.0).tobytes(), contrast)
    return list(kept.values())
