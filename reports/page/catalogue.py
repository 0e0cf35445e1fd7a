"""Which tables the page has, in their order; each is also written as CSV, Markdown and LaTeX.

A new table is a function in `tables` and an entry here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from birdnet_core.records.files import write_text
from reports.earlier.experiments import experiment_table
from reports.page import sentences, tables
from reports.page.formats import file_name, to_csv, to_latex, to_markdown, with_lists_as_text
from reports.selection import gates
from reports.statistics import aggregate
from reports.study_report import StudyReport

WORDS = frozenset((
    "aliased with", "cell", "error", "kind", "level", "levels", "note", "predicted as", "source", "species",
    "status", "stored as", "truth", "verdict", "with",
))  # fmt: skip
"""Columns of words, which are aligned left, as every first column is."""
N_MOST = 2000  # rows of a table that are written out as text: nobody reads more, and browsers get slow


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Args:
        name: begins the names of its files in ``tables/``.
        title: its heading, and with the study's name its caption.
        text: what a reader sees, text cells. numbers: what the CSV holds.
        note: how to read it.
        is_folded: the page shows it on a click, report.md names its file.
        keys: the cell of each row, for tables in which a click marks it. first: the columns that the page
            shows at once; all if empty. is_paper: its LaTeX is for a page of a paper in two columns.
        n_more: the rows after `text`, which only the CSV has.
    """

    name: str
    title: str
    text: pd.DataFrame
    numbers: pd.DataFrame
    note: str = ""
    is_folded: bool = False
    keys: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    is_paper: bool = False
    n_more: int = 0

    @property
    def ending(self) -> str:
        """The ending of the file that has all rows for a reader."""
        return "csv" if self.n_more else "md"

    def cell_tags(self, name: str = "td") -> list[Markup]:
        """Return the opening tag of a cell of each column: words stand left, and some columns are hidden."""
        tags = []
        for place, column in enumerate(self.text.columns):
            words = ' class="text"' if place == 0 or column in WORDS else ""
            hidden = " hidden" if self.first and column not in self.first else ""
            tags.append(Markup(f"<{name}{words}{hidden}>"))
        return tags

    def write(self, stem: Path, caption: str) -> None:
        """Write `stem`.csv, .md and .tex; of a table that `text` does not have whole the CSV alone."""
        texts = {"csv": to_csv(with_lists_as_text(self.numbers))}
        if not self.n_more:
            texts["md"] = to_markdown(self.text)
            texts["tex"] = to_latex(self.text, caption, is_paper=self.is_paper)
        for ending in ("csv", "md", "tex"):
            path = stem.with_name(f"{stem.name}.{ending}")
            if ending in texts:
                write_text(path, texts[ending])
            else:
                path.unlink(missing_ok=True)  # of an earlier report of fewer rows


PARTS = {
    "differences": "Differences",
    "cells": "Cells",
    "levels": "Levels of numeric factors",
    "parameters": "Parameters",
    "species": "Species",
    "curves": "Learning curves",
    "stopped": "Early stopping and failures",
    "gates": "Gates",
    "compute": "Compute used",
    "trials": "All trials",
}
"""The parts of a study below its first screen, in their order: what names them in links, and their titles."""


def of_study(r: StudyReport) -> dict[str, list[Table]]:
    """Return the tables of a study by the parts of the page; without those that have no row."""
    cells = tables.cell_table(r.cells.iloc[:N_MOST], r.study, r.best)
    failures = tables.failure_table(r.trials)
    contrasts = r.analysis.contrasts if r.analysis is not None else pd.DataFrame()
    correlations = r.rank_correlations
    confused = f"Most frequent confusions of {next(iter(r.predictions), '')}"
    species, is_of_predictions = tables.species_table(r.trials, r.study, r.cells, r.best)
    is_single = r.kind == "search" and not aggregate.is_folded(r.study)
    read = sentences.TRIALS if is_single else sentences.CELLS
    front = tables.front_table(r.front, r.study)
    return {
        "differences": _filled(
            Table("contrasts", "Differences",
                  tables.contrast_table(contrasts) if len(contrasts) else contrasts, contrasts,
                  sentences.contrasts_note(r.analysis.level) if r.analysis else ""),
        ),
        "cells": _filled(
            Table("front", "Pareto front", front, tables.cell_numbers(r.front) if len(front) else front,
                  sentences.FRONT),
            Table("cells", "Trials, best first" if r.kind == "search" else "Cells", cells,
                  tables.cell_numbers(r.cells), read, keys=tuple(r.cells["label"]),
                  first=tables.first_columns(cells, r.study), n_more=_n_more(r.cells)),
        ),
        "levels": _filled(
            Table("levels", "Means at every level", tables.level_table(r.level_means), r.level_means,
                  sentences.LEVELS, is_folded=True, keys=()),
        ),
        "parameters": _filled(
            Table("correlations", "Screening: rank correlations", tables.correlation_table(correlations),
                  correlations, sentences.correlations_note(r.metric)),
            Table("importance", "Importance of parameters", tables.importance_table(r.importance),
                  r.importance, sentences.importance_note(r.importance)),
        ),
        "species": _filled(
            Table("recordings", f"F1 over {r.scored}", tables.recording_table(r.by_recording),
                  r.by_recording, sentences.recordings_note(r.scored)),
            Table("confusions", confused, tables.confusion_table(r.confusions), r.confusions,
                  "Of the recordings of all folds of a deal together, means over deals.", is_folded=True),
            Table("species", "F1 of every species, rarest first", species, species,
                  sentences.SPECIES if is_of_predictions else sentences.SPECIES_OF_RECORDS, is_folded=True),
        ),
        "curves": _filled(
            Table("progression", "Training and validation at every epoch",
                  tables.progression_table(r.progression.iloc[:N_MOST]), r.progression,
                  f"{sentences.PROGRESSION} {sentences.GAP}", is_folded=True,
                  keys=tuple(r.progression["label"]) if len(r.progression) else (),
                  n_more=_n_more(r.progression)),
        ),
        "stopped": _filled(
            Table("failures", "Failed or unfinished trials", failures, failures),
        ),
        "gates": _filled(
            Table("gates", f"Gates: {gates.decision(r.gate_results)}", tables.gate_table(r.gate_results),
                  r.gate_results, sentences.GATES),
        ),
        "compute": _filled(
            Table("resources", "Compute used", tables.resource_table(r.resources), r.resources,
                  f"{sentences.usage(r.usage)} {sentences.RESOURCES}"),
        ),
        "trials": _filled(
            Table("trials", "All trials", tables.trial_table(r.trials.iloc[:N_MOST], r.study),
                  tables.trial_numbers(r.trials), is_folded=True, n_more=_n_more(r.trials)),
        ),
    }  # fmt: skip


def paper(r: StudyReport) -> list[Table]:
    """Return the table for a paper, of at most seven columns; none without a score."""
    table = tables.paper_table(r)
    return _filled(Table("paper", "For a paper", table, table, sentences.paper_note(r), is_paper=True))


def confirmed(best: dict[str, Any]) -> Table:
    """Return the shortlist of a choice that was confirmed on fresh repeats."""
    shortlist = tables.choice_table(best)
    return Table(
        "confirmed", "The shortlist on fresh repeats", shortlist, shortlist, sentences.confirmed_note(best)
    )


def searches(frame: pd.DataFrame) -> Table:
    """Return the runs of one search with several seeds; `frame` is of `searches.repeated_searches`."""
    name = frame["study"].iloc[0]
    return Table(
        f"searches-{file_name(name)}", f"{name}: the search with {len(frame)} seeds",
        tables.search_table(frame), frame, sentences.repeated_search(frame),
    )  # fmt: skip


def experiments(rows: pd.DataFrame, epochs: pd.DataFrame) -> list[Table]:
    """Return the tables of earlier work: `experiments.experiments`, and every imported epoch."""
    return _filled(
        Table("experiments", "Experiments, imported and new", experiment_table(rows), rows),
        Table(
            "imported-epochs",
            "Every imported epoch",
            tables.progression_table(epochs.iloc[:N_MOST]),
            epochs,
            is_folded=True,
            n_more=_n_more(epochs),
        ),
    )


def _n_more(frame: pd.DataFrame) -> int:
    return max(0, len(frame) - N_MOST)


def _filled(*found: Table) -> list[Table]:
    """Return the tables that have a row, none with more than `N_MOST`."""
    cut = (
        replace(each, text=each.text.iloc[:N_MOST], n_more=each.n_more + _n_more(each.text)) for each in found
    )
    return [table for table in cut if len(table.text)]
