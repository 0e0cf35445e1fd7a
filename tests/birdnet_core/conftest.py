"""Tiny checkpoints, in the place of pretrained weights of hundreds of megabytes."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an AST of two narrow layers, made for 128 bins x 1,024 frames as the real one."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(3)
    config = ASTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, num_mel_bins=128
    )
    folder = tmp_path_factory.mktemp("tiny_ast")
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor().save_pretrained(folder)
    return folder
