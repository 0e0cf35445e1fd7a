from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reports.figures.species import confusion_shares, long_tail_points
from reports.statistics.predictions import Predictions


def test_a_species_without_validation_recordings_has_a_column_and_no_row():
    truth = np.array([0, 0, 0, 1])
    predicted = np.array([[0, 2, 2, 0]])
    shares = confusion_shares(Predictions(["owl", "wren", "crane"], truth, np.arange(4), predicted))
    assert set(shares["truth"]) == {"1. owl (3)", "3. wren (1)"}
    assert "crane" in set(shares["predicted"])
    found = shares.set_index(["truth", "predicted"])["share"].to_dict()
    assert found == pytest.approx(
        {("1. owl (3)", "owl"): 1 / 3, ("1. owl (3)", "crane"): 2 / 3, ("3. wren (1)", "owl"): 1}
    )


def test_species_of_one_count_are_spread_and_the_two_marks_of_one_stay_a_pair():
    rows = [("species", name, f1, cell) for cell in ("a (best)", "b (baseline)")
            for name, f1 in (("owl", 0.5), ("wren", 0.4), ("crane", 0.3))]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["kind", "name", "f1", "cell"])
    points = long_tail_points(frame, {"owl": 4, "wren": 4, "crane": 9})
    at = points.pivot(index="species", columns="name", values="x")
    assert at.loc["owl"].max() < 4 < at.loc["wren"].min(), "below and above their count"
    assert at.loc["crane", "a (best)"] == 9
    assert np.log10(at["b (baseline)"] / at["a (best)"]).tolist() == pytest.approx([0.006] * 3)
    assert set(points["cell"]) == {"a", "b"}, "the cell that a click marks"
