"""The Pareto front, by hand and against Optuna's."""

import numpy as np
import optuna
import pandas as pd
import pytest

from reports.statistics.front import pareto_front

STUDY = {"metric": "val/f1_macro", "also": ["n_params"]}


def front_of(study, *rows):
    names = [study["metric"], *study["also"]]
    return pareto_front(pd.DataFrame(list(rows), columns=names, dtype=float), study)


def test_who_is_worse_in_one_and_no_better_in_the_other_is_off_the_front():
    found = front_of(STUDY, (0.5, 100), (0.4, 100), (0.6, 400), (0.3, 50), (0.6, 500), (np.nan, 1))
    assert list(found.index) == [2, 4, 0, 1, 3]  # best F1 first; the unknown one is left out
    assert set(found.index[found["is_on_front"]]) == {0, 2, 3}


def test_equal_configs_are_both_on_the_front():
    assert front_of(STUDY, (0.5, 100), (0.5, 100))["is_on_front"].all()


def test_the_distance_is_from_the_best_of_every_objective_in_ranges_of_the_front():
    found = front_of(STUDY, (0.2, 0), (0.6, 100), (0.5, 25), (0.4, 99)).sort_index()
    assert list(found["distance"][:3]) == pytest.approx([1, 1, np.hypot(0.25, 0.25)])
    assert np.isnan(found["distance"][3])


def test_the_front_of_three_objectives_is_that_of_optuna():
    study = {"metric": "val/loss", "also": ["n_params", "val/map"]}
    values = np.random.default_rng(0).integers(0, 6, size=(120, 3)).astype(float)
    reference = optuna.create_study(directions=["minimize", "minimize", "maximize"])
    reference.add_trials([optuna.create_trial(values=list(row)) for row in values])
    found = front_of(study, *values)
    assert set(found.index[found["is_on_front"]]) == {t.number for t in reference.best_trials}
