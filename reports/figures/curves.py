"""Figures of metrics over epochs: learning curves and losses of cells, and curves of imported experiments."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd
from matplotlib.axes import Axes

from reports.earlier.experiments import EarlierWork
from reports.figures.cells import some_cells
from reports.figures.drawing import FAINT, Drawn, epoch_axis, figure, line_style
from reports.study_report import StudyReport

N_CURVES = 12  # more cannot be read


def curve_figures(report: StudyReport) -> Iterator[Drawn]:
    cells, left_out = some_cells(report, N_CURVES)
    points = curve_points(report.epochs, cells, report.metric)
    if len(points):
        caption = f"{report.metric} over epochs. Line: mean of completed trials; band: their range.{left_out}"
        yield Drawn("curves", caption, figure(partial(learning_curves, points=points, metric=report.metric)))


def loss_figures(report: StudyReport) -> Iterator[Drawn]:
    if not {"train/loss", "val/loss"} <= set(report.epochs.columns):
        return
    cells, left_out = some_cells(report, N_CURVES)
    train, val = (curve_points(report.epochs, cells, f"{name}/loss") for name in ("train", "val"))
    if len(val):
        caption = (
            "Losses over epochs, mean over completed trials. Validation loss is cross-entropy; training "
            f"loss is the loss that was minimised, so its level differs between loss functions.{left_out}"
        )
        yield Drawn("loss", caption, figure(partial(loss_curves, train=train, val=val)))


def imported_figures(earlier: EarlierWork) -> Iterator[Drawn]:
    if earlier.epochs.empty:
        return
    names = list(earlier.experiments["experiment"])
    runs = pd.DataFrame({"label": names, "trial_ids": [[name] for name in names]})
    gap = "train/accuracy − val/accuracy"
    epochs = earlier.epochs.assign(**{gap: earlier.epochs["train/accuracy"] - earlier.epochs["val/accuracy"]})
    for name, metric in (("accuracy", "val/accuracy"), ("gap", gap)):
        draw = partial(learning_curves, points=curve_points(epochs, runs, metric), metric=metric)
        yield Drawn(name, f"{metric} over epochs of the imported experiments, one run each.", figure(draw))


def curve_points(epochs: pd.DataFrame, cells: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one row a (cell, epoch): `mean`, `low` and `high` (min and max) over its completed trials.

    `n` is the number of trials that reached the epoch. Columns: `label`, `epoch`, `n`, `mean`, `low`, `high`.
    """
    cell_of = {
        trial: label for label, ids in zip(cells["label"], cells["trial_ids"], strict=True) for trial in ids
    }
    mine = epochs[epochs["trial_id"].isin(cell_of) & epochs[metric].notna()]
    grouped = mine.groupby([mine["trial_id"].map(cell_of).rename("label"), "epoch"], sort=True)[metric]
    points = grouped.agg(n="size", mean="mean", low="min", high="max").reset_index()
    order = {label: i for i, label in enumerate(cells["label"])}
    return points.sort_values(["label", "epoch"], key=lambda c: c.map(order) if c.name == "label" else c)


def learning_curves(ax: Axes, points: pd.DataFrame, metric: str) -> None:
    """Draw one line a cell over epochs, with a band from the lowest to the highest repeat."""
    for i, (name, line) in enumerate(points.groupby("label", sort=False)):
        colour, dash = line_style(i)
        ax.plot(line["epoch"], line["mean"], dash, color=colour, label=str(name))
        if (line["n"] > 1).any():
            ax.fill_between(line["epoch"], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0)
    epoch_axis(ax)
    ax.set_ylabel(metric)


def loss_curves(ax: Axes, train: pd.DataFrame, val: pd.DataFrame) -> None:
    """Draw validation loss as a line and training loss as a dotted line of the same colour, a pair a cell."""
    for i, name in enumerate(val["label"].drop_duplicates()):
        colour, _ = line_style(i)
        for points, dash, width in ((val, "-", 1.6), (train, ":", 1.2)):
            line = points[points["label"] == name]
            ax.plot(line["epoch"], line["mean"], dash, color=colour, linewidth=width,
                    label=str(name) if dash == "-" else "_")  # fmt: skip
    ax.plot([], [], "-", color=FAINT, label="validation")
    ax.plot([], [], ":", color=FAINT, label="training")
    epoch_axis(ax)
    ax.set_ylabel("loss")
