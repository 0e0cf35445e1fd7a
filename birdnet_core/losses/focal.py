"""Focal loss: cross-entropy that turns away from what is already learnt."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.errors import ConfigError
from birdnet_core.registry import losses


@losses.register("focal")
class Focal(nn.Module):
    """Mean of -alpha (1 - p_t)^gamma log p_t over the batch (Lin et al. 2017, eq. 5).

    p_t is the probability of the right class under softmax; gamma 0 and no alpha is cross-entropy. `alpha`
    scales every class alike. Computed in float32 from log-probabilities.
    """

    def __init__(self, class_counts: torch.Tensor, *, gamma: float = 2.0, alpha: float | None = None) -> None:
        super().__init__()
        if not 0 <= gamma <= 20:
            raise ConfigError(f"loss.gamma = {gamma} is out of range; it takes 0 to 20")
        if alpha is not None and alpha <= 0:
            raise ConfigError(f"loss.alpha = {alpha} is out of range; it takes none or more than 0")
        self.gamma = gamma
        self.alpha = 1.0 if alpha is None else alpha

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss of `logits` [batch, classes] against class indices `targets` [batch]."""
        log_p = torch.log_softmax(logits.float(), dim=-1).gather(1, targets[:, None]).squeeze(1)
        # -expm1 is 1 - p without cancellation; the clamp keeps the gradient of x^gamma finite at x = 0.
        miss = -torch.expm1(log_p)
        return (-self.alpha * miss.clamp(min=1e-12) ** self.gamma * log_p).mean()
