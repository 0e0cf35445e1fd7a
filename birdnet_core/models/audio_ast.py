"""AST: the Audio Spectrogram Transformer (Gong, Chung & Glass 2021)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from birdnet_core.errors import ConfigError
from birdnet_core.models.backbone import (
    TRANSFORMER_SIZES,
    BackboneClassifier,
    Patches,
    enable_gradient_checkpointing,
    fit_channels,
    fit_positions,
    padded,
)
from birdnet_core.models.pretrained import build_backbone, checkpoint_config, refuse_with_pretrained
from birdnet_core.registry import models

NAME = "audio_ast"


@models.register(NAME)
class AudioAST(BackboneClassifier):
    """Audio Spectrogram Transformer over overlapping 16x16 patches; 86 M parameters as base.

    128 x 173 at the stride of 10 are 12 x 16 patches. Bins and frames past the last whole patch are not seen.
    `pretrained`: such as ``MIT/ast-finetuned-audioset-10-10-0.4593``; its position embeddings are
    interpolated to the patches of the features, and `patch_stride` may differ from its own.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_classes: int,
        *,
        size: Literal["tiny", "small", "base"] = "base",
        pretrained: str | None = None,
        patch_stride: int = 10,
        dropout: float = 0.0,
        freeze_backbone: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        from transformers import ASTConfig, ASTModel

        channels = input_shape[0]
        config: Any
        if pretrained is None:
            config = ASTConfig(**TRANSFORMER_SIZES[size])
        else:
            refuse_with_pretrained(NAME, "size", size, "base")
            config = checkpoint_config(NAME, ASTConfig, pretrained)
        patch = config.patch_size
        if not 1 <= patch_stride <= patch:
            raise ConfigError(
                f"model {NAME!r}: patch_stride = {patch_stride} is not accepted; it takes 1 to {patch}, the "
                "size of a patch"
            )
        bins, frames = max(patch, input_shape[1]), max(patch, input_shape[2])
        shape = {
            "num_mel_bins": bins,
            "max_length": frames,
            "frequency_stride": patch_stride,
            "time_stride": patch_stride,
        }
        if pretrained is None:
            config.update(shape)
        backbone: Any = build_backbone(NAME, ASTModel, config, pretrained)
        embeddings = backbone.embeddings
        if pretrained is None:
            projection = nn.Conv2d(channels, config.hidden_size, patch, patch_stride)
            # As in the paper. transformers leaves them at zero, where the two tokens stay equal for ever.
            for name in ("cls_token", "distillation_token", "position_embeddings"):
                nn.init.trunc_normal_(getattr(embeddings, name), std=config.initializer_range)
        else:
            native = embeddings.get_shape(config)
            backbone.config.update(shape)
            grid = embeddings.get_shape(backbone.config)
            embeddings.position_embeddings = fit_positions(embeddings.position_embeddings, native, grid)
            projection = embeddings.patch_embeddings.projection
            projection.stride = (patch_stride, patch_stride)
            fit_channels(projection, channels)
        embeddings.patch_embeddings = Patches(projection)
        if gradient_checkpointing:
            enable_gradient_checkpointing(backbone)
        head = nn.Sequential(
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            nn.Dropout(dropout),
            nn.Linear(config.hidden_size, n_classes),
        )
        super().__init__(backbone, head, freeze_backbone=freeze_backbone)
        self.smallest = (patch, patch)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, n_classes] of `features` [batch, channels, bins, frames]."""
        logits: torch.Tensor = self.head(self.backbone(padded(features, *self.smallest)).pooler_output)
        return logits
