"""The only place where the names of a config become objects."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from birdnet_core import registry
from birdnet_core.config import Component, TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.optim import build_optimizer, parameter_groups


@dataclass
class Parts:
    """What one training run is made of; the augmentations that are on, by their domain."""

    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    augmentations: dict[str, list[nn.Module]]


def build_feature(feature: Component, sample_rate: int, n_samples: int) -> nn.Module:
    """Return the module that turns [batch, n_samples] waveforms into pictures of its `shape`."""
    return _made(registry.features, feature, sample_rate, n_samples)


@functools.lru_cache(maxsize=64)
def picture_shape(feature: Component, sample_rate: int, n_samples: int) -> tuple[int, int, int]:
    """Return the channels, bins and frames that `feature` makes of a clip of `n_samples`."""
    return cast(tuple[int, int, int], build_feature(feature, sample_rate, n_samples).shape)


def build_model(model: Component, input_shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """Return a network from [batch, *input_shape] to logits [batch, n_classes], with fresh weights."""
    return _made(registry.models, model, input_shape, n_classes)


def build_loss(loss: Component, class_counts: torch.Tensor) -> nn.Module:
    """Return the loss; `class_counts` is the number of training clips of each class."""
    return _made(registry.losses, loss, class_counts)


def build_augmentations(config: TrainConfig, device: torch.device) -> dict[str, list[nn.Module]]:
    """Return the augmentations that are on, under ``waveform``, ``picture`` and ``mixture``."""
    built: dict[str, list[nn.Module]] = {"waveform": [], "picture": [], "mixture": []}
    for augmentation in config.augment:
        if augmentation.kwargs["p"]:
            module = _made(registry.augmentations, augmentation, config.data.sample_rate).to(device)
            built[str(module.domain)].append(module)
    return built


def build(
    config: TrainConfig,
    input_shape: tuple[int, int, int],
    class_counts: torch.Tensor,
    device: torch.device,
) -> Parts:
    """Return model, loss and optimizer of `config` on `device`.

    Weights are drawn on the CPU from torch's global generator, so that they do not depend on the device.
    """
    model = build_model(config.model, input_shape, len(class_counts)).to(device)
    loss = build_loss(config.loss, class_counts).to(device)
    return Parts(model, loss, build_optimizer(model, config.optim), build_augmentations(config, device))


def rehearse(config: TrainConfig, input_shape: tuple[int, int, int], n_classes: int) -> int:
    """Build everything without allocating weights, and return the number of parameters.

    Raises ConfigError for option values that they refuse, which is better known before a sweep starts.
    """
    build_loss(config.loss, torch.ones(n_classes, dtype=torch.long))
    build_augmentations(config, torch.device("cpu"))
    with torch.device("meta"):
        model = build_model(config.model, input_shape, n_classes)
        parameter_groups(model, config.optim)
    return count_parameters(model)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable values of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _made(registered: registry.Registry, chosen: Component, *context: Any) -> nn.Module:
    try:
        return cast(nn.Module, registered[chosen.name].make(*context, **chosen.kwargs))
    except ConfigError:
        raise
    except ValueError as error:
        options = ", ".join(f"{name}={value}" for name, value in chosen.options)
        raise ConfigError(f"{registered.kind} {chosen.name!r} refuses {options}: {error}") from error
