"""MixUp: the weighted mean of two clips and of their targets."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.augment.draws import along_batch, chosen
from birdnet_core.errors import check_range
from birdnet_core.registry import augmentations


@augmentations.register("mixup")
class Mixup(nn.Module):
    """Mix features and target of a clip with those of another (mixup, Zhang et al. 2018). Usual p: 0.6.

    The clip keeps a share lambda ~ Beta(alpha, alpha), drawn for each clip, of its features and its target;
    the rest is the partner's, which a random permutation of the batch names, now and then the clip itself.
    """

    domain = "mixture"

    def __init__(self, sample_rate: int, *, p: float = 0.0, alpha: float = 0.4) -> None:
        super().__init__()
        check_range("augment.mixup.p", p, 0, 1)
        check_range("augment.mixup.alpha", alpha, 0.01, 10)
        self.p = p
        self.alpha = alpha

    def forward(
        self, features: torch.Tensor, targets: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `features` [batch, channels, bins, frames] and `targets` [batch, classes], some mixed."""
        is_chosen = chosen(features, self.p, generator)
        alphas = torch.full((2, len(features)), self.alpha, dtype=torch.float64, device=features.device)
        # Beta from two gammas, because torch.distributions draws from the global generator only. In float64,
        # because gammas of a small alpha are often too small for float32.
        own, others = torch._standard_gamma(alphas, generator=generator)
        share = torch.where(is_chosen, own / (own + others), 1.0).float()
        partner = torch.randperm(len(features), generator=generator, device=features.device)
        return _mixed(features, partner, share), _mixed(targets, partner, share)


def _mixed(batch: torch.Tensor, partner: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    share = along_batch(share.to(batch.dtype), batch)
    return torch.lerp(batch.index_select(0, partner), batch, share)
