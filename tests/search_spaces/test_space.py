"""Spaces that are written down, and those that are found in functions."""

import optuna
import pytest
from optuna.trial import FixedTrial

from birdnet_core.errors import ConfigError
from search_spaces.designs import Range
from search_spaces.space import ABSENT, Parameter, Space, declared, sample

FOCAL = Space(
    {
        "loss.gamma": Parameter(values=Range(0.5, 5.0), when={"loss.name": ("focal",)}),
        "loss.name": Parameter(values=("cross_entropy", "focal")),
        "optim.lr": Parameter(values=Range(1e-4, 1e-2, log=True)),
    }
)


def random_space(seed):
    """A space of up to eight settings that hang on each other at random, in random order."""
    import numpy as np

    rng = np.random.default_rng(seed)
    names = [f"x.{i}" for i in range(rng.integers(3, 9))]
    parameters = {}
    for i, name in enumerate(names):
        kind = rng.integers(3)
        values = [("a", "b", "c"), Range(0, 3, integer=True), Range(0.1, 1.0, log=True)][kind]
        when = {}
        for parent in rng.permutation(names[:i])[: rng.integers(3)]:
            listed = parameters[str(parent)].listed
            if listed is not None:
                possible = [*listed, *(["other"] if parameters[str(parent)].has_otherwise else [])]
                when[str(parent)] = tuple(v for v in possible if rng.random() < 0.6) or (listed[0],)
        otherwise = "other" if when and rng.random() < 0.3 else ABSENT
        parameters[name] = Parameter(values=values, when=when, otherwise=otherwise)
    order = [str(name) for name in rng.permutation(names)]
    return {name: parameters[name] for name in order}


def possible_spaces(n):
    for seed in range(n):
        try:
            yield Space(random_space(seed))
        except ConfigError as error:
            assert "never sampled" in str(error)


@pytest.mark.parametrize("seed", range(4))
def test_a_parameter_appears_exactly_when_its_condition_holds(seed):
    n_absent = 0
    for space in list(possible_spaces(40))[seed::4]:
        for trial in sample(space, 60, seed=seed):
            for name, parameter in space.parameters.items():
                # Checked on the finished sample, whatever the order in which it was drawn.
                holds = all(trial.settings.get(parent) in values for parent, values in parameter.when.items())
                assert (name in trial.parameters) == holds
                assert (name in trial.settings) == (holds or parameter.has_otherwise)
                assert holds or trial.settings.get(name, parameter.otherwise) is parameter.otherwise
                n_absent += not holds
    assert n_absent > 100


@pytest.mark.parametrize("seed", range(4))
def test_the_space_of_a_function_is_found_from_its_samples(seed):
    for space in list(possible_spaces(40))[seed::4]:
        found = declared(lambda trial, space=space: space(trial))
        assert {name: p.values for name, p in found.parameters.items()} == {
            name: p.values for name, p in space.parameters.items()
        }
        # A condition may be written in several ways: only its effect on other samples counts.
        for trial in sample(space, 300, seed=7):
            assert found(FixedTrial(trial.parameters)) == trial.settings


def test_what_a_condition_looks_at_is_sampled_before_it_wherever_it_stands():
    assert FOCAL.order == ("loss.name", "loss.gamma", "optim.lr")
    drawn = [trial.settings for trial in sample(FOCAL, 50)]
    assert {settings["loss.name"] for settings in drawn} == {"cross_entropy", "focal"}
    assert all(("loss.gamma" in settings) == (settings["loss.name"] == "focal") for settings in drawn)


def test_distributions_are_those_that_are_written_down():
    space = Space(
        {
            "a": Parameter(values=Range(1e-4, 1e-2, log=True)),
            "b": Parameter(values=Range(0, 8, integer=True), step=2),
            "c": Parameter(values=Range(0.0, 0.5), step=0.25),
            "d": Parameter(values=("x", 1, None, True)),
        }
    )
    (trial,) = sample(space, 1)
    assert trial.distributions == {
        "a": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "b": optuna.distributions.IntDistribution(0, 8, step=2),
        "c": optuna.distributions.FloatDistribution(0.0, 0.5, step=0.25),
        "d": optuna.distributions.CategoricalDistribution(("x", 1, None, True)),
    }


def test_corners_hold_every_choice_and_both_ends_of_every_range():
    corners = list(FOCAL.corners())
    assert {c["loss.name"] for c in corners} == {"cross_entropy", "focal"}
    assert {c["loss.gamma"] for c in corners if "loss.gamma" in c} == {0.5, 5.0}
    assert {c["optim.lr"] for c in corners} == {1e-4, 1e-2}
    assert all(("loss.gamma" in c) == (c["loss.name"] == "focal") for c in corners)


def test_corners_reach_what_hangs_on_several_others():
    space = Space(
        {
            "a": Parameter(values=(1, 2, 3)),
            "b": Parameter(values=("x", "y"), when={"a": (2, 3)}),
            # Neither the first value of a nor the first that b needs will do.
            "c": Parameter(values=Range(0.0, 1.0), when={"b": ("y",), "a": (1, 3)}),
        }
    )
    assert {c["c"] for c in space.corners() if "c" in c} == {0.0, 1.0}


def test_corners_reach_what_is_sampled_only_where_another_is_not():
    space = Space(
        {
            "optim.schedule": Parameter(values=("cosine", "one_cycle")),
            "optim.warmup_epochs": Parameter(
                values=Range(1, 5, integer=True), when={"optim.schedule": ("cosine",)}, otherwise=0
            ),
            "optim.lr": Parameter(values=(0.1, 0.2), when={"optim.warmup_epochs": (0,)}),
        }
    )
    assert {"optim.schedule": "one_cycle", "optim.warmup_epochs": 0, "optim.lr": 0.2} in list(space.corners())
    assert {c["optim.warmup_epochs"] for c in space.corners()} == {0, 1, 5}


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (
            {"loss.nme": ("focal",)},
            "`when` of x needs loss.nme, which is no other parameter of the space; did you mean "
            "'loss.name'? (it has loss.name, optim.lr, y, z)",
        ),
        (
            {"loss.name": ("focl",)},
            "`when` of x needs loss.name = focl, which never occurs; did you mean 'focal'? "
            "(it takes cross_entropy, focal)",
        ),
        (
            {"optim.lr": (0.001,)},
            "`when` of x needs one value of optim.lr, which is a range of floats; it takes a parameter "
            "with listed values, or an integer range",
        ),
        ({"z": (4,)}, "`when` of x needs z = 4, which never occurs (it takes 0, 1, 2, 3)"),
        ({"x": (1,)}, "`when` of x needs x, which is no other parameter of the space"),
        ({"y": (1,)}, "the conditions of x, y depend on each other; one has to go without `when`"),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(when, message):
    with pytest.raises(ConfigError) as caught:
        Space(
            {
                "loss.name": Parameter(values=("cross_entropy", "focal")),
                "optim.lr": Parameter(values=Range(1e-4, 1e-2)),
                "x": Parameter(values=(1, 2), when=when),
                "y": Parameter(values=(1, 2), when={"x": (1,)}),
                "z": Parameter(values=Range(0, 3, integer=True)),
            }
        )
    assert str(caught.value).startswith(message)


def test_a_parameter_that_is_never_sampled_is_refused():
    with pytest.raises(ConfigError, match="c is never sampled: its conditions cannot hold together"):
        Space(
            {
                "a": Parameter(values=(1, 2)),
                "b": Parameter(values=(1, 2), when={"a": (1,)}),
                "c": Parameter(values=(1, 2), when={"b": (1,), "a": (2,)}),
            }
        )


@pytest.mark.parametrize(
    ("values", "step", "message"),
    [
        ((), None, "no value cannot be sampled"),
        (([1, 2],), None, r"\[1, 2\] cannot be sampled; choices are text, numbers, true, false and none"),
        ((1, 2), 1, "step = 1 belongs to a range"),
        (Range(0.0, 1.0), 0.3, "step = 0.3 does not lead from 0 to 1"),
        (Range(0.1, 1.0, log=True), 0.1, "no log"),
        (Range(0, 1, integer=True), 0.5, "step = 0.5 of an integer range is not accepted; it takes a whole"),
    ],
)
def test_parameters_that_cannot_be_sampled_are_refused(values, step, message):
    with pytest.raises(ConfigError, match=message):
        Parameter(values=values, step=step)


# what has no space


def computed(trial):
    return {"optim.lr": 10 ** trial.suggest_float("exponent", -4, -2)}


def changed(trial):
    return {"optim.lr": 2 * trial.suggest_float("optim.lr", 0.1, 0.2)}


def dynamic(trial):
    low = trial.suggest_int("low", 1, 8)
    return {"low": low, "high": trial.suggest_int("high", low, 9)}


def undecidable(trial):
    lr = trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True)
    return {"optim.lr": lr, **({"x": trial.suggest_int("x", 0, 1)} if lr > 1e-3 else {})}


def either(trial):
    a, b = (trial.suggest_categorical(name, [0, 1]) for name in "ab")
    return {"a": a, "b": b, **({"c": trial.suggest_int("c", 0, 1)} if a or b else {})}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (computed, "optim.lr is computed from what was sampled"),
        (changed, "optim.lr is computed from what was sampled"),
        (dynamic, "what high may be depends on what was sampled before"),
        (
            undecidable,
            r"x is sampled in 2\d\d of 500 trials, and no condition of the form `when: {setting: values}`",
        ),
        (either, r"c is sampled in 3\d\d of 500 trials, and no condition"),
    ],
)
def test_a_function_without_a_space_is_refused_with_the_reason(space, message):
    with pytest.raises(ConfigError, match=message):
        declared(space)


def test_a_setting_that_is_sampled_or_else_set_has_its_value_otherwise():
    def scheduled(trial):
        settings = {"optim.schedule": trial.suggest_categorical("optim.schedule", ["cosine", "one_cycle"])}
        is_cosine = settings["optim.schedule"] == "cosine"
        warmup = trial.suggest_int("optim.warmup_epochs", 0, 5) if is_cosine else 0
        return {**settings, "optim.warmup_epochs": warmup}

    assert declared(scheduled).parameters["optim.warmup_epochs"] == Parameter(
        values=Range(0, 5, integer=True), when={"optim.schedule": ("cosine",)}, otherwise=0
    )


def test_a_setting_that_is_set_and_not_sampled_has_its_one_value():
    def warm(trial):
        name = trial.suggest_categorical("model.name", ["audio_cnn", "audio_ast"])
        return {"model.name": name, **({"optim.warmup_epochs": 0} if name == "audio_ast" else {})}

    assert declared(warm).parameters == {
        "model.name": Parameter(values=("audio_cnn", "audio_ast")),
        "optim.warmup_epochs": Parameter(values=(0,), when={"model.name": ("audio_ast",)}),
    }
