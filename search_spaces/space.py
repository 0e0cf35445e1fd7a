"""A search space as a value: what each setting may be, and when it is sampled at all.

A study in Python samples as it likes (define-by-run), and only running it reveals its space. The space of a
study in YAML is a `Space`. `declared` finds the `Space` of a function where it has one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import NoneType
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial, FixedTrial

from birdnet_core.errors import ConfigError, did_you_mean
from search_spaces.designs import Range
from search_spaces.faults import Fault, StudyError

Overrides = dict[str, Any]
SpaceFunction = Callable[[BaseTrial], Overrides]

ABSENT: Any = object()

# Random trials of a function: enough to reach a branch that one in a hundred takes, in a tenth of a second.
SAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """What one setting may be.

    Args:
        values: the choices, or a range.
        step: of a range, only every `step` from its low end.
        when: sample it only if each of these other settings has one of these values.
        otherwise: its value where it is not sampled (`else` in YAML); without one, it is not set at all.
    """

    values: tuple[Any, ...] | Range
    step: float | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    otherwise: Any = ABSENT

    def __post_init__(self) -> None:
        values, step = self.values, self.step
        if self.has_otherwise and not self.when:
            raise ConfigError("a value for trials that do not sample it needs a `when`")
        if isinstance(values, tuple):
            strange = [value for value in values if not isinstance(value, (str, int, float, NoneType))]
            if strange or not values:
                given = repr(strange[0]) if strange else "no value"
                raise ConfigError(
                    f"{given} cannot be sampled; choices are text, numbers, true, false and none"
                )
            if step is not None:
                raise ConfigError(f"step = {step:g} belongs to a range; listed values take none")
        elif step is not None:
            n_steps = (values.high - values.low) / step if step > 0 else 0
            if values.log or n_steps < 1 or abs(n_steps - round(n_steps)) > 1e-9:
                raise ConfigError(
                    f"step = {step:g} does not lead from {values.low:g} to {values.high:g}; it takes a "
                    "number that divides that range, and no log"
                )
            if values.integer and not float(step).is_integer():
                raise ConfigError(
                    f"step = {step:g} of an integer range is not accepted; it takes a whole number"
                )

    def suggest(self, trial: BaseTrial, name: str) -> Any:
        """Return the value that `trial` samples."""
        values = self.values
        if not isinstance(values, Range):
            return trial.suggest_categorical(name, values)
        if values.integer:
            low, high, step = int(values.low), int(values.high), int(self.step or 1)
            return trial.suggest_int(name, low, high, step=step, log=values.log)
        return trial.suggest_float(name, values.low, values.high, step=self.step, log=values.log)

    def holds(self, chosen: Mapping[str, Any]) -> bool:
        """Return whether its condition holds for the settings `chosen` before it."""
        return all(name in chosen and chosen[name] in values for name, values in self.when.items())

    @property
    def listed(self) -> Sequence[Any] | None:
        """All values that it is sampled from; None for a range of floats."""
        if not isinstance(self.values, Range):
            return self.values
        if not self.values.integer:
            return None
        return range(int(self.values.low), int(self.values.high) + 1, int(self.step or 1))

    @property
    def possible(self) -> Sequence[Any] | None:
        """All values that it may have, sampled or not; None for a range of floats."""
        listed = self.listed
        return listed if listed is None or not self.has_otherwise else [*listed, self.otherwise]

    @property
    def has_otherwise(self) -> bool:
        return self.otherwise is not ABSENT

    @property
    def ends(self) -> tuple[Any, ...]:
        """All choices, or both ends of a range, among which is any value that a config refuses."""
        return (self.values.low, self.values.high) if isinstance(self.values, Range) else self.values


@dataclass(frozen=True)
class Space:
    """The parameters of a search by their dotted settings; called with a trial, it samples them.

    Raises StudyError for conditions that cannot hold, with places within the space.
    """

    parameters: Mapping[str, Parameter]

    def __post_init__(self) -> None:
        if faults := self._faults():
            raise StudyError(*faults)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The names, each after those in its condition, otherwise in the given order."""
        placed: list[str] = []
        left = list(self.parameters)
        while ready := next((n for n in left if set(self.parameters[n].when) <= set(placed)), None):
            placed.append(ready)
            left.remove(ready)
        return tuple(placed)  # without those whose conditions depend on each other, which are faults

    def __call__(self, trial: BaseTrial) -> Overrides:
        return self._chosen(lambda name: self.parameters[name].suggest(trial, name), self.order)

    def corners(self) -> Iterator[Overrides]:
        """Yield choices in which every parameter takes each of its values, or both ends of its range."""
        for name, parameter in self.parameters.items():
            reached = self._reached(name)
            assert reached is not None
            for value in parameter.ends:
                yield self._chosen(self._taking({**reached, name: value}), self.order)

    def _taking(self, values: Overrides) -> Callable[[str], Any]:
        """Return what picks the `values`, and of other parameters the first."""
        return lambda name: values.get(name, self.parameters[name].ends[0])

    def _chosen(self, pick: Callable[[str], Any], names: Iterable[str]) -> Overrides:
        """Return the settings where `pick` chooses the value of each of `names` that is sampled."""
        chosen: Overrides = {}
        for name in names:
            parameter = self.parameters[name]
            if parameter.holds(chosen):
                chosen[name] = pick(name)
            elif parameter.has_otherwise:
                chosen[name] = parameter.otherwise
        return chosen

    def _reached(self, name: str) -> Overrides | None:
        """Return values of other parameters with which `name` is sampled, None where there are none."""
        above = {name}
        for each in reversed(self.order):
            above |= {parent for parent in self.parameters[each].when if each in above}
        parents = [each for each in self.order if each in above and each != name]
        candidates = []
        for parent in parents:
            listed = self.parameters[parent].listed or ()
            needed = {value for each in self.parameters.values() for value in each.when.get(parent, ())}
            # All values that no condition needs are alike.
            others = [value for value in listed if value not in needed][:1]
            candidates.append([*(value for value in listed if value in needed), *others])
        for values in itertools.product(*candidates):
            taken = dict(zip(parents, values, strict=True))
            if self.parameters[name].holds(self._chosen(self._taking(taken), parents)):
                return taken
        return None

    def _faults(self) -> list[Fault]:
        """Return what is wrong with the conditions, at the parameter, `when` and its parent."""
        faults = [
            Fault((name, "when", parent), f"`when` of {name} needs {fault}")
            for name, parameter in self.parameters.items()
            for parent, values in parameter.when.items()
            for fault in _unmet({k: p for k, p in self.parameters.items() if k != name}, parent, values)
        ]
        if faults:
            return faults
        if circle := [name for name in self.parameters if name not in self.order]:
            text = f"the conditions of {', '.join(circle)} depend on each other; one has to go without `when`"
            return [Fault((circle[0], "when"), text)]
        return [
            Fault((name, "when"), f"{name} is never sampled: its conditions cannot hold together")
            for name in self.parameters
            if self._reached(name) is None
        ]


def _unmet(others: Mapping[str, Parameter], parent: str, values: tuple[Any, ...]) -> list[str]:
    """Return why no trial can have one of the `values` of `parent`, and what its values are."""
    if parent not in others:
        known = f"{did_you_mean(parent, others)} (it has {', '.join(others) or 'no other'})"
        return [f"{parent}, which is no other parameter of the space{known}"]
    possible = others[parent].possible
    if possible is None:
        return [
            f"one value of {parent}, which is a range of floats; it takes a parameter with listed values, or "
            "an integer range"
        ]
    takes = f"{possible[0]} to {possible[-1]}" if len(possible) > 12 else ", ".join(map(str, possible))
    words = [value for value in possible if isinstance(value, str)]
    return [
        f"{parent} = {value}, which never occurs{did_you_mean(str(value), words)} (it takes {takes})"
        for value in values
        if value not in possible
    ]


@dataclass(frozen=True)
class Sampled:
    """A random trial of a space: its parameters, their distributions, and the settings that they lead to."""

    parameters: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    settings: Overrides


def sample(space: SpaceFunction, n: int, seed: int = 0) -> list[Sampled]:
    """Return `n` random trials of `space`."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trials = []
    for _ in range(n):
        trial = study.ask()
        settings = space(trial)
        trials.append(Sampled(trial.params, trial.distributions, settings))
    return trials


def declared(space: SpaceFunction) -> Space:
    """Return the `Space` that `space` samples from, found from 500 random trials.

    Raises ConfigError with the reason where it has none: a range that depends on another parameter, a setting
    that is computed, a condition other than "these settings have one of these values".
    """
    if isinstance(space, Space):
        return space
    trials = sample(space, SAMPLES)
    order = _order_of(trials)
    parameters = {name: _parameter(name, trials) for name in order}
    for i, name in enumerate(order):
        earlier = {other: parameters[other] for other in order[:i]}
        parameters[name] = _with_condition(name, parameters[name], earlier, trials)
    found = Space(parameters)
    for trial in trials:
        if found(FixedTrial({**trial.settings, **trial.parameters})) != trial.settings:
            raise ConfigError("its settings do not follow from conditions on what is sampled")
    return found


def _order_of(trials: list[Sampled]) -> list[str]:
    """Return the settings in the order in which all trials sample them, then those that are only set."""
    pairs: set[tuple[str, str]] = set()
    for trial in trials:
        pairs.update(itertools.combinations((n for n in trial.parameters if n in trial.settings), 2))
    sampled = dict.fromkeys(n for trial in trials for n in trial.parameters if n in trial.settings)
    before = {name: {first for first, second in pairs if second == name} for name in sampled}
    order: list[str] = []
    while left := [name for name in sampled if name not in order]:
        order.append(next((name for name in left if before[name] <= set(order)), left[0]))
    return [*order, *dict.fromkeys(n for trial in trials for n in trial.settings if n not in sampled)]


def _parameter(name: str, trials: list[Sampled]) -> Parameter:
    """Return the distribution of a setting, or its one value where it is never sampled."""
    distributions: list[BaseDistribution] = []
    constants: list[Any] = []
    for trial in trials:
        if name not in trial.settings:
            continue
        value = trial.settings[name]
        if name not in trial.parameters:
            constants += [value] if value not in constants else []
        elif trial.parameters[name] != value:
            raise ConfigError(f"{name} is computed from what was sampled")
        elif trial.distributions[name] not in distributions:
            distributions.append(trial.distributions[name])
    if len(constants) > 1:
        raise ConfigError(f"{name} is computed from what was sampled")
    if len(distributions) > 1:
        raise ConfigError(f"what {name} may be depends on what was sampled before")
    if not distributions:
        return Parameter(values=(constants[0],))
    return parameter_of(distributions[0])


def parameter_of(distribution: BaseDistribution) -> Parameter:
    """Return an Optuna distribution as a parameter."""
    if isinstance(distribution, CategoricalDistribution):
        return Parameter(values=tuple(distribution.choices))
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if distribution.low == distribution.high:
        return Parameter(values=(distribution.low,))
    integer = isinstance(distribution, IntDistribution)
    return Parameter(
        values=Range(distribution.low, distribution.high, log=distribution.log, integer=integer),
        step=None if integer and distribution.step == 1 else distribution.step,
    )


def _with_condition(
    name: str, parameter: Parameter, earlier: Mapping[str, Parameter], trials: list[Sampled]
) -> Parameter:
    """Return `parameter` with the condition on `earlier` ones under which trials sample it.

    Raises ConfigError where there is no such condition.
    """
    is_sampled = any(name in trial.parameters for trial in trials)
    has_it = [name in (trial.parameters if is_sampled else trial.settings) for trial in trials]
    if all(has_it):
        return parameter
    having = [trial.settings for trial, has in zip(trials, has_it, strict=True) if has]
    when: dict[str, tuple[Any, ...]] = {}
    for other, parent in earlier.items():
        if parent.listed is not None and all(other in settings for settings in having):
            seen = {settings[other] for settings in having}
            when[other] = tuple(dict.fromkeys(value for value in parent.possible or () if value in seen))

    def explains(condition: Mapping[str, tuple[Any, ...]]) -> bool:
        holds = Parameter(values=(0,), when=condition).holds
        return all(holds(trial.settings) == has for trial, has in zip(trials, has_it, strict=True))

    if not explains(when):
        raise ConfigError(
            f"{name} is sampled in {len(having)} of {len(trials)} trials, and no condition of the form "
            "`when: {setting: values}` explains which"
        )
    for other in reversed(list(when)):
        without = {key: values for key, values in when.items() if key != other}
        if explains(without):
            when = without
    others = [trial.settings for trial, has in zip(trials, has_it, strict=True) if not has]
    # Constant, as `_parameter` has found. `declared` replays the trials, in case only some of them have it.
    otherwise = others[0].get(name, ABSENT)
    return replace(parameter, when=when, otherwise=otherwise)
