"""A head with one hidden layer."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.errors import check_range
from birdnet_core.models.dropout import Dropout
from birdnet_core.registry import models


@models.register("mlp")
class MLP(nn.Module):
    """A hidden layer of `hidden` units with ReLU on embeddings; dropout before both layers."""

    input_ndim = 1

    def __init__(
        self, input_shape: tuple[int, ...], n_classes: int, *, hidden: int = 256, dropout: float = 0.2
    ) -> None:
        super().__init__()
        check_range("model.hidden", hidden, 1, 2**16)
        check_range("model.dropout", dropout, 0, 0.99)
        self.head = nn.Sequential(
            Dropout(dropout),
            nn.Linear(input_shape[0], hidden),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(hidden, n_classes),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, n_classes] of `features` [batch, dim]."""
        logits: torch.Tensor = self.head(features)
        return logits
