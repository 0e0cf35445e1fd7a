"""Which figures a report has: each is drawn, saved as PNG and SVG, and handed on with its caption."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from reports.earlier.readers import Imports
from reports.figures import drawing as plots
from reports.figures import resources as resource_plots
from reports.figures import search as search_plots
from reports.figures import species as species_plots
from reports.figures import trend as trend_plots
from reports.statistics import aggregate, compare
from reports.statistics.predictions import Told

Drawn = tuple[str, str, Figure]
"""Name, caption, figure."""
N_ROWS, N_CURVES, N_GROUPS = 24, 12, 6
"""The most rows, curves and panels of a figure: of more, none can be read. The tables have them all."""


def of_study(
    study: dict[str, Any],
    trials: pd.DataFrame,
    epochs: pd.DataFrame,
    cells: pd.DataFrame,
    comparisons: pd.DataFrame,
    interaction: dict[str, Any] | None,
    level_means: pd.DataFrame,
    importances: pd.DataFrame,
    arms: pd.DataFrame,
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
        drawn = _search_figures(study, trials, epochs, importances, best)
    elif metric in cells and len(trials) and aggregate.is_screen(study):
        drawn = [_cells_figure(study, cells), *_parameter_figures(metric, trials)]
    elif metric in cells and len(trials):
        drawn = [
            _cells_figure(study, cells),
            *_difference_figures(study, cells, comparisons, interaction),
            *_trend_figures(study, level_means),
            *_curve_figures(study, epochs, cells),
        ]
    drawn += _resource_figures(arms)
    return [_saved(f"{slug}-{name}", caption, figure, folder) for name, caption, figure in drawn]


def of_species(
    study: dict[str, Any], told: dict[str, Told], by_recording: pd.DataFrame, folder: Path, slug: str
) -> list[dict[str, Any]]:
    """Draw and save the long tail, and the confusions of the first cell that was told."""
    if not told:
        return []
    data = study.get("data", {})
    scored = data.get("scored", "recordings")
    points = [
        species_plots.long_tail_points(mine, data.get("train_counts") or {}, str(cell))
        for cell, mine in by_recording.groupby("cell", sort=False)
    ]
    tail = partial(species_plots.long_tail, points=pd.concat(points, ignore_index=True), scored=scored)
    caption = (
        f"F1 of every validation species against its training {scored}, mean over seeds. Line: 95 % "
        "bootstrap interval over recordings, none with one recording."
    )
    drawn: list[Drawn] = [("long-tail", caption, plots.figure(tail, 3.4))]
    cell, first = next(iter(told.items()))
    if n := len(species_plots.worst_species(first)):
        matrix = partial(species_plots.confusion, told=first)
        caption = (
            f"Species of the pairs that {cell} confuses most: a row a species in truth, with the share of "
            f"its validation {scored} that were told as each column."
        )
        drawn.append(("confusions", caption, plots.figure(matrix, 1.6 + 0.3 * n)))
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


def _some_cells(study: dict[str, Any], cells: pd.DataFrame, n: int) -> tuple[pd.DataFrame, str]:
    """Return the rows of `cells` that a figure of at most `n` shows, and a sentence on the others.

    The baseline and those with the best means, in the order of the study.
    """
    if len(cells) <= n:
        return cells, ""
    ranked = cells[study["metric"]].sort_values(ascending=study["direction"] == "minimize", kind="stable")
    baseline = compare.baseline_of(cells, study)
    first = [] if baseline is None else [baseline.name]
    kept = list(dict.fromkeys([*first, *ranked.index]))[:n]
    return cells.loc[sorted(kept)], (
        f" Of {len(cells)} cells, {'' if baseline is None else 'the baseline and '}the best."
    )


def _cells_figure(study: dict[str, Any], cells: pd.DataFrame) -> Drawn:
    metric = study["metric"]
    cells, left_out = _some_cells(study, cells, N_ROWS)
    caption = (
        f"{metric} by cell. Diamond: mean; line: 95 % t interval over seeds, absent with one seed; "
        f"open diamond: trained unequal epochs.{left_out}"
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
    study: dict[str, Any],
    cells: pd.DataFrame,
    comparisons: pd.DataFrame,
    interaction: dict[str, Any] | None,
) -> list[Drawn]:
    out, metric = [], study["metric"]
    if comparisons["diff"].notna().any():
        caption = (
            f"Difference in {metric} to the baseline, paired by seed, with its 95 % t interval, absent with "
            "one shared seed. Filled: p below 0.05 after Holm."
        )
        shown = comparisons
        if len(comparisons) > N_ROWS:
            largest = comparisons["diff"].abs().sort_values(ascending=False, kind="stable").index[:N_ROWS]
            shown = comparisons.loc[sorted(largest)]
            caption += f" Of {len(comparisons)} differences, the {N_ROWS} largest."
        draw = partial(plots.difference_intervals, comparisons=shown, metric=metric)
        out.append(("differences", caption, plots.figure(draw, _height(shown))))
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


def _curve_figures(study: dict[str, Any], epochs: pd.DataFrame, cells: pd.DataFrame) -> list[Drawn]:
    out, metric = [], study["metric"]
    cells, left_out = _some_cells(study, cells, N_CURVES)
    points = plots.curve_points(epochs, cells, metric)
    if len(points):
        curves = partial(plots.learning_curves, points=points, metric=metric)
        band = f"{metric} over epochs, completed trials. Line: mean; band: lowest to highest seed.{left_out}"
        out.append(("curves", band, plots.figure(curves)))
    if {"train/loss", "val/loss"} <= set(epochs.columns):
        train, val = (plots.curve_points(epochs, cells, f"{name}/loss") for name in ("train", "val"))
        if len(val):
            losses = "Losses over epochs, mean over completed trials. Validation loss is cross-entropy; "
            losses += (
                f"training loss is what was minimised, so levels differ between loss functions.{left_out}"
            )
            out.append(("loss", losses, plots.figure(partial(plots.loss_curves, train=train, val=val))))
    return out


def _trend_figures(study: dict[str, Any], level_means: pd.DataFrame) -> list[Drawn]:
    out, metric = [], study["metric"]
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
        if (n_groups := mine["group"].nunique()) > N_GROUPS:
            means = mine[mine["metric"] == metric].groupby("group")["mean"].mean()
            leaders = means.sort_values(ascending=study["direction"] == "minimize").index[:N_GROUPS]
            mine = mine[mine["group"].isin(leaders)]
            caption += (
                f" Of {n_groups} combinations of the other factors, the {N_GROUPS} with the best means."
            )
        out.append((name, caption, trend_plots.trend_figure(mine, metric)))
    return out


def _search_figures(
    study: dict[str, Any],
    trials: pd.DataFrame,
    epochs: pd.DataFrame,
    importances: pd.DataFrame,
    best: dict[str, Any] | None,
) -> list[Drawn]:
    metric = study["metric"]
    winner = best["trial_ids"][0] if best else None
    out = []
    shown, left_out = plots.some_trials(trials, study)
    has_curves = metric in epochs and epochs[metric].notna().any()
    if has_curves and (trials["status"] == "pruned").any():
        caption = (
            f"{metric} over epochs, one line a trial; the mark is where it ended. Dotted: epochs after which "
            "trials were stopped, by their best epoch so far. Below: how many trials reached such an epoch, "
            f"and what became of them; the numbers are of those that trained on.{left_out}"
        )
        out.append(("rungs", caption, search_plots.rungs_figure(trials, shown, epochs, metric, winner)))
    elif has_curves:
        curves = partial(plots.trial_curves, epochs=epochs, trials=shown, metric=metric, best=winner)
        caption = f"{metric} over epochs, one line a trial; the mark is where it ended.{left_out}"
        out.append(("curves", caption, plots.figure(curves)))
    lengths = plots.figure(partial(plots.trial_lengths, trials=trials), min(6.0, 1.2 + 0.13 * len(trials)))
    out.append(("lengths", "Which trial ended when, in the order of the search.", lengths))
    return [
        *out,
        *_importance_figures(importances),
        *_parallel_figures(study, trials, importances),
        *_parameter_figures(metric, trials),
    ]


def _parallel_figures(study: dict[str, Any], trials: pd.DataFrame, importances: pd.DataFrame) -> list[Drawn]:
    """Return the figure of the configs of a search of two parameters or more."""
    metric, n_all = study["metric"], len(importances)
    names = list(importances["parameter"][: search_plots.N_AXES])
    shown = trials[trials[metric].notna()]
    if len(names) < 2 or shown.empty:
        return []
    shown, left_out = plots.some_trials(shown, study)
    places, ticks = search_plots.parallel_axes(shown, names, study.get("space"), metric)
    caption = (
        f"The configs of the search, one line a trial, coloured by {metric} at its best epoch, which is the "
        f"last axis: from blue (worst) to orange (best). Grey: trials that did not complete.{left_out}"
    )
    if n_all > len(names):
        caption += f" {len(names)} of {n_all} parameters: the first of the table of importance."
    draw = partial(
        search_plots.parallel_coordinates,
        places=places,
        ticks=ticks,
        status=shown["status"],
        direction=study["direction"],
    )
    return [("parallel", caption, plots.figure(draw, 3.4))]


def _resource_figures(arms: pd.DataFrame) -> list[Drawn]:
    if len(arms) < 2 or not arms["hours"].sum() > 0:
        return []
    caption = (
        "What each arm took: epochs, wall time of its trials, and that times the GPUs (without a GPU: the "
        "CPUs) that they had. Framed: all trials trained to the full number of epochs."
    )
    if len(arms) > N_ROWS:
        caption += f" Of {len(arms)} arms, the {N_ROWS} that took the longest."
        arms = arms.loc[sorted(arms["hours"].sort_values(ascending=False, kind="stable").index[:N_ROWS])]
    drawn = resource_plots.resource_figure(arms, _height(arms.rename(columns={"arm": "label"})))
    return [("resources", caption, drawn)]


def _importance_figures(importances: pd.DataFrame) -> list[Drawn]:
    told = importances[importances["importance"].notna()]
    if told.empty:
        return []
    caption = (
        f"Importance of parameters for {told['metric'].iloc[0]} at epoch {told['epoch'].iloc[0]:.0f} "
        "(PED-ANOVA), shares of 1. Line: the middle 95 % of bootstrap resamples of trials; with few trials "
        "the importance itself may lie outside."
    )
    height = _height(told.rename(columns={"parameter": "label"}))
    draw = partial(search_plots.importance_intervals, importances=told)
    return [("importance", caption, plots.figure(draw, height))]


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
