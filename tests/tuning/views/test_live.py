import io

import pytest
from rich.console import Console

from birdnet_core.records.trial import parts_of
from tuning.views import live


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test moves on."""
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_every_ten_seconds_has_speed_and_time_left(clock):
    out = io.StringIO()
    bars = live.StageBars(Console(file=out, force_terminal=False, width=200))
    for done in range(0, 5001, 50):
        bars("decoding recordings", done, 10_000)
        clock[0] += 0.5
    lines = out.getvalue().splitlines()
    assert lines == [
        f"decoding recordings {done:,}/10,000, 100 files/s, {left} left"
        for done, left in (
            (1000, "1 min 30 s"),
            (2000, "1 min 20 s"),
            (3000, "1 min 10 s"),
            (4000, "1 min 00 s"),
            (5000, "50 s"),
        )
    ]


def test_the_summary_gives_the_speed_of_each_stage(clock):
    bars = live.StageBars(Console(file=io.StringIO(), force_terminal=False))
    assert bars.summary() == "done now: nothing; all of it was there"
    bars("hashing recordings", 1, 1)
    for done in (32, 64, 96):
        bars("computing mfcc", done, 96)
        clock[0] += 2
    # The first call ends a chunk whose beginning is not known: 64 clips in the 4 s after it.
    assert bars.summary() == "done now: hashing recordings 1, computing mfcc 96 (16 clips/s)"


def test_the_headline_counts_states_gpu_hours_and_the_time_left(clock):
    view = live.SweepView(Console(file=io.StringIO(), force_terminal=False, width=200))
    view({"event": "sweep", "n_left": 4, "n_reused": 1, "epochs": 2, "metric": "val/f1_macro"})
    for name in ("a", "b"):
        factors = {"model.name": name}
        view({"event": "trial", "trial_id": name, "factors": factors, "gpus": 0.5, "reused": False})
    for epoch, name, score in ((1, "a", 0.2), (1, "b", 0.4), (2, "a", 0.3)):
        clock[0] += 720
        metrics = {"val/f1_macro": score}
        view({"event": "epoch", "trial_id": name, "epoch": epoch, "metrics": metrics, "epoch_s": 1440.0})
    view({"event": "end", "trial_id": "a", "status": "completed"})
    # 3 epochs of half a GPU and 0.4 h each; 3 of 8 epochs took 36 min, so 5 take an hour.
    assert view.headline() == (
        "1/4 trials (1 completed) · 1 reused · best val/f1_macro 0.4000 · 36 min 00 s used · "
        "0.60 GPU-hours · about 1 h 00 min left"
    )


@pytest.mark.parametrize(
    ("folds", "best"),
    [(1, "0.9000 (of one fold)"), (2, "0.9000 (of one fold)"), (3, "0.7000 (mean of 3 folds)")],
)
def test_the_best_of_a_search_by_folds_is_the_mean_of_a_config_with_all_folds(folds, best, clock):
    view = live.SweepView(Console(file=io.StringIO(), force_terminal=False, width=200))
    view({"event": "sweep", "n_left": 2, "n_reused": 0, "epochs": 2, "metric": "val/f1_macro", "n_folds": 3})
    trained = [("b-r0", 0.8), *((f"a-r{fold}", score) for fold, score in enumerate((0.9, 0.5, 0.7)[:folds]))]
    for name, score in trained:
        trial = {"trial_id": name, "fold": parts_of(name)[1]}
        view({"event": "trial", **trial, "factors": {}, "gpus": 0, "reused": False})
        for epoch in (1, 2):
            metrics = {"val/f1_macro": score / (3 - epoch)}
            view({"event": "epoch", **trial, "epoch": epoch, "metrics": metrics, "epoch_s": 1.0})
        view({"event": "end", **trial, "status": "completed"})
    assert f"2/2 trials (2 completed) · best val/f1_macro {best} · " in view.headline()


def test_what_was_read_before_the_sweep_does_not_hide_it(clock):
    view = live.SweepView(Console(file=io.StringIO(), force_terminal=False, width=200))
    assert view.headline() == "starting"
    view.progress("reading recordings", 0, 1)  # and all that could be made of them was there
    assert view.headline() == "reading recordings"
    view({"event": "sweep", "n_left": 4, "n_reused": 0, "epochs": 2, "metric": "val/f1_macro"})
    assert view.headline() == "0/4 trials · 0 s used"
    view.progress("computing mfcc", 3, 10)
    assert view.headline() == "computing mfcc 3/10"
    view.progress("computing mfcc", 10, 10)
    assert view.headline() == "0/4 trials · 0 s used"
