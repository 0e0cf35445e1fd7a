import json

import pytest

from birdnet_core import registry
from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.presets import preset


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


def test_config_id_is_of_what_differs_without_seed_and_runtime():
    base = TrainConfig()
    assert base.difference() == {}
    assert (
        base.override({"seed": 5, "runtime.threads": 4, "runtime.device": "cpu"}).config_id == base.config_id
    )
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


def test_trial_id_holds_config_and_seed():
    config = TrainConfig().override({"seed": 7})
    assert config.trial_id == f"{config.config_id}-s7"


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


def test_all_faults_are_told_at_once():
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


def test_settings_of_final_training_leave_the_config_ids_of_others_alone():
    # Of the commit before they were added: results in run folders are known by it.
    assert TrainConfig().config_id == TrainConfig().override({"training.learn_from": "train"}).config_id
    assert preset("phase2b").config_id == "b2ac92f015"
    cut = TrainConfig().override({"training.stop_after": 3})
    assert cut.difference() == {"training.stop_after": 3}
    assert (cut.training.most_epochs, TrainConfig().training.most_epochs) == (3, 50)


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({"training.stop_after": 51}, ["training.stop_after = 51", "training.epochs = 50"]),
        ({"training.learn_from": "val"}, ["training.learn_from", "'train+val'"]),
        (
            {"training.learn_from": "train+val", "optim.schedule": "plateau"},
            ["'plateau'", "nothing to validate on", "--keep-val"],
        ),
    ],
)
def test_settings_of_final_training_that_cannot_be_are_refused(flat, words):
    with pytest.raises(ConfigError) as caught:
        TrainConfig().override(flat)
    for word in words:
        assert word in str(caught.value)
