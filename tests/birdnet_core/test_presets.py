import pytest

from birdnet_core.data.dataset import Dataset, prepare
from birdnet_core.data.manifest import read_manifest
from birdnet_core.errors import ConfigError
from birdnet_core.presets import PRESETS, preset
from birdnet_core.training.session import Session

ASKED = {
    "phase0", "phase1-balanced", "phase1-sqrt", "phase2a", "phase2b", "phase3-baseline", "phase3-full"
}  # fmt: skip


def test_every_experiment_of_the_earlier_work_has_a_preset():
    assert set(PRESETS) == ASKED
    assert len({preset(name).config_id for name in PRESETS}) == len(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_an_experiment_trains_for_an_epoch_on_synthetic_birds(name, birds, cache, tiny_ast):
    config = preset(name).override({"training.epochs": 1})
    if config.model.name == "audio_ast":
        assert config.model.kwargs["pretrained"] == "MIT/ast-finetuned-audioset-10-10-0.4593"
        config = config.override({"model.pretrained": str(tiny_ast)})
    dataset = Dataset.open(prepare(read_manifest(birds), config, cache=cache, workers=1))
    assert dataset.input_shape == ((1, 128, 173) if name.startswith("phase3") else (3, 40, 130))
    session = Session(config, dataset)
    metrics = session.step()
    assert session.finished
    assert 0 <= metrics["val/f1_macro"] <= 1


def test_presets_are_the_settings_written_down():
    full = preset("phase3-full")
    assert (full.optim.lr, full.optim.backbone_lr, full.optim.warmup_epochs) == (1e-3, 5e-5, 0)
    augmentations = {a.name: a.kwargs for a in full.augment if a.kwargs["p"]}
    assert augmentations == {
        "mixup": {"p": 0.6, "alpha": 0.4},
        "spec_augment": {"p": 0.8, "max_bins": 15, "max_frames": 35},
    }
    assert preset("phase2b").loss.kwargs["gamma"] == 2.0
    assert preset("phase1-sqrt").loss.kwargs["class_weights"] == "sqrt"
    assert preset("phase0").training.batch_size == 64


def test_an_unknown_preset_is_a_config_error():
    with pytest.raises(ConfigError, match=r"'phase2c'; did you mean .* \(known: phase0"):
        preset("phase2c")
