"""A linear head: multinomial logistic regression on embeddings, from random weights or a backbone's own."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.errors import ConfigError, check_range
from birdnet_core.models.dropout import Dropout
from birdnet_core.registry import models

STARTS = ("random", "labels")


@models.register("linear")
class Linear(nn.Module):
    """One linear layer on embeddings, with dropout of their values before it.

    With `start` = "labels" its logits are those of the backbone's own classifier plus a layer that starts at
    0: before the first step the head is the zero-shot classifier, and weight decay pulls it back there
    (task residuals, Yu et al. 2023; L2-SP, Li et al. 2018).
    """

    input_ndim = 1
    label_weights: torch.Tensor
    label_biases: torch.Tensor

    def __init__(
        self, input_shape: tuple[int, ...], n_classes: int, *, dropout: float = 0.0, start: str = "random"
    ) -> None:
        super().__init__()
        check_range("model.dropout", dropout, 0, 0.99)
        if start not in STARTS:
            raise ConfigError(f"model.start = {start!r}; it takes {' or '.join(STARTS)}")
        layer = nn.Linear(input_shape[0], n_classes)
        self.head = nn.Sequential(Dropout(dropout), layer)
        self.starts_from = start
        if start == "labels":
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            self.register_buffer("label_weights", torch.zeros(n_classes, input_shape[0]))
            self.register_buffer("label_biases", torch.zeros(n_classes))

    @torch.no_grad()
    def start_from(self, weights: torch.Tensor, biases: torch.Tensor) -> None:
        """Take the classifier's weights [classes, dim] and biases [classes] for standardised embeddings."""
        self.label_weights.copy_(weights)
        self.label_biases.copy_(biases)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, n_classes] of `features` [batch, dim]."""
        logits: torch.Tensor = self.head(features)
        if self.starts_from == "labels":
            logits = logits + nn.functional.linear(features, self.label_weights, self.label_biases)
        return logits
