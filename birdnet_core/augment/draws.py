"""Random draws of augmentations, from their generator and on the device of the batch."""

from __future__ import annotations

import torch


def chosen(batch: torch.Tensor, p: float, generator: torch.Generator) -> torch.Tensor:
    """Return bool [batch], true with probability `p` for each clip on its own."""
    return torch.rand(len(batch), generator=generator, device=batch.device) < p


def uniform(batch: torch.Tensor, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Return float32 [batch], one number from `low` to `high` for each clip."""
    return low + (high - low) * torch.rand(len(batch), generator=generator, device=batch.device)


def integers(batch: torch.Tensor, n_choices: torch.Tensor | int, generator: torch.Generator) -> torch.Tensor:
    """Return int64 [batch], for each clip one of 0 to `n_choices` - 1, where `n_choices` may be [batch]."""
    # In float64, so that no product rounds up to n_choices and every choice is as likely as the next.
    share = torch.rand(len(batch), generator=generator, device=batch.device, dtype=torch.float64)
    return (share * n_choices).long()


def keep_others(is_chosen: torch.Tensor, changed: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Return `changed` where `is_chosen` [batch], and `batch` for the other clips, in its dtype."""
    return torch.where(along_batch(is_chosen, batch), changed.to(batch.dtype), batch)


def along_batch(values: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Return `values` [batch] in a shape that broadcasts over the clips of `batch`."""
    return values.reshape(-1, *[1] * (batch.ndim - 1))
