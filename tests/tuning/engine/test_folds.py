"""Which configs of a search get a further fold, and what Optuna holds of them, without Ray."""

import math
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.records.bounds import Bound
from birdnet_core.records.run_folder import RunFolder
from search_spaces.study import Ablation, Search
from tests.tuning.engine.test_searcher import SEARCH, Driver, states
from tuning.engine.folds import FoldRace, fold_of, n_folds_of
from tuning.engine.searcher import OptunaSearcher, open_study


def race(*recorded, direction="maximize", n_folds=3):
    found = FoldRace(n_folds, direction)
    for values in recorded:
        found.record(values)
    return found


def test_a_config_goes_on_if_its_mean_is_among_the_best_third_with_as_many_folds():
    one = [[value] for value in (0.1, 0.2, 0.3, 0.4)]
    # Two thirds up lies 0.3, of those with two folds 0.5.
    assert race(*one).goes_on([0.3]) and not race(*one).goes_on([0.29])
    assert race(*one, [0.1, 0.9]).goes_on([0.2, 0.8]) and not race(*one, [0.1, 0.9]).goes_on([0.9, 0.0])
    assert race(*one, direction="minimize").goes_on([0.2])
    assert not race(*one, direction="minimize").goes_on([0.21])


def test_the_first_config_goes_on_and_none_does_beyond_the_last_fold_or_without_a_value():
    assert race().goes_on([0.0, 0.0])
    assert not race().goes_on([0.9, 0.9, 0.9])
    unknown = race([math.nan])
    assert not unknown.goes_on([math.nan]) and unknown.goes_on([0.0])


def test_a_further_fold_has_the_next_repeat_and_seed():
    assert [fold_of("abc-r0", k) for k in (0, 1)] == ["abc-r0", "abc-r1"]
    assert fold_of("abc-r5-s7", 2) == "abc-r7-s9"


@pytest.mark.parametrize(
    ("folds", "repeat", "why"),
    [
        ({"n": 1, "given": "split"}, 0, "one validation split: the manifest gives the split"),
        ({"n": 1, "given": None}, 0, "one validation split: data.folds = 1"),
        ({"n": 5, "given": None}, 3, "repeat = 3 is amid one; it takes a multiple of 5"),
    ],
)
def test_folds_that_cannot_be_a_fidelity_are_refused_by_name(folds, repeat, why):
    with pytest.raises(ConfigError, match=why):
        n_folds_of(replace(SEARCH, folds=True), repeat, folds)
    assert n_folds_of(SEARCH, repeat, folds) == n_folds_of(Ablation(factors={}), repeat, folds) == 1


def test_a_search_has_all_folds_of_its_data():
    assert n_folds_of(replace(SEARCH, folds=True), 5, {"n": 5, "given": None}) == 5


class Folded(Driver):
    """A driver of a search over three folds, of which the higher value is better."""

    def __init__(self, run, n_trials=3, constraints=()):
        super().__init__(run, Search(name="rates", space=SEARCH.space, constraints=constraints), n_trials)
        self.handed = {}  # (number, fold) of each key
        self.names = {}
        self.restart()

    def restart(self):
        """Take the place of a driver that died: the records on disk and the Optuna study are what is left."""
        study = open_study(RunFolder(self.path), self.search, seed=3)
        self.searcher = OptunaSearcher(study, self.search, self.make_payload, self.journal, 3)

    def make_payload(self, trial, fold=0):
        config = TrainConfig().override({**self.search.space(trial), "repeat": fold, "seed": fold})
        self.names[config.trial_id] = trial.number, fold
        if record := self.journal.settled.get(config.trial_id):
            return record
        return {"journal": {"trial_id": config.trial_id, "number": trial.number}}

    def next(self):
        """Return the number and fold of the next trial, and its key; None where there is none left."""
        if not (key := self.suggest()):
            return None
        self.handed[key] = self.names[self.searcher._trials[key][1]["journal"]["trial_id"]]
        return *self.handed[key], key

    def train(self, scores):
        """Train every trial that is left: `scores[number][fold]`; return them in order."""
        order = []
        while found := self.next():
            number, fold, key = found
            order.append((number, fold))
            self.end(key, "completed", [scores[number][fold]])
        return order


SCORES = [[0.5, 0.7, 0.6], [0.4, 0.9, 0.9], [0.6, 0.7, 0.2]]


def values(driver):
    return [trial.value for trial in driver.trials]


def test_a_promising_config_is_suggested_on_its_next_fold_before_a_new_config(tmp_path):
    driver = Folded(tmp_path / "run")
    # By hand: the first has all folds; 0.4 < 0.5 leaves; 0.6 and 0.65 are ahead of 0.5 and (0.5 + 0.7) / 2.
    order = driver.train(SCORES)
    assert order == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2)]
    assert [number for *_, number in driver.journal.next_folds] == [0, 0, 2, 2]
    assert states(driver) == ["COMPLETE"] * 3


def test_the_value_in_optuna_is_the_mean_over_the_folds_that_a_config_has(tmp_path):
    driver = Folded(tmp_path / "run")
    driver.train(SCORES)
    assert values(driver) == pytest.approx([0.6, 0.4, 0.5])
    assert [trial.user_attrs["folds"] for trial in driver.trials] == [SCORES[0], [0.4], SCORES[2]]
    # The epochs are those of the first fold.
    assert [trial.intermediate_values for trial in driver.trials] == [{1: 0.5}, {1: 0.4}, {1: 0.6}]


@pytest.mark.parametrize("n_steps", range(8))
def test_a_search_that_is_resumed_takes_the_same_folds_and_trains_none_twice(n_steps, tmp_path):
    alive = Folded(tmp_path / "alive")
    expected = alive.train(SCORES)
    driver, order = Folded(tmp_path / "run"), []
    for _ in range(n_steps):
        if found := driver.next():
            number, fold, key = found
            order.append((number, fold))
            driver.end(key, "completed", [SCORES[number][fold]])
    driver.next()  # in training when the driver dies
    driver.restart()
    assert order + driver.train(SCORES) == expected
    assert values(driver) == values(alive)


def test_a_record_that_optuna_has_not_heard_of_is_decided_on_when_the_search_is_resumed(tmp_path):
    driver = Folded(tmp_path / "run")
    settle = driver.searcher.settle
    for n in range(2):
        _, _, key = driver.next()
        driver.searcher.settle = settle if n == 0 else lambda key, record: None
        driver.end(key, "completed", [SCORES[0][n]])
    driver.restart()
    assert driver.train(SCORES) == [(0, 2), (1, 0), (2, 0), (2, 1), (2, 2)]


def test_an_end_that_optuna_has_not_heard_of_is_reported_when_the_search_is_resumed(tmp_path):
    driver = Folded(tmp_path / "run", n_trials=2)
    driver.searcher._report_end = lambda config: None  # killed right before
    for _ in range(3):
        number, fold, key = driver.next()
        driver.end(key, "completed", [SCORES[number][fold]])
    assert states(driver) == ["RUNNING"]
    driver.restart()
    assert driver.train(SCORES) == [(1, 0)]
    assert values(driver) == pytest.approx([0.6, 0.4])


def test_a_config_that_breaks_a_constraint_gets_no_further_fold_and_is_no_incumbent(tmp_path):
    bound = Bound("n_params", "<=", 5)
    driver = Folded(tmp_path / "run", n_trials=2, constraints=(bound,))
    order = []
    while found := driver.next():
        number, fold, key = found
        order.append((number, fold))
        driver.end(key, "completed", [SCORES[number][fold]], n_params=10 if number == 0 else 1)
    assert order == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_a_config_that_fails_on_a_further_fold_fails(tmp_path):
    driver = Folded(tmp_path / "run", n_trials=1)
    driver.end(driver.next()[2], "completed", [0.5])
    driver.end(driver.next()[2], "diverged")
    assert states(driver) == ["FAIL"] and driver.next() is None


def test_a_config_that_is_ended_early_on_its_first_fold_is_pruned(tmp_path):
    driver = Folded(tmp_path / "run", n_trials=1)
    driver.end(driver.next()[2], "pruned", [0.5])
    assert [trial.state for trial in driver.trials] == [TrialState.PRUNED] and driver.next() is None


def test_trials_of_one_config_share_its_folds(tmp_path):
    driver = Folded(tmp_path / "run", n_trials=2)
    for _ in range(2):
        driver.searcher.study.enqueue_trial(
            {"optim.lr": 1e-3, "optim.warmup_epochs": 1, "loss.name": "focal", "loss.gamma": 2.0}
        )
    driver.restart()
    first = driver.suggest()
    assert not driver.suggest()  # the second waits for the fold of the first
    driver.end(first, "completed", [0.5])
    while key := driver.suggest():
        driver.end(key, "completed", [0.7])
    assert values(driver) == pytest.approx([1.9 / 3] * 2)
    assert len(driver.journal.settled) == 3
