import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from birdnet_core.records.metrics import metric_direction
from reports.statistics.audits import audits_of

STUDY = {
    "kind": "search",
    "repeats": [0],
    "scheduler": "asha",
    "audit": 0.1,
    "grace_epochs": 3,
    "epochs": 27,
}


def search(end, early, audited=(), n_ended=0, metric="val/f1_macro", rung_metric=None, **changes):
    """Whole trials with a value at the end and at epoch 3, some of them audited, and trials ended there."""
    names = [f"t{i}" for i in range(len(end))]
    trials = pd.DataFrame(
        {
            "trial_id": names + [f"ended{i}" for i in range(n_ended)],
            "status": ["completed"] * len(end) + ["pruned"] * n_ended,
            "epochs": [27] * len(end) + [3] * n_ended,
            "spared_at": math.nan,
            "audited_at": [3.0 if i in audited else math.nan for i in range(len(end))] + [math.nan] * n_ended,
            metric: [*end, *[0.1] * n_ended],
        }
    )
    epochs = pd.DataFrame(
        [
            {"trial_id": name, "epoch": epoch, rung_metric or metric: value}
            for name, *values in zip(names, early, end, strict=True)
            for epoch, value in zip((3, 27), values, strict=True)
        ]
    )
    by = {"metric": metric, "rung_metric": rung_metric or metric, "direction": metric_direction(metric)}
    return audits_of(trials, epochs, {**STUDY, **by, **changes})


def test_what_was_saved_and_what_was_wrong():
    end = [0.9, 0.8, 0.7, 0.6, 0.95, 0.2]
    found = search(end, early=end, audited=(4, 5), n_ended=20)
    assert (found.n_ended, found.epochs_saved, found.n_audited) == (20, 20 * 24, 2)
    assert found.share_saved == pytest.approx(480 / (27 * 26))
    # The one of 0.95 stands for ten trials of 24, and none is better; of the other's copies all are.
    assert found.n_wrong == 1
    assert (found.best, found.best_audited) == (0.95, 0.95)


def test_an_audited_trial_of_the_best_third_was_a_wrong_stop():
    end = [0.5, 0.4, 0.3, 0.2, *[0.1 + i / 1000 for i in range(9)], 0.9]
    audited = range(4, 14)
    found = search(end, early=end, audited=audited, n_ended=90)
    # Of a hundred and four trials, by those that the audited stand for.
    values = np.repeat(end, [1] * 4 + [10] * 10)
    assert found.n_wrong == sum((values > end[i]).mean() < 1 / 3 for i in audited) == 4
    assert found.wrong_low < found.n_wrong / 10 < found.wrong_high


def test_the_correlation_counts_an_audited_trial_for_all_that_it_was_drawn_from():
    rng = np.random.default_rng(3)
    early, end = rng.normal(size=12), rng.normal(size=12)
    audited = (2, 5, 7)
    found = search(end, early, audited, n_ended=27)
    times = [10 if i in audited else 1 for i in range(12)]
    # Pairs within a trial's copies are ties of both, which tau-b leaves out.
    expected = kendalltau(np.repeat(early, times), np.repeat(end, times)).statistic
    assert found.correlation == pytest.approx(expected)
    assert found.low <= found.correlation <= found.high


@pytest.mark.parametrize(
    ("metric", "rung_metric", "sign"),
    [("val/f1_macro", "val/map", 1), ("val/loss", None, 1), ("val/f1_macro", "val/loss", -1)],
)
def test_early_epochs_that_predict_the_end_are_known_from_those_that_do_not(metric, rung_metric, sign):
    rng = np.random.default_rng(0)
    end = rng.normal(size=30)
    audited = range(20, 30)
    by = {"metric": metric, "rung_metric": rung_metric}
    predicting = search(end, sign * (end + 0.3 * rng.normal(size=30)), audited, 90, **by)
    assert predicting.is_predictive and predicting.correlation > 0.5
    misleading = search(end, sign * (-end + 0.3 * rng.normal(size=30)), audited, 90, **by)
    assert not misleading.is_predictive and misleading.correlation < -0.5


def test_the_interval_holds_the_correlation_of_all_trials_trained_whole():
    rng, n_held, n = np.random.default_rng(1), 0, 200
    for _ in range(n):
        end = rng.normal(size=200)
        early = end + 1.5 * rng.normal(size=200)
        truth = kendalltau(early, end).statistic
        survives = early > np.quantile(early, 2 / 3)
        behind = np.flatnonzero(~survives)
        audited = behind[rng.uniform(size=len(behind)) < 0.2]
        kept = np.concatenate([np.flatnonzero(survives), audited])
        where = [i for i, k in enumerate(kept) if k in set(audited)]
        found = search(end[kept], early[kept], where, 100, audit=0.2)
        n_held += found.low <= truth <= found.high
    assert n_held / n > 0.88


def test_of_thousands_of_trials_the_correlation_is_that_of_a_sample(monkeypatch):
    rng = np.random.default_rng(4)
    end = rng.normal(size=300)
    early = end + rng.normal(size=300)
    all_of_them = search(end, early, (1, 2), 100)
    monkeypatch.setattr("reports.statistics.audits.MOST_WHOLE", 150)
    monkeypatch.setattr("reports.statistics.audits.N_PAIRS", 200 * 150**2)
    some = search(end, early, (1, 2), 100)
    assert some.correlation != all_of_them.correlation
    assert some.low < all_of_them.correlation < some.high
    assert some.high - some.low > all_of_them.high - all_of_them.low > 0


def test_without_ended_trials_or_audits_there_is_nothing_to_say():
    assert search([0.1, 0.2], [0.1, 0.2]) is None
    assert search([0.1, 0.2], [0.1, 0.2], n_ended=3, audit=0.0) is None
    few = search([0.1, 0.2], [0.1, 0.2], n_ended=3)
    assert few.n_audited == 0 and math.isnan(few.correlation) and not few.is_predictive
