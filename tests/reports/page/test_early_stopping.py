import math

from reports.page.sentences import early_stopping
from reports.statistics.audits import Audits

KNOWN = {
    "rule": "asha",
    "n_ended": 32,
    "n_audited": 3,
    "n_spared": 0,
    "epochs_saved": 1384,
    "share_saved": 0.46,
    "n_wrong": 1,
    "wrong_low": 0.008,
    "wrong_high": 0.906,
    "best": 0.85,
    "best_audited": 0.84,
    "first_rung": 3,
    "rung_metric": "val/loss",
    "correlation": 0.5,
    "low": 0.2,
    "high": 0.8,
}


def test_what_was_saved_what_was_wrong_and_whether_early_epochs_predict_the_end():
    text = early_stopping(Audits(**KNOWN), "val/f1_macro")
    assert text == (
        "asha ended 32 trials early, which saved 1,384 epochs (46%). Of 3 audited trials, which it let train "
        "on, 1 came to be among the best third (of all that it ended, 1 to 91 %); the best of them reached "
        "val/f1_macro 0.8400, the search 0.8500. The rank correlation of the trials by val/loss up to epoch "
        "3 and by val/f1_macro at the end is +0.50 (+0.20 to +0.80): early epochs predict the end here."
    )


def test_a_correlation_that_may_be_none_is_called_that():
    text = early_stopping(Audits(**{**KNOWN, "low": -0.2}), "val/f1_macro")
    assert "(−0.20 to +0.80): it is not clear that early epochs predict the end here" in text
    assert "a search with the scheduler fifo ends none" in text


def test_without_an_audited_trial_nothing_is_known():
    unknown = dict.fromkeys(
        ("wrong_low", "wrong_high", "best_audited", "correlation", "low", "high"), math.nan
    )
    text = early_stopping(Audits(**{**KNOWN, **unknown, "n_audited": 0, "n_wrong": 0}), "val/f1_macro")
    assert text.endswith("No trial that it would have ended was audited: what that cost is not known.")
    assert early_stopping(None, "val/f1_macro") == ""
