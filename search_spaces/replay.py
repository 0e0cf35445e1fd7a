"""A search space run with the settings of a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FixedTrial

from birdnet_core.errors import ConfigError
from search_spaces.space import Overrides, SpaceFunction

MOST_TRIES = 1000


class OutsideSpaceError(ConfigError):
    """A given value is outside of the search space."""


class _Replay(FixedTrial):
    """Samples what `value` returns; `OutsideSpaceError` for what a distribution does not hold."""

    def __init__(self, value: Callable[[str, BaseDistribution], Any]) -> None:
        super().__init__({})
        self._value = value

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        value = self._value(name, distribution)
        try:
            is_held = distribution._contains(distribution.to_internal_repr(value))
        except (TypeError, ValueError):
            is_held = False
        if not is_held:
            raise OutsideSpaceError(
                f"{name} = {value!r} is outside of the search space ({_words(distribution)})"
            )
        self._suggested_params[name] = value
        return value


def _words(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(repr, distribution.choices))
    return f"{distribution.low:g} to {distribution.high:g}"  # type: ignore[attr-defined]


def parameters_of(space: SpaceFunction, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Overrides]:
    """Return the parameters with which `space` gives the dotted `settings` of a config, and what it gives.

    A parameter that is no setting, from which a space computes several, is found by trying its choices.
    Raises OutsideSpaceError where no parameters give these settings, with those that are outside.
    """
    tries: list[int] = []  # of each parameter that is no setting, the place of its choice
    outside: list[str] = []
    for _ in range(MOST_TRIES):
        sizes: list[int] = []

        def value(name: str, distribution: BaseDistribution, sizes: list[int] = sizes) -> Any:
            if name in settings:
                return settings[name]
            if name.startswith("augment.") and name.endswith(".p"):
                return 0.0  # an augmentation that is off
            if not isinstance(distribution, CategoricalDistribution):
                raise OutsideSpaceError(f"the config has no {name}, which the search samples")
            sizes.append(len(distribution.choices))
            if len(tries) < len(sizes):
                tries.append(0)
            return distribution.choices[tries[len(sizes) - 1]]

        trial = _Replay(value)
        try:
            given = space(trial)
            wrong = [
                f"{name} = {settings.get(name)!r} is not what the search gives there ({choice!r})"
                for name, choice in given.items()
                if settings.get(name, 0.0 if name.endswith(".p") else None) != choice
            ]
            if not wrong:
                return dict(trial.params), given
        except OutsideSpaceError as error:
            wrong = [str(error)]
        outside = wrong if not outside or len(wrong) < len(outside) else outside
        del tries[len(sizes) :]
        while tries and tries[-1] + 1 == sizes[len(tries) - 1]:
            tries.pop()
        if not tries:
            break
        tries[-1] += 1
    raise OutsideSpaceError("; ".join(outside))
