"""Cross-entropy of logits shifted by the frequency of each class, for long-tailed collections."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.errors import check_range
from birdnet_core.losses.targets import check_label_smoothing, probabilities, smoothed
from birdnet_core.registry import losses


@losses.register("logit_adjusted")
class LogitAdjusted(nn.Module):
    """Mean cross-entropy of logits + tau log prior (Menon et al. 2021, eq. 10), in float32.

    The prior of a class is its share of the training clips, counting one clip where it has none. Only this
    loss adds it: the logits themselves, which predictions are made of, then favour no class for being
    common. tau 0 is cross-entropy.
    """

    shift: torch.Tensor

    def __init__(self, class_counts: torch.Tensor, *, tau: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_range("loss.tau", tau, 0, 10)
        check_label_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing
        counts = class_counts.double().clamp(min=1)
        self.register_buffer("shift", (tau * (counts / counts.sum()).log()).float(), persistent=False)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss of `logits` [batch, classes].

        `targets` are class indices [batch] or probabilities [batch, classes].
        """
        target_p = smoothed(probabilities(targets, len(self.shift)), self.label_smoothing)
        costs = -target_p * torch.log_softmax(logits.float() + self.shift, dim=1)
        return costs.sum() / self.normaliser(targets)

    def normaliser(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the scalar that the loss of a batch was divided by: its number of clips."""
        return torch.full((), float(len(targets)), device=targets.device)
