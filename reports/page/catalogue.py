"""Which tables the page has, in their order; each is also written as CSV, Markdown and LaTeX.

A new table is a function in `tables` and an entry here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from birdnet_core.records.files import write_text
from reports.earlier.experiments import experiment_table
from reports.page import sentences, tables
from reports.page.formats import to_csv, to_latex, to_markdown, with_lists_as_text
from reports.selection import gates
from reports.study_report import StudyReport

WORDS = frozenset((
    "aliased with", "cell", "error", "kind", "level", "levels", "note", "predicted as", "source", "species",
    "status", "stored as", "truth", "verdict", "with",
))  # fmt: skip
"""Columns of words, which are aligned left, as every first column is."""


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Args:
        name: begins the names of its files in ``tables/``.
        title: its heading, and with the study's name its caption.
        text: what a reader sees, text cells. numbers: what the CSV holds.
        note: how to read it.
        is_folded: the page shows it on a click, report.md names its file.
    """

    name: str
    title: str
    text: pd.DataFrame
    numbers: pd.DataFrame
    note: str = ""
    is_folded: bool = False

    def write(self, stem: Path, caption: str) -> None:
        """Write `stem`.csv, .md and .tex."""
        for ending, text in (
            ("csv", to_csv(with_lists_as_text(self.numbers))),
            ("md", to_markdown(self.text)),
            ("tex", to_latex(self.text, caption)),
        ):
            write_text(stem.with_name(f"{stem.name}.{ending}"), text)


def results(r: StudyReport) -> list[Table]:
    """Return the tables above the figures of a study; without those that have no row."""
    cells = tables.cell_table(r.cells, r.study, r.best)
    failures = tables.failure_table(r.trials)
    correlations = r.rank_correlations
    contrasts = r.analysis.contrasts if r.analysis is not None else pd.DataFrame()
    confused = f"Most frequent confusions of {next(iter(r.predictions), '')}"
    cell_title = "Trials, best first" if r.kind == "search" else "Cells"
    recordings = tables.recording_table(r.by_recording)
    return _filled(
        Table("cells", cell_title, cells, tables.cell_numbers(r.cells), sentences.CELLS),
        Table("failures", "Failed or unfinished trials", failures, failures),
        Table("contrasts", "Differences", tables.contrast_table(contrasts) if len(contrasts) else contrasts,
              contrasts, sentences.contrasts_note(r.analysis.level) if r.analysis else ""),
        Table("levels", "Means at every level", tables.level_table(r.level_means), r.level_means,
              sentences.LEVELS, is_folded=True),
        Table("correlations", "Screening: rank correlations", tables.correlation_table(correlations),
              correlations, sentences.correlations_note(r.metric)),
        Table("importance", "Importance of parameters", tables.importance_table(r.importance), r.importance,
              sentences.importance_note(r.importance)),
        Table("recordings", f"F1 over {r.scored}", recordings, r.by_recording,
              sentences.recordings_note(r.scored)),
        Table("confusions", confused, tables.confusion_table(r.confusions), r.confusions,
              "Of the recordings of all folds of a deal together, means over deals.", is_folded=True),
        Table("gates", f"Gates: {gates.decision(r.gate_results)}", tables.gate_table(r.gate_results),
              r.gate_results, sentences.GATES),
    )  # fmt: skip


def details(r: StudyReport) -> list[Table]:
    """Return the tables at the end of a study; without those that have no row."""
    species = tables.species_table(r.trials, r.study, r.cells, r.best)
    return _filled(
        Table("resources", "Compute used", tables.resource_table(r.resources), r.resources,
              f"{sentences.usage(r.usage)} {sentences.RESOURCES}"),
        Table("species", "F1 of every species, rarest first", species, species, is_folded=True),
        Table("progression", "Training and validation at every epoch",
              tables.progression_table(r.progression), r.progression,
              f"{sentences.PROGRESSION} {sentences.GAP}", is_folded=True),
        Table("trials", "All trials", tables.trial_table(r.trials, r.study), tables.trial_numbers(r.trials),
              is_folded=True),
    )  # fmt: skip


def confirmed(best: dict[str, Any]) -> Table:
    """Return the shortlist of a choice that was confirmed on fresh repeats."""
    shortlist = tables.choice_table(best)
    return Table(
        "confirmed", "The shortlist on fresh repeats", shortlist, shortlist, sentences.confirmed_note(best)
    )


def experiments(rows: pd.DataFrame, epochs: pd.DataFrame) -> list[Table]:
    """Return the tables of earlier work: `experiments.experiments`, and every imported epoch."""
    return _filled(
        Table("experiments", "Experiments, imported and new", experiment_table(rows), rows),
        Table(
            "imported-epochs",
            "Every imported epoch",
            tables.progression_table(epochs),
            epochs,
            is_folded=True,
        ),
    )


def _filled(*found: Table) -> list[Table]:
    return [table for table in found if len(table.text)]
