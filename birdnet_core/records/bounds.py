"""Bounds on what a trial reaches or costs: the goal of a sweep, and the constraints of a study."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from birdnet_core.errors import ConfigError, did_you_mean
from birdnet_core.records.metrics import COSTS, VALIDATION_METRICS

Comparison = Literal[">=", "<="]
CONSTRAINED = (*VALIDATION_METRICS, *COSTS)
"""What a study can constrain."""


@dataclass(frozen=True)
class Bound:
    """A limit that a metric or a cost has to keep, ``val/f1_rare >= 0.1``."""

    name: str
    comparison: Comparison
    limit: float

    def __post_init__(self) -> None:
        if self.comparison not in get_args(Comparison):
            raise ConfigError(f"comparison = {self.comparison!r} is not accepted; it takes >= or <=")
        if not math.isfinite(self.limit):
            raise ConfigError(f"a limit of {self.limit} for {self.name} is not accepted; it takes a number")

    def __str__(self) -> str:
        return f"{self.name}{self.comparison}{self.limit:.10g}"

    def excess(self, value: float) -> float:
        """Return how far `value` is beyond the limit, 0 or less where it keeps it; nan for nan.

        As a share of the limit, so that excesses of several bounds can be added, unless the limit is 0.
        """
        beyond = self.limit - value if self.comparison == ">=" else value - self.limit
        return beyond / (abs(self.limit) or 1.0)

    def holds(self, value: float) -> bool:
        """Return whether `value` keeps the limit; an unknown one, nan, does not."""
        return self.excess(value) <= 0


def parse_bound(text: str, known: Iterable[str], option: str, example: str) -> Bound:
    """Return ``n_params<=5e6`` as a bound on one of `known`; ConfigError, which names `option`, otherwise."""
    parts = re.fullmatch(r"\s*([\w/]+)\s*(>=|<=)\s*(\S+)\s*", text)
    try:
        name, comparison, value = parts.groups() if parts else ("", "", "")
        limit = float(value)
    except ValueError:
        raise ConfigError(
            f"{option} {text!r} is not NAME>=VALUE or NAME<=VALUE; for example {example}"
        ) from None
    known = list(known)
    if name not in known:
        near = did_you_mean(name, known)
        raise ConfigError(f"{option} {text!r} names an unknown {name!r}{near} (known: {', '.join(known)})")
    return Bound(name, comparison, limit)  # type: ignore[arg-type]


def parse_constraint(text: str, option: str = "constraint") -> Bound:
    """Return a constraint of a study; ConfigError for a form or a name that is none."""
    return parse_bound(text, CONSTRAINED, option, "n_params<=5e6")


def constraints_of(study: Mapping[str, Any]) -> list[Bound]:
    """Return the constraints in the content of a study's file."""
    return [Bound(**each) for each in study.get("constraints") or ()]
