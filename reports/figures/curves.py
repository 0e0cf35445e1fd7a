"""Figures of metrics over epochs: learning curves and losses of cells, and curves of imported experiments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import altair as alt
import pandas as pd

from reports.earlier.experiments import EarlierWork
from reports.figures.cells import some_cells
from reports.figures.charts import (
    DASHES,
    N_BANDS,
    Drawn,
    colours,
    cycled,
    draw,
    fading,
    in_order,
    legend,
    rows,
    tips,
)
from reports.figures.colours import INK, STATUS
from reports.study_report import StudyReport

N_CURVES = 12  # more cannot be read
EPOCH_AXIS = alt.Axis(format="d", tickMinStep=1, tickCount=8, grid=False)
EPOCH = alt.X("epoch:Q", title="epoch", axis=EPOCH_AXIS)


def curve_figures(report: StudyReport) -> Iterator[Drawn]:
    cells, left_out = some_cells(report, N_CURVES)
    points = curve_points(report.epochs, cells, report.metric)
    if points["epoch"].nunique() > 1:
        band = "; band: their range" if points["name"].nunique() <= N_BANDS else ""
        caption = f"{report.metric} over epochs. Line: mean of completed trials{band}.{left_out}"
        yield learning_curves("curves", caption, points, report.metric)


def loss_figures(report: StudyReport) -> Iterator[Drawn]:
    if not {"train/loss", "val/loss"} <= set(report.epochs.columns):
        return
    cells, left_out = some_cells(report, N_CURVES)
    points = pd.concat(
        curve_points(report.epochs, cells, f"{split}/loss").assign(split=name)
        for split, name in (("val", "validation"), ("train", "training"))
    )
    if points["epoch"].nunique() < 2:
        return
    caption = (
        "Losses over epochs, mean over completed trials; thick: validation, thin: training. Validation "
        "loss is cross-entropy; training loss is the loss that was minimised, so its level differs between "
        f"loss functions.{left_out}"
    )
    names = in_order(points["name"])
    size = alt.StrokeWidth(
        "split:N", legend=None, scale=alt.Scale(domain=["validation", "training"], range=[2.2, 0.9])
    )
    layer = (
        rows("curves")
        .mark_line()
        .encode(
            x=EPOCH,
            y=alt.Y("value:Q", title="loss"),
            color=colours(names),
            strokeDash=dashes(names),
            strokeWidth=size,
            opacity=fading(),
            tooltip=tips("cell", "split", "epoch", value="loss"),
        )
    )
    yield draw("loss", caption, 240, layer, curves=points)


def imported_figures(earlier: EarlierWork) -> Iterator[Drawn]:
    if earlier.epochs.empty:
        return
    names = list(earlier.experiments["experiment"])
    runs = pd.DataFrame({"label": names, "trial_ids": [[name] for name in names]})
    gap = "train/accuracy − val/accuracy"
    epochs = earlier.epochs.assign(**{gap: earlier.epochs["train/accuracy"] - earlier.epochs["val/accuracy"]})
    for name, metric in (("accuracy", "val/accuracy"), ("gap", gap)):
        caption = f"{metric} over epochs of the imported experiments, one run each."
        yield learning_curves(name, caption, curve_points(epochs, runs, metric), metric)


LIVE_NAMES = {"completed": "completed", "pruned": "ended early", "failed": "failed or interrupted",
              "running": "running", "best": "best so far"}  # fmt: skip


def live_curves(metric: str, epochs: int) -> Drawn:
    """Return one line a trial over its budget of epochs, without its data, which the page puts in.

    The data `curves` has a row a (trial, epoch): `cell`, the trial's id, `trial`, its label, `name` of
    `LIVE_NAMES`, `epoch`, `value`, and `is_strong`, whether the trial runs or is the best,
    and `is_last`, of its last epoch. Its signals `low` and `high` are the ends of the vertical axis.
    """
    names = list(LIVE_NAMES.values())
    colour = alt.Color(
        "name:N",
        scale=alt.Scale(domain=names, range=[{**STATUS, "best": INK}[status] for status in LIVE_NAMES]),
        legend=alt.Legend(title=None, columns=2, symbolLimit=0, symbolType="stroke"),
    )
    x = alt.X(
        "epoch:Q", title="epoch", axis=EPOCH_AXIS, scale=alt.Scale(domain=[1, max(2, epochs)], nice=False)
    )
    y = alt.Y(
        "value:Q",
        title=metric,
        scale=alt.Scale(domainMin=alt.ExprRef("low"), domainMax=alt.ExprRef("high"), clamp=True),
    )
    curves = rows("curves").encode(x=x, y=y, color=colour, detail="cell:N")
    ended = curves.transform_filter("!datum.is_strong")
    strong = curves.transform_filter("datum.is_strong")
    tip = tips("trial", "name", "epoch", value=metric)
    layers = [
        ended.mark_line(strokeWidth=1).encode(opacity=fading(0.75)),
        ended.transform_filter("datum.is_last").mark_circle(size=16).encode(opacity=fading(), tooltip=tip),
        strong.mark_line(strokeWidth=2.4).encode(opacity=fading()),
        strong.mark_circle(size=90, opacity=0).encode(tooltip=tip),  # what hovering finds
        strong.transform_filter("datum.is_last").mark_circle(size=36).encode(opacity=fading()),
    ]
    caption = f"{metric} over the epochs of the running trials, the newest that ended, and the best."
    drawn = draw("live", caption, 280, *layers, curves=pd.DataFrame())
    drawn.spec["params"] += [{"name": "low", "value": 0.0}, {"name": "high", "value": 1.0}]
    return drawn


def curve_points(epochs: pd.DataFrame, cells: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one row a (cell, epoch): `value`, the mean over completed trials, `low` and `high`, their range.

    `n` is the number of trials that reached the epoch. Columns: `name` and `cell`, the cell's label, `epoch`,
    `n`, `value`, `low`, `high`.
    """
    cell_of = {
        trial: label for label, ids in zip(cells["label"], cells["trial_ids"], strict=True) for trial in ids
    }
    mine = epochs[epochs["trial_id"].isin(cell_of) & epochs[metric].notna()]
    grouped = mine.groupby([mine["trial_id"].map(cell_of).rename("name"), "epoch"], sort=True)[metric]
    points = grouped.agg(n="size", value="mean", low="min", high="max").reset_index()
    order = {label: i for i, label in enumerate(cells["label"])}
    points = points.sort_values(["name", "epoch"], key=lambda c: c.map(order) if c.name == "name" else c)
    return points.assign(cell=points["name"])


def dashes(names: Sequence[str]) -> alt.StrokeDash:
    return alt.StrokeDash(
        "name:N",
        scale=alt.Scale(domain=list(names), range=cycled(DASHES, len(names))),
        legend=stroked(names),
    )


def stroked(names: Sequence[str]) -> alt.Legend | None:
    """Return the legend of lines, whose symbols are strokes also where a band is drawn; None for one."""
    return legend(names, symbolType="stroke", symbolOpacity=1) if len(names) > 1 else None


def learning_curves(name: str, caption: str, points: pd.DataFrame, metric: str) -> Drawn:
    """Return one line a cell over epochs, with a band from the lowest to the highest repeat."""
    names = in_order(points["name"])
    y = alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False))
    colour = colours(names, legend=stroked(names))
    layers = [
        rows("curves")
        .mark_area()
        .encode(x=EPOCH, y=alt.Y("low:Q", title=metric), y2="high:Q", color=colour, opacity=fading(0.14)),
        rows("curves")
        .mark_line(strokeWidth=1.8)
        .encode(
            x=EPOCH,
            y=y,
            color=colour,
            strokeDash=dashes(names),
            opacity=fading(),
            tooltip=tips("cell", "epoch", value=metric, low="lowest", high="highest", n="trials"),
        ),
    ]
    return draw(
        name, caption, 240, *layers[int(len(names) > N_BANDS or (points["n"] < 2).all()) :], curves=points
    )
