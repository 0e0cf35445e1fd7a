"""A question, and the configs that answer it.

An `Ablation` answers whether a choice matters: a design over named factors, each of its cells trained on the
same repeats for the same budget. A `Search` finds the best config: an Optuna space, sampled trial by trial.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import optuna
from optuna.trial import BaseTrial

from birdnet_core.config import NUMBERS, TrainConfig
from birdnet_core.config import cautions as config_cautions
from birdnet_core.errors import ConfigError, check_range, did_you_mean
from birdnet_core.records.bounds import CONSTRAINED, Bound
from birdnet_core.records.checks import A_NAME, is_name
from birdnet_core.records.metrics import (
    VALIDATION_METRICS,
    is_better,
    metric_direction,
    objective_direction,
)
from birdnet_core.registry import checked_value
from search_spaces.designs import Cell, Design, FullFactorial, Levels, Range
from search_spaces.factors import Factors, faults_of, levels_of
from search_spaces.faults import Fault, StudyError

Overrides = dict[str, Any]
Varied = Literal["repeat", "seed"]


# Few epochs of many small steps, over several windows a recording: enough to see differences in minutes.
QUICK: Overrides = {
    "training.epochs": 8,
    "training.batch_size": 16,
    "optim.warmup_epochs": 1,
    "data.windows_per_recording": 3,
}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the best cell of a study has to reach.

    Args:
        metric: of the best cell.
        target: passes where the whole interval over repeats is at this value or better.
        stretch: a still better value to aim for; None for none.

    Raises ConfigError for an unknown metric, and for a `stretch` that is no better than `target`.
    """

    metric: str
    target: float
    stretch: float | None = None

    def __post_init__(self) -> None:
        direction = metric_direction(self.metric)
        for name in ("target", "stretch"):
            checked_value(getattr(self, name), float | None, f"gate on {self.metric}: {name}")
        if self.stretch is not None and not is_better(self.stretch, self.target, direction):
            raise ConfigError(
                f"gate on {self.metric}: stretch = {self.stretch} is no better than target = {self.target}"
            )


@dataclass(frozen=True, kw_only=True)
class _Common:
    """What ablations and searches share; a study has no name until it is registered."""

    metric: str = "val/f1_macro"
    gates: tuple[Gate, ...] = ()
    constraints: tuple[Bound, ...] = ()
    base: Overrides = field(default_factory=dict)
    quick: Overrides = field(default_factory=lambda: dict(QUICK))
    name: str = ""
    question: str = ""
    kind: ClassVar[str]

    def facts(self) -> dict[str, Any]:
        """Return what ablations and searches have in common, as plain values."""
        return {
            "name": self.name,
            "question": self.question,
            "kind": self.kind,
            "metric": self.metric,
            "direction": metric_direction(self.metric),
            "gates": [asdict(gate) for gate in self.gates],
            "constraints": [asdict(bound) for bound in self.constraints],
        }

    def _check(self, **least: int) -> None:
        """Raise ConfigError for a name that cannot name files, and for counts below `least` or not whole."""
        if self.name != "" and not is_name(self.name):
            raise ConfigError(f"a study cannot be named {self.name!r}: it names files; a name holds {A_NAME}")
        for bound in self.constraints:
            if bound.name not in CONSTRAINED:
                near = did_you_mean(bound.name, CONSTRAINED)
                known = ", ".join(CONSTRAINED)
                raise ConfigError(
                    f"constraint {bound} names an unknown {bound.name!r}{near} (known: {known})"
                )
        for name, lowest in least.items():
            value = getattr(self, name)
            if checked_value(value, int, name) < lowest:
                raise ConfigError(f"{name} = {value} is out of range; it takes {lowest} or more")


@dataclass(frozen=True, kw_only=True)
class Ablation(_Common):
    """The cells of a `design` over `factors`, crossed with repeats.

    Args:
        factors: what is varied. A dotted setting with the values to compare, or, for a `LatinHypercube`, a
            `Range` of them; or a name of your own with named levels, each a set of settings:
            ``{"mixup": {"on": {"augment.mixup.p": 0.6}, "off": {}}}``.
        design: which combinations of levels are trained.
        baseline: the cell that the others are compared with; a factor that it leaves out is at its first
            level. A `LatinHypercube` has no baseline.
        metric: the metric that ranks the cells.
        gates: what the best cell has to reach.
        constraints: bounds that a config has to keep to be chosen.
        base: settings of every trial, which replace those of the user's base config.
        quick: further settings under ``--quick``.
        quick_factors: under ``--quick``, the levels of the factors that it names.
        n_repeats, quick_repeats: default number of repeats of every cell; the second under ``--quick``.
        vary: what distinguishes the trials of a cell. Of a ``repeat`` validation fold and seed are fresh; a
            ``seed`` is fresh on the same fold, as the members of an ensemble need it.
    """

    kind = "ablation"
    scheduler: ClassVar[str] = "fifo"
    asha_within: ClassVar[str | None] = None

    factors: Factors
    design: Design = field(default_factory=FullFactorial)
    baseline: Cell = field(default_factory=dict)
    quick_factors: Factors = field(default_factory=dict)
    n_repeats: int = 5
    quick_repeats: int = 2
    vary: Varied = "repeat"

    def __post_init__(self) -> None:
        self._check(n_repeats=1, quick_repeats=1)
        checked_value(self.vary, Varied, "vary")

    def levels(self) -> Levels:
        """Return the levels of each factor: its values, the names of its sets of settings, or its range."""
        return levels_of(self.factors)

    def cells(self) -> list[Cell]:
        """Return the level of every factor in each cell; StudyError with all faults of the factors."""
        if faults := faults_of(self.factors, self.baseline, self.design):
            raise StudyError(*faults)
        return self.design.cells(self.levels(), self.baseline_cell() or {})

    def baseline_cell(self) -> Cell | None:
        """Return the cell that the others are compared with; None for a design that has none."""
        if not self.design.has_baseline:
            return None
        return {
            name: self.baseline.get(name, levels[0])
            for name, levels in self.levels().items()
            if not isinstance(levels, Range)
        }

    def design_facts(self) -> dict[str, Any]:
        """Return kind and size of the design and its `Design.facts`, for the study's file in a run folder."""
        return {
            "kind": self.design.kind,
            "n_cells": len(self.cells()),
            **self.design.facts(self.levels(), self.baseline_cell() or {}),
        }

    def repeats(self, first: TrainConfig) -> list[Overrides]:
        """Return `repeat` and `seed` of each trial of a cell, those of `first` first."""
        step = int(self.vary == "repeat")
        return [{"repeat": first.repeat + step * i, "seed": first.seed + i} for i in range(self.n_repeats)]

    def overrides(self, cell: Cell) -> Overrides:
        """Return the settings of a cell."""
        settings: Overrides = {}
        for name, level in cell.items():
            levels = self.factors[name]
            settings.update(levels[level] if isinstance(levels, Mapping) else {name: level})
        return settings


SCHEDULERS = ("fifo", "asha", "hyperband", "median")
"""What may end trials of a search early: nothing, or one of the rules of `tuning.engine.schedulers`."""


@dataclass(frozen=True, kw_only=True)
class Search(_Common):
    """A define-by-run space that TPE samples, and a scheduler that ends the trials that fall behind.

    Args:
        space: returns the overrides of a trial; calls ``trial.suggest_*`` with the dotted settings as names.
        quick_space: the same under ``--quick``; None takes `space`.
        n_trials, quick_trials: number of trials; the second under ``--quick``.
        scheduler: ``asha``, ``hyperband``, ``median``, or ``fifo``, which ends none (`SCHEDULERS`).
        grace_epochs: epochs that every trial may train before the scheduler compares it; None takes a tenth
            of the budget, and three at least.
        reduction_factor: ASHA and HyperBand keep the best 1/factor at each rung.
        audit: the share of the trials to be ended early that train to the end instead. They are a random
            sample, by which the search knows what ending the others was worth.
        folds: whether the best configs of the first validation fold are trained on the others, too;
            the best is then chosen among those that have all folds.
        rung_metric: the validation metric by which the scheduler compares trials: the best of each so far;
            None takes `metric`.
        asha_within: a dotted setting, such as ``model.name``. The scheduler compares only trials with the
            same value of it, for spaces whose trials learn at different speeds: a small network leads early
            and loses late, and would end the large ones.
        also: further objectives: metrics, ``n_params`` or ``hours``. The search then finds a Pareto front,
            and takes scheduler ``fifo``.
        constraints: bounds that a config has to keep to be chosen, and that the sampler learns to keep. A
            config with more parameters than allowed is not trained.
        metric, gates, base, quick: as for `Ablation`.
    """

    kind = "search"

    space: Callable[[BaseTrial], Overrides]
    quick_space: Callable[[BaseTrial], Overrides] | None = None
    n_trials: int = 40
    quick_trials: int = 12
    scheduler: str = "asha"
    grace_epochs: int | None = None
    reduction_factor: int = 3
    audit: float = 0.1
    folds: bool = False
    rung_metric: str | None = None
    asha_within: str | None = None
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        grace = {} if self.grace_epochs is None else {"grace_epochs": 1}
        self._check(n_trials=1, quick_trials=1, **grace, reduction_factor=2)
        check_range("audit", self.audit, 0, 1)
        checked_value(self.folds, bool, "folds")
        if self.rung_metric not in (None, *VALIDATION_METRICS):
            near = did_you_mean(str(self.rung_metric), VALIDATION_METRICS)
            raise ConfigError(
                f"rung_metric = {self.rung_metric!r} is no validation metric{near} (known: "
                f"{', '.join(VALIDATION_METRICS)})"
            )

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives of the search, `metric` first."""
        return (self.metric, *self.also)


Study = Ablation | Search


def in_size(study: Study, n_repeats: int | None, n_trials: int | None) -> Study:
    """Return `study` with another number of repeats, of an ablation, or of trials, of a search."""
    if isinstance(study, Search):
        return replace(study, n_trials=n_trials or study.n_trials)
    return replace(study, n_repeats=n_repeats or study.n_repeats)


def in_quick_size(study: Study) -> Study:
    """Return `study` as ``--quick`` trains it."""
    base = {**study.base, **study.quick}
    if isinstance(study, Search):
        space = study.quick_space or study.space
        return replace(study, base=base, n_trials=study.quick_trials, space=space)
    factors = {**study.factors, **study.quick_factors}
    return replace(study, base=base, n_repeats=study.quick_repeats, factors=factors)


def base_config(study: Study, base: TrainConfig, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return the config from which every trial of `study` starts: the user's base with the study's settings.

    Of the user's `settings` it takes ``repeat`` and ``seed``, the first of an ablation's, and those of a
    search and its sampler; `trial_config` applies the others.
    """
    first = {key: value for key, value in (settings or {}).items() if key in NUMBERS}
    return base.override({**study.base, "training.monitor": study.metric, **first})


def trial_config(base: TrainConfig, settings: Mapping[str, Any], choices: Overrides) -> TrainConfig:
    """Return `base` with the user's `settings` and one trial's `choices`.

    They are applied together, because a setting may be an option of a component that the trial chooses.
    Raises ConfigError for a setting that the study varies itself, and for what the config does not accept.
    """
    taken = sorted(set(settings) & set(choices))
    if taken:
        raise ConfigError(
            f"{', '.join(taken)} cannot be set here: the study varies it; leave it out, use another study, "
            "or an --option of this one where it has one for that (`birdtune list studies`)"
        )
    return base.override({**settings, **choices})


def group_of(config: TrainConfig, setting: str | None) -> str | None:
    """Return the group in which the scheduler compares a trial: its value of the dotted `setting`, as text.

    None where there is no setting to group by, and for a config without it (an option of another model), so
    that those form a group of their own.
    """
    flat = config.flat()
    return str(flat[setting]) if setting in flat else None


def check(study: Study, base: TrainConfig, settings: Mapping[str, Any]) -> list[TrainConfig]:
    """Return the configs of a study's trials: of an ablation's cells in order, or of 50 random samples.

    Raises StudyError with all faults of the factors, of the objectives, or of the configs; also for a search
    over splits or budgets, and for a comparison of trials that are not validated.
    """
    if isinstance(study, Ablation):
        trials = [study.overrides(cell) for cell in study.cells()]
    else:
        check_objectives(study)
        rehearsal = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        trials = [_sampled(study, rehearsal.ask()) for _ in range(50)]
    configs: list[TrainConfig] = []
    texts: dict[str, None] = {}
    for choices in trials:
        try:
            configs.append(trial_config(base, settings, choices))
        except ConfigError as error:
            texts |= dict.fromkeys(str(error).split("\n"))
    faults = [Fault((), text) for text in texts]
    if isinstance(study, Search) and len({config.data.split for config in configs}) > 1:
        text = "the leaky one would always win; compare the two in an ablation"
        faults.append(Fault(("space",), f"study {study.name!r} searches over data.split: {text}"))
    budgets = sorted({config.training.most_epochs for config in configs})
    if isinstance(study, Search) and len(budgets) > 1:
        text = (
            f"study {study.name!r} searches over the budget of a trial, {budgets[0]} to {budgets[-1]} "
            "epochs: trials of other lengths cannot be compared on the way. Set training.epochs for all; "
            "training.patience ends a trial that gets no better"
        )
        faults.append(Fault(("space",), text))
    is_compared = isinstance(study, Search) or study.design.has_factors
    if is_compared and not all(config.training.is_validated for config in configs):
        text = (
            f"study {study.name!r} decides by {study.metric}, and training.train_on = 'train+val' leaves "
            "nothing to validate on; that is for final training (`birdtune train --seeds`)"
        )
        faults.append(Fault(("base",), text))
    if isinstance(study, Search) and not faults:
        faults += asha_within_faults(study, configs)
    if faults:
        raise StudyError(*faults)
    return configs


def asha_within_faults(study: Search, configs: Sequence[TrainConfig]) -> list[Fault]:
    """Return the fault of a search by a setting that none of its `configs` has."""
    known = {name for config in configs for name in config.flat()}
    if study.asha_within is None or study.asha_within in known:
        return []
    near = did_you_mean(study.asha_within, known)
    text = (
        f"asha_within = {study.asha_within!r} is no setting of any trial{near} (it takes a dotted setting, "
    )
    return [Fault(("asha_within",), f"{text}for example model.name)")]


def _sampled(study: Search, trial: BaseTrial) -> Overrides:
    """Return a sample of the space; ConfigError with the line of the user's code for what it raises."""
    try:
        return study.space(trial)
    except ConfigError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"the space of study {study.name!r} raised {type(error).__name__}: {error} "
            f"({last.filename}, line {last.lineno}) for {trial.params}"
        ) from error


def cautions(study: Study, configs: Sequence[TrainConfig]) -> list[str]:
    """Return cautions about a study that is valid, in sentences.

    `configs` are those that `check` returned. Names the cells of an ablation that are one config: they are
    trained once, and their rows are equal.
    """
    out = []
    if isinstance(study, Ablation):
        alike: dict[str, list[str]] = {}
        for cell, each in zip(study.cells(), configs, strict=True):
            alike.setdefault(each.config_id, []).append(", ".join(f"{k}={v}" for k, v in cell.items()))
        example = next((cells for cells in alike.values() if len(cells) > 1), None)
        if example:
            out.append(
                f"{len(configs)} cells are only {len(alike)} configs: cells with the same config share its "
                f"trials, such as ({example[0]}) and ({example[1]})"
            )
    return [*out, *dict.fromkeys(caution for each in configs for caution in config_cautions(each))]


def check_objectives(study: Search) -> None:
    """Raise ConfigError for objectives that are unknown or repeated, or that the scheduler cannot compare."""
    for objective in study.objectives:
        objective_direction(objective)
    if len(set(study.objectives)) < len(study.objectives):
        text = f"metric {study.metric!r}, also {study.also}; leave the second out"
        raise StudyError(Fault(("also",), f"study {study.name!r} has an objective twice: {text}"))
    if study.also and study.folds:
        text = (
            f"study {study.name!r} has {len(study.objectives)} objectives ({', '.join(study.objectives)}); "
            "folds are a fidelity of searches with one"
        )
        raise StudyError(Fault(("folds",), text))
    if study.also and study.scheduler != "fifo":
        text = (
            f"scheduler {study.scheduler!r} compares trials by one value, and study {study.name!r} has "
            f"{len(study.objectives)} objectives ({', '.join(study.objectives)}); it takes 'fifo'"
        )
        raise StudyError(Fault(("also",), text))
