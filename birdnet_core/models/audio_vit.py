"""ViT: the Vision Transformer (Dosovitskiy et al. 2021) on features of sound."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from birdnet_core.models.backbone import (
    TRANSFORMER_SIZES,
    BackboneClassifier,
    Patches,
    as_pair,
    enable_gradient_checkpointing,
    fit_channels,
    fit_positions,
    padded,
)
from birdnet_core.models.pretrained import build_backbone, checkpoint_config, refuse_with_pretrained
from birdnet_core.registry import models

NAME = "audio_vit"


@models.register(NAME)
class AudioViT(BackboneClassifier):
    """Vision Transformer over 16x16 patches; 86 M parameters as base (ViT-B/16).

    Features are padded with zeros at the end to whole patches. `pretrained`: such as
    ``google/vit-base-patch16-224-in21k``; its position embeddings are interpolated to the patches of the
    features.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_classes: int,
        *,
        size: Literal["tiny", "small", "base"] = "base",
        pretrained: str | None = None,
        dropout: float = 0.0,
        freeze_backbone: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        from transformers import ViTConfig, ViTModel

        config: Any
        if pretrained is None:
            config = ViTConfig(**TRANSFORMER_SIZES[size], num_channels=input_shape[0])
        else:
            refuse_with_pretrained(NAME, "size", size, "base")
            config = checkpoint_config(NAME, ViTConfig, pretrained)
        patch = as_pair(config.patch_size)
        grid = -(-input_shape[1] // patch[0]), -(-input_shape[2] // patch[1])
        whole = grid[0] * patch[0], grid[1] * patch[1]
        if pretrained is None:
            config.image_size = whole
        backbone: Any = build_backbone(NAME, ViTModel, config, pretrained, add_pooling_layer=False)
        embeddings = backbone.embeddings
        projection = embeddings.patch_embeddings.projection
        native = as_pair(config.image_size)
        embeddings.position_embeddings = fit_positions(
            embeddings.position_embeddings, (native[0] // patch[0], native[1] // patch[1]), grid
        )
        fit_channels(projection, input_shape[0])
        embeddings.patch_embeddings = Patches(projection)
        embeddings.image_size = whole
        backbone.config.update({"image_size": whole, "num_channels": input_shape[0]})
        if gradient_checkpointing:
            enable_gradient_checkpointing(backbone)
        head = nn.Sequential(nn.Dropout(dropout), nn.Linear(config.hidden_size, n_classes))
        super().__init__(backbone, head, freeze_backbone=freeze_backbone)
        self.whole = whole

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, n_classes] of `features` [batch, channels, bins, frames]."""
        tokens = self.backbone(padded(features, *self.whole)).last_hidden_state
        logits: torch.Tensor = self.head(tokens[:, 0])
        return logits
