"""Studies in YAML: read whole, with the line of every fault.

The values of a file are checked against the JSON Schema, then as a study, then as the configs of its trials.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from birdnet_core.config import COMPONENTS, PATH_SETTINGS, TrainConfig
from birdnet_core.errors import ConfigError, did_you_mean
from birdnet_core.records.bounds import parse_constraint
from birdnet_core.records.checks import is_name
from search_spaces.designs import Range
from search_spaces.faults import Fault, Place, collected
from search_spaces.files.schema import DESIGNS, OF_SEARCH, SIZES, is_whole_number
from search_spaces.files.schema_faults import schema_faults
from search_spaces.files.yaml_file import YamlFile, read_yaml
from search_spaces.space import ABSENT, Parameter, Space
from search_spaces.study import (
    QUICK,
    Ablation,
    Gate,
    Overrides,
    Search,
    Study,
    asha_within_faults,
    check_objectives,
    in_quick_size,
)

Values = dict[str, Any]
Trial = tuple[Overrides, dict[str, Place]]
"""The choices of a trial, and the place of each in the file."""


def parse_study(text: str, path: Path) -> Study:
    """Return the study that `text` describes; `path` is the file that it comes from.

    Raises ConfigError that lists all faults, each with its line. The file has to be valid with the default
    config, except that users choose the component of options without its name (`loss.gamma` alone).
    """
    file = read_yaml(text, str(path))
    faults = schema_faults(file.values)
    values = _absolute_places(_without(file.values, faults), path.parent)
    # First each factor and parameter by itself, then all together.
    factors, quick_factors = (_made(_levels, values, faults, *p, "factors") for p in ((), ("quick",)))
    space, quick_space = (_made(_parameter, values, faults, *p, "space") for p in ((), ("quick",)))
    refused = {_entry(fault.place)[-1] for fault in faults if fault.place}
    found: list[Fault] = []
    common = _common(file, values, found)
    study: Study | None = None
    if factors and "design" not in refused:
        study = _ablation(file, values, factors, quick_factors, common, found)
    elif space and len(space) == len(file.values["space"]):
        study = _search(values, space, quick_space, common, found)
    # A fault that involves a refused entry may follow from it: it is listed once that entry is mended.
    faults += [fault for fault in found if not refused & set(fault.place)]
    if study is not None and not any(str(name).endswith(".name") for name in refused):
        faults += _config_faults(study, values)
    if faults or file.faults:
        raise file.error([*file.faults, *faults])
    assert study is not None
    return study


def _entry(place: Place) -> Place:
    """Return the place of the setting, factor, parameter or key of the study that holds `place`."""
    if place[:2] in (("quick", "factors"), ("quick", "space")):
        return place[:3]
    return place[:1] if place[:1] in (("also",), ("constraints",), ("design",), ("gates",)) else place[:2]


def _without(values: Values, faults: Iterable[Fault]) -> Values:
    """Return `values` without the entries that have faults."""
    kept = copy.deepcopy(values)
    for *around, key in (_entry(fault.place) for fault in faults if fault.place):
        _at(kept, *around).pop(key, None)
    return kept


def _at(values: Any, *place: str | int) -> Any:
    """Return the mapping at `place`, an empty one where there is none."""
    for key in place:
        values = values.get(key, {})
    return values


def _absolute_places(values: Values, around: Path) -> Values:
    """Return `values` with places relative to the file made absolute, since trials run elsewhere."""

    def absolute(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: absolute(k, v) for k, v in value.items()}
        if isinstance(value, list):
            return [absolute(key, v) for v in value]
        is_place = key in PATH_SETTINGS and isinstance(value, str) and (around / value).exists()
        return str((around / value).absolute()) if is_place else value

    return {key: absolute(key, value) for key, value in values.items()}


# ------------------------------------------------------------------------------------------ study


def _made(make: Callable[[str, Any], Any], values: Values, faults: list[Fault], *section: str) -> Values:
    """Return what `make` returns for each name and value of a section; adds the faults that it raises."""
    made = {}
    for name, given in _at(values, *section).items():
        with collected(faults, *section, name, lead=f"{name}: "):
            made[name] = make(name, given)
    return made


def _levels(name: str, given: Any) -> Any:
    if isinstance(given, list):
        return tuple(given)
    return _range(name, given) if "." in name else given


def _range(name: str, given: Values) -> Range:
    """Return a range, of whole numbers where its setting takes nothing else."""
    bounds = {field.name: given[field.name] for field in fields(Range) if field.name in given}
    return Range(**{"integer": is_whole_number(name), **bounds})


def _parameter(name: str, given: Any) -> Parameter:
    if isinstance(given, list):
        return Parameter(values=tuple(given))
    return Parameter(
        values=tuple(given["values"]) if "values" in given else _range(name, given),
        step=given.get("step"),
        when={key: tuple(v) if isinstance(v, list) else (v,) for key, v in given.get("when", {}).items()},
        otherwise=given.get("else", ABSENT),
    )


def _common(file: YamlFile, values: Values, faults: list[Fault]) -> Values:
    """Return the fields that ablations and searches share."""
    name = values.get("name", Path(file.path).stem)
    if not is_name(name):
        text = f"the file's name {name!r} cannot name a study; give it a `name` of letters and digits"
        faults += [Fault((), text)] if "name" not in file.values else []
        name = "unnamed"
    base = dict(values.get("base", {}))
    if "epochs" in values:
        if "training.epochs" in base:
            faults.append(Fault(("epochs",), "epochs is the same as training.epochs in base; leave one out"))
        base["training.epochs"] = values["epochs"]
    gates = []
    for i, gate in enumerate(values.get("gates", ())):
        with collected(faults, "gates", i):
            gates.append(Gate(**gate))
    constraints = []
    for i, text in enumerate(values.get("constraints", ())):
        with collected(faults, "constraints", i):
            constraints.append(parse_constraint(text))
    return {
        "name": name,
        "question": values.get("question", ""),
        "base": base,
        "gates": tuple(gates),
        "constraints": tuple(constraints),
        "quick": {key: value for key, value in values.get("quick", QUICK).items() if key not in SIZES},
        "metric": values.get("metric", Ablation.metric),
    }


def _ablation(
    file: YamlFile, values: Values, factors: Values, quick: Values, common: Values, faults: list[Fault]
) -> Ablation | None:
    """Return the ablation; None where factors, baseline and design do not go together; adds the faults."""
    for name in quick.keys() - factors.keys():
        near = did_you_mean(name, factors) or f" (factors: {', '.join(factors)})"
        text = f"{name} is no factor{near}; quick takes other levels of factors"
        faults.append(Fault(("quick", "factors", name), text))
    design = values.get("design", "full")
    kind, options = (design, {}) if isinstance(design, str) else next(iter(design.items()))
    n_repeats = values.get("repeats", Ablation.n_repeats)
    study = Ablation(
        factors=factors,
        design=DESIGNS[kind](**options),
        # Names of levels are text, also where the file has `baseline: {mixup: true}`.
        baseline={
            name: level if "." in name else file.texts.get(("baseline", name), level)
            for name, level in values.get("baseline", {}).items()
        },
        n_repeats=n_repeats,
        quick_factors=quick,
        quick_repeats=values.get("quick", {}).get("repeats", min(n_repeats, Ablation.quick_repeats)),
        **common,
    )
    together: list[Fault] = []
    with collected(together):
        study.cells()
    if not together:
        with collected(together, "quick", lead="under --quick, "):
            replace(study, factors={**factors, **quick}).cells()
    faults += together
    return None if together else study


def _search(
    values: Values, parameters: Values, quick: Values, common: Values, faults: list[Fault]
) -> Search | None:
    """Return the search; None where the conditions of its parameters have faults; adds the faults."""
    together: list[Fault] = []
    space = quick_space = Space({})
    with collected(together, "space"):
        space = Space(parameters)
    with collected(together, "quick", "space"):
        quick_space = Space(quick)
    n_trials = values.get("trials", Search.n_trials)
    study = Search(
        space=space,
        quick_space=quick_space if quick else None,
        n_trials=n_trials,
        quick_trials=values.get("quick", {}).get("trials", min(n_trials, Search.quick_trials)),
        also=tuple(values.get("also", ())),
        **{key: values[key] for key in OF_SEARCH if key in values},
        **common,
    )
    with collected(faults):
        check_objectives(study)
    faults += together
    return None if together else study


# ---------------------------------------------------------------------------------------- configs


def _config_faults(study: Study, values: Values) -> list[Fault]:
    """Return what the configs of the trials refuse, in full and quick size, each at its setting."""
    places: dict[str, Place] = {key: ("base", key) for key in study.base}
    if "epochs" in values:
        places["training.epochs"] = ("epochs",)
    trials = list(_trials(study, values))
    start = TrainConfig().override(
        _open_components({*study.base, *study.quick, *(k for c, _ in trials for k in c)})
    )
    found = _refusals(study, start, places, trials)
    if found:
        return found
    if isinstance(study, Search):
        config = start.override(study.base)
        found = asha_within_faults(study, [config.override(choices) for choices, _ in trials])
    quick, in_quick = in_quick_size(study), values.get("quick", {})
    places |= {key: ("quick", key) for key in study.quick}
    return found + _refusals(quick, start, places, list(_trials(quick, values, in_quick)))


def _refusals(study: Study, start: TrainConfig, places: dict[str, Place], trials: list[Trial]) -> list[Fault]:
    in_base = [Fault(places[key], text) for key, text in culprits(start, study.base)]
    if in_base:
        return in_base
    config = start.override(study.base)
    return [
        Fault(where[key], text + _advice(key, study, trials))
        for choices, where in trials
        for key, text in culprits(config, choices)
    ]


def _trials(study: Study, values: Values, quick: Values | None = None) -> Iterator[Trial]:
    """Yield the choices of all cells, or of the corners of a space; `quick` is the section of the file."""

    def place_of(section: str, name: str, levels: Any, level: Any) -> Place:
        is_quick = name in (quick or {}).get(section, {})
        given = (quick if quick and is_quick else values)[section][name]
        place = ("quick", section, name) if is_quick else (section, name)
        if not isinstance(levels, tuple):
            return place
        return (*place, *(() if isinstance(given, list) else ("values",)), levels.index(level))

    if isinstance(study, Search):
        assert isinstance(study.space, Space)
        for choices in study.space.corners():
            places = {}
            for name, value in choices.items():
                parameter = study.space.parameters[name]
                is_sampled = parameter.holds(choices)
                place = place_of("space", name, parameter.values if is_sampled else None, value)
                places[name] = place if is_sampled else (*place, "else")
            yield choices, places
        return
    for cell in study.cells():
        places = {}
        for name, level in cell.items():
            levels = study.factors[name]
            place = place_of("factors", name, levels, level)
            if isinstance(levels, dict):
                places.update({key: (*place, level, key) for key in levels[level]})
            else:
                places[name] = place
        yield study.overrides(cell), places


def _open_components(used: Iterable[str]) -> Overrides:
    """Return names of components for the options in `used` that come without a name and are no default's."""
    names: Overrides = {}
    for group, registered in COMPONENTS.items():
        options = {key.partition(".")[2] for key in used if key.startswith(f"{group}.")}
        has_all = [name for name in registered.names() if options <= set(registered[name].options)]
        if "name" not in options and has_all and getattr(TrainConfig(), group).name not in has_all:
            names[f"{group}.name"] = has_all[0]
    return names


def culprits(config: TrainConfig, settings: Overrides) -> list[tuple[str, str]]:
    """Return what `config` refuses of `settings`: each setting whose removal ends a fault, and the fault."""
    # Names last: without its name, the default's component would refuse an option in other words.
    left = dict(sorted(settings.items(), key=lambda item: item[0].endswith(".name")))
    found: list[tuple[str, str]] = []
    while refused := _refused(config, left):
        fault = refused[0]
        cures = (k for k in left if fault not in _refused(config, {o: v for o, v in left.items() if o != k}))
        culprit = next(cures, next(iter(left)))
        found.append((culprit, fault))
        # Without a component's name, its options cannot be checked.
        gone = (culprit, *(k for k in left if culprit.endswith(".name") and k.startswith(culprit[:-4])))
        left = {key: value for key, value in left.items() if key not in gone}
    return found


def _refused(config: TrainConfig, settings: Overrides) -> list[str]:
    try:
        config.override(settings)
    except ConfigError as error:
        return str(error).split("\n")
    return []


def _advice(key: str, study: Study, trials: list[Trial]) -> str:
    """Return how to vary an option together with the name of its component, where that is the fault."""
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
    both = f"{having[0]}: {{{name}: {having[0]}, {key}: ...}}"
    return f"; levels of a factor of your own can set both, such as {both}"
