"""ConvNeXt (Liu et al. 2022)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from birdnet_core.models.backbone import BackboneClassifier, fit_channels, padded
from birdnet_core.models.pretrained import build_backbone, checkpoint_config, refuse_with_pretrained
from birdnet_core.registry import models

NAME = "convnext"
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]},
    "small": {"depths": [3, 3, 27, 3], "hidden_sizes": [96, 192, 384, 768]},
    "base": {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]},
}
# Patches of 4, then three halvings.
SMALLEST = (32, 32)


@models.register(NAME)
class ConvNeXt(BackboneClassifier):
    """ConvNeXt, tiny (28.6 M parameters at 1,000 classes), small (50.2 M) or base (88.6 M).

    Features smaller than 32 x 32 are padded with zeros. `pretrained`: such as ``facebook/convnext-tiny-224``.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_classes: int,
        *,
        variant: Literal["tiny", "small", "base"] = "tiny",
        pretrained: str | None = None,
        dropout: float = 0.0,
        freeze_backbone: bool = False,
    ) -> None:
        from transformers import ConvNextConfig, ConvNextModel

        config: Any
        if pretrained is None:
            config = ConvNextConfig(**VARIANTS[variant], num_channels=input_shape[0])
        else:
            refuse_with_pretrained(NAME, "variant", variant, "tiny")
            config = checkpoint_config(NAME, ConvNextConfig, pretrained)
        backbone: Any = build_backbone(NAME, ConvNextModel, config, pretrained)
        fit_channels(backbone.embeddings.patch_embeddings, input_shape[0])
        backbone.embeddings.num_channels = backbone.config.num_channels = input_shape[0]
        head = nn.Sequential(nn.Dropout(dropout), nn.Linear(config.hidden_sizes[-1], n_classes))
        super().__init__(backbone, head, freeze_backbone=freeze_backbone)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, n_classes] of `features` [batch, channels, bins, frames]."""
        logits: torch.Tensor = self.head(self.backbone(padded(features, *SMALLEST)).pooler_output)
        return logits
