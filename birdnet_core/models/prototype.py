"""A prototype for each class, for species with one recording or two (Snell et al. 2017; Chen et al. 2019)."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.errors import check_range
from birdnet_core.models.dropout import Dropout
from birdnet_core.registry import models


@models.register("prototype")
class Prototype(nn.Module):
    """Cosine similarity to a prototype of each class, times `scale`.

    Prototypes start as the means of the training clips of their class, so that the first epoch is already a
    nearest-mean classifier, and are trained from there (the cosine classifier of Chen et al. 2019).
    """

    input_ndim = 1
    starts_from = "class means"

    def __init__(
        self, input_shape: tuple[int, ...], n_classes: int, *, scale: float = 16.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_range("model.scale", scale, 0.1, 1000)
        check_range("model.dropout", dropout, 0, 0.99)
        self.scale = scale
        self.dropout = Dropout(dropout)
        self.prototypes = nn.Parameter(torch.randn(n_classes, input_shape[0]))

    @torch.no_grad()
    def start_from(self, class_means: torch.Tensor) -> None:
        """Take the means [classes, dim] of the training clips; a class without clips keeps its draw."""
        has_clips = class_means.isfinite().all(dim=1)
        unit = nn.functional.normalize(class_means[has_clips], dim=1)
        self.prototypes[has_clips] = unit * class_means.shape[1] ** 0.5

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, n_classes] of `features` [batch, dim]."""
        directions = nn.functional.normalize(self.dropout(features), dim=1)
        # The product is divided, and not the prototypes, which are more values and have a gradient.
        lengths = torch.linalg.vector_norm(self.prototypes, dim=1).clamp_min(1e-12)
        logits: torch.Tensor = directions @ self.prototypes.T * (self.scale / lengths)
        return logits
