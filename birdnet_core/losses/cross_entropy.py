"""Cross-entropy: the loss that everything else is compared with."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.registry import losses


@losses.register("cross_entropy")
class CrossEntropy(nn.Module):
    """Mean negative log-probability of the right class, computed in float32."""

    def __init__(self, class_counts: torch.Tensor) -> None:
        super().__init__()

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss of `logits` [batch, classes] against class indices `targets` [batch]."""
        return nn.functional.cross_entropy(logits.float(), targets)
