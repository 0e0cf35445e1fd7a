"""EfficientNet (Tan & Le 2019)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn

from birdnet_core.models.backbone import BackboneClassifier, fit_channels, padded
from birdnet_core.models.pretrained import build_backbone, checkpoint_config, refuse_with_pretrained
from birdnet_core.registry import models

NAME = "efficientnet"
VARIANTS: dict[str, dict[str, Any]] = {
    "b0": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    "b2": {"width_coefficient": 1.1, "depth_coefficient": 1.2, "hidden_dim": 1408},
}
# Five halvings, of which the last has a kernel of 5.
SMALLEST = (32, 32)


@models.register(NAME)
class EfficientNet(BackboneClassifier):
    """EfficientNet B0 (5.3 M parameters at 1,000 classes) or B2 (9.1 M).

    Features smaller than 32 x 32 are padded with zeros. `pretrained`: such as ``google/efficientnet-b0``.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_classes: int,
        *,
        variant: Literal["b0", "b2"] = "b0",
        pretrained: str | None = None,
        dropout: float = 0.2,
        freeze_backbone: bool = False,
    ) -> None:
        from transformers import EfficientNetConfig, EfficientNetModel

        config: Any
        if pretrained is None:
            config = EfficientNetConfig(**VARIANTS[variant], num_channels=input_shape[0])
        else:
            refuse_with_pretrained(NAME, "variant", variant, "b0")
            config = checkpoint_config(NAME, EfficientNetConfig, pretrained)
        # transformers drops single values where the paper drops whole branches (stochastic depth).
        config.drop_connect_rate = 0.0
        backbone: Any = build_backbone(NAME, EfficientNetModel, config, pretrained)
        if pretrained is None:
            draw_weights(backbone)
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                # transformers hands over TensorFlow's 0.99, the share of the past; torch means that of the
                # new batch, so evaluation would see the statistics of the last batch alone. 0.01 would be
                # the same, but is slow for the few steps of a small collection.
                module.momentum = 0.1
        fit_channels(backbone.embeddings.convolution, input_shape[0])
        backbone.config.num_channels = input_shape[0]
        head = nn.Sequential(nn.Dropout(dropout), nn.Linear(config.hidden_dim, n_classes))
        super().__init__(backbone, head, freeze_backbone=freeze_backbone)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, n_classes] of `features` [batch, channels, bins, frames]."""
        maps = self.backbone(padded(features, *SMALLEST)).last_hidden_state
        logits: torch.Tensor = self.head(maps.mean((2, 3)))
        return logits


def draw_weights(backbone: nn.Module) -> None:
    """Draw the weights as the authors do: He's normal by the fan out, and batch norm as the identity.

    transformers draws the gains of batch norm around zero with std 0.02, and no signal comes through.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
