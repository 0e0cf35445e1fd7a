"""The importance of a search's parameters, from the values of all trials at one epoch.

Values of trials that ended at different epochs are not comparable: a stopped trial has a lower value for that
alone, so that any parameter that prolongs trials would look important.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from birdnet_core.intervals import LEVEL
from reports.statistics.aggregate import sampled

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import FrozenTrial

    Distribution = CategoricalDistribution | FloatDistribution | IntDistribution

N_MIN = 10  # trials of a search, and of a parameter, that an importance needs
N_MOST = 500  # trials that enter; more of them cost minutes and change little
N_RESAMPLES = 100
N_PERMUTATIONS = 99
HALF = 0.5  # the best share of trials of a permutation test: a tenth finds a third of what a half finds
NOT_SHOWN_ABOVE = 0.05  # of p: a search in which nothing matters has importances in one of twenty cases
TOP, N_TOP = 0.1, 5  # the best share of trials that the others are compared with, and its least number
COLUMNS = (
    "metric", "epoch", "n_trials", "n_left_out", "n_top", "parameter", "n", "importance", "low", "high", "p",
    "note",
)  # fmt: skip


def importances(trials: pd.DataFrame, epochs: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """Return one row a parameter of a search, the most important first; no row for an ablation.

    Importance is that of PED-ANOVA (Watanabe, Bansal and Hutter 2023, IJCAI, arXiv:2304.10255) as Optuna
    computes it: how far the distribution of a parameter among the best trials is from that among all. It is a
    share: those of all parameters add up to 1. The best are a tenth of the trials, and at least five. `low`
    and `high` are percentiles of 100 bootstrap resamples of trials, from a fixed seed.

    Trials are compared by their value at `epoch`: the latest that at least half of them, and at least ten,
    reached with a finite value. `n_trials` have one, `n_left_out` do not. Of more than 500 trials, 500 drawn
    from a fixed seed enter. `n` of those that enter have the parameter: where only some do (a condition),
    Optuna weighs its importance by their share (conditional PED-ANOVA, arXiv:2601.20800). Importance is nan,
    and `note` is the reason, where fewer than ten of them have the parameter, where it has one value, and
    where it is a number whose range is not in the study's file. Of several folds only the first counts.

    It is nan for all where no `p` is 0.05 or less: it may be chance. `p` is the share of permutations of the
    values, 99 from a fixed seed, in which any parameter distinguishes the better half of the trials as well,
    each in units of the std of its own permuted importances (maxT, Westfall and Young 1993).
    """
    if study["kind"] != "search" or trials.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    trials = sampled(trials, study)
    epochs = epochs[epochs["trial_id"].isin(trials["trial_id"])]
    names = list(dict.fromkeys(name for factors in trials["factors"] for name in factors))
    epoch, values = same_epoch(epochs, study["metric"])
    values = values if study["direction"] == "maximize" else -values
    known = trials[trials["trial_id"].isin(values.index)]
    common = {
        "metric": study["metric"],
        "epoch": epoch,
        "n_trials": len(known),
        "n_left_out": len(trials) - len(known),
    }
    if epoch is None:
        note = f"fewer than {N_MIN} trials, or than half of them, have a value at one epoch"
        return _frame({**common, "parameter": name, "note": note} for name in names)
    drawn = known.sample(N_MOST, random_state=0) if len(known) > N_MOST else known
    taken = {name: [f[name] for f in drawn["factors"] if name in f] for name in names}
    ranges = {name: _ranges((study.get("space") or {}).get(name), taken[name]) for name in names}
    notes = {name: _fault(taken[name], ranges[name]) for name in names}
    usable = [name for name in names if not notes[name]]
    if len(usable) == 1:
        notes[usable.pop()] = "no other parameter to compare it with"
    n_top = max(N_TOP, math.ceil(TOP * len(drawn)))
    of_drawn = values[drawn["trial_id"]].to_list()
    if min(of_drawn) == sorted(of_drawn)[-n_top]:
        note = f"no {n_top} of these trials are better than the others at that epoch"
        return _frame({**common, "parameter": name, "note": note} for name in names)
    usable_ranges = {name: ranges[name] for name in usable if not notes[name]}
    p, share, low, high = _shares(
        [{name: f[name] for name in usable_ranges if name in f} for f in drawn["factors"]],
        of_drawn,
        usable_ranges,
        n_top / len(drawn),
    )
    if p and not share:
        chance = f"it may be chance: permuted values look alike (p = {min(p.values()):.2f})"
        notes |= {name: notes[name] or chance for name in names}
    return _frame(
        {
            **common, "n_top": n_top, "parameter": name, "n": len(taken[name]), "note": notes[name],
            "importance": share.get(name), "low": low.get(name), "high": high.get(name), "p": p.get(name),
        }
        for name in names
    )  # fmt: skip


def same_epoch(epochs: pd.DataFrame, metric: str) -> tuple[int | None, pd.Series[Any]]:
    """Return the latest epoch that at least half of the trials, and `N_MIN`, reached; and their values there.

    The values are by trial_id. None and no value where there is no such epoch. A trial without any finite
    value of `metric` does not count.
    """
    if metric not in epochs:
        return None, pd.Series(dtype="float64")
    finite = epochs[np.isfinite(epochs[metric])]
    needed = max(N_MIN, math.ceil(finite["trial_id"].nunique() / 2))
    n_reached = finite.groupby("epoch")["trial_id"].nunique()
    enough = n_reached.index[n_reached >= needed]
    if not len(enough):
        return None, pd.Series(dtype="float64")
    at_epoch = finite[finite["epoch"] == enough.max()]
    return int(enough.max()), at_epoch.set_index("trial_id")[metric]


def _frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a frame, the most important parameter first, those without an importance last."""
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS))
    frame = frame.astype(dict.fromkeys(("epoch", "n_top", "n", "importance", "low", "high", "p"), "float64"))
    return frame.sort_values("importance", ascending=False, kind="stable").reset_index(drop=True)


def _fault(taken: Sequence[Any], ranges: Sequence[Distribution]) -> str:
    """Return why the importance of a parameter cannot be computed; empty where it can."""
    if len(taken) < N_MIN:
        return f"fewer than {N_MIN} of these trials have it"
    if len({_plain(value) for value in taken}) == 1:
        return "it has one value only"
    if any(_range_of(value, ranges) is None for value in taken):
        return "the study's file lacks the range of its values"
    return ""


def _ranges(given: Any, taken: Sequence[Any]) -> list[Distribution]:
    """Return what a parameter may be as Optuna's distributions, from the `space` of a study's file.

    A function that has no form in YAML may sample one parameter from several. A setting that is computed
    from what is sampled does not stand there: if it is no number, its choices are those that were taken.
    """
    from optuna.distributions import CategoricalDistribution

    if given is None and any(isinstance(_plain(value), str) for value in taken):
        return [CategoricalDistribution(sorted({json.dumps(value) for value in taken}))]
    forms = given["distributions"] if isinstance(given, dict) and "distributions" in given else [given]
    return [_distribution(form, taken) for form in forms if form is not None]


def _distribution(form: Any, taken: Sequence[Any]) -> Distribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(form, dict) and "low" in form:
        log = bool(form.get("log", False))
        # Whole numbers are not marked where the setting accepts nothing else.
        if form.get("integer", all(isinstance(value, int) for value in taken)):
            return IntDistribution(int(form["low"]), int(form["high"]), log, int(form.get("step", 1)))
        return FloatDistribution(form["low"], form["high"], log, form.get("step"))
    choices = form["values"] if isinstance(form, dict) else form
    return CategoricalDistribution([json.dumps(choice) for choice in choices])


def _plain(value: Any) -> str | float:
    """Return a number as it is, anything else as text, since a choice may be a list."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number else json.dumps(value)


def _range_of(value: Any, ranges: Sequence[Distribution]) -> tuple[Any, Distribution] | None:
    """Return a value as it stands in the first of `ranges` that holds it, and that range; else None."""
    from optuna.distributions import CategoricalDistribution

    for known in ranges:
        if isinstance(known, CategoricalDistribution):
            if json.dumps(value) in known.choices:
                return json.dumps(value), known
        elif not isinstance(_plain(value), str) and known.low <= value <= known.high:
            return value, known
    return None


def _shares(
    params: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    ranges: Mapping[str, Sequence[Distribution]],
    quantile: float,
) -> tuple[dict[str, float], dict[str, float], dict[str, float], dict[str, float]]:
    """Return p of each parameter, its importance, and the low and the high end of its interval.

    `params` and `values` (higher is better) have an item a trial; `quantile` of them are the best. Where no p
    is low enough the others are empty.
    """
    import optuna

    class Drawn(optuna.Study):
        """Some of the trials of a study, any of them several times, without a copy."""

        drawn: Sequence[FrozenTrial] = ()

        def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
            return list(self.drawn)

    if not ranges:
        return {}, {}, {}, {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
    of_half = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=HALF)
    storage = optuna.storages.InMemoryStorage()
    rng, shuffle = np.random.default_rng(0), np.random.default_rng(1)
    with _quiet():
        study = optuna.create_study(storage=storage, direction="maximize")
        study.add_trials([_trial(*each, ranges) for each in zip(params, values, strict=True)])
        trials = study.get_trials(deepcopy=False)
        resample = Drawn(study.study_name, storage)

        def raw(drawn: Sequence[FrozenTrial]) -> list[float]:
            resample.drawn = drawn
            of = of_half.evaluate(resample)
            return [of.get(name, 0.0) for name in ranges]

        permuted = np.array([raw(_permuted(trials, shuffle)) for _ in range(N_PERMUTATIONS)])
        p = dict(zip(ranges, _chance(np.array(raw(trials)), permuted), strict=True))
        if min(p.values()) > NOT_SHOWN_ABOVE:
            return p, {}, {}, {}
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        resampled = []
        for _ in range(N_RESAMPLES):
            resample.drawn = [trials[row] for row in rng.integers(len(trials), size=len(trials))]
            resampled.append(optuna.importance.get_param_importances(resample, evaluator=evaluator))
    tails = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    # A resample without any trial that has the parameter gives it nothing.
    ends = {name: np.percentile([each.get(name, 0.0) for each in resampled], tails) for name in ranges}
    low, high = ({name: float(end[i]) for name, end in ends.items()} for i in (0, 1))
    return p, shares, low, high


def _permuted(trials: Sequence[FrozenTrial], rng: np.random.Generator) -> list[FrozenTrial]:
    out = []
    for trial, i in zip(trials, rng.permutation(len(trials)), strict=True):
        out.append(copy.copy(trial))
        out[-1].value = trials[i].value
    return out


def _chance(observed: np.ndarray, permuted: np.ndarray) -> list[float]:
    """Return p of each parameter, for all of them together; `permuted` is [permutations, parameters]."""
    together = np.vstack([observed, permuted])
    std = together.std(axis=0)
    z = (together - together.mean(axis=0)) / np.where(std > 0, std, 1.0)
    n_as_large = (z.max(axis=1)[:, None] >= z[0]).sum(axis=0)  # with what was observed
    return [float(n) / len(together) for n in n_as_large]


def _trial(
    params: Mapping[str, Any], value: float, ranges: Mapping[str, Sequence[Distribution]]
) -> FrozenTrial:
    import optuna

    pairs = {name: _range_of(given, ranges[name]) for name, given in params.items()}
    known = {name: pair for name, pair in pairs.items() if pair is not None}
    return optuna.create_trial(
        value=value,
        params={name: pair[0] for name, pair in known.items()},
        distributions={name: pair[1] for name, pair in known.items()},
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let Optuna neither log that it made a study nor warn of resamples with few trials."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            # One trial alone with, or without, a parameter: its part is left out.
            warnings.filterwarnings("ignore", message="Some regimes for parameter", category=UserWarning)
            # No trial better than the others: all parameters are alike.
            warnings.filterwarnings("ignore", message="Target and region quantiles", category=UserWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
