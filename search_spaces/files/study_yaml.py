"""Studies in YAML: read whole, with the line of every fault.

A file's values are checked against the JSON Schema, then as a study, then as the configs of its trials, and
whatever is wrong is told at once.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from birdnet_core.config import COMPONENTS, FOLDER_SETTINGS, TrainConfig
from birdnet_core.errors import ConfigError, did_you_mean
from birdnet_core.records.checks import A_NAME, is_name
from search_spaces.designs import Design, Range
from search_spaces.factors import faults_of
from search_spaces.files.schema import DESIGNS, SIZES, is_whole_number
from search_spaces.files.schema_faults import refusals
from search_spaces.files.yaml_file import Place, YamlFile, read_yaml, shown
from search_spaces.space import (
    ABSENT,
    Parameter,
    Space,
    condition_faults,
)
from search_spaces.study import (
    QUICK,
    Ablation,
    Gate,
    Overrides,
    Search,
    Study,
    check_objectives,
    in_quick_size,
)


def parse_study(text: str, path: Path) -> Study:
    """Return the study that `text` describes; `path` is where it came from.

    Raises ConfigError that lists all faults, each with its line. What the user gives beside the file is not
    known here: the file has to hold with the default config, but for the names of components that it leaves
    open (`loss.gamma` without `loss.name`), which the user may choose.
    """
    file = read_yaml(text, str(path))
    bad = set()
    for place, fault in refusals(file.values):
        file.fault(place, fault)
        bad.add(place)
    values = _with_absolute_folders(_without(file.values, bad), path.parent)
    study = _build(file, values, path)
    # With a component's name unknown, all its options would be told as unknown too.
    if study is not None and not any(str(key).endswith(".name") for place in bad for key in place):
        _check_configs(file, study)
    file.raise_faults()
    assert study is not None
    return study


def _without(values: dict[str, Any], bad: set[Place]) -> dict[str, Any]:
    """Return `values` without what stands at the places `bad`; a list with a bad item is left out whole."""
    kept = copy.deepcopy(values)
    for place in bad:
        keys = list(itertools.takewhile(lambda key: isinstance(key, str), place))
        parent: Any = kept
        for key in keys[:-1]:
            parent = parent.get(key, {})
        if keys:
            parent.pop(keys[-1], None)
    return kept


def _with_absolute_folders(values: dict[str, Any], around: Path) -> dict[str, Any]:
    """Return `values` with folders beside the file made absolute: trials run elsewhere."""

    def absolute(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: absolute(k, v) for k, v in value.items()}
        if isinstance(value, list):
            return [absolute(key, v) for v in value]
        is_folder = key in FOLDER_SETTINGS and isinstance(value, str) and (around / value).is_dir()
        return str((around / value).absolute()) if is_folder else value

    return {key: absolute(key, value) for key, value in values.items()}


# ------------------------------------------------------------------------------------------ study


def _build(file: YamlFile, values: dict[str, Any], path: Path) -> Study | None:
    """Return the study of the values that are good, None where they make none; notes faults."""
    if "name" not in file.values and not is_name(path.stem):
        file.fault(
            (), f"the file's name {path.stem!r} cannot name a study; give it a `name` of letters and digits"
        )
    elif "name" in values and not is_name(values["name"]):  # what the schema's pattern cannot say
        file.fault(("name",), f"name = {shown(values['name'])} is not accepted; a name holds {A_NAME}")
    if not is_name(values.get("name", path.stem)):
        values = {**values, "name": "unnamed"}
    base = dict(values.get("base", {}))
    if "epochs" in values:
        if "training.epochs" in base:
            file.fault(("epochs",), "epochs is the same as training.epochs in base; leave one out")
        base["training.epochs"] = values["epochs"]
    gates = []
    for i, gate in enumerate(values.get("gates", ())):
        try:
            gates.append(Gate(**gate))
        except ConfigError as error:
            file.fault(("gates", i), str(error))
    common: dict[str, Any] = {
        "name": values.get("name", path.stem),
        "question": values.get("question", ""),
        "base": base,
        "gates": tuple(gates),
        "quick": {key: value for key, value in values.get("quick", QUICK).items() if key not in SIZES},
        "metric": values.get("metric", Ablation.metric),
    }
    if values.get("factors"):
        return _ablation(file, values, common)
    return _search(file, values, common) if values.get("space") else None


def _ablation(file: YamlFile, values: dict[str, Any], common: dict[str, Any]) -> Ablation | None:
    quick = values.get("quick", {})
    factors = _factors(file, (), values["factors"])
    quick_factors = _factors(file, ("quick",), quick.get("factors", {}))
    for name in set(quick_factors) - set(file.values["factors"]):
        near = did_you_mean(name, factors) or f" (factors: {', '.join(factors)})"
        file.fault(
            ("quick", "factors", name), f"{name} is no factor{near}; quick takes other levels of factors"
        )
    design = _design(file, values.get("design", "full"))
    if design is None or not factors:
        return None
    # Levels with names are text, also where the file says `baseline: {mixup: true}`.
    baseline = {
        name: level if "." in name else file.texts["baseline", name]
        for name, level in values.get("baseline", {}).items()
        if name in factors or name not in file.values["factors"]
    }
    n_seeds = values.get("seeds", Ablation.n_seeds)
    study = Ablation(
        factors=factors,
        design=design,
        baseline=baseline,
        n_seeds=n_seeds,
        quick_factors=quick_factors,
        quick_seeds=quick.get("seeds", min(n_seeds, Ablation.quick_seeds)),
        **common,
    )
    faults = faults_of(factors, baseline, design)
    for fault in faults:
        file.fault(_place(fault, study), _in_yaml(fault))
    if not faults and quick_factors:
        faults = faults_of({**factors, **quick_factors}, baseline, design)
        for fault in faults:
            file.fault(("quick", *_place(fault, study)), f"under --quick, {_in_yaml(fault)}")
    return None if faults else study


def _factors(file: YamlFile, around: Place, given: Mapping[str, Any]) -> dict[str, Any]:
    factors: dict[str, Any] = {}
    for name, levels in given.items():
        if isinstance(levels, list):
            factors[name] = tuple(levels)
        elif "." not in name:
            factors[name] = levels
        elif (range_ := _range(file, (*around, "factors", name), levels)) is not None:
            factors[name] = range_
    return factors


def _design(file: YamlFile, asked: str | dict[str, Any]) -> Design | None:
    name, options = (asked, {}) if isinstance(asked, str) else next(iter(asked.items()))
    try:
        return DESIGNS[name](**options)
    except TypeError:  # named alone, without the options that have no default
        needed = [f.name for f in fields(DESIGNS[name]) if f.default is MISSING]  # type: ignore[arg-type]
        there = file.values["design"]
        if isinstance(there, dict) and set(needed) <= there[name].keys():
            return None  # the schema has refused what stands there
        listed = ", ".join(f"{option}: ..." for option in needed)
        file.fault(("design",), f"design {name} needs {', '.join(needed)}: {{{name}: {{{listed}}}}}")
        return None


_WORDS = {
    "design=LatinHypercube(n=...)": "design: {latin-hypercube: {n: ...}}",
    "LeaveOneOut()": "leave-one-out",
    "log=True": "log: true",
    "integer=True": "integer: true",
}


def _in_yaml(fault: str) -> str:
    """Return a fault that speaks of Python in the words of a file."""
    for python, words in _WORDS.items():
        fault = fault.replace(python, words)
    return fault


def _place(fault: str, study: Ablation) -> Place:
    """Return where a sentence of `factors.faults_of` belongs, by what it names."""
    if "baseline" in fault:
        named = [name for name in study.baseline if repr(name) in fault or f"{name} = " in fault]
        return ("baseline", *named[:1])
    named = [name for name in study.factors if repr(name) in fault]
    return ("factors", *named[:1]) if named else ("design",)


def _range(file: YamlFile, place: Place, given: Mapping[str, Any]) -> Range | None:
    """Return a range, None where an end is no good; of whole numbers where its setting takes nothing else."""
    if not {"low", "high"} <= given.keys():
        return None  # the schema has refused what stands there
    try:
        return Range(**{"integer": is_whole_number(str(place[-1])), **given})
    except ConfigError as error:
        file.fault(place, _in_yaml(re.sub(r"Range\(.*?\)", f"{place[-1]} = {shown(given)}", str(error))))
        return None


def _search(file: YamlFile, values: dict[str, Any], common: dict[str, Any]) -> Search | None:
    quick = values.get("quick", {})
    space = _space(file, (), values["space"], file.values["space"])
    quick_space = None
    if "space" in quick:
        quick_space = _space(file, ("quick",), quick["space"], file.values["quick"]["space"])
    n_trials = values.get("trials", Search.n_trials)
    study = Search(
        space=space or Space({}),
        quick_space=quick_space,
        n_trials=n_trials,
        quick_trials=quick.get("trials", min(n_trials, Search.quick_trials)),
        also=tuple(values.get("also", ())),
        **{key: values[key] for key in _OF_SCHEDULER if key in values},
        **common,
    )
    try:
        check_objectives(study)
    except ConfigError as error:
        file.fault(("also",), str(error))
    return study if space else None


_OF_SCHEDULER = ("scheduler", "grace_epochs", "reduction_factor", "asha_within")


def _space(
    file: YamlFile, around: Place, given: Mapping[str, Any], all_given: Mapping[str, Any]
) -> Space | None:
    """Return the space of the parameters that are good, None where others are not."""
    place = (*around, "space")
    parameters: dict[str, Parameter] = {}
    for name, values in given.items():
        parameter = _parameter(
            file, (*place, name), {"values": values} if isinstance(values, list) else values
        )
        if parameter is not None:
            parameters[name] = parameter
    is_whole = set(parameters) == set(all_given)
    faults = condition_faults(parameters)
    for inside, text in faults:
        # A parent that is no good itself is there, and only not among those looked at.
        if is_whole or inside[-1] not in all_given:
            file.fault((*place, *inside), text)
    return Space(parameters) if is_whole and not faults else None


_RANGE = tuple(f.name for f in fields(Range))


def _parameter(file: YamlFile, place: Place, given: dict[str, Any]) -> Parameter | None:
    values: Any = tuple(given["values"]) if "values" in given else _range(
        file, place, {key: value for key, value in given.items() if key in _RANGE}
    )  # fmt: skip
    if values is None:
        return None
    when = {key: tuple(v) if isinstance(v, list) else (v,) for key, v in given.get("when", {}).items()}
    try:
        return Parameter(
            values=values, step=given.get("step"), when=when, otherwise=given.get("else", ABSENT)
        )
    except ConfigError as error:
        file.fault(place, f"{place[-1]}: {error}")
        return None


# ---------------------------------------------------------------------------------------- configs


Trial = tuple[Overrides, dict[str, Place]]


def _check_configs(file: YamlFile, study: Study) -> None:
    """Note what the configs of the trials refuse, each where the setting stands."""
    trials = list(_trials(file, study))
    used = {*study.base, *study.quick, *(key for choices, _ in trials for key in choices)}
    start = TrainConfig().override(_open_components(used))
    n_faults = len(file.faults)
    _check_trials(file, study, start, trials)
    within = study.asha_within if isinstance(study, Search) else None
    if len(file.faults) > n_faults:
        return
    if within and not any(within in start.override(study.base).override(c).flat() for c, _ in trials):
        file.fault(("asha_within",), f"asha_within = {within} is no setting of any trial")
    quick = in_quick_size(study)
    _check_trials(file, quick, start, list(_trials(file, quick)))


def _check_trials(file: YamlFile, study: Study, start: TrainConfig, trials: list[Trial]) -> None:
    in_base = culprits(start, study.base)
    for key, text in in_base:
        # A setting of `quick` that is no base's is in the base of the study's quick size.
        places: list[Place] = [("base", key), ("epochs",), ("quick", key)]
        value = study.base[key]
        file.fault(next((p for p in places if p in file.lines and _at(file.values, p) == value), ()), text)
    if in_base:
        return
    config = start.override(study.base)
    for choices, where in trials:
        for key, text in culprits(config, choices):
            file.fault(where[key], text + _advice(key, study, trials))


def _at(values: Any, place: Place) -> Any:
    for key in place:
        values = values[key]
    return values


def _trials(file: YamlFile, study: Study) -> Iterator[Trial]:
    """Yield choices, each with its place in the file: of all cells, or of the corners of a space."""
    if isinstance(study, Search):
        assert isinstance(study.space, Space)
        around: Place = ("quick",) if study.space is study.quick_space else ()
        for choices in study.space.corners():
            places: dict[str, Place] = {}
            for name, value in choices.items():
                parameter, place = study.space.parameters[name], (*around, "space", name)
                is_sampled = parameter.holds(choices)
                places[name] = _item(file, place, parameter.values, value) if is_sampled else (*place, "else")
            yield choices, places
        return
    for cell in study.cells():
        places = {}
        for name, level in cell.items():
            levels = study.factors[name]
            around = ("quick",) if levels is study.quick_factors.get(name) else ()
            if isinstance(levels, Mapping):
                places.update({key: (*around, "factors", name, level, key) for key in levels[level]})
            else:
                places[name] = _item(file, (*around, "factors", name), levels, level)
        yield study.overrides(cell), places


def _item(file: YamlFile, place: Place, listed: Any, value: Any) -> Place:
    """Return where one of the listed values stands, which may be listed under `values`."""
    i = listed.index(value) if isinstance(listed, tuple) else 0
    return (*place, "values", i) if (*place, "values", i) in file.lines else (*place, i)


def _open_components(used: Iterable[str]) -> Overrides:
    """Return the names of components that have all options in `used` which comes without their name."""
    names: Overrides = {}
    for group, registered in COMPONENTS.items():
        options = {key.partition(".")[2] for key in used if key.startswith(f"{group}.")}
        has_all = [name for name in registered.names() if options <= set(registered[name].options)]
        if "name" not in options and has_all and getattr(TrainConfig(), group).name not in has_all:
            names[f"{group}.name"] = has_all[0]
    return names


def culprits(config: TrainConfig, settings: Overrides) -> list[tuple[str, str]]:
    """Return what `config` refuses of `settings`, each with the setting without which it would not."""
    # Names last: without its name, the default's component would refuse an option in other words.
    left = dict(sorted(settings.items(), key=lambda item: item[0].endswith(".name")))
    found: list[tuple[str, str]] = []
    while refused := _refused(config, left):
        blamed: dict[str, str] = {}
        for key in left:
            others = _refused(config, {k: v for k, v in left.items() if k != key})
            blamed.update({fault: blamed.get(fault, key) for fault in refused if fault not in others})
        # Where no setting alone is to blame, one that the fault names, else the first.
        for fault in refused if not blamed else ():
            blamed[fault] = next((key for key in left if key in fault), next(iter(left)))
        found += [(key, fault) for fault, key in blamed.items()]
        # Without a component's name, nothing can be said of its options.
        names = tuple(key.removesuffix("name") for key in blamed.values() if key.endswith(".name"))
        left = {k: v for k, v in left.items() if k not in blamed.values() and not k.startswith(names)}
    return found


def _refused(config: TrainConfig, settings: Overrides) -> list[str]:
    try:
        config.override(settings)
    except ConfigError as error:
        return str(error).split("\n")
    return []


def _advice(key: str, study: Study, trials: list[Trial]) -> str:
    """Return how an option is varied beside the name of its component, where that is what went wrong."""
    group, _, option = key.partition(".")
    name = f"{group}.name"
    if group not in COMPONENTS or option == "name":
        return ""
    chosen = dict.fromkeys(choices[name] for choices, _ in trials if name in choices)
    having = [each for each in chosen if option in COMPONENTS[group][each].options]
    if not having or len(having) == len(chosen):
        return ""
    if isinstance(study, Search):
        return f"; sample it only then, with `when: {{{name}: {having[0]}}}`"
    return (
        f"; levels of a factor of your own can set both, such as {having[0]}: "
        f"{{{name}: {having[0]}, {key}: ...}}"
    )
