"""Figures of a model's test: scores beside baselines, reliability of its probabilities, F1 of every species.

All read the content of evaluation.json, which `birdtune evaluate` writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from birdnet_core.records.metrics import TEST_METRICS
from reports.figures.colours import FAINT, INK, OKABE_ITO
from reports.figures.drawing import STYLE, save, species_axis, species_panels

STRATA = {"common": OKABE_ITO[0], "medium": OKABE_ITO[4], "rare": OKABE_ITO[1]}
SCORES = ("test/accuracy", "test/f1_macro", "test/map")


def write_figures(evaluation: dict[str, Any], folder: Path) -> list[str]:
    """Write the figures as PNG and SVG into `folder`; return their names without an ending."""
    figures = {
        "scores": scores_figure(evaluation),
        "reliability": reliability_figure(evaluation),
        "species": species_figure(evaluation["species"]),
    }
    for name, figure in figures.items():
        save(figure, folder / name)
    return list(figures)


def scores_figure(evaluation: dict[str, Any]) -> Figure:
    """Return accuracy, F1-macro and mAP of every row of an evaluation, with their intervals.

    Below them stand the ensemble and the baselines on recordings that a backbone has possibly seen, or not.
    """
    baselines = set(evaluation["over_baseline"])
    rows = [(row["name"], row["name"] in baselines, row["metrics"]) for row in evaluation["rows"]]
    for part in (evaluation["seen"] or {"rows": []})["rows"]:
        rows += [
            (f"{part['status']}, n = {part['n']}: {row['name']}", row["name"] in baselines, row["metrics"])
            for row in part["rows"]
        ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 1.1 + 0.24 * len(rows)), layout="constrained")
        axes = figure.subplots(1, len(SCORES), sharey=True)
        for ax, key in zip(axes, SCORES, strict=True):
            for place, (_, is_baseline, metrics) in enumerate(rows):
                _with_interval(ax, place, metrics[key], OKABE_ITO[1] if is_baseline else OKABE_ITO[0])
            ax.set_xlim(-0.02, 1.02)
            ax.set_xlabel(TEST_METRICS[key].title)
        axes[0].set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=7)
        axes[0].set_ylim(len(rows) - 0.4, -0.6)
        patches = [Patch(color=OKABE_ITO[0], label="the model")]
        if baselines:
            patches.append(Patch(color=OKABE_ITO[1], label="baselines"))
        figure.legend(handles=patches, loc="outside lower left", ncols=2)
    return figure


def _with_interval(ax: Axes, place: int, value: dict[str, Any], colour: str) -> None:
    if value["low"] is not None:
        ax.plot([value["low"], value["high"]], [place, place], "-", color=colour)
    if value["value"] is not None:
        ax.plot([value["value"]], [place], "o", color=colour, markersize=4)


def reliability_figure(evaluation: dict[str, Any]) -> Figure:
    """Return accuracy over confidence before and after the temperature, above the recordings of each bin."""
    tables = evaluation["reliability"]
    temperature = evaluation["temperature"]
    styles = {
        "before": ("mean of the members", OKABE_ITO[1], "o--"),
        "after": (f"at temperature {temperature:.3g}", OKABE_ITO[0], "D-"),
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 5.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.plot([0, 1], [0, 1], ":", color=FAINT, label="perfectly calibrated", zorder=1)
        for i, (which, (label, colour, style)) in enumerate(styles.items()):
            known = [row for row in tables[which] if row["n"]]
            above.plot(
                [row["confidence"] for row in known], [row["accuracy"] for row in known], style,
                color=colour, label=label, markersize=5, markerfacecolor="white" if i == 0 else colour,
            )  # fmt: skip
            _count_bars(below, tables[which], colour, i)
        above.set_ylim(-0.03, 1.03)
        above.set_xlim(-0.02, 1.02)
        above.set_ylabel("accuracy")
        below.set_ylabel(evaluation["scored"])
        below.set_xlabel("probability of the most probable species")
        figure.legend(*above.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


def _count_bars(ax: Axes, table: list[dict[str, Any]], colour: str, i: int) -> None:
    """Draw how many recordings each bin has: one half of the bin's width each for before and after."""
    half = 0.45 * (table[0]["high"] - table[0]["low"])
    middles = [(row["low"] + row["high"]) / 2 + (i - 0.5) * half for row in table]
    ax.bar(middles, [row["n"] for row in table], half, color=colour, alpha=0.55 if i == 0 else 1)
    ax.grid(axis="x", visible=False)


def species_figure(species: list[dict[str, Any]]) -> Figure:
    """Return a bar of F1 for every species of the test split, from the commonest in training to the rarest.

    The numbers are recordings in the training and in the test split.
    """
    tested = sorted((s for s in species if s["n_test"]), key=lambda s: (-s["n_train"], s["species"]))
    with mpl.rc_context(STYLE):
        figure, panels, rows = species_panels(len(tested), 4.2)
        for ax, mine in panels:
            _f1_bars(ax, tested[mine], rows)
        found = {s["stratum"] for s in tested}
        patches = [Patch(color=colour, label=name) for name, colour in STRATA.items() if name in found]
        figure.legend(handles=patches, loc="outside lower left", ncols=len(patches))
    return figure


def _f1_bars(ax: Axes, species: list[dict[str, Any]], rows: int) -> None:
    ax.barh(
        range(len(species)), [s["f1"] for s in species], 0.75, color=[STRATA[s["stratum"]] for s in species]
    )
    for place, s in enumerate(species):
        text = f"{s['n_train']} / {s['n_test']}"
        ax.text(1.02, place, text, fontsize=6.5, va="center", color=INK)
    species_axis(ax, [s["species"] for s in species], rows)
    ax.set_xlim(0, 1)
    ax.set_xlabel("test F1; right: recordings in training / test split")
