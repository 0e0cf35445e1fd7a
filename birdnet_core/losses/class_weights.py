"""Weights of the classes in a loss, from their numbers of training clips."""

from __future__ import annotations

from typing import Literal

import torch

from birdnet_core.errors import ConfigError

Scheme = Literal["none", "inverse", "balanced", "sqrt", "effective"]


def class_weights(scheme: Scheme, class_counts: torch.Tensor, beta: float = 0.999) -> torch.Tensor:
    """Return the weight of each class, float32 [classes].

    With N clips in all, K classes and n clips of the class: "none" is 1, "inverse" N / (K n), "balanced"
    K / (2 n), "sqrt" the root of N / (K n), and "effective" (1 - beta) / (1 - beta^n), scaled so that the
    weights sum to K (effective number of samples, Cui et al. 2019). A class without training clips, for
    which all but "none" would be infinite, is never a target in training and has weight 0.
    """
    if not 0 <= beta < 1:
        raise ConfigError(f"loss.beta = {beta} is out of range; it takes 0 to below 1")
    counts = class_counts.double()
    n_classes = len(counts)
    if scheme == "none":
        return torch.ones(n_classes)
    if scheme == "inverse":
        weights = counts.sum() / (n_classes * counts)
    elif scheme == "balanced":
        weights = n_classes / (2 * counts)
    elif scheme == "sqrt":
        weights = (counts.sum() / (n_classes * counts)).sqrt()
    else:
        weights = (1 - beta) / (1 - beta**counts)
    weights = torch.where(counts > 0, weights, 0.0)
    if scheme == "effective":
        weights = weights * n_classes / weights.sum()
    return weights.float()
