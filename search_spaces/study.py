"""A question, and the configs that answer it.

An `Ablation` asks whether a choice matters: a design over named factors, each of its cells trained on the
same seeds for the same budget. A `Search` asks which config is best: an Optuna space, sampled trial by trial.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import optuna
from optuna.trial import BaseTrial

from birdnet_core.config import TrainConfig
from birdnet_core.config import cautions as config_cautions
from birdnet_core.errors import ConfigError, did_you_mean
from birdnet_core.records.checks import A_NAME, is_name
from birdnet_core.records.metrics import is_better, metric_direction, objective_direction
from birdnet_core.registry import checked_value
from search_spaces.designs import Cell, Design, FullFactorial, Levels, Range
from search_spaces.factors import Factors, faults_of, levels_of

Overrides = dict[str, Any]


# Few epochs of many small steps over several windows a recording: enough to see differences in minutes.
QUICK: Overrides = {
    "training.epochs": 8,
    "training.batch_size": 16,
    "optim.warmup_epochs": 1,
    "data.windows_per_recording": 3,
}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a study has to reach for its answer to be acted upon.

    Args:
        metric: of the best cell, the mean over its seeds.
        target: at least this passes (at most, for a metric that is to be low).
        stretch: what would be better still; None for no such wish.
        investigate: short of `target`, but at least this, asks for a closer look and not for a no; None where
            all that is short of `target` is a no.

    Raises ConfigError for an unknown metric, and for values that are not in the order investigate, target,
    stretch.
    """

    metric: str
    target: float
    stretch: float | None = None
    investigate: float | None = None

    def __post_init__(self) -> None:
        direction = metric_direction(self.metric)
        for name in ("target", "stretch", "investigate"):
            checked_value(getattr(self, name), float | None, f"gate on {self.metric}: {name}")
        given = (self.investigate, self.target, self.stretch)
        steps = [value for value in given if value is not None]
        if any(not is_better(high, low, direction) for low, high in pairwise(steps)):
            raise ConfigError(
                f"gate on {self.metric}: investigate = {self.investigate}, target = {self.target} and "
                f"stretch = {self.stretch} are out of order; each takes a better value than the one before"
            )


# What the earlier work set out to reach with 89 species, on validation data.
TARGETS = (
    Gate(metric="val/accuracy", target=0.40, stretch=0.50),
    Gate(metric="val/f1_macro", target=0.15, stretch=0.25),
    Gate(metric="val/f1_rare", target=0.05, stretch=0.10),
)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The cells of a `design` over `factors`, crossed with seeds.

    Args:
        factors: what is varied. A dotted setting with the values to compare, or, for a `LatinHypercube`, a
            `Range` of them; or a name of your own with named levels, each a set of settings:
            ``{"mixup": {"on": {"augment.mixup.p": 0.6}, "off": {}}}``.
        design: which combinations of levels are trained.
        baseline: the cell that the others are compared with; the first level of each factor if left out. A
            `LatinHypercube` has none.
        metric: what decides; its direction is the metric's own.
        gates: what the best cell has to reach.
        base: settings that the study needs, whatever the user's base config says.
        quick: further settings under ``--quick``; `QUICK` if left out.
        quick_factors: under ``--quick``, the levels of the factors that it names.
        n_seeds, quick_seeds: seeds of every cell unless the user asks for others; the second under
            ``--quick``.
    """

    factors: Factors
    design: Design = field(default_factory=FullFactorial)
    baseline: Cell = field(default_factory=dict)
    metric: str = "val/f1_macro"
    gates: tuple[Gate, ...] = ()
    base: Overrides = field(default_factory=dict)
    quick: Overrides = field(default_factory=lambda: dict(QUICK))
    quick_factors: Factors = field(default_factory=dict)
    n_seeds: int = 3
    quick_seeds: int = 2
    name: str = ""
    question: str = ""

    def __post_init__(self) -> None:
        _check_study(self.name, {"n_seeds": (self.n_seeds, 1), "quick_seeds": (self.quick_seeds, 1)})

    def levels(self) -> Levels:
        """Return the levels of each factor: its values, the names of its sets of settings, or its range."""
        return levels_of(self.factors)

    def cells(self) -> list[Cell]:
        """Return the level of every factor in each cell; ConfigError that lists all faults of the factors."""
        if found := faults_of(self.factors, self.baseline, self.design):
            raise ConfigError("\n".join(found))
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
        """Return what the study's file says of the design: its kind, its size, and `Design.facts`."""
        return {
            "kind": self.design.kind,
            "n_cells": len(self.cells()),
            **self.design.facts(self.levels(), self.baseline_cell() or {}),
        }

    def overrides(self, cell: Cell) -> Overrides:
        """Return the settings that a cell stands for."""
        settings: Overrides = {}
        for name, level in cell.items():
            levels = self.factors[name]
            settings.update(levels[level] if isinstance(levels, Mapping) else {name: level})
        return settings


SCHEDULERS: dict[str, str] = {
    "fifo": "every trial trains its whole budget",
    "asha": "asynchronous successive halving: the best 1/reduction_factor pass a rung (Li et al. 2020)",
    "hyperband": "asynchronous HyperBand: ASHA in brackets that begin later and later (Li et al. 2018)",
    "median": "ends what falls below the median of the other trials' averages (Golovin et al. 2017)",
}
"""What may end trials of a search early; `tuning.engine.schedulers` has the rules."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A define-by-run space that TPE samples, with a scheduler ending the trials that fall behind.

    Args:
        space: gives the overrides of one trial; calls ``trial.suggest_*`` with the dotted settings as names.
        quick_space: the same under ``--quick``; None takes `space`.
        n_trials, quick_trials: how many to sample; the second under ``--quick``.
        scheduler: ``asha``, ``hyperband``, ``median``, or ``fifo``, which ends none (`SCHEDULERS`).
        grace_epochs: what every trial may train before the scheduler judges it.
        reduction_factor: ASHA and HyperBand keep the best 1/factor at each rung.
        asha_within: a dotted setting, such as ``model.name``. The scheduler compares only trials of the same
            value of it. For a space whose trials learn at different speeds: a small network leads early and
            loses late, and would end the large ones.
        also: further objectives beside `metric`: metrics, ``n_params`` or ``hours``. The search then answers
            with a Pareto front, and takes scheduler ``fifo``.
        metric, gates, base, quick: as for `Ablation`.
    """

    space: Callable[[BaseTrial], Overrides]
    quick_space: Callable[[BaseTrial], Overrides] | None = None
    n_trials: int = 40
    quick_trials: int = 12
    scheduler: str = "asha"
    grace_epochs: int = 3
    reduction_factor: int = 3
    asha_within: str | None = None
    metric: str = "val/f1_macro"
    also: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    base: Overrides = field(default_factory=dict)
    quick: Overrides = field(default_factory=lambda: dict(QUICK))
    name: str = ""
    question: str = ""

    def __post_init__(self) -> None:
        counts = {
            "n_trials": (self.n_trials, 1),
            "quick_trials": (self.quick_trials, 1),
            "grace_epochs": (self.grace_epochs, 1),
            "reduction_factor": (self.reduction_factor, 2),
        }
        _check_study(self.name, counts)

    @property
    def objectives(self) -> tuple[str, ...]:
        """What the search weighs, `metric` first."""
        return (self.metric, *self.also)


Study = Ablation | Search


def _check_study(name: str, counts: Mapping[str, tuple[int, int]]) -> None:
    """Raise ConfigError for a name that cannot name files, and for counts that are not whole or too small.

    A study may be without a name until it is registered.
    """
    if name != "" and not is_name(name):
        raise ConfigError(f"a study cannot be named {name!r}: it names files; a name holds {A_NAME}")
    for field_name, (value, least) in counts.items():
        if checked_value(value, int, field_name) < least:
            raise ConfigError(f"{field_name} = {value} is out of range; it takes {least} or more")


def in_quick_size(study: Study) -> Study:
    """Return `study` as ``--quick`` trains it."""
    base = {**study.base, **study.quick}
    if isinstance(study, Search):
        space = study.quick_space or study.space
        return replace(study, base=base, n_trials=study.quick_trials, space=space)
    factors = {**study.factors, **study.quick_factors}
    return replace(study, base=base, n_seeds=study.quick_seeds, factors=factors)


def base_config(study: Study, base: TrainConfig, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return the user's base with what `study` needs: every trial of it starts from there.

    Of the user's `settings` it takes ``seed``, the first of an ablation's seeds, and that of a search and its
    sampler; the others are applied with what a trial chooses (`trial_config`).
    """
    seed = {key: value for key, value in (settings or {}).items() if key == "seed"}
    return base.override({**study.base, "training.monitor": study.metric, **seed})


def trial_config(base: TrainConfig, settings: Mapping[str, Any], choices: Overrides) -> TrainConfig:
    """Return `base` with the user's `settings` and one trial's `choices`, applied together.

    Together, because a setting may be an option of a component that the trial chooses. Raises ConfigError
    for a setting that the study varies itself, and for whatever the config does not take.
    """
    taken = sorted(set(settings) & set(choices))
    if taken:
        raise ConfigError(
            f"{', '.join(taken)} cannot be set here: the study varies it; leave it out, take another study, "
            "or an --option of this one where it has one for that (`birdtune list studies`)"
        )
    return base.override({**settings, **choices})


def group_of(config: TrainConfig, setting: str | None) -> str | None:
    """Return the group in which a trial competes: its value of the dotted `setting`, as text.

    None where there is no setting to group by, and for a config without it (an option that another model
    has), so that those form a group of their own.
    """
    flat = config.flat()
    return str(flat[setting]) if setting in flat else None


def check(study: Study, base: TrainConfig, settings: Mapping[str, Any]) -> list[TrainConfig]:
    """Return the configs of a study's trials, or raise ConfigError that lists all their faults.

    Of all cells of an ablation, in their order; of a search, of 50 random samples of its space. Raises
    ConfigError also for factors of which the design makes no cells (`factors.faults_of`), and for objectives
    that are unknown or said twice, or that the scheduler cannot judge, for a search that chooses its split,
    and for a comparison of trials that are not validated.
    """
    if isinstance(study, Ablation):
        tried = [study.overrides(cell) for cell in study.cells()]
    else:
        check_objectives(study)
        rehearsal = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        tried = [_sampled(study, rehearsal.ask()) for _ in range(50)]
    configs: list[TrainConfig] = []
    faults: list[str] = []
    for choices in tried:
        try:
            configs.append(trial_config(base, settings, choices))
        except ConfigError as error:
            faults += [line for line in str(error).split("\n") if line not in faults]
    if isinstance(study, Search) and len({config.data.split for config in configs}) > 1:
        faults.append(
            f"study {study.name!r} searches over data.split: the leaky one would always win; compare the two "
            "in an ablation"
        )
    is_compared = isinstance(study, Search) or study.design.has_factors
    if is_compared and not all(config.training.is_validated for config in configs):
        faults.append(
            f"study {study.name!r} decides by {study.metric}, and training.train_on = 'train+val' leaves "
            "nothing to validate on; that is for final training (`birdtune train --seeds`)"
        )
    within = study.asha_within if isinstance(study, Search) else None
    known = {name for config in configs for name in config.flat()}
    if within is not None and not faults and within not in known:
        faults.append(
            f"asha_within = {within!r} is no setting of any trial{did_you_mean(within, known)} "
            "(it takes a dotted setting, for example model.name)"
        )
    if faults:
        raise ConfigError("\n".join(faults))
    return configs


def _sampled(study: Search, trial: BaseTrial) -> Overrides:
    """Return a sample of the space; ConfigError with the line where the user's code raises something else."""
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
    """Return what is allowed and should be known before the study is trained, in sentences.

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
                f"{len(configs)} cells are only {len(alike)} configs: what several cells stand for is "
                f"trained once and counts in each, such as ({example[0]}) and ({example[1]})"
            )
    return [*out, *dict.fromkeys(caution for each in configs for caution in config_cautions(each))]


def check_objectives(study: Search) -> None:
    """Raise ConfigError for objectives that are unknown or said twice, or that the scheduler cannot judge."""
    for objective in study.objectives:
        objective_direction(objective)
    if len(set(study.objectives)) < len(study.objectives):
        raise ConfigError(
            f"study {study.name!r} has an objective twice: metric {study.metric!r}, also {study.also}; "
            "leave the second out"
        )
    if study.also and study.scheduler != "fifo":
        raise ConfigError(
            f"scheduler {study.scheduler!r} judges trials by one value, and study {study.name!r} has "
            f"{len(study.objectives)} objectives ({', '.join(study.objectives)}); it takes 'fifo'"
        )
