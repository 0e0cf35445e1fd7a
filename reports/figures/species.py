"""Figures of species: F1 against their training recordings, and the most frequent confusions."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt
import numpy as np
import pandas as pd

from reports.figures.charts import Drawn, colours, cycled, draw, fading, in_order, rows, tips
from reports.figures.colours import FAINT
from reports.statistics.predictions import Predictions, confusion_matrix, confusions
from reports.study_report import StudyReport

N_PAIRS = 8
ON_DARK, ON_LIGHT = "#fdfdfd", "#2b2f32"  # on cells that keep their colour where the page is dark
SPREAD = 0.055  # decades to either side, over which species of one count are spread


def long_tail_figures(report: StudyReport) -> Iterator[Drawn]:
    if not report.predictions:
        return
    scored = report.scored
    points = long_tail_points(report.by_recording, (report.study.get("data") or {}).get("train_counts") or {})
    caption = (
        f"F1 of every validation species against its training {scored}, mean over repeats on the same ones. "
        f"Line: 95 % bootstrap interval over {scored}, none with one of them"
        f"{'; a grey line joins the two marks of a species' if len(report.predictions) > 1 else ''}. Species "
        "of one count stand next to each other."
    )
    names = in_order(points["name"])
    x = alt.X(
        "x:Q",
        title=f"training {scored} of the species",
        scale=alt.Scale(type="log", nice=False, padding=8),
        axis=alt.Axis(values=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000], format=".4~g"),
    )
    y = alt.Y("f1:Q", title="validation F1 of the species", scale=alt.Scale(domain=[0, 1]))
    shape = alt.Shape(
        "name:N", scale=alt.Scale(domain=names, range=cycled(("circle", "diamond"), len(names))), legend=None
    )
    tip = tips("species", "name", "n_train", "n_val", f1="F1", low="95 % from", high="to")
    yield draw(
        "long-tail",
        caption,
        280,
        rows("species").mark_line(color=FAINT, strokeWidth=0.8).encode(x=x, y=y, detail="species:N"),
        rows("species")
        .mark_rule(strokeWidth=1)
        .encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colours(names), opacity=fading(0.4)),
        rows("species")
        .mark_point(filled=True, size=40, opacity=1)
        .encode(x=x, y=y, color=colours(names), shape=shape, opacity=fading(0.9), tooltip=tip),
        species=points,
    )


def confusion_figures(report: StudyReport) -> Iterator[Drawn]:
    """Yield the confusion matrix of the species that the first cell with predictions confuses most."""
    for cell, predictions in list(report.predictions.items())[:1]:
        shares = confusion_shares(predictions)
        if shares.empty:
            continue
        caption = (
            f"Species of the most frequent confusions of {cell}: a row a true species (its validation "
            f"{report.scored}), with the share of them that was predicted as each, by the number of its row."
        )
        names, n_val = predictions.species, np.bincount(predictions.truth, minlength=len(predictions.species))
        truth = [f"{row}. {names[c]} ({n_val[c]})" for row, c in enumerate(worst_species(predictions), 1)]
        n = len(truth)
        x = alt.X(
            "column:O",
            title="predicted as species number",
            scale=alt.Scale(domain=list(range(1, n + 1))),
            axis=alt.Axis(labelAngle=0, labelOverlap="greedy"),
        )
        y = alt.Y(
            "truth:N", title=None, scale=alt.Scale(domain=truth), sort=truth, axis=alt.Axis(labelLimit=190)
        )
        tip = tips("truth", "predicted", "n_val", count="recordings", share="share")
        text = alt.condition("datum.share > 0.55", alt.value(ON_DARK), alt.value(ON_LIGHT))
        yield draw(
            "confusions",
            caption,
            26 * n,
            rows("pairs")
            .mark_rect()
            .encode(
                x=x,
                y=y,
                tooltip=tip,
                color=alt.Color("share:Q", legend=None, scale=alt.Scale(scheme="blues", domain=[0, 1])),
            ),
            rows("pairs")
            .mark_text(opacity=alt.ExprRef(f"width < {30 * n} ? 0 : 1"))  # no room for it
            .encode(x=x, y=y, text=alt.Text("share:Q", format=".0%"), color=text),
            pairs=shares,
        )


def long_tail_points(by_recording: pd.DataFrame, train_counts: dict[str, int]) -> pd.DataFrame:
    """Return the rows of species of `predictions.f1_intervals`, with `species`, `name`, `n_train` and `x`.

    `x` is `n_train`, moved a little where several species have it, and the marks of one a little apart.
    """
    mine = by_recording[by_recording["kind"] == "species"]
    mine = mine.assign(n_train=[train_counts.get(name, 0) for name in mine["name"]])
    mine = mine[mine["n_train"] > 0].rename(columns={"name": "species", "cell": "name"})
    species = mine.drop_duplicates("species")
    place = species.groupby("n_train").cumcount() + 0.5
    size = species.groupby("n_train")["n_train"].transform("size")
    moved = dict(zip(species["species"], SPREAD * (2 * place / size - 1) * (size > 1), strict=True))
    cell = mine["name"].map({name: i for i, name in enumerate(in_order(mine["name"]))}).astype(float)
    x = mine["n_train"] * 10 ** (mine["species"].map(moved).astype(float) + 0.006 * cell)
    return mine.assign(x=x, cell=mine["name"].str.replace(r" \([^(]*\)$", "", regex=True))


def worst_species(predictions: Predictions) -> list[int]:
    """Return the classes of the most frequent confusions, the most frequent first."""
    pairs = confusions(predictions, N_PAIRS)
    names = in_order(name for pair in zip(pairs["truth"], pairs["predicted"], strict=True) for name in pair)
    return [predictions.species.index(name) for name in names]


def confusion_shares(predictions: Predictions) -> pd.DataFrame:
    """Return a row a (true, predicted) of `worst_species` that occurs, with its `share` of the true one.

    Species without recordings in truth have no row. The shares of a species add up to less than 1 where
    recordings were predicted as other species.
    """
    classes = worst_species(predictions)
    n_val = np.bincount(predictions.truth, minlength=len(predictions.species))
    counts = confusion_matrix(predictions)
    rows = [
        {
            "truth": f"{row}. {predictions.species[i]} ({n_val[i]})",
            "column": column,
            "predicted": predictions.species[j],
            "n_val": int(n_val[i]),
            "count": counts[i, j],
            "share": counts[i, j] / n_val[i],
        }
        for row, i in enumerate(classes, 1)
        for column, j in enumerate(classes, 1)
        if n_val[i] and counts[i, j]
    ]
    return pd.DataFrame(rows, columns=["truth", "column", "predicted", "n_val", "count", "share"])
