import math

import pandas as pd
import pytest

from reports.page.tables import progression_table
from reports.statistics.progress import progress, progression


def test_a_gap_is_of_one_epoch_and_the_best_is_the_first_of_equals():
    epochs = pd.DataFrame(
        {
            "trial_id": ["a"] * 4,
            "epoch": [2, 1, 3, 4],
            "train/accuracy": [0.6, 0.3, 0.8, 0.9],
            "val/accuracy": [0.5, 0.2, 0.5, 0.4],
            "val/map": [0.1, 0.2, 0.3, 0.4],
        }
    )
    row = progress(epochs).loc["a"].dropna()
    assert row.to_dict() == pytest.approx(
        {"accuracy": 0.5, "epochs_to_best": 2, "epochs": 4, "gap_best": 0.1, "gap_last": 0.5, "map": 0.1}
    )


def test_progression_is_the_mean_over_completed_trials_with_the_gap_of_each_epoch():
    rows = [("a", 1, 0.5, 0.25), ("a", 2, 0.75, 0.5), ("b", 1, 0.25, 0.25), ("lost", 1, 0.0, 1.0)]
    epochs = pd.DataFrame(rows, columns=["trial_id", "epoch", "train/accuracy", "val/accuracy"])
    table = pd.DataFrame({"label": ["z", "ce"], "config_id": ["y", "x"], "trial_ids": [[], ["a", "b"]]})
    frame = progression(epochs, {"kind": "ablation"}, table)
    assert frame.to_dict("records") == [
        {"label": "ce", "epoch": 1, "n": 2, "train/accuracy": 0.375, "val/accuracy": 0.25, "gap": 0.125},
        {"label": "ce", "epoch": 2, "n": 1, "train/accuracy": 0.75, "val/accuracy": 0.5, "gap": 0.25},
    ]
    shown = progression_table(frame)
    assert list(shown.columns) == ["cell", "epoch", "n", "train/accuracy", "val/accuracy", "gap"]
    assert list(shown.iloc[1]) == ["ce", "2", "1", "75.00 %", "50.00 %", "+25.0"]
    assert progression(epochs, {"kind": "search"}, table).empty, "the best config, first, has no trial"


def test_trials_without_a_validation_accuracy_have_no_row():
    epochs = pd.DataFrame({"trial_id": ["a", "b"], "epoch": [1, 1], "val/accuracy": [math.nan, 0.2]})
    frame = progress(epochs)
    assert list(frame.index) == ["b"] and math.isnan(frame.loc["b", "gap_best"])
    assert progress(epochs.drop(columns="val/accuracy")).empty
