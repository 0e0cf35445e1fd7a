"""Which trials end early: rules that know a trial by its own name, without Ray.

Ray's schedulers know trials by ids that Ray draws anew in every process, and forget their rungs when the
driver dies. They also let every trial compete with every other, so that networks that learn fast and end low
put an end to those that start slowly and end high. The rules here are plain Python over trial_ids, keep what
they compare within a group, and can be rebuilt from a run's journal.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from abc import ABC, abstractmethod
from array import array
from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from birdnet_core.errors import ConfigError, did_you_mean
from birdnet_core.records.metrics import TIES_BY, metric_direction
from search_spaces.study import SCHEDULERS, Ablation, Study

LEAST_WHOLE, MOST_WHOLE = 4, 100
"""From how many whole trials on the rule asks whether early values predict late ones, and of how many it does
at most: the latest of each group."""
CLEARLY = 1.28
"""The standard score from which the rank correlation of early and late values is clearly positive: one-sided
at 10 %. See the replays in benchmarks/RESULTS.md."""
LEAST_GRACE = 3
"""The fewest epochs before the first comparison, where a study names none: a tenth of the budget is taken."""

Score = tuple[float, float]  # the value and what decides ties, both of which are better when higher


class Rule(ABC):
    """Records the metrics of each epoch and decides whether its trial ends there.

    Args:
        metric: the objective, by which the best trial is chosen at the end.
        rung_metric: the metric by which trials are compared on the way; None takes `metric`.
        max_epochs: the budget of a trial; none is stopped at its last epoch.
        grace_epochs: epochs that every trial trains before it is compared.
        reduction_factor: of ASHA and HyperBand; the best 1 / reduction_factor continue at each rung.
        audit: the share of the trials to be stopped that are audited: they train to the end.

    `rungs` holds the epochs at which trials are compared, where these are few.

    `audits` holds the epoch at which each audited trial would have been stopped. It is compared no more from
    then on, and others are not compared with it: the later rungs hold those that earned it.

    With audits a rule also stops less where it is not worth it: once there are `LEAST_WHOLE` whole trials, it
    stops at an epoch only if their best `rung_metric` up to it clearly predicts their best `metric` of all,
    also among those that were never behind, see `is_predictive`. `spared` holds the last epoch at which a
    trial went on for this reason alone; at the next one it is compared again.
    """

    def __init__(
        self,
        *,
        metric: str,
        max_epochs: int,
        grace_epochs: int,
        reduction_factor: int,
        audit: float = 0.0,
        rung_metric: str | None = None,
    ) -> None:
        self.metric, self.rung_metric = metric, rung_metric or metric
        self.max_epochs, self.grace_epochs = max_epochs, grace_epochs
        self.reduction_factor = reduction_factor
        self.audit = audit
        self.rungs: list[int] = []
        self.audits: dict[str, int] = {}
        self.spared: dict[str, int] = {}
        self._first_behind: dict[str, int] = {}  # epochs
        self._scores: dict[str, dict[int, Score]] = {}  # by the rung metric
        self._best: dict[str, Score] = {}  # by the objective
        self._stopped: set[tuple[str, int]] = set()
        self._whole: defaultdict[str | None, deque[str]] = defaultdict(lambda: deque(maxlen=MOST_WHOLE))
        self._finished: set[str] = set()

    def is_stopped(
        self, trial: str, group: str | None, epoch: int, metrics: Mapping[str, float | None]
    ) -> bool:
        """Record the `metrics` of `epoch` (from 1) and return whether `trial` is stopped.

        Only trials of the same `group` are compared, and `TIES_BY` decides between equal values. One that is
        not finite, or not there, counts as the worst. An epoch that was recorded before is answered as it was
        then: a trial whose worker died reports its first epochs a second time, and a driver may die before it
        has ended a trial.
        """
        scores = self._scores.setdefault(trial, {})
        if epoch not in scores:
            scores[epoch] = _score(metrics, self.rung_metric)
            score = _score(metrics, self.metric)
            self._best[trial] = max(self._best.get(trial, score), score)
            if trial not in self.audits and self._is_behind(trial, group, epoch):
                self._first_behind.setdefault(trial, epoch)
                if self._is_audited(trial):
                    self.audits[trial] = epoch
                elif self.audit and not self.is_predictive(epoch):
                    self.spared[trial] = epoch
                else:
                    self._stopped.add((trial, epoch))
        return (trial, epoch) in self._stopped

    def finish(self, trial: str, group: str | None) -> None:
        """Record that `trial` was trained to its end, be it by its patience.

        Unless it is audited, it counts at ASHA's later rungs with the best value that it had.
        """
        if trial in self._finished or not self._scores.get(trial):
            return
        self._finished.add(trial)
        self._whole[group].append(trial)
        if trial not in self.audits:
            self._count_later(trial, group, max(self._scores[trial]))

    def is_predictive(self, epoch: int) -> bool:
        """Return whether the best `rung_metric` of whole trials up to `epoch` clearly predicts their end.

        It has to predict the end of all whole trials, and of those that were never behind up to `epoch`:
        early values may tell which configs end low and not which end high. Either is asked of `LEAST_WHOLE`
        trials or more, and holds of fewer. Trials that were stopped are missing, which makes the correlation
        of the others smaller, and does not change its sign.
        """
        by_merit = {
            group: [trial for trial in trials if self._first_behind.get(trial, math.inf) > epoch]
            for group, trials in self._whole.items()
        }
        return self._is_in_order(self._whole, epoch) and self._is_in_order(by_merit, epoch)

    def _is_in_order(self, whole: Mapping[str | None, Collection[str]], epoch: int) -> bool:
        """Return whether early values up to `epoch` clearly predict the end of `whole` trials of each group.

        By Kendall's rank correlation within groups: the numerators of all groups, and their variances under
        independence with ties (Kendall 1970, chapter 4), are added (Korn 1984).
        """
        if sum(map(len, whole.values())) < LEAST_WHOLE:
            return True
        score, variance = 0.0, 0.0
        for trials in whole.values():
            early = [
                max(score[0] for at, score in self._scores[trial].items() if at <= epoch) for trial in trials
            ]
            of_group = _kendall(early, [self._best[trial][0] for trial in trials])
            score, variance = score + of_group[0], variance + of_group[1]
        return variance > 0 and score > CLEARLY * math.sqrt(variance)

    def _is_audited(self, trial: str) -> bool:
        """Return whether a trial is drawn, by the hash of its name: a resumed run draws it again."""
        draw = int.from_bytes(hashlib.sha256(f"audit {trial}".encode()).digest()[:8])
        return draw < self.audit * 2**64

    def _count_later(self, trial: str, group: str | None, epoch: int) -> None:  # noqa: B027
        """Let a trial that ended itself after `epoch` count at the rungs after it, where there are any."""

    @abstractmethod
    def decisions(self, trial: str) -> list[int]:
        """Return the epochs after which `trial` may be stopped, in order; at others it never is."""

    @abstractmethod
    def _is_behind(self, trial: str, group: str | None, epoch: int) -> bool:
        """Return whether `trial` is stopped at `epoch`, whose score (higher is better) is recorded."""


class Fifo(Rule):
    """Never stops a trial."""

    def decisions(self, trial: str) -> list[int]:
        return []

    def _is_behind(self, *_: object) -> bool:
        return False


class _Rung:
    """The trials that reached a rung, and their scores, in a form that numpy reads without a copy."""

    def __init__(self) -> None:
        self.trials: set[str] = set()
        self.values, self.ties = array("d"), array("d")

    def add(self, trial: str, score: Score) -> None:
        self.trials.add(trial)
        self.values.append(score[0])
        self.ties.append(score[1])


class ASHA(Rule):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), the variant that stops trials.

    Rungs lie at ``grace_epochs * reduction_factor ** k`` epochs, below `max_epochs`. A trial is stopped at a
    rung where its best value so far is worse than the (1 - 1 / reduction_factor) quantile of those that were
    recorded there before it. The decisions are those of Ray's AsyncHyperBandScheduler with one bracket, but

    - for the best value so far, where Ray takes the one of that epoch: a trial is worth its best epoch, and
      at high learning rates many an epoch between collapses;
    - for nan, which Ray never stops;
    - for a value that equals the quantile, which Ray lets continue: here, of the trials that share it, those
      with the lower loss, as many as are among the best 1 / reduction_factor.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        rung = self.grace_epochs
        while rung < self.max_epochs:
            self.rungs.append(rung)
            rung *= self.reduction_factor
        self._recorded: defaultdict[tuple[int, str | None, int], _Rung] = defaultdict(_Rung)

    def bracket(self, trial: str) -> int:
        """Return how many of the first rungs `trial` skips."""
        return 0

    def decisions(self, trial: str) -> list[int]:
        return self.rungs[self.bracket(trial) :]

    def _is_behind(self, trial: str, group: str | None, epoch: int) -> bool:
        bracket = self.bracket(trial)
        reached = [rung for rung in self.rungs[bracket:] if rung <= epoch]
        if not reached:
            return False
        rung = self._recorded[bracket, group, reached[-1]]
        if trial in rung.trials:
            return False
        score = max(score for at, score in self._scores[trial].items() if at <= epoch)
        behind = bool(rung.trials) and self._is_below(score, rung)
        rung.add(trial, score)
        return behind

    def _count_later(self, trial: str, group: str | None, epoch: int) -> None:
        bracket = self.bracket(trial)
        for rung in self.rungs[bracket:]:
            if rung > epoch:
                self._recorded[bracket, group, rung].add(trial, max(self._scores[trial].values()))

    def _is_below(self, score: Score, rung: _Rung) -> bool:
        """Return whether `score` is not among the best 1 / reduction_factor that `rung` holds."""
        values, ties = np.frombuffer(rung.values), np.frombuffer(rung.ties)
        # numpy finds nan between -inf and anything: like -inf, the limit, a cutoff that stops nothing.
        with np.errstate(invalid="ignore"):
            # Ray's expression to the letter: a quantile that is rounded otherwise decides otherwise.
            cutoff = np.percentile(values, (1 - 1 / self.reduction_factor) * 100)
            tied = ties[values == cutoff]
            if score[0] != cutoff or not len(tied):
                return bool(score[0] < cutoff)
            places = len(values) / self.reduction_factor - (values > cutoff).sum()
            return bool(score[1] < np.percentile(tied, 100 * np.clip(1 - places / len(tied), 0, 1)))


class HyperBand(ASHA):
    """Asynchronous HyperBand (Li et al. 2020, section 3.3): ASHA with brackets that start at later rungs.

    Bracket s has its first rung at ``grace_epochs * reduction_factor ** s``, and the last may have none. It
    hedges against curves that cross after ASHA's first rung, for more epochs. A trial's bracket is drawn by
    the hash of its trial_id, so that a resumed run draws it again, with the shares of trials that HyperBand
    gives its brackets (Li et al. 2018, JMLR 18-185, algorithm 1).

    Asynchronous, because synchronous HyperBand pauses trials until a rung is full: workers wait for the
    slowest trial, and every pause swaps a checkpoint out of the actor and another one in.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        factor = self.reduction_factor
        # The paper's brackets begin at rungs of up to max_epochs, and the last then trains without a rung.
        ends_on_rung = self.grace_epochs * factor ** len(self.rungs) == self.max_epochs
        n_brackets = max(1, len(self.rungs) + ends_on_rung)
        self.weights = [math.ceil(n_brackets * factor**s / (s + 1)) for s in reversed(range(n_brackets))]

    def bracket(self, trial: str) -> int:
        """Return how many of the first rungs `trial` skips, drawn by its name."""
        draw = int.from_bytes(hashlib.sha256(trial.encode()).digest()) % sum(self.weights)
        for bracket, weight in enumerate(self.weights):
            draw -= weight
            if draw < 0:
                return bracket
        raise AssertionError("a draw below the sum of the weights falls into one of them")


class Median(Rule):
    """The median stopping rule of Google Vizier (Golovin et al. 2017, section 3.2.2).

    From `grace_epochs` on, a trial is stopped after an epoch when its best value so far is worse than the
    median, over the other trials that reached that epoch, of their average value up to it. Vizier compares
    with completed trials only; here those that still run count too, and 3 others are needed.
    """

    N_OTHERS = 3

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._averages: defaultdict[tuple[str | None, int], list[float]] = defaultdict(list)

    def decisions(self, trial: str) -> list[int]:
        return list(range(self.grace_epochs, self.max_epochs))

    def _is_behind(self, trial: str, group: str | None, epoch: int) -> bool:
        scores = [score for at, (score, _) in self._scores[trial].items() if at <= epoch]
        others = self._averages[group, epoch]
        behind = (
            self.grace_epochs <= epoch < self.max_epochs
            and len(others) >= self.N_OTHERS
            and max(scores) < statistics.median(others)
        )
        others.append(statistics.fmean(scores))
        return behind


def _score(metrics: Mapping[str, float | None], metric: str) -> Score:
    """Return the score of an epoch by `metric`."""
    return _higher_is_better(metrics, metric), _higher_is_better(metrics, TIES_BY)


def _higher_is_better(metrics: Mapping[str, float | None], metric: str) -> float:
    value = metrics.get(metric)
    # inf as well as nan, because a journal keeps both as null.
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if metric_direction(metric) == "maximize" else -value


def _kendall(first: list[float], second: list[float]) -> tuple[float, float]:
    """Return concordant minus discordant pairs of two lists [n], and its variance under independence."""
    n = len(first)
    if n < 2:
        return 0.0, 0.0
    # By their ranks: of values, -inf less -inf is nan.
    ranks, counts = zip(
        *(np.unique(values, return_inverse=True, return_counts=True)[1:] for values in (first, second)),
        strict=True,
    )
    signs = [np.sign(np.subtract.outer(each, each)) for each in ranks]
    a, b = (each.astype(float) for each in counts)
    spread = [(t * (t - 1) * (2 * t + 5)).sum() for t in (np.array([float(n)]), a, b)]
    variance = (spread[0] - spread[1] - spread[2]) / 18
    variance += (a * (a - 1)).sum() * (b * (b - 1)).sum() / (2 * n * (n - 1))
    if n > 2:
        triples = (a * (a - 1) * (a - 2)).sum() * (b * (b - 1) * (b - 2)).sum()
        variance += triples / (9 * n * (n - 1) * (n - 2))
    return float((signs[0] * signs[1]).sum() / 2), float(variance)


RULES: dict[str, type[Rule]] = {"fifo": Fifo, "asha": ASHA, "hyperband": HyperBand, "median": Median}


def make_rule(name: str, *, grace_epochs: int, reduction_factor: int, **settings: Any) -> Rule:
    """Return the rule `name`, with the arguments of `Rule`.

    Raises ConfigError for one not in `SCHEDULERS` and for numbers out of range.
    """
    if name not in SCHEDULERS:
        raise ConfigError(
            f"unknown scheduler {name!r}{did_you_mean(name, SCHEDULERS)} (known: {', '.join(SCHEDULERS)})"
        )
    if grace_epochs < 1:
        raise ConfigError(f"grace_epochs = {grace_epochs!r} is out of range; it takes 1 or more")
    if reduction_factor < 2:
        raise ConfigError(f"reduction_factor = {reduction_factor!r} is out of range; it takes 2 or more")
    return RULES[name](grace_epochs=grace_epochs, reduction_factor=reduction_factor, **settings)


def rule_of(study: Study, max_epochs: int) -> Rule:
    """Return what ends trials of `study` early: nothing in an ablation, whose cells are to be compared."""
    if isinstance(study, Ablation):
        return Fifo(metric=study.metric, max_epochs=max_epochs, grace_epochs=1, reduction_factor=2)
    return make_rule(
        study.scheduler,
        metric=study.metric,
        rung_metric=study.rung_metric,
        max_epochs=max_epochs,
        grace_epochs=study.grace_epochs or max(LEAST_GRACE, max_epochs // 10),
        reduction_factor=study.reduction_factor,
        audit=study.audit,
    )
