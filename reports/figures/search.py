"""Figures of a search: its trials over epochs, the importance of parameters, and the configs it sampled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from birdnet_core.records.metrics import objective_direction
from reports.figures import colours
from reports.figures.charts import (
    FEW_TICKS,
    ROW,
    SHAPES,
    Drawn,
    cycled,
    draw,
    fading,
    labels_above,
    legend,
    row_of,
    rows,
    tips,
)
from reports.figures.colours import FAINT, INK, OKABE_ITO, PAPER
from reports.figures.curves import EPOCH
from reports.page.formats import file_name
from reports.runs import OTHER_TRAINING
from reports.statistics.aggregate import is_folded, label, show
from reports.statistics.front import objectives_of
from reports.study_report import StudyReport

STATUS = {**colours.STATUS, OTHER_TRAINING: OKABE_ITO[5]}
ENDS = {"n_on": "trained on", "n_stopped": "stopped there", "n_ended": "ended there otherwise"}
N_AXES = 8
AXIS = 48  # pixels of a row with its name above it and its values below
N_LINES = 200  # of single trials: more cannot be followed
N_MARKS = 1000  # more make pages of megabytes
ABSENT = -0.2  # where an axis shows trials without the parameter
ABSENT_VALUE: Any = object()
# From worst to best: colour-blind readers can distinguish both ends, on white and on black.
SCALE = [OKABE_ITO[0], "#8C8C8C", OKABE_ITO[4]]


def trial_figures(report: StudyReport) -> Iterator[Drawn]:
    """Yield the curves of the trials, the best in ink, with the rungs if any were pruned."""
    metric, trials, epochs = report.metric, report.sampled, report.epochs
    if metric not in epochs or not epochs[metric].notna().any():
        return
    best = report.best["trial_ids"][0] if report.best else None
    chosen, left_out = some_trials(trials, report.study, N_LINES)
    at = rungs(trials)
    caption = (
        f"{metric} over epochs, a line a trial, the best in black; the mark is where it ended.{left_out}"
    )
    if len(at):
        caption += " Dotted: rungs, the epochs after which trials were stopped."
    points = trial_points(epochs, chosen, metric)
    colour, shape = status_scales(chosen)
    y = alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False))
    tip = tips("cell", "status", "epoch", value=metric)
    ends = points.groupby("trial", sort=False).tail(1)
    yield draw(
        "curves",
        caption,
        260,
        rows("rungs").mark_rule(color=FAINT, strokeDash=[2, 2]).encode(x=EPOCH),
        rows("trials")
        .mark_line(strokeWidth=1)
        .encode(x=EPOCH, y=y, color=colour, detail="trial:N", strokeOpacity=fading(0.55)),
        rows("ends")
        .mark_point(filled=True, size=30, opacity=1)
        .encode(x=EPOCH, y=y, color=colour, shape=shape, opacity=fading(0.85), tooltip=tip),
        rows("best").mark_line(strokeWidth=2.2, color=INK).encode(x=EPOCH, y=y, tooltip=tip),
        rungs=at[["epoch"]],
        trials=points,
        ends=ends,
        best=points[points["trial"] == best],
    )


def front_figures(report: StudyReport) -> Iterator[Drawn]:
    """Yield the metric against each further objective, with the Pareto front of all of them."""
    if report.front.empty:
        return
    metric, *others = objectives_of(report.study)
    chosen, left_out = some_trials(report.front, report.study, N_MARKS)
    chosen = pd.concat([chosen, report.front[report.front["is_on_front"]]]).drop_duplicates("config_id")
    for name in others:
        scale = alt.Scale(type="log" if _spans_decades(chosen[name]) else "linear", zero=False, padding=8)
        frame = pd.DataFrame(
            {
                "cell": chosen["label"], "x": chosen[name], "value": chosen[metric],
                "is_on_front": chosen["is_on_front"], "config": chosen["factors"].map(label),
            }
        )  # fmt: skip
        on_front = frame["is_on_front"]
        x = alt.X("x:Q", title=name, scale=scale, axis=alt.Axis(format=".4~g", labelOverlap="greedy"))
        y = alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False))
        common: dict[str, Any] = {"x": x, "y": y, "tooltip": tips("cell", "config", x=name, value=metric)}
        layers = [
            rows("others").mark_circle(size=30, color=FAINT, opacity=1).encode(**common, opacity=fading(0.5)),
            rows("front")
            .mark_point(shape="diamond", filled=True, size=80, color=OKABE_ITO[0], opacity=1)
            .encode(**common, opacity=fading()),
        ]
        caption = f"{metric} against {name}. Diamonds: the Pareto front; grey: dominated configs."
        if len(others) == 1:
            step: Any = "step-after" if objective_direction(name) == "minimize" else "step-before"
            line = rows("front").mark_line(strokeWidth=1.2, color=OKABE_ITO[0], interpolate=step)
            layers.insert(1, line.encode(x=x, y=y))
        else:
            caption += f" The front is of {len(others) + 1} objectives, of which this figure has two."
        yield draw(
            f"front-{file_name(name)}", caption + left_out, 220, *layers,
            others=frame[~on_front], front=frame[on_front].sort_values("x"),
        )  # fmt: skip


def rung_figures(report: StudyReport) -> Iterator[Drawn]:
    """Yield how many trials reached each rung and what became of them, and the length of each trial."""
    trials = report.sampled
    if len(at := rungs(trials)):
        caption = (
            "Trials that reached each rung, an epoch after which trials were stopped, and how they went on."
        )
        known = [ENDS[column] for column in ENDS if at[column].any()]
        colour = alt.Color(
            "name:N",
            legend=legend(known),
            scale=alt.Scale(domain=known, range=[OKABE_ITO[0], STATUS["pruned"], OKABE_ITO[7]][: len(known)]),
        )
        long = at.rename(columns=ENDS).melt(["epoch", "n_reached"], known, "name", "n")
        bars = (
            rows("rungs")
            .mark_bar(size=18)
            .encode(
                x=alt.X("epoch:O", title="epoch", axis=alt.Axis(labelAngle=0)),
                y=alt.Y("n:Q", title="trials that reached it"),
                color=colour,
                order=alt.Order("place:Q"),
                tooltip=tips("epoch", "name", n="trials", n_reached="of"),
            )
        )
        yield draw("rungs", caption, 160, bars, rungs=long.assign(place=long["name"].map(known.index)))
    chosen, left_out = some_trials(trials, report.study, N_LINES)
    frame = pd.DataFrame(
        {key: chosen[key] for key in ("number", "epochs", "status")}
        | {"cell": [f"#{n:.0f}" for n in chosen["number"]]}
    )
    colour, shape = status_scales(chosen)
    x = alt.X("number:Q", title="trial, in the order of the search", axis=alt.Axis(format="d", tickMinStep=1))
    y = alt.Y("epochs:Q", title="epochs trained", axis=alt.Axis(format="d", tickMinStep=1))
    yield draw(
        "lengths",
        f"Epochs of each trial, in the order of the search.{left_out}",
        160,
        rows("trials")
        .mark_rule(strokeWidth=1.5)
        .encode(x=x, y=y, y2=alt.Y2Datum(0), color=colour, opacity=fading(0.5)),
        rows("trials")
        .mark_point(filled=True, size=30, opacity=1)
        .encode(
            x=x, y=y, color=colour, shape=shape, opacity=fading(), tooltip=tips("cell", "status", "epochs")
        ),
        trials=frame,
    )


def importance_figures(report: StudyReport) -> Iterator[Drawn]:
    known = report.importance[report.importance["importance"].notna()]
    if known.empty:
        return
    caption = (
        f"Importance of parameters for {known['metric'].iloc[0]} at epoch {known['epoch'].iloc[0]:.0f} "
        "(PED-ANOVA), shares of 1. Line: the middle 95 % of bootstrap resamples of trials; with few trials "
        "the importance itself may lie outside."
    )
    title = "importance: share of 1"
    yield draw(
        "importance",
        caption,
        ROW * len(known),
        rows("parameters")
        .mark_rule(strokeWidth=2.5, color=OKABE_ITO[0])
        .encode(x=alt.X("low:Q", title=title), x2="high:Q", y=row_of("parameter")),
        rows("parameters")
        .mark_point(shape="diamond", filled=True, size=80, color=OKABE_ITO[0], opacity=1)
        .encode(
            x=alt.X("importance:Q", title=title, scale=alt.Scale(zero=True), axis=FEW_TICKS),
            y=row_of("parameter"),
            tooltip=tips("parameter", importance="importance", low="95 % from", high="to"),
        ),
        labels_above("parameters", "parameter"),
        parameters=known.astype({"parameter": str}),
    )


def parallel_figures(report: StudyReport) -> Iterator[Drawn]:
    metric, n_all = report.metric, len(report.importance)
    names = list(report.importance["parameter"][:N_AXES])
    scored = report.sampled[report.sampled[metric].notna()]
    if len(names) < 2 or scored.empty:
        return
    chosen, left_out = some_trials(scored, report.study, N_LINES)
    places, ticks = parallel_axes(chosen, names, report.study.get("space"), metric)
    caption = (
        f"Configs of the search, one line a trial, from top to bottom. Colour: its rank by {metric}, the "
        "last axis, from blue (worst) over grey to orange (best); thin lines: trials that did not complete."
        f"{left_out}"
    )
    if n_all > len(names):
        of = "the most important" if report.importance["importance"].notna().any() else "the first"
        caption += f" {len(names)} of {n_all} parameters: {of}."
    lines, at = parallel_rows(chosen, places, ticks, report.study["direction"])
    # An axis is a row: names and values have room in a column of a paper and on a phone.
    x = alt.X("place:Q", axis=None, scale=alt.Scale(domain=[min(0, lines["place"].min()), 1], nice=False))
    y = row_of("axis")
    colour = alt.Color("worth:Q", legend=None, scale=alt.Scale(range=SCALE, domain=[0, 0.5, 1]))
    tip = tips("cell", "axis", "value")
    common: dict[str, Any] = {"x": x, "y": y, "detail": "cell:N", "order": alt.Order("row:Q")}
    edge = alt.ExprRef("datum.place > 0.9 ? 'right' : datum.place > 0.1 ? 'center' : 'left'")
    room = alt.ExprRef("width / datum.n - 6")
    texts = [
        layer
        for halo in ({"stroke": PAPER, "strokeWidth": 4, "strokeJoin": "round"}, {})
        for layer in (
            rows("axes")
            .mark_text(align="left", baseline="bottom", dy=-5, **halo)
            .encode(x=alt.value(0), y=y, text="axis:N"),
            rows("ticks")
            .mark_text(align=edge, baseline="top", dy=5, limit=room, **halo)
            .encode(x=x, y=y, text="text:N"),
        )
    ]
    yield draw(
        "parallel",
        caption,
        AXIS * len(places.columns),
        rows("axes").mark_rule(color=INK).encode(y=y),
        rows("others").mark_line(color=FAINT, strokeWidth=0.6).encode(**common, strokeOpacity=fading(0.6)),
        rows("lines").mark_line(strokeWidth=1.3).encode(**common, color=colour, strokeOpacity=fading(0.85)),
        rows("lines")
        .mark_circle(size=28, opacity=1)
        .encode(**common, color=colour, opacity=fading(), tooltip=tip),
        *texts,
        axes=pd.DataFrame({"axis": places.columns}),
        lines=lines[lines["worth"].notna()],
        others=lines[lines["worth"].isna()],
        ticks=at,
    )


def parameter_figures(report: StudyReport) -> Iterator[Drawn]:
    for parameter in dict.fromkeys(key for factors in report.sampled["factors"] for key in factors):
        points = parameter_points(report.sampled, parameter, report.metric)
        if len(points) and points["x"].nunique() > 1:
            yield parameter_effect(points, parameter, report)


def parameter_effect(points: pd.DataFrame, parameter: str, report: StudyReport) -> Drawn:
    """Return the value of each trial of a search against one sampled parameter.

    `points` are of `parameter_points`. A number has the scale that it was sampled by, where that is not known
    a logarithmic one from a factor of 30 on; a choice has one place a level.
    """
    caption = (
        f"{report.metric} at the best epoch against {parameter}. Trials that did not complete: their best "
        "epoch so far."
    )
    points, left_out = some_trials(points, report.study | {"metric": "value"}, N_MARKS)
    if pd.api.types.is_numeric_dtype(points["x"]):
        space = report.study.get("space") or {}
        is_log = _is_log(space[parameter]) if parameter in space else _spans_decades(points["x"])
        scale = alt.Scale(type="log" if is_log else "linear", zero=False, nice=False, padding=8)
        axis = alt.Axis(format=".4~g", grid=False, labelOverlap="greedy", labelSeparation=6)
        if not is_log and not (points["x"] % 1).any():
            axis.tickMinStep = 1
        x = alt.X("x:Q", title=parameter, scale=scale, axis=axis)
    else:
        x = alt.X("x:N", title=parameter, axis=alt.Axis(labelAngle=0, labelExpr="split(datum.label, ' ')"))
    colour, shape = status_scales(points)
    marks = (
        rows("trials")
        .mark_point(filled=True, size=45, opacity=1)
        .encode(
            x=x,
            y=alt.Y("value:Q", title=report.metric, scale=alt.Scale(zero=False)),
            color=colour,
            shape=shape,
            opacity=fading(0.7),
            tooltip=tips("cell", "x", "status", value=report.metric),
        )
    )
    return draw(f"by-{file_name(parameter)}", caption + left_out, 190, marks, trials=points)


def _spans_decades(x: pd.Series[Any]) -> bool:
    return bool(x.min() > 0 and x.max() / x.min() >= 30)


def status_scales(trials: pd.DataFrame) -> tuple[alt.Color, alt.Shape]:
    """Return a colour and a shape for each status that occurs; a legend where there are several."""
    known = [status for status in STATUS if (trials["status"] == status).any()]
    key = legend(known) if len(known) > 1 else None
    shapes = dict(zip(STATUS, cycled(SHAPES, len(STATUS)), strict=True))
    return (
        alt.Color("status:N", legend=key, scale=alt.Scale(domain=known, range=[STATUS[k] for k in known])),
        alt.Shape("status:N", legend=key, scale=alt.Scale(domain=known, range=[shapes[k] for k in known])),
    )


def trial_points(epochs: pd.DataFrame, trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a row a (trial, epoch): `trial`, `cell` ("#3"), `status`, `epoch`, `value`."""
    wanted = epochs[epochs["trial_id"].isin(trials["trial_id"]) & epochs[metric].notna()]
    by_id = trials.set_index("trial_id")
    of = wanted["trial_id"]
    return pd.DataFrame(
        {
            "trial": of,
            "cell": of.map(by_id["number"]).map("#{:.0f}".format),
            "status": of.map(by_id["status"]),
            "epoch": wanted["epoch"],
            "value": wanted[metric].round(5),
        }
    )


def rungs(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row an epoch after which a trial was stopped: what became of those that reached it.

    Columns: `epoch`; `n_reached`, which are `n_stopped` (pruned there), `n_ended` (completed, failed or not
    ended there) and `n_on`, which trained on.
    """
    stopped = trials["status"] == "pruned"
    epochs = trials["epochs"].to_numpy()
    at = np.unique(epochs[stopped])
    frame = pd.DataFrame({"epoch": at})
    frame["n_reached"] = [int((epochs >= rung).sum()) for rung in at]
    frame["n_stopped"] = [int((epochs[stopped] == rung).sum()) for rung in at]
    frame["n_on"] = [int((epochs > rung).sum()) for rung in at]
    frame["n_ended"] = frame["n_reached"] - frame["n_stopped"] - frame["n_on"]
    return frame


def parallel_axes(
    trials: pd.DataFrame, names: Sequence[str], space: dict[str, Any] | None, metric: str
) -> tuple[pd.DataFrame, dict[str, list[tuple[float, str]]]]:
    """Return where each trial crosses the axis of each name and of the metric, and the ticks of each axis.

    Places are from 0 to 1 over the values that were taken, by their logarithm where the space is sampled so;
    a choice has places at equal distances. A parameter that a trial does not have is at `ABSENT`. Trials
    without a value of the metric have no row.
    """
    scored = trials[np.isfinite(trials[metric])]
    places: dict[str, pd.Series[Any]] = {}
    ticks: dict[str, list[tuple[float, str]]] = {}
    for name in names:
        taken = pd.Series([f.get(name, ABSENT_VALUE) for f in scored["factors"]], scored.index, dtype=object)
        places[name], ticks[name] = _axis(taken, _is_log((space or {}).get(name)))
    places[metric], ticks[metric] = _axis(scored[metric].astype(object), False)
    return pd.DataFrame(places), ticks


def _is_log(form: Any) -> bool:
    """Return whether a parameter of the study's file is sampled by its logarithm."""
    forms = form["distributions"] if isinstance(form, dict) and "distributions" in form else [form]
    return any(isinstance(each, dict) and each.get("log", False) for each in forms)


def _axis(taken: pd.Series[Any], is_log: bool) -> tuple[pd.Series[Any], list[tuple[float, str]]]:
    is_there = taken.map(lambda value: value is not ABSENT_VALUE)
    there = taken[is_there]
    absent = [] if is_there.all() else [(ABSENT, "not set")]
    out = pd.Series(ABSENT, taken.index, dtype="float64")
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in there):
        texts = there.map(show)
        levels = sorted(set(texts))
        at = {text: i / max(1, len(levels) - 1) for i, text in enumerate(levels)}
        out[is_there] = texts.map(at)
        return out, [*absent, *((at[text], text) for text in levels)]
    numbers = there.astype("float64")
    low, high = float(numbers.min()), float(numbers.max())
    scaled, ends = (np.log(numbers), (math.log(low), math.log(high))) if is_log else (numbers, (low, high))
    width = ends[1] - ends[0]
    out[is_there] = (scaled - ends[0]) / width if width else 0.5
    if not width:
        return out, [*absent, (0.5, show(low))]
    values = [ends[0] + share * width for share in (0, 0.5, 1)]
    labels = [f"{math.exp(value) if is_log else value:.2g}" for value in values]
    return out, [*absent, *zip((0.0, 0.5, 1.0), labels, strict=True)]


def parallel_rows(
    trials: pd.DataFrame,
    places: pd.DataFrame,
    ticks: dict[str, list[tuple[float, str]]],
    direction: str,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row a (trial, axis) of `parallel_axes`, the best trials last, and a row a tick.

    `worth` is the rank of a completed trial, from 0 to 1, best; nan of the others.
    """
    metric = places.columns[-1]
    score = places[metric] if direction == "maximize" else -places[metric]
    order = score.sort_values(kind="stable").index
    mine = trials.loc[order]
    ranks = score[order].where(mine["status"] == "completed").rank()
    worth = (ranks - 1) / max(1, ranks.max() - 1)
    lines = pd.concat(
        pd.DataFrame(
            {
                "cell": [f"#{number:.0f}" for number in mine["number"]],
                "axis": name,
                "place": places.loc[order, name].round(4),
                "value": [
                    show(value if name == metric else factors.get(name, "not set"))
                    for value, factors in zip(mine[metric], mine["factors"], strict=True)
                ],
                "worth": worth.round(3),
                "row": row,
            }
        )
        for row, name in enumerate(places.columns)
    )
    at = [
        {"axis": name, "place": place, "text": text, "n": len(ticks[name])}
        for name in places.columns
        for place, text in ticks[name]
    ]
    return lines, pd.DataFrame(at, columns=["axis", "place", "text", "n"])


def some_trials(trials: pd.DataFrame, study: dict[str, Any], most: int) -> tuple[pd.DataFrame, str]:
    """Return the trials that are drawn, and what the caption has to add: their fold, and the others.

    All up to `most`; of more the best half by the study's metric, and as many others.
    """
    of = " Of the first fold." if is_folded(study) else ""
    if len(trials) <= most:
        return trials, of
    half = most // 2
    is_up = study["direction"] == "minimize"
    ranked = trials.sort_values(study["metric"], ascending=is_up, kind="stable", na_position="last")
    chosen = pd.concat([ranked[:half], ranked[half:].sample(half, random_state=0)])
    return (
        chosen,
        f"{of} Of {len(trials):,} trials, the best {half} and {half} others, drawn from a fixed seed.",
    )


def parameter_points(trials: pd.DataFrame, parameter: str, metric: str) -> pd.DataFrame:
    """Return `x`, `value`, `status` and `cell` of the trials that sampled a parameter and have a value.

    `x` is numeric if every value is a number, else text.
    """
    rows = [
        {
            "x": trial["factors"][parameter],
            "value": trial[metric],
            "status": trial["status"],
            "cell": f"#{trial['number']:.0f}",
        }
        for trial in trials[["factors", metric, "status", "number"]].to_dict("records")
        if parameter in trial["factors"] and math.isfinite(trial[metric])
    ]
    frame = pd.DataFrame(rows, columns=["x", "value", "status", "cell"])
    if any(isinstance(row["x"], bool) or not isinstance(row["x"], (int, float)) for row in rows):
        frame["x"] = pd.Series([show(row["x"]) for row in rows], dtype=object)
    return frame
