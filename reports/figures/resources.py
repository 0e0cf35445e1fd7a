"""The figure of compute used: hours of each arm, and what did not complete."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt
import pandas as pd

from reports.figures.charts import (
    FEW_TICKS,
    N_ROWS,
    ROW,
    Drawn,
    draw,
    fading,
    labels_above,
    largest,
    legend,
    row_of,
    rows,
    tips,
)
from reports.figures.colours import OKABE_ITO
from reports.page.formats import time_unit
from reports.study_report import StudyReport

COLOURS = {"of completed trials": OKABE_ITO[0], "of trials that did not complete": OKABE_ITO[4]}


def resource_figures(report: StudyReport) -> Iterator[Drawn]:
    arms = report.resources
    if len(arms) < 2 or not arms["hours"].sum() > 0:
        return
    caption = "Compute used by each arm."
    if len(arms) > N_ROWS:
        caption += f" Of {len(arms)} arms, the {N_ROWS} with the most hours."
        arms = largest(arms, arms["hours"], N_ROWS)
    yield resource_figure(arms, caption)


def resource_figure(arms: pd.DataFrame, caption: str) -> Drawn:
    """Return a bar an arm of GPU time, without a GPU of CPU time; that of trials that did not complete apart.

    `arms` are rows of `resources.by_arm`. The unit is the one in which the largest bar can be read.
    """
    column = next((c for c in ("gpu_hours", "cpu_hours") if arms[c].any()), "hours")
    prefix = {"gpu_hours": "GPU-", "cpu_hours": "CPU-", "hours": ""}[column]
    unit, factor = time_unit(float(arms[column].max()))
    share = (arms["lost_hours"] / arms["hours"]).fillna(0.0)
    parts = zip(COLOURS, (1 - share, share), strict=True)
    frame = pd.concat(
        arms.assign(cell=arms["arm"], part=part, used=arms[column] * factor * of) for part, of in parts
    )
    title = f"{prefix}{unit}"
    known = list(COLOURS)[: 1 + bool(share.any())]
    colour = alt.Color(
        "part:N",
        legend=legend(known) if len(known) > 1 else None,
        scale=alt.Scale(domain=known, range=[COLOURS[k] for k in known]),
    )
    tip = [
        *tips("arm", "part", used=title),
        *tips("epochs", full_epochs="epochs at full length", hours="hours of wall time"),
    ]
    bars = (
        rows("arms")
        .mark_bar(height=8)
        .encode(
            x=alt.X("used:Q", title=title, axis=FEW_TICKS),
            y=row_of("arm"),
            color=colour,
            opacity=fading(),
            tooltip=tip,
        )
    )
    return draw(
        "resources",
        caption,
        ROW * len(arms),
        bars,
        labels_above("arms", "arm"),
        arms=frame[frame["part"].isin(known)],
    )
