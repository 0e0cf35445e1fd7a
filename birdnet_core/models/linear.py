"""A linear head: multinomial logistic regression on embeddings."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.errors import check_range
from birdnet_core.registry import models


@models.register("linear")
class Linear(nn.Module):
    """One linear layer on embeddings, with dropout of their values before it."""

    input_ndim = 1

    def __init__(self, input_shape: tuple[int, ...], n_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        check_range("model.dropout", dropout, 0, 0.99)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(input_shape[0], n_classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, n_classes] of `features` [batch, dim]."""
        logits: torch.Tensor = self.head(features)
        return logits
