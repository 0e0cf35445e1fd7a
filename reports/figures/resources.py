"""The figure of compute used: epochs, hours and GPU-hours of each arm."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.figures.drawing import FAINT, N_ROWS, OKABE_ITO, STYLE, Drawn, height_of, legend_below, wrapped
from reports.study_report import StudyReport


def resource_figures(report: StudyReport) -> Iterator[Drawn]:
    arms = report.resources
    if len(arms) < 2 or not arms["hours"].sum() > 0:
        return
    caption = (
        "Compute used by each arm: epochs, wall time of its trials, and GPU-hours (without a GPU: "
        "CPU-hours). Framed: all trials at full length."
    )
    if len(arms) > N_ROWS:
        caption += f" Of {len(arms)} arms, the {N_ROWS} with the most hours."
        arms = arms.loc[sorted(arms["hours"].sort_values(ascending=False, kind="stable").index[:N_ROWS])]
    yield Drawn("resources", caption, resource_figure(arms, height_of(arms["arm"])))


def resource_figure(arms: pd.DataFrame, height: float) -> Figure:
    """Return panels with a bar an arm: epochs, trial hours, and GPU-hours, or CPU-hours without a GPU.

    `arms` are rows of `resources.by_arm`; `height` is in inches. A panel without any hours is left out.
    """
    unit = "gpu_hours" if arms["gpu_hours"].any() else "cpu_hours"
    titles = {"hours": "trial hours", "gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}
    columns = [column for column in ("hours", unit) if arms[column].any()]
    y = range(len(arms) - 1, -1, -1)
    with mpl.rc_context(STYLE):
        out = Figure(figsize=(5.6, height), layout="constrained")
        epochs, *others = out.subplots(1, 1 + len(columns), sharey=True, squeeze=False)[0]
        epochs.barh(y, arms["full_epochs"], 0.6, color="none", edgecolor=FAINT, label="all at full length")
        epochs.barh(y, arms["epochs"], 0.6, color=OKABE_ITO[0], label="trained")
        epochs.set_xlabel("epochs")
        epochs.set_yticks(y, [wrapped(arm) for arm in arms["arm"]])
        share = (arms["lost_hours"] / arms["hours"]).fillna(0.0)
        for ax, column in zip(others, columns, strict=True):
            lost = arms[column] * share
            ax.barh(y, arms[column], 0.6, color=OKABE_ITO[0])
            if lost.any():
                ax.barh(y, lost, 0.6, arms[column] - lost, color=OKABE_ITO[4], hatch="////", linewidth=0,
                        edgecolor="white", label="of trials that did not complete")  # fmt: skip
            ax.set_xlim(0, 1.06 * arms[column].max())
            ax.set_xlabel(titles[column])
        for ax in (epochs, *others):
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.grid(axis="y", visible=False)
        legend_below(out, epochs, *others[:1])
    return out
