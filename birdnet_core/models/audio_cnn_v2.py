"""AudioCNNv2: the larger network, twelve times the parameters of AudioCNN."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from birdnet_core.models.audio_cnn import GlobalAveragePool, convolution
from birdnet_core.registry import models


@models.register("audio_cnn_v2")
class AudioCNNv2(nn.Module):
    """Five blocks of one convolution, 64 to 512 channels; 4,222,041 parameters at 3 channels, 89 classes.

    2x2 max pooling after the first four blocks, global average pooling, dropout before both linear layers,
    512 hidden units. `input_shape` is (channels, bins, frames); bins and frames must be 16 or more.
    """

    def __init__(self, input_shape: tuple[int, int, int], n_classes: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        widths = (input_shape[0], 64, 128, 256, 512, 512)
        layers: list[nn.Module] = []
        for block, (n_in, n_out) in enumerate(pairwise(widths)):
            layers += convolution(n_in, n_out, is_pooled=block < 4)
        self.features = nn.Sequential(*layers, GlobalAveragePool())
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(512, n_classes),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, n_classes] of `features` [batch, channels, bins, frames]."""
        logits: torch.Tensor = self.head(self.features(features))
        return logits
