"""Which combinations of the factors' levels an ablation trains.

A design takes the levels of each factor and a baseline cell, and gives cells: one level of every factor each.
It knows neither configs nor seeds; every cell is crossed with the same seeds later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

Cell = dict[str, Any]
Levels = Mapping[str, tuple[Any, ...]]


class Design(Protocol):
    """A rule for choosing cells."""

    @property
    def kind(self) -> str:
        """The design's standard name, as tables and files show it."""
        ...

    def cells(self, levels: Levels, baseline: Cell) -> list[Cell]:
        """Return the cells; `baseline` is one of them where the design has one."""
        ...


@dataclass(frozen=True)
class FullFactorial:
    """Every combination, the last factor varying fastest."""

    kind = "full factorial"

    def cells(self, levels: Levels, baseline: Cell) -> list[Cell]:
        return [dict(zip(levels, values, strict=True)) for values in product(*levels.values())]


@dataclass(frozen=True)
class OneAtATime:
    """The baseline, and every cell that differs from it in one factor."""

    kind = "one factor at a time"

    def cells(self, levels: Levels, baseline: Cell) -> list[Cell]:
        changed = [
            {**baseline, name: level}
            for name, values in levels.items()
            for level in values
            if level != baseline[name]
        ]
        return [baseline, *changed]
