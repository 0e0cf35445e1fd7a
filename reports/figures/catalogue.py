"""Which figures the page has, in their order.

A new figure is a function of a `StudyReport` in one of the rooms and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from reports.figures import cells, curves, drawing, resources, search, species, trend
from reports.statistics import aggregate
from reports.study_report import StudyReport

Draw = Callable[[StudyReport], Iterable[drawing.Drawn]]
"""Yields the figures that a study has; none where it has not what they show."""

OF_SCORES: dict[str, tuple[Draw, ...]] = {
    "search": (
        search.trial_figures,
        search.importance_figures,
        search.parallel_figures,
        search.parameter_figures,
    ),
    "screen": (cells.mean_figures, search.parameter_figures),
    "comparison": (
        cells.mean_figures,
        cells.difference_figures,
        cells.interaction_figures,
        trend.trend_figures,
        curves.curve_figures,
        curves.loss_figures,
    ),
}
"""By the kind of a `StudyReport`, of studies with a validation score."""
OF_ALL: tuple[Draw, ...] = (
    resources.resource_figures,
    species.long_tail_figures,
    species.confusion_figures,
)


@dataclass(frozen=True)
class Figure:
    """A figure on disk, `file`.png and `file`.svg, with its SVG for the page."""

    file: str
    caption: str
    svg: Markup


def draw(report: StudyReport) -> Iterator[drawing.Drawn]:
    """Yield the figures of a study."""
    is_scored = aggregate.is_validated(report.study) and report.metric in report.cells and len(report.trials)
    for each in (*(OF_SCORES[report.kind] if is_scored else ()), *OF_ALL):
        yield from each(report)


def save(drawn: Iterable[drawing.Drawn], slug: str, folder: Path) -> list[Figure]:
    """Write figures as PNG and SVG into `folder`, their names beginning with `slug`."""
    out = []
    for each in drawn:
        file = f"{slug}-{each.name}"
        out.append(Figure(file, each.caption, Markup(drawing.save(each.figure, folder / file))))
    return out
