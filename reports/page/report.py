"""One report of one or more run folders: a page, a text, a JSON file, tables and figures.

Every number on the page is also in `report.json` or a CSV, and every mean can be traced to the trials in the
last table. What is missing or failed is said next to the number that it weakens.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from birdnet_core.errors import RunFolderError
from birdnet_core.records.files import write_text
from birdnet_core.records.metrics import METRICS
from reports.earlier import experiments
from reports.earlier.readers import Imports, read_imports
from reports.figures import catalogue as figures
from reports.page import sentences, tables
from reports.runs import Runs, load
from reports.selection import choice as selection
from reports.selection import gates
from reports.selection.confirmation import confirmed_choices
from reports.statistics import aggregate, compare, effects, importance, predictions, resources, trend

SCHEMA = 1
N_SHOWN = 20


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector off: of the millions of small objects of a large run hardly any is garbage,
    and to walk them over and over takes a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_without_collector()
def write_report(
    paths: Iterable[str | Path], out: str | Path, *, imports: str | Path | None = None
) -> dict[str, Any]:
    """Write report.html, .md and .json, tables/ and figures/ into `out`; return what report.json holds.

    `imports` is a folder of earlier work, see `read_imports`; with one, `paths` may be empty. Raises
    RunFolderError where a path is no run folder, `imports` holds no earlier work, or `out` is a file.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    earlier = None if imports is None else read_imports(imports)
    runs = load(paths) if paths or earlier is None else Runs([], pd.DataFrame(), pd.DataFrame())
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"cannot write the report to {str(out)!r}: it is a file; give a folder")
    sections, taken = [], set[str]()
    for study in runs.studies:
        slug = figures.slug_of(study["name"], taken)
        taken.add(slug)
        sections.append(_section(runs, study, slug, out, is_compared=earlier is not None))
    choices, taken = [], set()
    for best in confirmed_choices(dict.fromkeys(study["run"] for study in runs.studies)):
        slug = figures.slug_of(f"confirmed-{best['study']}", taken)
        taken.add(slug)
        choices.append(_choice(best, slug, out))
    beside = None if earlier is None else _earlier_work(earlier, sections, out)
    content = {
        "schema": SCHEMA,
        "studies": [section["json"] for section in sections],
        "confirmed": [choice["best"] for choice in choices],
        "earlier_work": beside and beside["json"],
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports.page"),
        autoescape=lambda name: name is not None and ".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"md": tables.escape_markdown, "md_table": tables.to_markdown}
    for name in ("report.html", "report.md"):
        page = environment.get_template(f"{name}.j2")
        write_text(out / name, page.render(sections=sections, earlier=beside, choices=choices))
    # Line breaks are for people, who read no thousand cells; without them it is written ten times as fast.
    is_long = sum(len(section["json"]["cells"]) for section in sections) > 1000
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=None if is_long else 1)
    write_text(out / "report.json", text + "\n")
    return content


def _section(runs: Runs, study: dict[str, Any], slug: str, out: Path, *, is_compared: bool) -> dict[str, Any]:
    """Return what the page says about one study, after writing its tables and figures.

    `is_compared` with earlier work, it also has its rows of that table, `experiments`.
    """
    trials, epochs = runs.trials_of(study), runs.epochs_of(study)
    cells = aggregate.cells(trials, study)
    best, no_best = selection.best_of(runs, study, cells)
    if study["kind"] == "search":
        cells = _ranked(cells, study)
    comparisons = compare.to_baseline(cells, study)
    interaction = compare.interaction(cells, study)
    main = effects.main_effects(cells, study)
    ranks = effects.rank_correlations(cells, study)
    trends, level_means = trend.trends(cells, study), trend.level_means(cells, study)
    mattered = importance.importances(trials, epochs, study)
    arms = resources.by_arm(trials, epochs, study, cells)
    progression = experiments.progression(epochs, study, cells)
    budget = resources.against_budget(runs, study)
    told = _told(trials, cells, study, best)
    by_recording = _by_recording(told, study)
    confused = predictions.confusions(next(iter(told.values()))) if told else pd.DataFrame()
    judged = gates.judge(cells, study, best)
    shown = tables.cell_table(cells, study, best)
    displays = {
        "cells": shown,
        "comparisons": tables.comparison_table(comparisons, interaction),
        "effects": tables.effect_table(main),
        "correlations": tables.correlation_table(ranks),
        "importance": tables.importance_table(mattered),
        "gates": tables.gate_table(judged),
        "trends": tables.trend_table(trends),
        "levels": tables.level_table(level_means),
        "trials": tables.trial_table(trials, study),
        "progression": tables.progression_table(progression),
        "resources": tables.resource_table(arms),
        "species": tables.species_table(trials, study, cells, best),
        "recordings": tables.recording_table(by_recording),
        "confusions": tables.confusion_table(confused),
    }
    numbers = {
        "cells": tables.cell_numbers(cells),
        "comparisons": tables.with_lists_as_text(comparisons),
        "effects": tables.with_lists_as_text(main),
        "correlations": ranks,
        "importance": mattered,
        "gates": judged,
        "trends": tables.with_lists_as_text(trends),
        "levels": level_means,
        "progression": progression,
        "resources": arms,
        "trials": tables.trial_numbers(trials),
        "recordings": by_recording,
        "confusions": confused,
    }
    for name, display in displays.items():
        if display.empty:
            continue
        stem = out / "tables" / f"{name}-{slug}"
        write_text(stem.with_name(f"{stem.name}.csv"), tables.to_csv(numbers.get(name, display)))
        write_text(stem.with_name(f"{stem.name}.md"), tables.to_markdown(display))
        write_text(stem.with_name(f"{stem.name}.tex"), tables.to_latex(display, f"{study['name']}: {name}"))
    said = (
        sentences.answer(study, trials, cells, comparisons, interaction, best, no_best),
        # Of a 2x2 design the answer has said more: the interaction.
        "" if interaction else sentences.main_effects(main),
        sentences.trends(trends),
        sentences.rank_correlations(ranks, study["metric"]),
        sentences.importances(mattered),
    )
    answer, warnings = " ".join(filter(None, said)), sentences.warnings(study, cells)
    return {
        "study": study,
        "slug": slug,
        "design": sentences.design(study),
        "design_notes": (study.get("design") or {}).get("notes", []),
        "answer": answer,
        "warnings": warnings,
        "cells": shown.iloc[:N_SHOWN],
        "more_cells": shown.iloc[N_SHOWN:],
        "comparisons": displays["comparisons"],
        "effects": displays["effects"],
        "correlations": displays["correlations"],
        "importance": displays["importance"],
        "importance_basis": sentences.importance_basis(mattered),
        "gates": displays["gates"],
        "decision": gates.decision(judged),
        "progression": displays["progression"],
        "resources": displays["resources"],
        "budget": sentences.budget(budget),
        "trends": displays["trends"],
        "levels": displays["levels"],
        "experiments": experiments.of_study(study, epochs, cells) if is_compared else None,
        "recordings": displays["recordings"],
        "confusions": displays["confusions"],
        "figures": [
            *figures.of_study(
                study,
                trials,
                epochs,
                cells,
                comparisons,
                interaction,
                level_means,
                mattered,
                arms,
                best,
                out / "figures",
                slug,
            ),
            *figures.of_species(study, told, by_recording, out / "figures", slug),
        ],
        "best": best,
        "no_best": no_best,
        "best_config": json.dumps(best["config"], indent=2, ensure_ascii=False) if best else "",
        "failures": tables.failure_table(trials),
        "species": displays["species"],
        "trials": displays["trials"],
        "facts": sentences.facts(study),
        "caveats": sentences.caveats(study, cells, trials) + sentences.importance_untold(mattered),
        "provenance": sentences.provenance(study, trials),
        "json": tables.plain(
            _content(
                study,
                cells,
                comparisons,
                interaction,
                main,
                trends,
                ranks,
                mattered,
                arms,
                budget,
                judged,
                best,
            )
            | {"by_recording": by_recording.to_dict("records"), "confusions": confused.to_dict("records")}
            | {"answer": answer, "warnings": warnings}
        ),
    }


def _choice(best: dict[str, Any], slug: str, out: Path) -> dict[str, Any]:
    """Return what the page says about a choice on fresh seeds, after writing its table."""
    table = tables.choice_table(best)
    stem = out / "tables" / slug
    write_text(stem.with_name(f"{stem.name}.csv"), tables.to_csv(table))
    write_text(stem.with_name(f"{stem.name}.md"), tables.to_markdown(table))
    write_text(stem.with_name(f"{stem.name}.tex"), tables.to_latex(table, f"{best['study']}: on fresh seeds"))
    return {"best": best, "answer": sentences.confirmed_choice(best), "table": table}


def _told(
    trials: pd.DataFrame, cells: pd.DataFrame, study: dict[str, Any], best: dict[str, Any] | None
) -> dict[str, predictions.Told]:
    """Return what the best cell and the baseline told of the validation recordings, where it was kept."""
    baseline = compare.baseline_of(cells, study)
    chosen = {
        "best": (best or {}).get("config_id"),
        "baseline": None if baseline is None else baseline["config_id"],
    }
    names: dict[str, list[str]] = {}
    for name, config_id in chosen.items():
        if config_id is not None:
            names.setdefault(config_id, []).append(name)
    told = {}
    for config_id, marks in names.items():
        cell = cells[cells["config_id"] == config_id].iloc[0]
        if found := predictions.told_by(trials, cell):
            told[f"{cell['label']} ({', '.join(marks)})"] = found
    return told


def _by_recording(told: dict[str, predictions.Told], study: dict[str, Any]) -> pd.DataFrame:
    strata = study.get("data", {}).get("strata") or {}
    frames = [predictions.f1_intervals(each, strata).assign(cell=name) for name, each in told.items()]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _earlier_work(earlier: Imports, sections: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Return what the page says about imported experiments beside new ones, after writing their files."""
    rows = [
        frame
        for frame in (experiments.imported(earlier), *(s["experiments"] for s in sections))
        if len(frame)
    ]
    table = pd.concat(rows, ignore_index=True) if rows else experiments.imported(earlier)
    shown = experiments.experiment_table(table)
    stem = out / "tables" / "experiments"
    if len(shown):
        write_text(stem.with_suffix(".csv"), tables.to_csv(tables.with_lists_as_text(table)))
        write_text(stem.with_suffix(".md"), tables.to_markdown(shown))
        write_text(stem.with_suffix(".tex"), tables.to_latex(shown, "Experiments, imported and new"))
        write_text(stem.with_name("imported-epochs.csv"), tables.to_csv(earlier.epochs))
    said = {
        "folder": earlier.folder,
        "warnings": [
            *experiments.warnings(table),
            *(f"{s['study']['name']}: {warning}" for s in sections for warning in s["warnings"]),
        ],
        "faults": earlier.faults,
        "answer": experiments.answer(table),
        "gaps": experiments.gap_sentences(table, earlier.epochs),
        "unread": earlier.unread,
    }
    return {
        **said,
        "notes": experiments.NOTES,
        "table": shown,
        "figures": figures.of_imports(earlier, out / "figures"),
        "json": tables.plain({**said, "experiments": table.to_dict("records")}),
    }


def _content(
    study: dict[str, Any],
    cells: pd.DataFrame,
    comparisons: pd.DataFrame,
    interaction: dict[str, Any] | None,
    main: pd.DataFrame,
    trends: pd.DataFrame,
    ranks: pd.DataFrame,
    mattered: pd.DataFrame,
    arms: pd.DataFrame,
    budget: dict[str, float | None],
    judged: pd.DataFrame,
    best: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return one study of report.json, schema 1."""
    metrics = [m for m in METRICS if m in cells]
    same = ("factors", "n", "n_failed", "n_other", "n_pruned")
    more = ("epochs_to_best", "hours", "gpu_hours", "seeds", "trial_ids", "unequal_epochs")
    keys = ("metric", "baseline", "cell", "diff", "low", "high", "p", "p_sign_flip", "p_holm", "g")
    return {
        **{key: study.get(key) for key in ("name", "question", "metric", "direction", "data", "design")},
        "cells": [
            {
                **{key: cell[key] for key in same},
                "metrics": {
                    m: {
                        "mean": cell[m],
                        "low": cell[f"{m}:low"],
                        "high": cell[f"{m}:high"],
                        "values": cell[f"{m}:values"],
                    }
                    for m in metrics
                },
                **_bootstrap(cell, study["metric"]),
                **{key: cell[key] for key in more},
                "n_params": _whole(cell["n_params"]),
            }
            for cell in cells.to_dict("records")
        ],
        "comparisons": [{key: row[key] for key in keys} for _, row in comparisons.iterrows()],
        "interaction": interaction,
        "main_effects": main.to_dict("records"),
        "trends": trends.drop(columns="group").to_dict("records"),
        "rank_correlations": ranks.to_dict("records"),
        "importance": mattered.to_dict("records"),
        "resources": {"arms": arms.to_dict("records"), "budget": budget},
        "best": best,
        "gates": judged.to_dict("records"),
        "decision": gates.decision(judged),
    }


def _bootstrap(cell: Mapping[Hashable, Any], metric: str) -> dict[str, float]:
    low, high = aggregate.bca_interval(cell.get(f"{metric}:values", []))
    return {"bootstrap_low": low, "bootstrap_high": high}


def _whole(value: float) -> int | None:
    return int(value) if math.isfinite(value) else None


def _ranked(cells: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return the configs of a search, best first, those without a value last, named by trial number."""
    cells = cells.assign(label=[f"#{number:.0f}" for number in cells["number"]])
    if study["metric"] in cells:
        cells = cells.sort_values(
            study["metric"], ascending=study["direction"] == "minimize", kind="stable", na_position="last"
        )
    return cells.reset_index(drop=True)
