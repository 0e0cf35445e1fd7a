"""What an ablation varies, and what is wrong with it.

A mistake here, such as a level given twice or two factors that write one setting, would train for hours and
answer another question. So all of them are found before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdnet_core.errors import did_you_mean
from search_spaces.designs import Cell, Design, Levels, Range
from search_spaces.faults import Fault

Factors = Mapping[str, tuple[Any, ...] | Mapping[str, dict[str, Any]] | Range]


def levels_of(factors: Factors) -> Levels:
    """Return the levels of each factor: its values, the names of its sets of settings, or its range."""
    return {name: levels if isinstance(levels, Range) else tuple(levels) for name, levels in factors.items()}


def faults_of(factors: Factors, baseline: Cell, design: Design) -> list[Fault]:
    """Return why `design` cannot make cells of `factors` around `baseline`."""
    if not factors and design.has_factors:
        text = 'an ablation takes at least one factor, such as {"optim.lr": (1e-3, 1e-4)}, and has none'
        return [Fault(("factors",), text)]
    malformed = {name: _malformed(name, levels, design) for name, levels in factors.items()}
    sound = {name: levels for name, levels in factors.items() if not malformed[name]}
    levels = levels_of(sound)
    return [
        *(Fault(("factors", name), text) for name, texts in malformed.items() for text in texts),
        *_repeated(levels),
        *_not_in_baseline(factors, levels, baseline, design),
        *_collisions(sound),
        *design.faults(levels),
    ]


def _malformed(name: str, levels: Any, design: Design) -> list[str]:
    """Return what keeps the levels of a factor from being levels at all."""
    if isinstance(levels, Range):
        if not design.has_baseline:
            return []
        return [
            f"factor {name!r} is a range, and a {design.kind} design takes levels; list them, or use a "
            "Latin hypercube design"
        ]
    if not isinstance(levels, (tuple, list, Mapping)):
        return [
            f"factor {name!r} = {levels!r} has no levels; it takes a tuple of values, or named levels, each "
            'with its settings, such as {"on": {"augment.mixup.p": 0.6}, "off": {}}'
        ]
    if len(levels) < 2:
        has = f"only one level ({next(iter(levels))!r})" if levels else "no level"
        return [f"factor {name!r} has {has}; it takes two or more, and what does not vary goes into base"]
    return [
        f"level {level!r} of factor {name!r} is {settings!r}; it takes settings, such as "
        '{"augment.mixup.p": 0.6}'
        for level, settings in (levels.items() if isinstance(levels, Mapping) else ())
        if not isinstance(settings, Mapping)
    ]


def _repeated(levels: Levels) -> list[Fault]:
    # By ==, since a level may be a list, and 1 and 1.0 are one setting.
    return [
        Fault(("factors", name, i), f"factor {name!r} has level {level!r} twice; leave one out")
        for name, values in levels.items()
        if not isinstance(values, Range)
        for i, level in enumerate(values)
        if level in values[:i]
    ]


def _not_in_baseline(factors: Factors, levels: Levels, baseline: Cell, design: Design) -> list[Fault]:
    if baseline and not design.has_baseline:
        return [Fault(("baseline",), f"a {design.kind} has no baseline; leave out {baseline}")]
    out = []
    for name, level in baseline.items():
        place, values = ("baseline", name), levels.get(name)
        if name not in factors:
            near = f"{did_you_mean(name, factors)} (factors: {', '.join(factors)})"
            out.append(Fault(place, f"the baseline has {name!r}, which is no factor{near}"))
        elif isinstance(values, tuple) and level not in values:
            near = did_you_mean(level, map(str, values)) if isinstance(level, str) else ""
            near += f" (it has {', '.join(map(repr, values))})"
            out.append(Fault(place, f"the baseline's {name} = {level!r} is no level of that factor{near}"))
    return out


def _collisions(factors: Factors) -> list[Fault]:
    """Return which settings two factors would write in one cell, where the later one would win."""
    writers: dict[str, list[str]] = {}
    for name, levels in factors.items():
        named = levels.values() if isinstance(levels, Mapping) else ({name: None},)
        for setting in {setting for settings in named for setting in settings}:
            writers.setdefault(setting, []).append(name)
    return [
        Fault(
            ("factors", names[0]),
            f"factors {' and '.join(map(repr, names))} both set {setting}; a setting takes one factor",
        )
        for setting, names in sorted(writers.items())
        if len(names) > 1
    ]
