"""Which figures a report has: each is drawn, saved as PNG and SVG, and handed on with its caption."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from reports import aggregate, plots, trend_plots
from reports.imports import Imports

Drawn = tuple[str, str, Figure]
"""Name, caption, figure."""


def of_study(
    study: dict[str, Any],
    trials: pd.DataFrame,
    epochs: pd.DataFrame,
    cells: pd.DataFrame,
    comparisons: pd.DataFrame,
    interaction: dict[str, Any] | None,
    level_means: pd.DataFrame,
    best: dict[str, Any] | None,
    folder: Path,
    slug: str,
) -> list[dict[str, Any]]:
    """Draw and save the figures of a study; return name, caption and the SVG of each."""
    metric = study["metric"]
    drawn: list[Drawn] = []
    if not aggregate.is_validated(study):
        drawn = []
    elif metric in cells and len(trials) and study["kind"] == "search":
        drawn = _search_figures(metric, trials, epochs, best)
    elif metric in cells and len(trials) and aggregate.is_screen(study):
        drawn = [_cells_figure(metric, cells), *_parameter_figures(metric, trials)]
    elif metric in cells and len(trials):
        drawn = [
            _cells_figure(metric, cells),
            *_difference_figures(metric, cells, comparisons, interaction),
            *_trend_figures(metric, level_means),
            *_curve_figures(metric, epochs, cells),
        ]
    return [_saved(f"{slug}-{name}", caption, figure, folder) for name, caption, figure in drawn]


def of_imports(earlier: Imports, folder: Path) -> list[dict[str, Any]]:
    """Draw and save the learning curves of the imported experiments."""
    if earlier.epochs.empty:
        return []
    names = list(earlier.experiments["experiment"])
    runs = pd.DataFrame({"label": names, "trial_ids": [[name] for name in names]})
    gap = "train/accuracy − val/accuracy"
    epochs = earlier.epochs.assign(**{gap: earlier.epochs["train/accuracy"] - earlier.epochs["val/accuracy"]})
    drawn = {
        "accuracy": ("val/accuracy", "val/accuracy over epochs of the imported experiments, one run each."),
        "gap": (gap, f"{gap} of the same epoch, imported experiments."),
    }
    out = []
    for name, (metric, caption) in drawn.items():
        points = plots.curve_points(epochs, runs, metric)
        drawing = plots.figure(partial(plots.learning_curves, points=points, metric=metric))
        out.append(_saved(f"imported-{name}", caption, drawing, folder))
    return out


def slug_of(name: str, taken: set[str]) -> str:
    """Return a file name for a study that no other has taken."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "study"
    number = 2
    unique = slug
    while unique in taken:
        unique, number = f"{slug}-{number}", number + 1
    return unique


def _saved(name: str, caption: str, figure: Figure, folder: Path) -> dict[str, Any]:
    return {"file": name, "caption": caption, "svg": Markup(plots.save(figure, folder / name))}


def _cells_figure(metric: str, cells: pd.DataFrame) -> Drawn:
    caption = (
        f"{metric} of every cell. Diamond: mean; line: 95 % t interval over seeds, absent with one seed; "
        "open diamond: trained unequal epochs."
    )
    return (
        "cells",
        caption,
        plots.figure(partial(plots.cell_intervals, cells=cells, metric=metric), _height(cells)),
    )


def _height(rows: pd.DataFrame) -> float:
    """Return the inches that a figure of one row a `label` needs."""
    lines = max((plots.wrapped(name).count("\n") + 1 for name in rows["label"]), default=1)
    return 0.9 + len(rows) * max(0.36, 0.17 * lines)


def _difference_figures(
    metric: str, cells: pd.DataFrame, comparisons: pd.DataFrame, interaction: dict[str, Any] | None
) -> list[Drawn]:
    out = []
    if comparisons["diff"].notna().any():
        caption = (
            f"Difference in {metric} to the baseline, paired by seed, with its 95 % t interval, absent with "
            "one shared seed. Filled: p below 0.05 after Holm."
        )
        draw = partial(plots.difference_intervals, comparisons=comparisons, metric=metric)
        out.append(("differences", caption, plots.figure(draw, _height(comparisons))))
    if interaction:
        points = plots.interaction_points(cells, interaction)
        if points["mean"].notna().all():
            a, b = interaction["factors"]
            caption = (
                f"{metric} over {a}, a line a level of {b}: where the lines are parallel, the one changes "
                "nothing of what the other does. Bar: 95 % t interval over seeds."
            )
            draw = partial(plots.interaction_lines, points=points, metric=metric, factors=(a, b))
            out.append(("interaction", caption, plots.figure(draw)))
    return out


def _curve_figures(metric: str, epochs: pd.DataFrame, cells: pd.DataFrame) -> list[Drawn]:
    out = []
    points = plots.curve_points(epochs, cells, metric)
    if len(points):
        curves = partial(plots.learning_curves, points=points, metric=metric)
        band = f"{metric} over epochs, completed trials. Line: mean; band: lowest to highest seed."
        out.append(("curves", band, plots.figure(curves)))
    if {"train/loss", "val/loss"} <= set(epochs.columns):
        train, val = (plots.curve_points(epochs, cells, f"{name}/loss") for name in ("train", "val"))
        if len(val):
            losses = "Losses over epochs, mean over completed trials. Validation loss is cross-entropy; "
            losses += "training loss is what was minimised, so levels differ between loss functions."
            out.append(("loss", losses, plots.figure(partial(plots.loss_curves, train=train, val=val))))
    return out


def _trend_figures(metric: str, level_means: pd.DataFrame) -> list[Drawn]:
    out = []
    factors = list(level_means["factor"].drop_duplicates())
    for factor in factors:
        mine = level_means[level_means["factor"] == factor]
        if mine.loc[mine["metric"] == metric, "level"].nunique() < 2:
            continue
        name = "trend" if len(factors) == 1 else f"trend-{slug_of(factor, set())}"
        caption = f"{metric} against {factor}"
        if mine["metric"].nunique() > 1:
            caption += ", and F1 of the rare, medium and common species"
        caption += (
            ". Mark: mean over completed trials; band: 95 % t interval over seeds, none with one seed. "
        )
        caption += "Cells trained unequal epochs are left out."
        out.append((name, caption, trend_plots.trend_figure(mine, metric)))
    return out


def _search_figures(
    metric: str, trials: pd.DataFrame, epochs: pd.DataFrame, best: dict[str, Any] | None
) -> list[Drawn]:
    winner = best["trial_ids"][0] if best else None
    out = []
    if metric in epochs and epochs[metric].notna().any():
        curves = partial(plots.trial_curves, epochs=epochs, trials=trials, metric=metric, best=winner)
        caption = f"{metric} over epochs, one line a trial; the mark is where it ended."
        out.append(("curves", caption, plots.figure(curves)))
    lengths = plots.figure(partial(plots.trial_lengths, trials=trials), min(6.0, 1.2 + 0.13 * len(trials)))
    out.append(("lengths", "Which trial ended when, in the order of the search.", lengths))
    return out + _parameter_figures(metric, trials)


def _parameter_figures(metric: str, trials: pd.DataFrame) -> list[Drawn]:
    out = []
    for parameter in dict.fromkeys(key for factors in trials["factors"] for key in factors):
        points = plots.parameter_points(trials, parameter, metric)
        if len(points) and points["x"].nunique() > 1:
            effect = partial(plots.parameter_effect, points=points, parameter=parameter, metric=metric)
            caption = f"{metric} at the best epoch against {parameter}. "
            caption += "Trials that did not complete show the best epoch they reached."
            out.append((f"by-{slug_of(parameter, set())}", caption, plots.figure(effect, 2.7)))
    return out
