"""SpecAugment: mask a band of bins and a span of frames."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.augment.draws import chosen, integers, keep_others
from birdnet_core.errors import check_range
from birdnet_core.registry import augmentations


@augmentations.register("spec_augment")
class SpecAugment(nn.Module):
    """Mask one band of bins and one span of frames (Park et al. 2019, without warping). Usual p: 0.8.

    Widths are uniform on 0 to `max_bins` and 0 to `max_frames`, but no more than the features have, and a
    mask lies anywhere within the features. It covers all channels and is filled with each channel's mean.
    """

    domain = "features"

    def __init__(self, sample_rate: int, *, p: float = 0.0, max_bins: int = 15, max_frames: int = 35) -> None:
        super().__init__()
        check_range("augment.spec_augment.p", p, 0, 1)
        check_range("augment.spec_augment.max_bins", max_bins, 0)
        check_range("augment.spec_augment.max_frames", max_frames, 0)
        self.p = p
        self.max_bins = max_bins
        self.max_frames = max_frames

    def forward(self, features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return `features` [batch, channels, bins, frames], some of them masked."""
        is_chosen = chosen(features, self.p, generator)
        bins = _mask(features, 2, self.max_bins, generator)[:, None, :, None]
        frames = _mask(features, 3, self.max_frames, generator)[:, None, None, :]
        # The sum over features in half precision would overflow.
        means = features.float().mean(dim=(2, 3), keepdim=True).to(features.dtype)
        return keep_others(is_chosen, torch.where(bins | frames, means, features), features)


def _mask(features: torch.Tensor, dim: int, max_width: int, generator: torch.Generator) -> torch.Tensor:
    """Return bool [batch, size of `dim`], true over one span of each clip."""
    size = features.shape[dim]
    width = integers(features, min(max_width, size) + 1, generator)
    start = integers(features, size - width + 1, generator)
    position = torch.arange(size, device=features.device)
    return (position >= start[:, None]) & (position < (start + width)[:, None])
