"""Focal loss: cross-entropy with less weight on clips that are already classified well."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from birdnet_core.errors import ConfigError, check_range
from birdnet_core.losses.class_weights import class_weights
from birdnet_core.losses.targets import check_label_smoothing, probabilities, smoothed
from birdnet_core.registry import losses


@losses.register("focal")
class Focal(nn.Module):
    """Mean of -alpha_t (1 - p_t)^gamma log p_t over the batch (Lin et al. 2017, eq. 5).

    p_t is the probability of the right class under softmax; gamma 0 and no alpha is cross-entropy. Targets
    that are probabilities t, or smoothed, cost -sum t_c alpha_c (1 - p_c)^gamma log p_c. `alpha` is a number
    that scales every class alike, or names class weights: "inverse" N / (K n), "balanced" K / (2 n), "sqrt"
    of inverse, or of the "effective" number of samples at `beta`. Computed in float32 from log-probabilities.
    """

    alpha: torch.Tensor

    def __init__(
        self,
        class_counts: torch.Tensor,
        *,
        gamma: float = 2.0,
        alpha: float | Literal["inverse", "balanced", "sqrt", "effective"] | None = None,
        label_smoothing: float = 0.0,
        beta: float = 0.999,
    ) -> None:
        super().__init__()
        check_range("loss.gamma", gamma, 0, 20)
        check_label_smoothing(label_smoothing)
        self.gamma = gamma
        self.label_smoothing = label_smoothing
        if alpha is not None and not isinstance(alpha, str) and not alpha > 0:
            raise ConfigError(
                f"loss.alpha = {alpha} is out of range; it takes none, more than 0, or the name of weights"
            )
        weights = class_weights(alpha if isinstance(alpha, str) else "none", class_counts, beta)
        scale = 1.0 if alpha is None or isinstance(alpha, str) else alpha
        self.register_buffer("alpha", scale * weights, persistent=False)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss of `logits` [batch, classes].

        `targets` are class indices [batch] or probabilities [batch, classes].
        """
        target_p = smoothed(probabilities(targets, len(self.alpha)), self.label_smoothing)
        log_p = torch.log_softmax(logits.float(), dim=1)
        # -expm1 is 1 - p without cancellation; the clamp keeps the gradient of x^gamma finite at x = 0.
        miss = -torch.expm1(log_p)
        costs = -target_p * self.alpha * miss.clamp(min=1e-12) ** self.gamma * log_p
        return costs.sum() / self.normaliser(targets)

    def normaliser(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the scalar that the loss of a batch was divided by: its number of clips."""
        return torch.full((), float(len(targets)), device=targets.device)
