"""Targets of a batch: class indices, or probabilities of classes where clips were mixed."""

from __future__ import annotations

import torch

from birdnet_core.errors import ConfigError


def probabilities(targets: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Return float32 [batch, classes] of class indices [batch] or of probabilities [batch, classes]."""
    if targets.is_floating_point():
        return targets.float()
    return torch.nn.functional.one_hot(targets, n_classes).float()


def smoothed(target_p: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Return `target_p` [batch, classes] with a share of it spread evenly over all classes."""
    return (1 - label_smoothing) * target_p + label_smoothing / target_p.shape[1]


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise ConfigError unless 0 <= `label_smoothing` < 1."""
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"loss.label_smoothing = {label_smoothing} is out of range; it takes 0 to below 1")
