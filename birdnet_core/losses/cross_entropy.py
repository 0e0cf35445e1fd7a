"""Cross-entropy, with class weights and label smoothing."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.losses.class_weights import Scheme
from birdnet_core.losses.class_weights import class_weights as weights_from_counts
from birdnet_core.losses.targets import check_label_smoothing, probabilities, smoothed
from birdnet_core.registry import losses


@losses.register("cross_entropy")
class CrossEntropy(nn.Module):
    """Mean negative log-probability of the right class, computed in float32.

    With class weights w and targets t the batch costs -sum w_c t'_c log p_c / sum w_c t_c, where t' is t
    after label smoothing, as in torch.nn.functional.cross_entropy. `class_weights` are "inverse" N / (K n),
    "balanced" K / (2 n), "sqrt" of inverse, or of the "effective" number of samples at `beta` (Cui et al.
    2019); a class without training clips has weight 0.
    """

    weights: torch.Tensor

    def __init__(
        self,
        class_counts: torch.Tensor,
        *,
        class_weights: Scheme = "none",
        label_smoothing: float = 0.0,
        beta: float = 0.999,
    ) -> None:
        super().__init__()
        check_label_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing
        weights = weights_from_counts(class_weights, class_counts, beta)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss of `logits` [batch, classes].

        `targets` are class indices [batch] or probabilities [batch, classes].
        """
        target_p = smoothed(probabilities(targets, len(self.weights)), self.label_smoothing)
        costs = -self.weights * target_p * torch.log_softmax(logits.float(), dim=1)
        return costs.sum() / self.normaliser(targets)

    def normaliser(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the scalar that the loss of a batch was divided by: the summed weights of its targets."""
        return (self.weights * probabilities(targets, len(self.weights))).sum()
