"""AudioCNN: the small network of the first experiments, at any width and depth."""

from __future__ import annotations

import torch
from torch import nn

from birdnet_core.errors import check_range
from birdnet_core.registry import models


def convolution(n_in: int, n_out: int, *, is_pooled: bool = False) -> list[nn.Module]:
    """Return a 3x3 convolution with bias, batch norm, ReLU and, if `is_pooled`, 2x2 max pooling.

    Pooling comes before the ReLU, which gives the same for a quarter of the work. The ReLU is a leaky one
    that does not leak: on the CPU, torch's backward of ReLU in bf16 takes 15 times as long.
    """
    pooling: list[nn.Module] = [nn.MaxPool2d(2)] if is_pooled else []
    return [
        nn.Conv2d(n_in, n_out, kernel_size=3, padding=1),
        nn.BatchNorm2d(n_out),
        *pooling,
        nn.LeakyReLU(0.0, inplace=True),
    ]


class GlobalAveragePool(nn.Module):
    """Mean over bins and frames, [batch, channels, bins, frames] to [batch, channels].

    Computed on the CPU as pooling with a window of all bins and frames: the gradient of a mean is a
    broadcast, through which the backward of the ReLU before it takes 15 times as long there. On a GPU the
    backward of pooling is not deterministic.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if features.is_cuda:
            return features.mean(dim=(2, 3))
        return nn.functional.avg_pool2d(features, features.shape[-2:]).flatten(1)


@models.register("audio_cnn")
class AudioCNN(nn.Module):
    """Blocks of two convolutions, 32/64/128 channels; 343,801 parameters at 3 channels, 89 classes.

    `width` is the channels of the first block; each of `depth` blocks has twice those of the one before. 2x2
    max pooling after every block but the last, global average pooling, twice the last channels as hidden
    units, dropout before the last layer. `input_shape` is (channels, bins, frames); bins and frames must be
    2^(depth - 1) or more.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        n_classes: int,
        *,
        width: int = 32,
        depth: int = 3,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_range("model.width", width, 1)
        why = f"for features of {input_shape[1]} bins and {input_shape[2]} frames, which most blocks halve"
        check_range("model.depth", depth, 1, min(input_shape[1:]).bit_length(), why)
        channels = input_shape[0]
        layers: list[nn.Module] = []
        for block in range(depth):
            n_in, channels = channels, width * 2**block
            layers += convolution(n_in, channels)
            layers += convolution(channels, channels, is_pooled=block < depth - 1)
        self.features = nn.Sequential(*layers, GlobalAveragePool())
        self.head = nn.Sequential(
            nn.Linear(channels, 2 * channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(2 * channels, n_classes),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, n_classes] of `features` [batch, channels, bins, frames]."""
        logits: torch.Tensor = self.head(self.features(features))
        return logits
