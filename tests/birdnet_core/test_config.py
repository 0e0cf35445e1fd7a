import dataclasses
import json
import os
import re
import subprocess
import sys
import typing

import pytest

from birdnet_core import config, registry
from birdnet_core.build import rehearse
from birdnet_core.config import DataConfig, OptimConfig, TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.presets import PRESETS, preset
from birdnet_core.records.trial import parts_of


def test_round_trips_through_json():
    config = TrainConfig().override({"model.name": "audio_cnn_v2", "loss.name": "focal", "seed": 3})
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_name_applies_before_options_whatever_the_order():
    flat = {"loss.gamma": 3.0, "loss.name": "focal"}
    expected = TrainConfig().override({"loss.name": "focal", "loss.gamma": 3.0})
    assert TrainConfig().override(flat) == expected
    assert expected.loss.kwargs["gamma"] == 3.0


def test_a_new_name_starts_from_its_own_defaults_and_the_same_name_keeps_options():
    config = TrainConfig().override({"loss.name": "focal", "loss.gamma": 3.0})
    assert "gamma" not in config.override({"loss.name": "cross_entropy"}).loss.kwargs
    assert config.override({"loss.name": "focal", "loss.alpha": 0.5}).loss.kwargs["gamma"] == 3.0


def test_config_id_is_of_the_settings_without_seed_repeat_and_runtime():
    base = TrainConfig()
    assert base.difference() == {}
    moved = {"seed": 5, "repeat": 3, "runtime.threads": 4, "runtime.device": "cpu"}
    assert base.override(moved).config_id == base.config_id
    assert base.override(moved).difference() == {}
    assert base.override({"data.folds": 3}).config_id != base.config_id
    changed = base.override({"optim.lr": 3e-4})
    assert changed.difference() == {"optim.lr": 3e-4}
    assert changed.config_id != base.config_id
    assert changed.override({"optim.lr": base.optim.lr}).config_id == base.config_id


def test_naming_a_default_gives_the_same_config_id():
    focal = TrainConfig().override({"loss.name": "focal"})
    assert focal.override({"loss.gamma": 2.0}).config_id == focal.config_id
    assert focal.difference() == {"loss.name": "focal"}


def test_an_augmentation_counts_only_when_it_is_on():
    base = TrainConfig()
    assert base.override({"augment.mixup.alpha": 0.2}).config_id == base.config_id
    mixed = base.override({"augment.mixup.p": 0.6})
    assert mixed.difference() == {"augment.mixup.p": 0.6}
    assert mixed.override({"augment.mixup.alpha": 0.2}).config_id != mixed.config_id
    assert TrainConfig.from_dict(mixed.to_dict()) == mixed


@pytest.mark.parametrize(
    ("repeat", "seed", "ending"), [(0, 0, "-r0"), (12, 12, "-r12"), (0, 7, "-r0-s7"), (3, 0, "-r3-s0")]
)
def test_trial_id_holds_config_and_repeat_and_a_seed_that_differs_from_it(repeat, seed, ending):
    config = TrainConfig().override({"seed": seed, "repeat": repeat})
    assert config.trial_id == f"{config.config_id}{ending}"
    assert parts_of(config.trial_id) == (config.config_id, repeat, seed)
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_configs_hash_and_compare_as_values():
    assert len({TrainConfig(), TrainConfig().override({}), TrainConfig().override({"seed": 1})}) == 2


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({"model.widht": 3}, ["widht", "audio_cnn", "dropout"]),
        ({"model.dropuot": 0.1}, ["dropuot", "did you mean 'dropout'"]),
        ({"optim.lrr": 1e-3}, ["optim.lrr", "did you mean 'lr'"]),
        ({"optimm.lr": 1e-3}, ["optimm.lr", "did you mean 'optim.lr'"]),
        ({"seed.x": 1}, ["seed.x"]),
        ({"repeat.x": 1}, ["repeat.x"]),
        ({"repeat": -1}, ["repeat", "-1", "0 to"]),
        ({"repeat": "first"}, ["repeat", "'first'", "int"]),
        ({"data.folds": 0}, ["data.folds", "0", "1 to 100"]),
        ({"optim.lr": "fast"}, ["optim.lr", "'fast'", "float"]),
        ({"optim.lr": -1.0}, ["optim.lr", "-1.0", "above 0"]),
        ({"training.epochs": 2.5}, ["training.epochs", "2.5", "int"]),
        ({"training.epochs": True}, ["training.epochs", "True", "int"]),
        ({"training.precision": "int8"}, ["training.precision", "'bf16'"]),
        ({"model.name": "audio_vit", "model.freeze_backbone": 1}, ["freeze_backbone", "bool"]),
        ({"training.monitor": "val/f1_marco"}, ["val/f1_marco", "did you mean 'val/f1_macro'"]),
        ({"training.monitor": "train/loss"}, ["train/loss", "validation metric"]),
        ({"optim.schedule": "linear"}, ["optim.schedule", "'linear'", "'cosine' or 'step' or"]),
        ({"model.name": "audio_cn"}, ["audio_cn", "did you mean 'audio_cnn'", "audio_cnn_v2"]),
        ({"augment.mixpu.p": 0.5}, ["mixpu", "did you mean 'mixup'"]),
        ({"augment.mixup.alhpa": 0.5}, ["alhpa", "augmentation 'mixup'", "did you mean 'alpha'"]),
        ({"augment.mixup": 0.5}, ["augment.mixup = 0.5", "augment.mixup.p"]),
        ({"training.micro_batch_size": 33}, ["training.micro_batch_size", "33", "batch_size = 32"]),
        ({"training.stop_on": "val/los"}, ["val/los", "did you mean 'val/loss'"]),
        ({"optim.decay_factor": 1.0}, ["optim.decay_factor", "below 1"]),
        ({"data.highpass_hz": 20_000.0}, ["data.highpass_hz", "11025"]),
        ({"runtime.device": "gpu"}, ["runtime.device", "'cuda'"]),
    ],
)
def test_errors_name_the_setting_what_was_given_and_what_would_do(flat, words):
    with pytest.raises(ConfigError) as caught:
        TrainConfig().override(flat)
    for word in words:
        assert word in str(caught.value)


def test_all_faults_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        TrainConfig().override({"optim.lr": "x", "model.widht": 1, "nonsense": 2})
    assert len(str(caught.value).split("\n")) == 3


def test_the_defaults_are_those_of_the_first_experiment():
    config = TrainConfig()
    assert (config.optim.lr, config.optim.weight_decay, config.optim.warmup_epochs) == (1e-3, 1e-2, 5)
    assert (config.training.epochs, config.training.patience, config.optim.grad_clip) == (50, 7, 1.0)
    assert (config.features.name, config.model.name, config.loss.name) == (
        "mfcc",
        "audio_cnn",
        "cross_entropy",
    )


def test_a_name_registered_twice_is_refused():
    with pytest.raises(ConfigError, match="registered twice"):

        @registry.losses.register("focal")
        def other(class_counts):
            """Not the focal loss."""


def test_an_option_without_a_default_is_refused():
    with pytest.raises(ConfigError, match="'sharpness' has no default"):

        @registry.losses.register("sharp")
        def sharp(class_counts, *, sharpness: float):
            """A loss with an option that must be given."""


@pytest.mark.parametrize(
    ("flat", "registered", "name", "option"),
    [
        ({"loss.name": "focal"}, registry.losses, "focal", "gamma"),
        ({}, registry.models, "audio_cnn", "dropout"),
        ({}, registry.features, "mfcc", "n_mels"),
        ({"augment.mixup.p": 0.5}, registry.augmentations, "mixup", "alpha"),
    ],
)
def test_another_default_of_what_a_config_uses_gives_another_id(monkeypatch, flat, registered, name, option):
    before, unrelated = TrainConfig().override(flat), TrainConfig().override({"model.name": "audio_cnn_v2"})
    if not flat:
        unrelated = unrelated.override({"features.name": "log_mel"})
    explicit = component_default(registered, name, option)
    entry = registered[name]
    other = dataclasses.replace(entry.options[option], default=type(explicit)(explicit + 1))
    monkeypatch.setitem(registered._entries, name, dataclasses.replace(
        entry, options={**entry.options, option: other}
    ))  # fmt: skip
    after = TrainConfig().override(flat)
    assert after.config_id != before.config_id
    # Who names the value is known as before, and so is who does not use it.
    group = {v: k for k, v in config.COMPONENTS.items()}.get(registered, f"augment.{name}")
    assert after.override({f"{group}.{option}": explicit}).config_id == before.config_id
    others = {k: v for k, v in unrelated.flat().items() if k.endswith(".name")}
    assert TrainConfig().override(others).config_id == unrelated.config_id


def component_default(registered, name, option):
    return registered[name].defaults()[option]


def test_another_default_of_a_section_gives_another_id(monkeypatch):
    before = TrainConfig().config_id
    monkeypatch.setattr(TrainConfig.__init__, "__kwdefaults__", {
        **TrainConfig.__init__.__kwdefaults__, "optim": OptimConfig(grad_clip=2.0)
    })  # fmt: skip
    assert TrainConfig().difference() == {}
    assert TrainConfig().config_id != before
    assert TrainConfig().override({"optim.grad_clip": 1.0}).config_id == before


def test_config_ids_are_equal_in_every_process():
    code = (
        "from birdnet_core.presets import PRESETS, preset\n"
        "print(*(preset(name).trial_id for name in sorted(PRESETS)))\n"
    )
    printed = {
        subprocess.check_output(
            [sys.executable, "-c", code], text=True, env={**os.environ, "PYTHONHASHSEED": hash_seed}
        )
        for hash_seed in ("1", "2")
    }
    assert printed == {" ".join(preset(name).trial_id for name in sorted(PRESETS)) + "\n"}


def test_a_config_made_in_code_is_the_one_that_json_gives_back():
    made = TrainConfig(optim=OptimConfig(grad_clip=2, lr=1), data=DataConfig(window_s=3))
    assert TrainConfig.from_dict(json.loads(json.dumps(made.to_dict()))).config_id == made.config_id
    assert type(made.optim.grad_clip) is float


NUMBERS = {
    key: value
    for key, value in TrainConfig().flat().items()
    if isinstance(value, (int, float)) and not isinstance(value, bool)
} | {"optim.backbone_lr": None, "training.micro_batch_size": None, "features.fmax_hz": None}
COMPONENT_NUMBERS = {
    "model": ("audio_cnn", "audio_cnn_v2", "audio_vit", "audio_ast", "convnext", "efficientnet"),
    "loss": ("cross_entropy", "focal", "logit_adjusted"),
}


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), True, "1", [1]])
def test_no_number_is_nan_or_infinite_or_no_number(key, value):
    with pytest.raises(ConfigError, match=re.escape(key.rpartition(".")[2])) as caught:
        TrainConfig().override({key: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "key", [k for k in NUMBERS if k.startswith(("data.", "optim.", "training.", "run", "seed", "repeat"))]
)
def test_every_number_of_a_section_has_a_range(key):
    taken = 0
    for value in (-1, 0, 10**30, 10**400):
        try:
            taken_config = TrainConfig().override({key: value})
        except ConfigError as error:
            assert key.rpartition(".")[2] in str(error)
        else:
            taken += 1
            assert value == 0
            json.loads(json.dumps(taken_config.to_dict(), allow_nan=False))
    assert taken <= 1


@pytest.mark.parametrize("group", COMPONENT_NUMBERS)
def test_a_component_refuses_numbers_that_it_cannot_build_with(group):
    """Whatever a number is, either a network comes of it or a ConfigError, before a sweep starts."""
    registered = config.COMPONENTS[group]
    for name in COMPONENT_NUMBERS[group]:
        for option in registered[name].options.values():
            if not {int, float} & {option.annotation, *typing.get_args(option.annotation)}:
                continue
            for value in (-1, 0, 10**7):
                try:
                    rehearse(
                        TrainConfig().override({f"{group}.name": name, f"{group}.{option.name}": value}),
                        (3, 40, 130),
                        list("abcde"),
                    )
                except ConfigError as error:
                    assert option.name in str(error), (name, option.name, value)


def test_settings_of_final_training_that_are_off_are_no_difference():
    assert TrainConfig().config_id == TrainConfig().override({"training.train_on": "train"}).config_id
    cut = TrainConfig().override({"training.stop_after": 3})
    assert cut.difference() == {"training.stop_after": 3}
    assert (cut.training.most_epochs, TrainConfig().training.most_epochs) == (3, 50)


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({"training.stop_after": 51}, ["training.stop_after = 51", "training.epochs = 50"]),
        ({"training.train_on": "val"}, ["training.train_on", "'train+val'"]),
        (
            {"training.train_on": "train+val", "optim.schedule": "plateau"},
            ["'plateau'", "nothing to validate on", "--keep-val"],
        ),
    ],
)
def test_settings_of_final_training_that_cannot_be_are_refused(flat, words):
    with pytest.raises(ConfigError) as caught:
        TrainConfig().override(flat)
    for word in words:
        assert word in str(caught.value)
