"""One report of one or more run folders: a page, a text, a JSON file, tables and figures.

Every number on the page is also in `report.json` or a CSV, and every mean can be traced to the trials in the
last table. Missing and failed trials are counted next to the numbers that they weaken.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from threadpoolctl import threadpool_limits

from birdnet_core.errors import RunFolderError
from birdnet_core.intervals import LEVEL
from birdnet_core.records.files import write_text
from birdnet_core.records.metrics import METRICS
from birdnet_core.records.run_folder import RunFolder
from reports.earlier import experiments, histories
from reports.earlier.experiments import EarlierWork
from reports.figures import catalogue as figures
from reports.figures import charts
from reports.figures.charts import Drawn
from reports.figures.curves import imported_figures
from reports.page import catalogue as tables
from reports.page import sentences
from reports.page.formats import file_name, plain, templates
from reports.runs import Runs, load
from reports.selection import gates
from reports.selection.confirmation import confirmed_choices
from reports.statistics.front import objectives_of
from reports.statistics.searches import repeated_searches
from reports.study_report import StudyReport, study_report

SCHEMA = 5
LARGE = 2**23  # bytes of journals, 300 trials of 50 epochs: from there on other processes help
N_ROWS = 20  # of a table on the page; the others are folded there, and left to their file in report.md


@dataclass(frozen=True)
class Part:
    """A part of a study below its first screen: `name` is of `catalogue.PARTS`."""

    name: str
    title: str
    tables: list[tables.Table]
    figures: list[figures.Figure]


@dataclass(frozen=True)
class Section:
    """What the page shows of one study."""

    report: StudyReport
    slug: str
    lead: list[figures.Figure]
    parts: list[Part]
    paper: list[tables.Table]

    @property
    def best_config(self) -> str:
        best = self.report.best
        return json.dumps(best["config"], indent=2, ensure_ascii=False) if best else ""


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


# Linear algebra in one thread: the others wait at full load, for what helpers and other programs could use.
@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]
@_without_collector()
def write_report(
    paths: Iterable[str | Path], out: str | Path, *, imports: str | Path | None = None
) -> dict[str, Any]:
    """Write report.html, .md and .json, tables/ and figures/ into `out`; return the content of report.json.

    `imports` is a folder of earlier work, see `histories.read`; with one, `paths` may be empty. Raises
    RunFolderError where a path is no run folder, `imports` holds no earlier work, or `out` is a file.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    earlier = None if imports is None else histories.read(imports)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"cannot write the report to {str(out)!r}: it is a file; give a folder")
    journals = [journal for path in paths if (journal := RunFolder(path).journal_path).is_file()]
    is_large = sum(journal.stat().st_size for journal in journals) > LARGE
    with charts.Saving(apart=is_large) as saving:
        runs = Runs([], pd.DataFrame(), pd.DataFrame())
        if paths or earlier is None:
            runs = load(paths, saving.run if is_large else None)
        script = saving.run(charts.script)
        if is_large:  # the other process starts while the statistics are computed
            saving.run(charts.begin)
        sections: list[Section] = []
        # Claims of all studies of the page hold together, and so do those of one.
        n_ablations = sum(study["kind"] == "ablation" and len(study["cells"]) > 1 for study in runs.studies)
        level = 1 - (1 - LEVEL) / max(1, n_ablations)
        for study in runs.studies:
            slug = file_name(study["name"], {section.slug for section in sections})
            sections.append(_section(study_report(runs, study, level=level), slug, out, saving))
        confirmed: dict[str, dict[str, Any]] = {}
        for best in confirmed_choices(dict.fromkeys(study["run"] for study in runs.studies)):
            slug = file_name(f"confirmed-{best['study']}", confirmed)
            confirmed[slug] = best
            tables.confirmed(best).write(out / "tables" / slug, f"{best['study']}: on fresh repeats")
        searches = [tables.searches(frame) for frame in repeated_searches(s.report for s in sections)]
        for table in searches:
            table.write(out / "tables" / table.name, table.title)
        imported = earlier and _earlier_work(earlier, [s.report for s in sections], out, saving)
        content = {
            "schema": SCHEMA,
            "studies": [_content(section.report) for section in sections],
            "confirmed": list(confirmed.values()),
            "repeated_searches": [plain(table.numbers.to_dict("records")) for table in searches],
            "earlier_work": imported and imported["json"],
        }
        has_charts = any(s.lead or any(p.figures for p in s.parts) for s in sections)
        has_charts = has_charts or bool(imported and imported["figures"])
        environment = templates()
        environment.globals |= {
            "sentences": sentences, "confirmed_table": tables.confirmed, "zip": zip,
            "n_rows": N_ROWS, "has_charts": has_charts, "theme": Markup(charts.page_theme()),
            "vega": Markup(script.result()) if has_charts else "",
        }  # fmt: skip
        for name in ("report.html", "report.md"):
            page = environment.get_template(f"{name}.j2")
            write_text(
                out / name,
                page.render(
                    sections=sections, earlier=imported, confirmed=content["confirmed"], searches=searches
                ),
            )
        # Line breaks are for people, who read no hundreds of cells; without them it takes half the time.
        is_long = sum(len(section.report.cells) for section in sections) > 200
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=None if is_long else 1)
        write_text(out / "report.json", text + "\n")
        return content


def _section(report: StudyReport, slug: str, out: Path, saving: charts.Saving) -> Section:
    """Write the tables and figures of a study and return what the page shows."""
    lead = figures.lead(report)
    drawn: dict[str, list[Drawn]] = {}
    for part, each in figures.draw(report):
        if each.spec not in [first.spec for first in lead]:
            drawn.setdefault(part, []).append(each)
    saved = {part: figures.save(of, slug, out / "figures", saving) for part, of in drawn.items()}
    of_lead = figures.save(lead, slug, out / "figures", saving)
    found, paper = tables.of_study(report), tables.paper(report)
    for table in (*itertools.chain.from_iterable(found.values()), *paper):
        stem, caption = out / "tables" / f"{table.name}-{slug}", f"{report.name}: {table.title}"
        saving.run(table.write, stem, caption)
    titles = tables.PARTS | ({"cells": "Trials, best first"} if report.kind == "search" else {})
    parts = [
        Part(name, title, found[name], saved.get(name, []))
        for name, title in titles.items()
        if found[name] or name in saved
    ]
    return Section(report, slug, of_lead, parts, paper)


def _earlier_work(
    earlier: EarlierWork, reports: list[StudyReport], out: Path, saving: charts.Saving
) -> dict[str, Any]:
    """Write the tables and figures of imported experiments and return what the page shows."""
    rows = experiments.experiments(earlier, reports)
    found = tables.experiments(rows, earlier.epochs)
    for table in found:
        table.write(out / "tables" / table.name, table.title)
    of_studies = [f"{r.name}: {warning}" for r in reports for warning in sentences.warnings(r.study, r.cells)]
    content = {
        "folder": earlier.folder,
        "warnings": [*experiments.warnings(rows), *of_studies],
        "faults": earlier.faults,
        "answer": experiments.answer(rows),
        "unread": earlier.unread,
    }
    return {
        **content,
        "fault_texts": [f"{each['file']}: {each['fault']}." for each in earlier.faults],
        "notes": experiments.NOTES,
        "tables": found,
        "figures": figures.save(imported_figures(earlier), "imported", out / "figures", saving),
        "json": plain({**content, "experiments": rows.to_dict("records")}),
    }


def _front(r: StudyReport) -> list[dict[str, Any]]:
    """Return the Pareto front of a search with several objectives, best metric first; empty for one."""
    names = [*objectives_of(r.study), "distance"]
    on_front = r.front[r.front["is_on_front"]].to_dict("records") if len(r.front) else []
    return [
        {key: cell[key] for key in ("label", "config_id", "factors")} | {name: cell[name] for name in names}
        for cell in on_front
    ]


def _content(r: StudyReport) -> dict[str, Any]:
    """Return one study of report.json."""
    study, metrics = r.study, [m for m in METRICS if m in r.cells]
    cells = []
    for cell in r.cells.to_dict("records"):
        same = ("factors", "n", "n_failed", "n_other", "n_pruned", "is_infeasible", "epochs_to_best", "hours",
                "gpu_hours", "repeats", "trial_ids", "unequal_epochs")  # fmt: skip
        scores = {
            m: {"mean": cell[m], **{key: cell[f"{m}:{key}"] for key in ("low", "high", "values")}}
            for m in metrics
        }
        n_params = int(cell["n_params"]) if math.isfinite(cell["n_params"]) else None
        cells.append({key: cell[key] for key in same} | {"metrics": scores, "n_params": n_params})
    contrasts = [] if r.analysis is None else r.analysis.contrasts.to_dict("records")
    content: dict[str, Any] = plain(
        {
            **{
                key: study.get(key)
                for key in ("name", "question", "metric", "direction", "constraints", "data", "design")
            },
            "answer": sentences.answer(r),
            "warnings": sentences.warnings(study, r.cells),
            "cells": cells,
            "level": None if r.analysis is None else r.analysis.level,
            "contrasts": [row | {"family": math.isfinite(row["low"])} for row in contrasts],
            "claims": [row for row in contrasts if row["verdict"] is not None],
            "rank_correlations": r.rank_correlations.to_dict("records"),
            "importance": r.importance.to_dict("records"),
            "early_stopping": None if r.audits is None else asdict(r.audits),
            "resources": {"arms": r.resources.to_dict("records"), "usage": r.usage},
            "best": r.best,
            "front": _front(r),
            "gates": r.gate_results.to_dict("records"),
            "decision": gates.decision(r.gate_results),
            "by_recording": r.by_recording.to_dict("records"),
            "confusions": r.confusions.to_dict("records"),
        }
    )
    return content
