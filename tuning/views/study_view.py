"""A study before it runs: what it varies, and the trials that a sweep of it would train.

Neither data nor Ray nor torch is needed, so that a file can be checked while it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from rich.console import Group
from rich.text import Text

from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.records.metrics import objective_direction
from search_spaces.files.study_plain import plain_space, sampled_space
from search_spaces.space import declared, sample
from search_spaces.study import Ablation, Search, Study, base_config, cautions, check, trial_config
from tuning.views.live import describe

N_EXAMPLES = 10


def design_of(study: Study) -> dict[str, Any]:
    """Return the resolved design as plain values.

    `cells` of an ablation have their levels and settings. `space` of a search is as it stands in YAML; where
    it has no such form, `no_yaml` says why, and `space` is what random trials show of it.
    """
    common = {**study.facts(), "base": study.base}
    if isinstance(study, Ablation):
        baseline = study.baseline_cell()
        cells = [
            {"factors": cell, "settings": study.overrides(cell), "is_baseline": cell == baseline}
            for cell in study.cells()
        ]
        return {**common, "design": study.design_facts(), "n_repeats": study.n_repeats, "cells": cells}
    try:
        space, no_yaml = plain_space(declared(study.space)), None
    except ConfigError as error:
        space, no_yaml = sampled_space(study.space), str(error)
    return {
        **common, "scheduler": study.scheduler, "grace_epochs": study.grace_epochs,
        "reduction_factor": study.reduction_factor, "audit": study.audit, "folds": study.folds,
        "rung_metric": study.rung_metric or study.metric, "asha_within": study.asha_within,
        "also": list(study.also), "n_trials": study.n_trials, "space": space, "no_yaml": no_yaml,
    }  # fmt: skip


def dry_run(study: Study, base: TrainConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `sweep` would do with the same arguments, as plain values.

    `trials` are those of an ablation in their order; of a search, ten random configs of its space, while the
    sampler will choose others. Raises ConfigError for whatever the study or its configs do not take.
    """
    config = base_config(study, base, settings)
    configs = check(study, config, settings)
    common = {
        **study.facts(),
        "study": study.name,
        "epochs": configs[0].training.most_epochs,
        "base": {**config.difference(), **settings},
        "cautions": cautions(study, configs),
    }
    if isinstance(study, Search):
        examples = [trial.settings for trial in sample(study.space, N_EXAMPLES)]
        return {
            **common, "n_trials": study.n_trials, "scheduler": study.scheduler, "folds": study.folds,
            "objectives": {name: objective_direction(name) for name in study.objectives},
            "trials": [
                {"config_id": trial_config(config, settings, choices).config_id, "factors": choices}
                for choices in examples
            ],
        }  # fmt: skip
    trials = [
        {"trial_id": each.override(repeat).trial_id, **repeat, "factors": cell}
        for repeat, (cell, each) in product(study.repeats(config), zip(study.cells(), configs, strict=True))
    ]
    return {
        **common, "n_trials": len({trial["trial_id"] for trial in trials}),
        "design": study.design_facts(), "n_repeats": study.n_repeats, "trials": trials,
    }  # fmt: skip


# ------------------------------------------------------------------------------------ in words


def design_as_text(design: dict[str, Any]) -> Group:
    """Return what a person reads of `design_of`."""
    lines = _head(design)
    if design["kind"] == "ablation":
        n = f"{design['design']['n_cells']} cells x {design['n_repeats']} repeats"
        lines += _rows({"design": f"{design['design']['kind']}, {n}", "": design["design"]["notes"]})
        return Group(*lines, Text(), *_cells_table(design["cells"]))
    lines += _rows(
        {
            "trials": f"{design['n_trials']}, ended early by {design['scheduler']}"
            + (f" within each {design['asha_within']}" if design["asha_within"] else "")
            + ("; the best on all folds" if design["folds"] else ""),
            "also": design["also"],
        }
    )
    if design["no_yaml"] is None:
        return Group(*lines, Text(), *_space_table(design["space"]))
    why = [f"the space cannot be written as YAML: {fault}" for fault in design["no_yaml"].split("\n")]
    return Group(*lines, Text(), *map(Text, why), Text(), *_sampled_table(design["space"]))


def dry_run_as_text(plan: dict[str, Any]) -> Group:
    """Return what a person reads of `dry_run`."""
    lines = _head(plan)
    if plan["kind"] == "ablation":
        n_cells = plan["design"]["n_cells"]
        lines += _rows(
            {
                "design": [f"{plan['design']['kind']}, {n_cells} cells", *plan["design"]["notes"]],
                "trials": f"{plan['n_trials']} of {plan['epochs']} epochs: "
                f"{n_cells} cells x {plan['n_repeats']} repeats",
                "caution": plan["cautions"],
            }
        )
    else:
        ended = "" if plan["scheduler"] == "fifo" else f", ended early by {plan['scheduler']}"
        ended += "; the best on all folds" if plan["folds"] else ""
        lines += _rows(
            {
                "trials": f"{plan['n_trials']} of {plan['epochs']} epochs at most{ended}",
                "weighs": [f"{name} ({direction})" for name, direction in plan["objectives"].items()],
                "first": [
                    ", ".join(f"{name}={value}" for name, value in config.items())
                    for config in plan.get("first", ())
                ],
                "caution": plan["cautions"],
            }
        )
        lines.append(
            Text(f"{len(plan['trials'])} random configs of the space; the sampler will choose others:")
        )
    return Group(
        *lines, Text(), *_trials_table(plan["trials"]), Text(), Text("nothing was trained or written")
    )


def _head(facts: dict[str, Any]) -> list[Text]:
    gates = [
        ", ".join(f"{name} {value:g}" if name != "metric" else str(value) for name, value in gate.items()
                  if value is not None)
        for gate in facts.get("gates", ())
    ]  # fmt: skip
    return [
        Text(f"{facts['name']} ({facts['kind']})", style="bold"),
        *([Text(facts["question"])] if facts["question"] else []),
        *_rows(
            {
                "decides": f"{facts['metric']} ({facts['direction']})",
                "base": describe(facts["base"]),
                "gates": gates,
            }
        ),
    ]


def _rows(facts: dict[str, str | list[str]]) -> list[Text]:
    """Return a line for each fact with something to say, its name before its first line."""
    rows = []
    for name, lines in facts.items():
        for i, line in enumerate([lines] if isinstance(lines, str) else lines):
            if line:
                rows.append(Text(f"{'' if i else name:10}{line}"))
    return rows


def aligned(header: list[str], rows: list[list[str]]) -> list[Text]:
    """Return lines of aligned columns, each as wide as it needs: a table for a file as well as a screen."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (header, *rows)]
    return [Text(lines[0], style="dim"), *map(Text, lines[1:])]


def _cells_table(cells: list[dict[str, Any]]) -> list[Text]:
    factors = list(cells[0]["factors"])
    has_named = any(cell["settings"] != cell["factors"] for cell in cells)
    rows = [
        [
            "baseline" if cell["is_baseline"] else "",
            *(_value(cell["factors"][name]) for name in factors),
            *([describe(cell["settings"])] if has_named else []),
        ]
        for cell in cells
    ]
    return aligned(["", *factors, *(["settings"] if has_named else [])], rows)


def _space_table(space: dict[str, Any]) -> list[Text]:
    rows = []
    for name, given in space.items():
        when = given.get("when", {}) if isinstance(given, dict) else {}
        rows.append([name, _values(given), ", ".join(f"{key} = {_values(v)}" for key, v in when.items())])
    return aligned(["parameter", "values", "when" if any(row[2] for row in rows) else ""], rows)


def _sampled_table(sampled: dict[str, Any]) -> list[Text]:
    rows = []
    for name, seen in sampled.items():
        texts = [_values(given) for given in seen["distributions"]]
        more = f"; and {len(texts) - 3} more" if len(texts) > 3 else ""
        rows.append([name, f"{seen['share']:.0%}", "; ".join(texts[:3]) + more])
    return aligned(["parameter", "in trials", "sampled from"], rows)


def _trials_table(trials: list[dict[str, Any]]) -> list[Text]:
    columns = [name for name in trials[0] if name != "factors"]
    factors = list(dict.fromkeys(name for trial in trials for name in trial["factors"]))
    rows = [
        [
            str(i),
            *(str(trial[name]) for name in columns),
            *(_value(trial["factors"][name]) if name in trial["factors"] else "" for name in factors),
        ]
        for i, trial in enumerate(trials)
    ]
    return aligned(["#", *columns, *factors], rows)


def _values(given: Any) -> str:
    """Return the values of a parameter, given as in YAML."""
    if isinstance(given, dict) and "low" in given:
        how = [name for name in ("log", "integer") if given.get(name)]
        how += [f"step {given['step']:g}"] if "step" in given else []
        return ", ".join([f"{_value(given['low'])} to {_value(given['high'])}", *how])
    if isinstance(given, dict):
        given = given["values"]
    return ", ".join(map(_value, given)) if isinstance(given, list) else _value(given)


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
