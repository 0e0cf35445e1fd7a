"""The configs of the earlier experiments, by name, as changes to the defaults.

Settings that were not recorded then have our defaults: the networks' dropout, and the batch size of the
transformers. All trained for up to 50 epochs with a patience of 7, AdamW with weight decay 1e-2 and a
cosine, gradients clipped at norm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from birdnet_core.config import TrainConfig
from birdnet_core.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Preset:
    """A summary of an earlier experiment, and its differences from the defaults."""

    summary: str
    overrides: dict[str, Any]


_CNN = {"features.name": "mfcc", "model.name": "audio_cnn", "training.batch_size": 64}
_FOCAL = {"loss.name": "focal", "loss.gamma": 2.0}
_AST = {
    # Not the filter bank of the checkpoint; but features of the std that its weights were trained on.
    "features.name": "log_mel",
    "features.convention": "as_given",
    "features.std": 2.0,
    "model.name": "audio_ast",
    "model.pretrained": "MIT/ast-finetuned-audioset-10-10-0.4593",
    **_FOCAL,
    "optim.lr": 1e-3,
    "optim.backbone_lr": 5e-5,
    # With a warm-up the pretrained backbone diverged in that work.
    "optim.warmup_epochs": 0,
}

PRESETS = {
    "phase0": Preset("AudioCNN with cross-entropy", _CNN),
    "phase1-balanced": Preset(
        "AudioCNN, cross-entropy weighted by K/(2 n)", {**_CNN, "loss.class_weights": "balanced"}
    ),
    "phase1-sqrt": Preset(
        "AudioCNN, cross-entropy weighted by sqrt(N/(K n))", {**_CNN, "loss.class_weights": "sqrt"}
    ),
    "phase2a": Preset("AudioCNN with focal loss, gamma 2", {**_CNN, **_FOCAL}),
    "phase2b": Preset(
        "AudioCNNv2 with focal loss, gamma 2",
        {**_CNN, **_FOCAL, "model.name": "audio_cnn_v2", "training.batch_size": 32},
    ),
    "phase3-baseline": Preset("pretrained AST on log-mel with focal loss", _AST),
    "phase3-full": Preset(
        "the same with SpecAugment and MixUp", {**_AST, "augment.spec_augment.p": 0.8, "augment.mixup.p": 0.6}
    ),
}


def preset(name: str) -> TrainConfig:
    """Return the config of an earlier experiment; raises ConfigError that lists the known names."""
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}{did_you_mean(name, PRESETS)} (known: {', '.join(PRESETS)})"
        )
    return TrainConfig().override(PRESETS[name].overrides)
