"""Stopping rules: by hand, against Ray's own, on simulated learning curves, and on a real Ray."""

import heapq
import json
import math
import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher
from scipy.stats import kendalltau

from birdnet_core.errors import ConfigError
from search_spaces.study import SCHEDULERS, Search
from tuning.engine.schedulers import _kendall, make_rule, rule_of
from tuning.engine.stopping import StoppingScheduler

METRIC = "val/f1_macro"


def rule(name, *, direction="maximize", max_epochs=27, grace_epochs=3, reduction_factor=3, **settings):
    return make_rule(
        name,
        metric={"maximize": METRIC, "minimize": "val/loss"}[direction],
        max_epochs=max_epochs,
        grace_epochs=grace_epochs,
        reduction_factor=reduction_factor,
        **settings,
    )


def record(a_rule, trial, group, epoch, value, loss=math.nan):
    return a_rule.is_stopped(trial, group, epoch, {"val/loss": loss, a_rule.metric: value})


def train(a_rule, trial, values, group=None):
    """Report `values` from epoch 1 on and return the epoch at which the trial was stopped, or None."""
    for epoch, value in enumerate(values, start=1):
        if record(a_rule, trial, group, epoch, value):
            return epoch
    a_rule.finish(trial, group)
    return None


# All rules


def test_an_unknown_scheduler_is_refused_with_the_near_one():
    with pytest.raises(
        ConfigError, match=r"'ahsa'; did you mean 'asha'\? \(known: fifo, asha, hyperband, med"
    ):
        rule("ahsa")


@pytest.mark.parametrize(
    ("numbers", "words"), [({"grace_epochs": 0}, "1 or"), ({"reduction_factor": 1}, "2 or")]
)
def test_numbers_out_of_range_are_refused(numbers, words):
    with pytest.raises(ConfigError, match=f"{next(iter(numbers))} = .* it takes {words} more"):
        rule("asha", **numbers)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_best_trial_of_each_group_is_never_stopped(name):
    a_rule = rule(name)
    for n in range(6):
        for group, level in (("small", 0.5), ("large", 0.1)):
            assert train(a_rule, f"{group}-{n}", [level + n / 100] * 27, group) is None


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_trials_that_fall_behind_are_stopped_in_either_direction(name, direction):
    sign = 1 if direction == "maximize" else -1
    a_rule = rule(name, direction=direction)
    stopped = [train(a_rule, str(n), [-sign * n] * 27) for n in range(40)]  # each worse than the one before
    if name == "asha":
        assert stopped == [None] + [3] * 39
    elif name == "median":
        assert stopped == [None] * 3 + [3] * 37
    else:
        brackets = [a_rule.bracket(str(n)) for n in range(40)]
        firsts = {brackets.index(s) for s in range(3)}
        rungs = (3, 9, None)  # the last bracket would begin at the budget
        assert stopped == [None if n in firsts else rungs[s] for n, s in enumerate(brackets)]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_epoch_that_is_reported_again_is_answered_as_before_and_not_recorded(name):
    once, twice = rule(name), rule(name)
    rng = random.Random(0)
    stopped = Counter()
    for n in range(60):
        values = [rng.random() for _ in range(27)]
        end = train(once, str(n), values)
        for epoch, value in enumerate(values, start=1):
            is_stopped = record(twice, str(n), None, epoch, value)
            assert is_stopped == (epoch == end)
            # The worker died: all is reported again, and not to the last digit the same.
            for e in range(1, epoch + 1):
                assert record(twice, str(n), None, e, -9.0) == (e == end)
            if is_stopped:
                break
        stopped[end] += 1
    assert (len(stopped) == 1) == (name == "fifo")


@pytest.mark.parametrize("name", ["asha", "median"])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_the_worst(name, direction, value):
    a_rule = rule(name, direction=direction)
    for n in range(3):
        assert train(a_rule, f"sound-{n}", [0.5] * 27) is None
    assert train(a_rule, "broken", [value] * 27) == 3
    assert train(a_rule, "as good", [0.5] * 27) is None


@pytest.mark.parametrize("name", ["asha", "median"])
def test_among_broken_trials_none_is_stopped_until_a_sound_one_came(name):
    a_rule = rule(name)
    for n in range(5):
        assert train(a_rule, f"broken-{n}", [math.nan] * 27) is None
    assert train(a_rule, "sound", [0.1] * 27) is None


@pytest.mark.parametrize("name", ["asha", "median"])
def test_trials_are_compared_by_the_rung_metric(name):
    a_rule = rule(name, rung_metric="val/loss")
    for n in range(3):
        metrics = {METRIC: 0.9, "val/loss": 1.0}
        assert not any(a_rule.is_stopped(f"t{n}", None, epoch, metrics) for epoch in (1, 2, 3))
    better = {METRIC: 0.1, "val/loss": 0.5}
    assert not any(a_rule.is_stopped("lower loss", None, epoch, better) for epoch in (1, 2, 3))
    assert a_rule.is_stopped("higher loss", None, 3, {METRIC: 1.0, "val/loss": 2.0})


def test_a_rung_metric_that_predicts_itself_alone_is_not_predictive():
    itself, objective = (rule("fifo", audit=0.1, rung_metric=each) for each in ("val/map", "val/map"))
    itself.metric = "val/map"
    rng = np.random.default_rng(0)
    for i, end in enumerate(rng.uniform(size=40)):
        for epoch in (3, 27):
            metrics = {METRIC: end, "val/map": i / 40}
            itself.is_stopped(str(i), None, epoch, metrics)
            objective.is_stopped(str(i), None, epoch, metrics)
        itself.finish(str(i), None)
        objective.finish(str(i), None)
    assert itself.is_predictive(3) and not objective.is_predictive(3)


# ASHA and HyperBand


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_of_the_trials_to_be_stopped_a_share_is_audited_and_trains_to_the_end(name):
    values = {f"trial {i}": random.Random(i).random() for i in range(600)}
    plain, audited = rule(name), rule(name, audit=0.2)
    stops = {trial: train(plain, trial, [value] * 27) for trial, value in values.items()}
    ends = {trial: train(audited, trial, [value] * 27) for trial, value in values.items()}
    n_behind = len(audited.audits) + sum(epoch is not None for epoch in ends.values())
    assert not plain.audits and n_behind > 200
    assert 0.14 < len(audited.audits) / n_behind < 0.26
    for trial, epoch in audited.audits.items():
        assert ends[trial] is None and epoch in audited.decisions(trial)
    # The first rung decides as ever: who is audited does not change who is behind there.
    first = {trial for trial, epoch in stops.items() if epoch == 3}
    assert first == {t for t, e in ends.items() if e == 3} | {t for t, e in audited.audits.items() if e == 3}


def curves(n, *, is_predictive):
    """Values of `n` trials: of epochs 1 to 12, and 13 to 27, which the former predict or not."""
    rng = np.random.default_rng(0)
    ends = rng.permutation(np.linspace(0.5, 1.0, n))
    starts = ends if is_predictive else rng.permutation(ends)
    pairs = zip(starts, ends, strict=True)
    return {f"t{i}": [start / 2] * 12 + [end] * 15 for i, (start, end) in enumerate(pairs)}


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_where_early_values_say_nothing_of_late_ones_a_rule_with_audits_notices_within_40_trials(name):
    plain, audited = rule(name), rule(name, audit=0.1)
    for i, (trial, values) in enumerate(curves(120, is_predictive=False).items()):
        train(plain, trial, values)
        train(audited, trial, values)
        if i == 39:
            assert audited.spared and not audited.is_predictive(3)
    early = [sum(epoch < 13 for _, epoch in each._stopped) for each in (plain, audited)]
    assert early[1] < early[0] / 2
    assert not plain.spared
    assert audited.is_predictive(13)


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_where_early_values_predict_late_ones_audits_change_little(name):
    values = curves(120, is_predictive=True)
    plain, audited = rule(name), rule(name, audit=0.1)
    n_plain = sum(train(plain, *each) is not None for each in values.items())
    n_audited = sum(train(audited, *each) is not None for each in values.items())
    assert audited.is_predictive(3)
    assert 0.7 * n_plain < n_audited <= n_plain
    assert len(audited.spared) < 12


@pytest.mark.parametrize("seed", [1, 3, 4, 8])
def test_early_values_that_tell_only_who_ends_low_are_not_predictive(seed):
    """Of 40 trials, half start and end low; of the others, early values say nothing."""
    rng = np.random.default_rng(seed)
    starts = np.concatenate([rng.uniform(0.0, 0.1, 20), rng.uniform(0.3, 0.4, 20)])
    ends = np.concatenate([rng.uniform(0.4, 0.5, 20), rng.uniform(0.6, 0.9, 20)])
    assert kendalltau(starts, ends).pvalue < 0.001
    assert abs(kendalltau(starts[20:], ends[20:]).statistic) < 0.1
    a_rule = rule("asha", audit=0.1)
    for i in rng.permutation(40):
        train(a_rule, f"t{i}", [starts[i]] * 12 + [ends[i]] * 15)
    assert a_rule._is_in_order(a_rule._whole, 3)
    assert not a_rule.is_predictive(3) and a_rule.spared


def test_the_first_comparison_is_after_a_tenth_of_the_budget_and_three_epochs_at_least():
    search = Search(name="rates", question="Which?", space=lambda trial: {})
    graces = {epochs: rule_of(search, epochs).grace_epochs for epochs in (8, 30, 50, 200)}
    assert graces == {8: 3, 30: 3, 50: 5, 200: 20}
    assert rule_of(replace(search, grace_epochs=2), 50).rungs == [2, 6, 18]


def test_the_correlation_is_taken_within_groups():
    """Of two groups, each predictive, the one that starts lower ends higher."""
    apart, mixed = rule("fifo", audit=0.1), rule("fifo", audit=0.1)
    for group, start, end in (("slow", 0.1, 0.9), ("fast", 0.5, 0.6)):
        for i in range(8):
            values = [start + i / 100] * 3 + [end + i / 100] * 24
            train(apart, f"{group} {i}", values, group)
            train(mixed, f"{group} {i}", values)
    assert apart.is_predictive(3) and not mixed.is_predictive(3)


def test_the_variance_of_the_correlation_is_kendalls_with_ties():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 6, 40).tolist(), rng.integers(0, 4, 40).tolist()
    score, variance = _kendall(first, second)
    expected = kendalltau(first, second, method="asymptotic").pvalue
    assert math.erfc(abs(score) / math.sqrt(2 * variance)) == pytest.approx(expected)
    assert _kendall([1.0, -math.inf, -math.inf], [3.0, 2.0, 1.0])[0] == 2
    assert _kendall([1.0], [1.0]) == (0, 0)


def test_a_trial_that_ended_by_its_patience_counts_at_later_rungs():
    a_rule = rule("asha")
    for n in range(3):
        assert train(a_rule, f"patient {n}", [0.1] * 3 + [0.8] * 2) is None
    a_rule.finish("patient 0", None)
    assert len(a_rule._recorded[0, None, 9].values) == 3  # each once
    # Ahead of them at epoch 3, behind what they came to be at 9.
    assert train(a_rule, "behind", [0.2] * 27) == 9
    assert train(a_rule, "ahead", [0.2] * 3 + [0.9] * 24) is None


def test_who_is_audited_depends_on_the_name_alone_and_no_rung_holds_them_afterwards():
    one, again = rule("asha", audit=0.5), rule("asha", audit=0.5)
    names = [f"t{i}" for i in range(100)]
    for order, each in ((names, one), (names, again)):
        for i, name in enumerate(order):
            train(each, name, [1 - i / 100] * 27)
    assert one.audits == again.audits and len(one.audits) > 20
    assert all(not rung.trials & set(one.audits) for (_, _, at), rung in one._recorded.items() if at > 3)
    assert not rule("asha", audit=0.0).audits


def test_asha_compares_with_the_quantile_of_those_before():
    a_rule = rule("asha", max_epochs=4, grace_epochs=1, reduction_factor=2)
    assert a_rule.rungs == [1, 2]
    # The cutoffs by hand, medians of what came before: none, 4, 3, 4, 3.95
    for n, (value, is_stopped) in enumerate(
        ((4.0, False), (2.0, True), (5.0, False), (3.9, True), (3.95, False))
    ):
        assert record(a_rule, str(n), None, 1, value) == is_stopped
    # The second rung has its own.
    assert not record(a_rule, "2", None, 2, 6.0)
    assert record(a_rule, "0", None, 2, 5.9)
    assert not record(a_rule, "4", None, 3, 5.97)  # at its first epoch past the rung: 5.95


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_trial_of_asha_is_compared_by_its_best_epoch_so_far(direction):
    sign = 1 if direction == "maximize" else -1
    a_rule = rule("asha", direction=direction)
    assert train(a_rule, "steady", [sign * 0.3] * 27) is None
    assert (
        train(a_rule, "collapses at the rungs", [sign * (0.1 if e in (3, 9) else 0.4) for e in range(1, 28)])
        is None
    )
    assert train(a_rule, "was never as good", [sign * 0.35] * 27) == 3
    assert train(a_rule, "is good too late", [sign * (0.1 if e <= 3 else 0.9) for e in range(1, 28)]) == 3


def test_the_loss_decides_between_equal_values_at_the_cutoff_of_asha():
    a_rule = rule("asha", max_epochs=4, grace_epochs=1, reduction_factor=2)
    # Networks that tell one species only, all with an F1 of 0.1. The medians of the losses before: none, 4,
    # 3, 4, 3.95.
    for n, (loss, is_stopped) in enumerate(
        ((4.0, False), (2.0, False), (5.0, True), (3.9, False), (3.97, True))
    ):
        assert record(a_rule, str(n), None, 1, 0.1, loss) == is_stopped
    # Two that are better leave a place and a half among the best three and a half to the other five: the
    # cutoff is 3.91.
    for n, loss in enumerate((9.0, 9.0), start=5):
        assert not record(a_rule, str(n), None, 1, 0.2, loss), "a better value continues whatever its loss"
    assert record(a_rule, "7", None, 1, 0.1, 3.95)
    assert not record(a_rule, "8", None, 1, 0.1, 1.0)
    assert record(a_rule, "9", None, 1, 0.1, math.nan)
    assert record(a_rule, "10", None, 1, 0.05, 0.5), "a worse value ends whatever its loss"


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_where_early_values_are_equal_asha_stops_as_many_as_where_they_differ(share):
    rng = random.Random(1)
    a_rule = rule("asha")
    n_stopped = 0
    for n in range(300):
        value = 0.036 if rng.random() < share else rng.uniform(0, 0.1)
        n_stopped += record(a_rule, str(n), None, 3, value, rng.uniform(1, 3))
    assert 170 <= n_stopped <= 230  # two of three


@pytest.mark.parametrize(
    ("max_epochs", "grace", "factor", "rungs"),
    [(50, 3, 3, [3, 9, 27]), (27, 3, 3, [3, 9]), (8, 3, 3, [3]), (3, 3, 3, []), (2, 3, 3, [])],
)
def test_rungs_lie_below_the_budget(max_epochs, grace, factor, rungs):
    a_rule = rule("asha", max_epochs=max_epochs, grace_epochs=grace, reduction_factor=factor)
    assert a_rule.rungs == rungs


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize(("max_epochs", "grace", "factor"), [(27, 1, 3), (50, 3, 3), (20, 2, 2), (16, 1, 4)])
@pytest.mark.parametrize("digits", [1, 6])  # one digit makes ties
def test_asha_decides_as_ray_does(direction, max_epochs, grace, factor, digits):
    rng = random.Random(f"{max_epochs} {digits}")
    ours = rule(
        "asha", direction=direction, max_epochs=max_epochs, grace_epochs=grace, reduction_factor=factor
    )
    rays = AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=METRIC,
        mode=direction[:3],
        max_t=max_epochs,
        grace_period=grace,
        reduction_factor=factor,
        brackets=1,
    )
    waiting = [SimpleNamespace(trial_id=str(n)) for n in range(150)]
    running: dict[str, list] = {}
    means = {trial.trial_id: rng.random() for trial in waiting}
    best: dict[str, float] = {}
    better = max if direction == "maximize" else min
    decided = Counter()
    while waiting or running:
        if waiting and len(running) < 8:
            trial = waiting.pop()
            rays.on_trial_add(None, trial)
            running[trial.trial_id] = [trial, 0]
        name = rng.choice(sorted(running))
        trial, epoch = running[name]
        running[name][1] = epoch = epoch + 1
        value = round(rng.gauss(means[name], 0.2), digits)
        best[name] = value if name not in best else better(best[name], value)
        result = {"epoch": epoch, METRIC: best[name]}  # Ray takes the epoch's own value
        theirs = rays.on_trial_result(None, trial, result) == TrialScheduler.STOP
        is_stopped = record(ours, name, None, epoch, value)
        is_last = epoch == max_epochs  # where Ray stops every trial, and ours have ended themselves
        assert is_stopped == (theirs and not is_last)
        decided[epoch, is_stopped] += 1
        if theirs:
            rays.on_trial_complete(None, trial, result)
            del running[name]
    at_rungs = [epoch for epoch, is_stopped in decided if is_stopped]
    assert sorted(at_rungs) == ours.rungs
    assert all(decided[epoch, False] > 3 for epoch in ours.rungs)


def test_hyperband_has_the_brackets_of_the_paper():
    a_rule = rule("hyperband", max_epochs=81, grace_epochs=1)
    # Li et al. 2018, table 1: n of the brackets s = 4 to 0 for R = 81 and eta = 3
    assert a_rule.weights == [81, 34, 15, 8, 5]
    drawn = Counter(a_rule.bracket(f"{n:010x}-r0") for n in range(14_300))
    for bracket, weight in enumerate(a_rule.weights):
        assert drawn[bracket] == pytest.approx(100 * weight, rel=0.15)


def test_a_bracket_of_hyperband_compares_its_own_trials_from_its_own_first_rung():
    a_rule = rule("hyperband", max_epochs=50)
    assert (a_rule.rungs, a_rule.weights) == ([3, 9, 27], [9, 5, 3])
    names = {s: [n for n in map(str, range(200)) if a_rule.bracket(n) == s][:2] for s in range(3)}
    for s, rung in enumerate(a_rule.rungs):
        good, bad = names[s]
        assert train(a_rule, good, [0.9 - s / 10] * 50) is None  # worse than the trials of other brackets
        assert train(a_rule, bad, [0.1] * 50) == rung


def test_hyperband_without_room_for_a_second_bracket_is_asha():
    assert rule("hyperband", max_epochs=8).weights == [1]
    assert rule("hyperband", max_epochs=2).weights == [1]


# Median


def test_median_compares_the_best_value_with_the_others_running_averages():
    a_rule = rule("median", max_epochs=5, grace_epochs=2)
    for trial, values in {"a": [0.0, 0.2], "b": [0.2, 0.4], "c": [0.4, 0.8]}.items():
        assert train(a_rule, trial, values) is None
    # Averages after two epochs: 0.1, 0.3, 0.6; and of "behind" 0.145, so that the next median is 0.2225.
    assert train(a_rule, "behind", [0.29, 0.0]) == 2
    assert train(a_rule, "early peak", [0.23, 0.0]) is None
    # Nobody but "a" continues: too few others to judge by.
    assert train(a_rule, "a", [0.0, 0.2, 0.9]) is None
    assert train(a_rule, "low", [0.3, 0.3, 0.3]) is None


def test_median_waits_for_three_others_of_the_group_and_ends_none_at_its_last_epoch():
    a_rule = rule("median", max_epochs=3, grace_epochs=3)
    for n in range(4):
        assert train(a_rule, f"good-{n}", [0.9] * 3, "large") is None
    assert train(a_rule, "low", [0.1] * 3, "large") is None
    a_rule = rule("median", max_epochs=4, grace_epochs=3)
    for n in range(2):
        assert train(a_rule, f"good-{n}", [0.9] * 4, "large") is None
        assert train(a_rule, f"small-{n}", [0.9] * 4, "small") is None
    assert train(a_rule, "second", [0.1] * 4, "large") is None
    assert train(a_rule, "third", [0.1] * 4, "large") == 3


# Small networks that lead early and end low, large ones that start late and end high


def curve(name, quality, epoch):
    if name == "small":
        return 0.45 * quality * (1 - math.exp(-epoch / 2))
    return 0.75 * quality / (1 + math.exp(-(epoch - 12) / 2.5))


def simulate(scheduler, *, grouped, seed, max_epochs=27):
    """Train 24 trials, half of them large, four at a time; return the completed ones and all epochs.

    An epoch of a large network takes three times as long. Completed are (value, model, quality).
    """
    rng = random.Random(seed)
    a_rule = rule(scheduler, max_epochs=max_epochs)
    trials = [(("small", "large")[n % 2], rng.uniform(0.6, 1.0)) for n in range(24)]
    waiting = list(enumerate(trials))[::-1]
    clock = []  # (time at which an epoch ends, number of the trial, epoch)

    def start(now):
        if waiting:
            number, (model, _) = waiting.pop()
            heapq.heappush(clock, (now + seconds(model), number, 1))

    def seconds(model):
        return {"small": 1.0, "large": 3.0}[model] * rng.uniform(0.95, 1.05)

    for _ in range(4):
        start(0.0)
    completed, n_epochs = [], 0
    while clock:
        now, number, epoch = heapq.heappop(clock)
        model, quality = trials[number]
        value = curve(model, quality, epoch) + rng.gauss(0, 0.005)
        n_epochs += 1
        group = model if grouped else None
        if record(a_rule, f"{seed}-{number}", group, epoch, value):
            start(now)
        elif epoch == max_epochs:
            completed.append((value, model, quality))
            start(now)
        else:
            heapq.heappush(clock, (now + seconds(model), number, epoch + 1))
    return completed, n_epochs, max(q for m, q in trials if m == "large")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_among_all_models_early_stopping_picks_the_wrong_one(scheduler, seed):
    completed, _, _ = simulate(scheduler, grouped=False, seed=seed)
    assert {model for _, model, _ in completed} == {"small"}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    # The median rule compares with averages, which curves that rise leave behind: it spares little.
    ("scheduler", "share"),
    [("asha", 0.6), ("hyperband", 0.8), ("median", 0.99)],
)
def test_within_a_model_the_right_one_wins_and_epochs_are_still_saved(scheduler, share, seed):
    completed, n_epochs, best_quality = simulate(scheduler, grouped=True, seed=seed)
    value, model, quality = max(completed)
    assert model == "large"
    assert value > max(v for v, m, _ in completed if m == "small") + 0.1
    assert quality > best_quality - 0.1
    assert n_epochs < share * 24 * 27
    assert simulate("fifo", grouped=True, seed=seed)[1] == 24 * 27


# Under Ray


def ray_trial(name, group=None):
    line = {"study": "x", "trial_id": name, **({"group": group} if group else {})}
    return SimpleNamespace(trial_id=f"ray-{name}", config={"journal": line})


def test_a_result_without_the_metric_and_a_trial_that_ended_itself_are_not_stopped():
    scheduler = StoppingScheduler(rule("asha"))
    ask = scheduler.on_trial_result
    assert ask(None, ray_trial("a"), {"epoch": 3, METRIC: 0.9, "status": None}) == "CONTINUE"
    assert ask(None, ray_trial("b"), {"epoch": 3, "status": "failed"}) == "CONTINUE"
    assert ask(None, ray_trial("c"), {"epoch": 3, METRIC: 0.1, "status": "completed"}) == "CONTINUE"
    assert ask(None, ray_trial("d", "other"), {"epoch": 3, METRIC: 0.1}) == "CONTINUE"
    assert ask(None, ray_trial("e"), {"epoch": 3, METRIC: 0.2, "status": None}) == "STOP"
    # Recorded were 0.9, 0.1 and 0.2: two thirds up lies 0.43.
    assert ask(None, ray_trial("f"), {"epoch": 3, METRIC: 0.44, "status": None}) == "CONTINUE"


def test_the_loss_of_a_result_decides_between_equal_values():
    ask = StoppingScheduler(rule("asha")).on_trial_result
    assert ask(None, ray_trial("a"), {"epoch": 3, METRIC: 0.1, "val/loss": 2.0}) == "CONTINUE"
    assert ask(None, ray_trial("b"), {"epoch": 3, METRIC: 0.1, "val/loss": 2.1}) == "STOP"
    assert ask(None, ray_trial("c"), {"epoch": 3, METRIC: 0.1, "val/loss": 1.9}) == "CONTINUE"


def test_the_last_result_of_a_trial_that_ended_itself_counts_for_the_others():
    scheduler = StoppingScheduler(rule("asha"))
    scheduler.on_trial_complete(None, ray_trial("a"), {"epoch": 3, METRIC: 0.9, "status": "completed"})
    assert scheduler.on_trial_result(None, ray_trial("b"), {"epoch": 3, METRIC: 0.8}) == "STOP"


def replay(a_rule, history, cut):
    """Return the journal of the first `cut` of `history`, and the decisions of `a_rule` on the rest."""
    events, seen = [], set()
    for trial, group, epoch, value, loss in history[:cut]:
        if trial not in seen:
            events.append(
                {"event": "trial", "study": "x", "trial_id": trial, "group": group, "reused": False}
            )
            seen.add(trial)
        metrics = {"val/loss": loss, METRIC: None if math.isnan(value) else value}
        events.append({"event": "epoch", "trial_id": trial, "epoch": epoch, "metrics": metrics})
        if epoch % 4 == 0:
            events.append({"event": "end", "trial_id": trial, "status": "killed"})
            events.append(dict(events[-2], metrics={METRIC: -1.0}))  # trained again, another number
    scheduler = StoppingScheduler(a_rule)
    scheduler.rebuild(events, "x")
    return [record(a_rule, *step) for step in history[cut:]]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("cut", [0, 57, 400])
@pytest.mark.parametrize("audit", [0.0, 0.3])
@pytest.mark.parametrize("rung_metric", [METRIC, "val/loss"])
def test_a_rebuilt_scheduler_decides_as_one_that_never_died(name, cut, audit, rung_metric):
    rng = random.Random(cut)
    epochs, history = Counter(), []
    for _ in range(800):
        n = rng.randrange(60)
        epochs[n] += 1
        value = math.nan if rng.random() < 0.03 else round(rng.gauss(n / 60, 0.1), 1)  # many are equal
        history.append((str(n), "ab"[n % 2], epochs[n], value, rng.gauss(2 - n / 60, 0.1)))
    alive, again = (rule(name, audit=audit, rung_metric=rung_metric) for _ in range(2))
    decisions = [record(alive, *step) for step in history]
    assert any(decisions[400:]) == (name != "fifo")
    assert replay(again, history, cut) == decisions[cut:]
    assert again.audits == alive.audits and bool(alive.audits) == (audit > 0 and name != "fifo")
    if cut == 400 and name != "fifo":
        ignorant = rule(name, rung_metric=rung_metric)
        assert [record(ignorant, *step) for step in history[cut:]] != decisions[cut:]


def test_rebuild_takes_only_what_was_trained_for_the_study():
    def entered(study, trial, reused=False):
        return {"event": "trial", "study": study, "trial_id": trial, "group": None, "reused": reused}

    def trained(trial, value):
        return {"event": "epoch", "trial_id": trial, "epoch": 3, "metrics": {METRIC: value}}

    others = [entered("y", "a"), trained("a", 0.9), entered("x", "a", reused=True)]
    failed = [entered("x", "b"), entered("y", "b"), trained("b", 0.9)]  # began for x, was trained for y
    without = [entered("x", "c"), {**trained("c", 0.9), "metrics": {}}]
    scheduler = StoppingScheduler(rule("asha"))
    scheduler.rebuild([*others, *failed, *without], "x")
    assert not record(scheduler.rule, "new", None, 3, 0.1)
    scheduler.rebuild([entered("x", "d"), trained("d", 0.9)], "x")
    assert record(scheduler.rule, "newer", None, 3, 0.2)


@pytest.mark.ray
class Given(Searcher):
    """Hands out payloads in their order."""

    def __init__(self, payloads):
        super().__init__()
        self.left = list(payloads)

    def suggest(self, trial_id):
        return self.left.pop(0) if self.left else Searcher.FINISHED

    def on_trial_complete(self, trial_id, result=None, error=False):
        """Nothing depends on it."""

    def save(self, checkpoint_path):
        """Nothing to save."""

    def restore(self, checkpoint_path):
        """Nothing to restore."""


def test_ray_stops_what_the_rule_stops(cluster, tmp_path):
    class Constant(tune.Trainable):
        def setup(self, config):
            self.payload = config

        def reset_config(self, new_config):
            self.payload = new_config
            return True

        def step(self):
            last = self.payload["last"]
            if self.iteration + 1 == last and self.payload["fails"]:
                return {"epoch": last - 1, "status": "failed", "done": True}
            status = "completed" if self.iteration + 1 == last else None
            values = {METRIC: self.payload["value"], "status": status, "done": status is not None}
            return {"epoch": self.iteration + 1, **values}

    # (name, group, value, its own last epoch, whether it fails there) -> epochs it shall train
    planned = {
        ("first", "small", 0.5, 9, False): 9,
        ("behind", "small", 0.4, 9, False): 3,
        ("large", "large", 0.1, 9, False): 9,
        ("fails", "small", 0.9, 3, True): 2,
        ("early", "small", 0.8, 3, False): 3,
        # Recorded at epoch 3: 0.5, 0.4, 0.8. Two thirds up lies 0.6; without "early" it would lie at 0.47.
        ("between", "small", 0.55, 9, False): 3,
        ("ahead", "small", 0.7, 9, False): 9,
    }
    payloads = [
        {
            "journal": {"study": "x", "trial_id": name, "group": group},
            "value": value,
            "last": last,
            "fails": fails,
        }
        for name, group, value, last, fails in planned
    ]
    scheduler = StoppingScheduler(rule("asha", max_epochs=9))
    results = tune.Tuner(
        tune.with_resources(Constant, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=Given(payloads),
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="constants",
            storage_path=str(tmp_path),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()
    trained = {r.config["journal"]["trial_id"]: r.metrics["epoch"] for r in results}
    assert trained == {name: epochs for (name, *_), epochs in planned.items()}
    assert not results.errors


@pytest.mark.parametrize("name", ["fifo", "asha", "hyperband", "median"])
def test_no_trial_is_stopped_at_an_epoch_that_is_no_decision(name):
    a_rule = rule(name, max_epochs=30)
    rng = random.Random(0)
    running, stopped_at = {str(n): 0 for n in range(60)}, []
    while running:
        trial = rng.choice(list(running))
        running[trial] += 1
        epoch = running[trial]
        if record(a_rule, trial, None, epoch, rng.random()):
            stopped_at.append(epoch)
            assert epoch in a_rule.decisions(trial)
            del running[trial]
        elif epoch == 30:
            del running[trial]
    assert bool(stopped_at) == (name != "fifo")


def test_the_epochs_of_one_step_are_decided_on_in_their_order():
    scheduler, one_by_one = (StoppingScheduler(rule("asha")) for _ in range(2))
    earlier = json.dumps([{"epoch": 1, METRIC: 0.5}, {"epoch": 2, METRIC: 0.9}])
    for name, last, decision in (("a", 0.7, "CONTINUE"), ("b", 0.1, "CONTINUE")):
        result = {"epoch": 3, METRIC: last, "status": None, "earlier": earlier}
        assert scheduler.on_trial_result(None, ray_trial(name), result) == decision
        for epoch, value in ((1, 0.5), (2, 0.9), (3, last)):
            one_by_one.on_trial_result(None, ray_trial(name), {"epoch": epoch, METRIC: value})
    assert scheduler.rule._scores == one_by_one.rule._scores
    earlier = json.dumps([{"epoch": 1, METRIC: 0.0}, {"epoch": 2, METRIC: 0.1}])
    result = {"epoch": 3, METRIC: 0.1, "status": None, "earlier": earlier}
    assert scheduler.on_trial_result(None, ray_trial("c"), result) == "STOP"
