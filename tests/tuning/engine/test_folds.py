"""Which configs of a search get a further fold, and what Optuna holds of them, without Ray."""

from dataclasses import replace

import pytest
from optuna.trial import TrialState

from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.records.bounds import Bound
from birdnet_core.records.run_folder import RunFolder
from search_spaces.study import Ablation, Search
from tests.tuning.engine.test_searcher import SEARCH, Driver, states
from tuning.engine.folds import few_configs, fold_of, n_finalists, n_folds_of
from tuning.engine.searcher import OptunaSearcher, open_study


@pytest.mark.parametrize(("n_configs", "n"), [(1, 1), (12, 1), (20, 2), (100, 10)])
def test_a_tenth_of_the_configs_and_at_least_one_has_all_folds(n_configs, n):
    assert n_finalists(n_configs) == n


def test_a_search_with_too_few_configs_to_gain_by_its_folds_is_cautioned():
    (caution,) = few_configs(replace(SEARCH, folds=True, n_trials=12))
    assert caution.startswith("--folds pays from about 30 trials on: of 12, 1 will be trained on all folds")
    assert not few_configs(replace(SEARCH, folds=True, n_trials=30)) + few_configs(SEARCH)


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
        """Return the number and fold of the next trial, and its key; None where there is none now."""
        if not (key := self.suggest()):
            return None
        self.handed[key] = self.names[self.searcher._trials[key][1]["journal"]["trial_id"]]
        return *self.handed[key], key

    def train(self, scores):
        """Train every trial that is left: `scores[number]` on the first fold; return them in order."""
        order = []
        while found := self.next():
            number, fold, key = found
            order.append((number, fold))
            self.end(key, "completed", [scores[number]])
        return order


SCORES = [0.5, 0.4, 0.6]
ORDER = [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)]


def test_the_best_config_is_trained_on_the_further_folds_once_all_have_the_first(tmp_path):
    driver = Folded(tmp_path / "run")
    assert driver.train(SCORES) == ORDER
    assert driver.journal.finalists == [2]


def test_the_value_in_optuna_is_that_of_the_first_fold(tmp_path):
    driver = Folded(tmp_path / "run")
    for score in SCORES:
        driver.end(driver.next()[2], "completed", [score])
    while found := driver.next():
        driver.end(found[2], "completed", [0.1])
    assert states(driver) == ["COMPLETE"] * 3 and [t.value for t in driver.trials] == SCORES
    assert [trial.intermediate_values for trial in driver.trials] == [{1: score} for score in SCORES]


def test_no_further_fold_begins_while_a_first_one_is_in_training_and_then_all_at_once(tmp_path):
    driver = Folded(tmp_path / "run", n_trials=2)
    first, last = driver.next()[2], driver.next()[2]
    driver.end(first, "completed", [0.9])
    assert driver.next() is None and driver.searcher.n_left() == 0
    driver.end(last, "completed", [0.8])
    assert [driver.next()[:2] for _ in range(2)] == [(0, 1), (0, 2)]


@pytest.mark.parametrize("n_steps", range(6))
def test_a_search_that_is_resumed_takes_the_same_folds_and_trains_none_twice(n_steps, tmp_path):
    alive = Folded(tmp_path / "alive")
    alive.train(SCORES)
    driver, order = Folded(tmp_path / "run"), []
    for _ in range(n_steps):
        if found := driver.next():
            number, fold, key = found
            order.append((number, fold))
            driver.end(key, "completed", [SCORES[number]])
    driver.next()  # in training when the driver dies
    driver.restart()
    assert order + driver.train(SCORES) == ORDER
    assert [t.value for t in driver.trials] == [t.value for t in alive.trials]


def test_a_record_that_optuna_has_not_heard_of_is_taken_over_when_the_search_is_resumed(tmp_path):
    driver = Folded(tmp_path / "run")
    driver.searcher.settle = lambda key, record: None
    driver.end(driver.next()[2], "completed", [SCORES[0]])
    driver.restart()
    assert driver.train(SCORES) == ORDER[1:]


def test_a_search_that_is_extended_has_further_finalists(tmp_path):
    driver = Folded(tmp_path / "run", n_trials=1)
    assert driver.train(SCORES) == [(0, 0), (0, 1), (0, 2)]
    driver.search = replace(driver.search, n_trials=3)
    driver.restart()
    assert driver.train(SCORES) == [(1, 0), (2, 0), (2, 1), (2, 2)]


def test_a_config_that_breaks_a_constraint_is_no_finalist(tmp_path):
    bound = Bound("n_params", "<=", 5)
    driver = Folded(tmp_path / "run", n_trials=2, constraints=(bound,))
    order = []
    while found := driver.next():
        number, fold, key = found
        order.append((number, fold))
        driver.end(key, "completed", [SCORES[number]], n_params=10 if number == 0 else 1)
    assert order == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_the_next_best_takes_the_place_of_a_config_that_fails_on_a_further_fold(tmp_path):
    driver = Folded(tmp_path / "run")
    for score in SCORES:
        driver.end(driver.next()[2], "completed", [score])
    number, fold, key = driver.next()
    assert (number, fold) == (2, 1)
    driver.end(key, "diverged")
    assert states(driver) == ["COMPLETE"] * 3
    assert driver.train(SCORES) == [(0, 1), (0, 2)]


def test_a_config_that_is_ended_early_on_its_first_fold_is_no_finalist(tmp_path):
    driver = Folded(tmp_path / "run", n_trials=2)
    driver.end(driver.next()[2], "pruned", [0.9])
    assert driver.train(SCORES) == [(1, 0), (1, 1), (1, 2)]
    assert [trial.state for trial in driver.trials] == [TrialState.PRUNED, TrialState.COMPLETE]


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
    assert [trial.value for trial in driver.trials] == [0.5, 0.5]
    assert len(driver.journal.settled) == 3 and driver.journal.finalists[-1] == 0
