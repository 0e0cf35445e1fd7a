"""Time shift: rotate features along their frames."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.augment.draws import chosen, integers, keep_others
from birdnet_core.errors import check_range
from birdnet_core.registry import augmentations


@augmentations.register("time_shift")
class TimeShift(nn.Module):
    """Shift features along their frames; what leaves at one end enters at the other. Usual p: 0.5.

    The shift is a whole number of frames, uniform from minus to plus `max_share` of them, which includes 0.
    """

    domain = "features"

    def __init__(self, sample_rate: int, *, p: float = 0.0, max_share: float = 0.5) -> None:
        super().__init__()
        check_range("augment.time_shift.p", p, 0, 1)
        check_range("augment.time_shift.max_share", max_share, 0, 0.5)
        self.p = p
        self.max_share = max_share

    def forward(self, features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return `features` [batch, channels, bins, frames], some of them shifted."""
        n_frames = features.shape[3]
        max_shift = int(self.max_share * n_frames)
        is_chosen = chosen(features, self.p, generator)
        shift = integers(features, 2 * max_shift + 1, generator) - max_shift
        source = (torch.arange(n_frames, device=features.device) - shift[:, None]) % n_frames
        shifted = features.gather(3, source[:, None, None, :].expand_as(features))
        return keep_others(is_chosen, shifted, features)
