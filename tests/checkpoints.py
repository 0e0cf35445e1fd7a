"""Tiny checkpoints, in the place of pretrained weights of hundreds of megabytes."""

import json
from pathlib import Path
from typing import Any

import torch

TOKENS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def tiny_networks() -> dict[str, tuple[Any, Any, Any, tuple[int, int, int]]]:
    """Return for every model: the class of its checkpoints, its config, the base class, a spectrogram."""
    import transformers

    return {
        "audio_vit": (
            transformers.ViTForImageClassification,
            transformers.ViTConfig(**TOKENS, image_size=(48, 64), patch_size=16),
            transformers.ViTModel,
            (3, 48, 64),
        ),
        "audio_ast": (
            transformers.ASTForAudioClassification,
            transformers.ASTConfig(**TOKENS, num_mel_bins=32, max_length=96),
            transformers.ASTModel,
            (1, 32, 96),
        ),
        "efficientnet": (
            transformers.EfficientNetForImageClassification,
            transformers.EfficientNetConfig(
                in_channels=[8, 8],
                out_channels=[8, 16],
                kernel_sizes=[3, 5],
                strides=[1, 2],
                num_block_repeats=[1, 2],
                expand_ratios=[1, 6],
                width_coefficient=0.25,
                depth_coefficient=1.0,
                hidden_dim=320,
            ),
            transformers.EfficientNetModel,
            (3, 48, 64),
        ),
        "convnext": (
            transformers.ConvNextForImageClassification,
            transformers.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32]),
            transformers.ConvNextModel,
            (3, 48, 64),
        ),
    }


def write_tiny_checkpoints(folder: Path) -> dict[str, str]:
    """Write a checkpoint of every tiny network, and return the folders by model."""
    torch.manual_seed(3)
    folders = {}
    for name, (network, config, _, _) in tiny_networks().items():
        folders[name] = str(folder / name)
        network(config).save_pretrained(folders[name])
        extractor = {"image_processor_type": "ViTImageProcessor"}
        if name == "audio_ast":
            extractor = {
                "feature_extractor_type": "ASTFeatureExtractor",
                "num_mel_bins": 32,
                "max_length": 96,
            }
        (Path(folders[name]) / "preprocessor_config.json").write_text(json.dumps(extractor))
    return folders
