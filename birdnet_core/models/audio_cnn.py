"""AudioCNN: the small network of the first experiments."""

from __future__ import annotations

import torch
from torch import nn

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

    As pooling with a window of the whole picture: the gradient of a mean is a broadcast, which the ReLU
    before it takes 15 times as long to go back through on the CPU.
    """

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(pictures, pictures.shape[-2:]).flatten(1)


@models.register("audio_cnn")
class AudioCNN(nn.Module):
    """Three blocks of two convolutions, 32/64/128 channels; 343,801 parameters at 3 channels, 89 classes.

    2x2 max pooling after the first two blocks, global average pooling, 256 hidden units, dropout before the
    last layer. `input_shape` is (channels, bins, frames); bins and frames are free.
    """

    def __init__(self, input_shape: tuple[int, int, int], n_classes: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *convolution(input_shape[0], 32), *convolution(32, 32, is_pooled=True),
            *convolution(32, 64), *convolution(64, 64, is_pooled=True),
            *convolution(64, 128), *convolution(128, 128),
            GlobalAveragePool(),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(128, 256), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(256, n_classes)
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, n_classes] of `pictures` [batch, channels, bins, frames]."""
        logits: torch.Tensor = self.head(self.features(pictures))
        return logits
