"""Which figures the page has, by the section they are in.

A new figure is a function of a `StudyReport` in one of the rooms and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from altair.utils.schemapi import debug_mode
from markupsafe import Markup

from reports.figures import cells, charts, curves, resources, search, species, trend
from reports.figures.charts import Drawn
from reports.statistics import aggregate
from reports.study_report import StudyReport

Draw = Callable[[StudyReport], Iterable[Drawn]]
"""Yields the figures that a study has; none where it has not what they show."""

OF_SCORES: dict[str, dict[str, tuple[Draw, ...]]] = {
    "search": {
        "cells": (search.front_figures,),
        "parameters": (search.importance_figures, search.parallel_figures, search.parameter_figures),
        "curves": (search.trial_figures,),
        "stopped": (search.rung_figures,),
    },
    "screen": {"cells": (cells.mean_figures,), "parameters": (search.parameter_figures,)},
    "comparison": {
        "differences": (cells.difference_figures, cells.interaction_figures),
        "cells": (cells.mean_figures,),
        "levels": (trend.trend_figures, trend.strata_figures),
        "curves": (curves.curve_figures, curves.loss_figures),
    },
}
"""By the kind of a `StudyReport`, of studies with a validation score; then by section of the page."""
OF_ALL: dict[str, tuple[Draw, ...]] = {
    "species": (species.long_tail_figures, species.confusion_figures),
    "compute": (resources.resource_figures,),
}
N_LEAD = 6  # rows of the first figure, which has to fit in the first screen


@dataclass(frozen=True)
class Figure:
    """A figure on disk, `file`.svg, .pdf and .png, with its specification for the page."""

    file: str
    caption: str
    spec: Markup


@debug_mode(False)
def lead(report: StudyReport) -> list[Drawn]:
    """Return the one figure that carries the answer of a study; none where it has no score.

    A curve where a numeric factor was varied, the Pareto front of several objectives, else the largest
    differences; of two cells their scores, of a search the best trials.
    """
    if not is_scored(report):
        return []
    found = next(iter(trend.trend_figures(report)), None) if report.kind == "comparison" else None
    found = found or next(iter(search.front_figures(report)), None)
    if found is None and len(report.cells) > 2:  # one difference is in the answer: its two scores say more
        found = next(iter(cells.difference_figures(report, N_LEAD, "answer")), None)
    return [found or next(iter(cells.mean_figures(report, N_LEAD, "answer")))]


def draw(report: StudyReport) -> Iterator[tuple[str, Drawn]]:
    """Yield the figures of a study with their sections."""
    for each in (*([OF_SCORES[report.kind]] if is_scored(report) else []), OF_ALL):
        for section, draws in each.items():
            for of in draws:
                with debug_mode(False):  # charts.VALIDATES says when a chart is validated, as a whole
                    found = list(of(report))
                yield from ((section, drawn) for drawn in found)


def is_scored(report: StudyReport) -> bool:
    return aggregate.is_validated(report.study) and report.metric in report.cells and len(report.trials) > 0


def save(drawn: Iterable[Drawn], slug: str, folder: Path, saving: charts.Saving) -> list[Figure]:
    """Have figures written into `folder`, their names beginning with `slug`."""
    out = []
    for each in drawn:
        file = f"{slug}-{each.name}"
        saving.run(charts.save, each, folder / file)
        out.append(Figure(file, each.caption, Markup(charts.for_page(each))))
    return out
