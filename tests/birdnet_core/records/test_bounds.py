"""Bounds of goals and constraints, as they are typed and as a study's file holds them."""

import math

import pytest

from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.bounds import Bound, constraints_of, parse_constraint
from birdnet_core.records.checks import checked_study


@pytest.mark.parametrize(
    ("text", "kept", "broken"),
    [("n_params<=5e6", 5e6, 5_000_001), (" val/f1_rare >= 0.1", 0.1, 0.0999), ("val/loss<=0", -1.0, 0.5)],
)
def test_a_limit_itself_is_kept_and_an_unknown_value_is_not(text, kept, broken):
    bound = parse_constraint(text)
    assert bound.holds(kept) and not bound.holds(broken) and not bound.holds(math.nan)
    assert bound.excess(broken) > 0 >= bound.excess(kept)
    assert parse_constraint(str(bound)) == bound


def test_an_excess_is_a_share_of_the_limit_so_that_parameters_do_not_outweigh_scores():
    assert parse_constraint("n_params<=1000").excess(1500) == pytest.approx(0.5)
    assert parse_constraint("val/f1_rare>=0.2").excess(0.1) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_parms<=5e6", "names an unknown 'n_parms'; did you mean 'n_params'.*known: val/loss, .*hours"),
        ("train/loss<=1", "names an unknown 'train/loss'"),
        ("n_params<5e6", "is not NAME>=VALUE or NAME<=VALUE; for example n_params<=5e6"),
        ("n_params<=many", "is not NAME>=VALUE"),
        ("n_params<=nan", "takes a number"),
    ],
)
def test_a_typo_is_an_error_with_what_is_accepted(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_constraint(text, "--constraint")


@pytest.mark.parametrize(
    "bad", [{"name": "hours"}, {"name": "hours", "comparison": "<", "limit": 1.0}, "hours<=1",
            {"name": "hours", "comparison": "<=", "limit": 1.0, "unit": "h"}]
)  # fmt: skip
def test_a_study_file_with_a_constraint_that_is_none_is_refused(bad, tmp_path):
    study = {
        "schema": 7, "name": "rates", "kind": "search", "metric": "val/loss", "direction": "minimize",
        "epochs": 1, "repeats": [0], "seed": 0, "n_trials": 1,
    }  # fmt: skip
    good = {**study, "constraints": [{"name": "hours", "comparison": "<=", "limit": 1}]}
    assert constraints_of(checked_study(tmp_path / "rates.json", good)) == [Bound("hours", "<=", 1)]
    with pytest.raises(RunFolderError, match="a constraint"):
        checked_study(tmp_path / "rates.json", {**study, "constraints": [bad]})
