"""Parts that let networks of transformers take features of any shape."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

# DeiT's sizes (Touvron 2021), heads of 64 throughout; base is that of ViT and AST.
TRANSFORMER_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}


class BackboneClassifier(nn.Module):
    """A backbone and a head; a frozen backbone takes no gradient and stays in eval mode."""

    def __init__(self, backbone: nn.Module, head: nn.Module, *, freeze_backbone: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.is_frozen = freeze_backbone
        if freeze_backbone:
            backbone.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> BackboneClassifier:
        """Set the mode of all modules but a frozen backbone: its batch norm and dropout stay as in eval."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self


class Patches(nn.Module):
    """Features [batch, channels, bins, frames] to tokens [batch, patches, width], bins before frames.

    Takes the place of the modules of transformers, which accept one size of features or one channel only.
    """

    def __init__(self, projection: nn.Conv2d) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.projection(features).flatten(2).transpose(1, 2)
        return tokens


def fit_channels(convolution: nn.Conv2d, channels: int) -> None:
    """Give `convolution` that many input channels, in place.

    The output for one channel repeated over the new channels is that for the channel repeated over the old.
    """
    if convolution.in_channels == channels:
        return
    share = convolution.weight.detach().sum(1, keepdim=True) / channels
    convolution.weight = nn.Parameter(share.repeat(1, channels, 1, 1))
    convolution.in_channels = channels


def fit_positions(positions: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> nn.Parameter:
    """Return position embeddings [1, tokens, width] of a grid of patches for another grid (bins, frames).

    Bilinear, as in the code of both papers (ViT, AST). Tokens before the patches keep theirs.
    """
    positions = positions.detach()
    if old == new:
        return nn.Parameter(positions)
    n_prefix = positions.shape[1] - old[0] * old[1]
    prefix, patches = positions[:, :n_prefix], positions[:, n_prefix:]
    grid = patches.unflatten(1, old).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, new, mode="bilinear", align_corners=False)
    return nn.Parameter(torch.cat([prefix, grid.flatten(2).transpose(1, 2)], dim=1))


def padded(features: torch.Tensor, bins: int, frames: int) -> torch.Tensor:
    """Return features with zeros, the mean of standardised ones, at the end up to `bins` and `frames`."""
    missing = (max(0, frames - features.shape[3]), max(0, bins - features.shape[2]))
    if not any(missing):
        return features
    return functional.pad(features, (0, missing[0], 0, missing[1]))


def enable_gradient_checkpointing(backbone: Any) -> None:
    """Let every layer compute its activations again in the backward pass instead of keeping them."""
    # The name changed between transformers 5.17 and 5.23, and the old one warns.
    enable = getattr(backbone, "activation_checkpointing_enable", None)
    (enable or backbone.gradient_checkpointing_enable)({"use_reentrant": False})


def as_pair(size: Any) -> tuple[int, int]:
    """Return a size of a transformers config, one number or (height, width), as a pair."""
    return (size, size) if isinstance(size, int) else cast(tuple[int, int], tuple(size))
