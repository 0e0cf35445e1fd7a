from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reports import load
from reports.page.sentences import caveats
from reports.page.tables import cell_table
from reports.statistics.aggregate import (
    cells,
    label,
    recorded_f1,
    species,
    status_counts,
    t_interval,
    trained_length,
)
from reports.statistics.analysis import results

CE, FOCAL = {"loss.name": "cross_entropy"}, {"loss.name": "focal"}


def table(path):
    runs = load([path])
    return cells(runs.trials_of(runs.studies[0]), runs.studies[0])


def test_interval_uses_the_printed_t_table():
    # t(0.975, 2) = 4.303 in any statistics table; s of 1, 2, 3 is 1.
    mean, low, high = t_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)), abs=1e-3)


def test_interval_agrees_with_scipy():
    values = [0.11, 0.19, 0.14, 0.17]
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert t_interval(values)[1:] == pytest.approx(expected)


def test_interval_covers_the_truth_in_about_95_percent_of_samples():
    rng = np.random.default_rng(0)
    intervals = [t_interval(rng.normal(0.3, 0.02, size=3)) for _ in range(2000)]
    covered = np.mean([low <= 0.3 <= high for _, low, high in intervals])
    assert 0.935 < covered < 0.965


def test_one_repeat_has_no_interval(make_run):
    row = table(make_run([(CE, {0: 0.3})])).iloc[0]
    assert row["val/f1_macro"] == 0.3
    assert math.isnan(row["val/f1_macro:low"]) and math.isnan(row["val/f1_macro:high"])


def test_only_completed_trials_enter_the_mean_and_the_others_are_counted(make_run):
    pruned = {"status": "pruned", "metrics": {"val/f1_macro": 0.9}}
    ends = {0: 0.2, 1: 0.4, 2: "failed", 3: "diverged", 4: "killed", 5: pruned, 6: "running", 7: "missing"}
    row = table(make_run([(CE, ends)])).iloc[0]
    assert row["val/f1_macro"] == pytest.approx(0.3)
    counts = ["n", "n_failed", "n_pruned", "n_running", "n_missing"]
    assert row[counts].tolist() == [2, 3, 1, 1, 1]


def test_values_are_in_the_order_of_seeds(make_run):
    row = table(make_run([(CE, {2: 0.3, 0: 0.1, 1: 0.2})])).iloc[0]
    assert row["repeats"] == [0, 1, 2]
    assert row["val/f1_macro:values"] == [0.1, 0.2, 0.3]
    assert [trial_id[-3:] for trial_id in row["trial_ids"]] == ["-r0", "-r1", "-r2"]


def test_every_metric_that_occurs_has_columns(make_run):
    ending = {"status": "completed", "metrics": {"val/f1_macro": 0.3, "val/f1_rare": 0.1, "other": 5.0}}
    row = table(make_run([(CE, {0: ending})])).iloc[0]
    assert row["val/f1_rare"] == 0.1
    assert "other" not in row


def test_cell_that_never_started_still_has_a_row(make_run):
    frame = table(make_run([(CE, {0: 0.1}), (FOCAL, {0: "missing"})]))
    assert frame["n"].tolist() == [1, 0]
    assert frame["label"].tolist() == ["cross_entropy", "focal"]


def test_seeds_of_one_repeat_that_never_started_are_missing(make_run):
    study = {"repeats": [0, 0, 0], "seed": 0}
    assert table(make_run([(CE, {0: 0.1})], **study)).iloc[0]["n_missing"] == 2


def test_costs_are_means_over_completed_trials(make_run):
    def ended(best, seconds, status="completed"):
        metrics = {"val/f1_macro": 0.1}
        return {"status": status, "metrics": metrics, "best_epoch": best, "seconds": seconds, "epochs": 4}

    row = table(
        make_run([(CE, {0: ended(1, 3600.0), 1: ended(4, 7200.0), 2: ended(2, 1.0, "failed")})])
    ).iloc[0]
    assert (row["epochs_to_best"], row["hours"], row["n_params"]) == (2.5, 1.5, 343_801)


def completed(epochs, best_epoch, budget=4, patience=0):
    config = {"training": {"epochs": budget, "patience": patience}}
    metrics = {"val/f1_macro": 0.1}
    return {
        "status": "completed",
        "epochs": epochs,
        "best_epoch": best_epoch,
        "metrics": metrics,
        "config": config,
    }


def test_shorter_cell_is_marked(make_run):
    frame = table(make_run([(CE, {0: completed(4, 3)}), (FOCAL, {0: completed(2, 2)})]))
    assert frame["unequal_epochs"].tolist() == [False, True]


def test_cell_with_another_budget_is_marked(make_run):
    frame = table(make_run([(CE, {0: completed(4, 3)}), (FOCAL, {0: completed(8, 7, budget=8)})]))
    assert frame["unequal_epochs"].tolist() == [False, True]


def test_cell_that_its_own_patience_ended_is_not_marked(make_run):
    frame = table(
        make_run([(CE, {0: completed(4, 4, patience=2)}), (FOCAL, {0: completed(3, 1, patience=2)})])
    )
    assert frame["unequal_epochs"].tolist() == [False, False]


def test_cells_of_one_length_are_not_marked(make_run):
    frame = table(make_run([(CE, {0: completed(3, 3)}), (FOCAL, {0: completed(3, 1)})]))
    assert not frame["unequal_epochs"].any()


def test_species_are_means_over_repeats_rarest_first(make_run):
    def scored(owl, wren):
        f1 = {"wren": wren, "owl": owl}
        return {"status": "completed", "metrics": {"val/f1_macro": 0.1}, "f1_per_species": f1}

    runs = load([make_run([(CE, {0: scored(0.0, 0.5), 1: scored(0.2, 0.7)})])])
    trials = runs.trials_of(runs.studies[0])
    config_id = trials["config_id"].iloc[0]
    frame = species({config_id: recorded_f1(trials, config_id)}, runs.studies[0])
    assert frame["species"].tolist() == ["owl", "wren"]
    assert frame["n_train"].tolist() == [1, 9]
    assert frame.iloc[:, 2].tolist() == pytest.approx([0.1, 0.6])


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"model.name": "audio_cnn", "loss.name": "focal"}, "audio_cnn · focal"),
        ({"optim.lr": 0.00031623}, "lr=0.0003162"),
        ({"loss.alpha": None, "model.pretrained": True}, "alpha=none · pretrained=true"),
        ({"model.width": 1, "loss.width": 2}, "model.width=1 · loss.width=2"),
        ({}, "base"),
    ],
)
def test_label_is_short_and_unambiguous(factors, expected):
    assert label(factors) == expected


def test_a_trial_that_patience_ends_counts_as_the_budget_that_it_was_cut_to():
    training = {"training": {"epochs": 50, "stop_after": 20, "patience": 7}}
    assert trained_length(12, 5, training, 20) == 20
    assert trained_length(20, 18, training, 20) == 20


def test_a_trial_under_smaller_micro_batches_than_configured_is_counted_and_no_part_of_a_mean(make_run):
    def ended(value, why):
        metrics = {"val/f1_macro": value}
        return {"status": "completed", "metrics": metrics, "provenance": {"not_comparable": why}}

    why = "the GPU ran out of memory once"
    path = make_run(
        [
            ({"name": "cnn"}, {0: ended(0.5, None), 1: 0.6, 2: ended(0.1, why), 3: 0.5, 4: 0.6}),
            ({"name": "vit"}, {0: 0.7, 1: 0.8, 2: 0.9, 3: 0.7, 4: 0.8}),
        ]
    )
    runs = load([path])
    (study,) = runs.studies
    trials = runs.trials_of(study)
    frame = cells(trials, study)
    assert frame["n"].tolist() == [4, 5] and frame["n_other"].tolist() == [1, 0]
    assert frame["repeats"].tolist() == [[0, 1, 3, 4], [0, 1, 2, 3, 4]]
    assert frame["val/f1_macro"].tolist() == pytest.approx([0.55, 0.78])
    assert "1 out of memory: other training" in status_counts(trials)
    # The model compares the repeats that both cells have a sample of.
    _, _, analysis = results(runs, study)
    (row,) = analysis.contrasts.to_dict("records")
    assert row["estimate"] == pytest.approx(0.2)
    shown = cell_table(frame, study, None)
    assert shown["out of memory: other training"].tolist() == ["1", "0"]
    (text,) = (s for s in caveats(study, frame, trials) if "ran out of GPU memory" in s)
    assert text.startswith("1 trial ran")


def test_a_probability_is_named_with_its_owner():
    assert label({"augment.waveform.mixup.p": 0, "optim.lr": 0.1}) == "mixup.p=0 · lr=0.1"
    assert label({"p": 0}) == "p=0"
