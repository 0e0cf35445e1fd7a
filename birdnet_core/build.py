"""Build the objects that a config names: features, model, loss, optimizer and augmentations."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from birdnet_core import registry
from birdnet_core.backbones.labels import label_rows
from birdnet_core.config import Component, TrainConfig
from birdnet_core.errors import ConfigError
from birdnet_core.features.embedding import Embedding
from birdnet_core.training.optim import build_optimizer, parameter_groups


@dataclass
class Parts:
    """Model, loss and optimizer of a training run, and the augmentations that are on, by their domain."""

    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    augmentations: dict[str, list[nn.Module]]


def build_feature(feature: Component, sample_rate: int, n_samples: int) -> nn.Module:
    """Return the module that turns [batch, n_samples] waveforms into features of its `shape`."""
    return _made(registry.features, feature, sample_rate, n_samples)


@functools.lru_cache(maxsize=64)
def _outline(feature: Component, sample_rate: int, n_samples: int) -> tuple[tuple[int, ...], float | None]:
    """Return the shape of `feature`, and the high-pass that its clips must have; None for any."""
    made = build_feature(feature, sample_rate, n_samples)
    return cast(tuple[int, ...], made.shape), cast(float | None, getattr(made, "highpass_hz", None))


def feature_shape(feature: Component, sample_rate: int, n_samples: int) -> tuple[int, ...]:
    """Return the shape of `feature` for a clip of `n_samples`: channels, bins, frames, or dim."""
    return _outline(feature, sample_rate, n_samples)[0]


def input_shape(config: TrainConfig) -> tuple[int, ...]:
    """Return the shape of the features that `config` trains on: channels, bins and frames, or dim.

    Raises ConfigError for clips of another format than the features take.
    """
    data = config.data
    shape, highpass_hz = _outline(config.features, data.sample_rate, data.n_samples)
    if highpass_hz not in (None, data.highpass_hz):
        raise ConfigError(
            f"data.highpass_hz = {data.highpass_hz:g}, and the backbone "
            f"{config.features.kwargs.get('backbone')!r} takes {highpass_hz:g}; leave it out, and it follows"
        )
    return shape


def build_model(model: Component, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Return a network from [batch, *input_shape] to logits [batch, n_classes], with fresh weights.

    Raises ConfigError for a network of spectrograms on embeddings, or a head of embeddings on spectrograms.
    """
    takes = input_ndim(model.name)
    if takes != len(input_shape):
        fitting = [name for name in registry.models.names() if input_ndim(name) == len(input_shape)]
        kinds = {1: "embeddings, [dim]", 3: "spectrograms, [channels, bins, frames]"}
        raise ConfigError(
            f"model {model.name!r} takes {kinds[takes]}, and the features are {list(input_shape)}; "
            f"for these, model.name takes {', '.join(fitting)}"
        )
    return _made(registry.models, model, input_shape, n_classes)


def starts_from(model: nn.Module) -> str:
    """Return what a model's weights start from: "random", "class means" or "labels" of a backbone."""
    return str(getattr(model, "starts_from", "random"))


def label_classifier(config: TrainConfig, species: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights [species, dim] and biases [species] of the classifier of the config's own backbone.

    They are for embeddings that are not standardised. Raises ConfigError for features without a backbone, and
    for a backbone that has no classifier of these species.
    """
    data = config.data
    feature = build_feature(config.features, data.sample_rate, data.n_samples)
    if not isinstance(feature, Embedding):
        raise ConfigError(
            f"model.start = 'labels' takes features.name = 'embedding', not {config.features.name!r}: it "
            "starts from the labels of a backbone"
        )
    weights, biases = label_rows(feature.backbone, tuple(species))
    return torch.from_numpy(weights), torch.from_numpy(biases)


def build_loss(loss: Component, class_counts: torch.Tensor) -> nn.Module:
    """Return the loss; `class_counts` is the number of training clips of each class."""
    return _made(registry.losses, loss, class_counts)


def build_augmentations(config: TrainConfig, device: torch.device) -> dict[str, list[nn.Module]]:
    """Return the augmentations that are on, under ``waveform``, ``features`` and ``mixture``.

    Raises ConfigError for one that changes spectrograms where the features are embeddings.
    """
    built: dict[str, list[nn.Module]] = {"waveform": [], "features": [], "mixture": []}
    for augmentation in config.augment:
        if augmentation.kwargs["p"]:
            module = _made(registry.augmentations, augmentation, config.data.sample_rate).to(device)
            if module.domain == "features" and len(input_shape(config)) == 1:
                raise ConfigError(
                    f"augmentation {augmentation.name!r} changes spectrograms, and the features are "
                    f"embeddings; set augment.{augmentation.name}.p = 0"
                )
            built[str(module.domain)].append(module)
    return built


def build(
    config: TrainConfig, input_shape: tuple[int, ...], class_counts: torch.Tensor, device: torch.device
) -> Parts:
    """Return model, loss and optimizer of `config` on `device`.

    Weights are drawn on the CPU, so that they do not depend on the device, and alike for every config of the
    same seed wherever shapes agree.
    """
    with _DrawnByShape(config.seed):
        model = build_model(config.model, input_shape, len(class_counts))
    model = model.to(device)
    loss = build_loss(config.loss, class_counts).to(device)
    return Parts(model, loss, build_optimizer(model, config.optim), build_augmentations(config, device))


def rehearse(config: TrainConfig, input_shape: tuple[int, ...], species: Sequence[str]) -> int:
    """Build everything without allocating weights, and return the number of parameters.

    Raises ConfigError for option values that a component refuses, before a sweep starts.
    """
    build_loss(config.loss, torch.ones(len(species), dtype=torch.long))
    build_augmentations(config, torch.device("cpu"))
    with torch.device("meta"):
        model = build_model(config.model, input_shape, len(species))
        parameter_groups(model, config.optim)
    if starts_from(model) == "labels":
        label_classifier(config, species)
    return count_parameters(model)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable values of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def input_ndim(model: str) -> int:
    """Return the dimensions of a clip's features that a registered model takes: 3, or 1 for a head."""
    return getattr(registry.models[model].make, "input_ndim", 3)


class _DrawnByShape(TorchDispatchMode):
    """Draw the n-th random tensor of a shape from the seed, the shape and n alone.

    Cells of an ablation with the same seed thus have the same initial weights. Drawn one after the other, a
    first layer for another number of channels would change every layer after it.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self.n_drawn: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            # An in-place draw has the tensor to fill first, one that makes a tensor has its size.
            shape = str(getattr(args[0], "shape", args))
            text = f"{self.seed} {shape} {self.n_drawn[shape]}"
            self.n_drawn[shape] += 1
            digest = hashlib.sha256(text.encode()).digest()
            torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big"))
        return func(*args, **(kwargs or {}))


def _made(registered: registry.Registry, chosen: Component, *context: Any) -> nn.Module:
    try:
        return cast(nn.Module, registered[chosen.name].make(*context, **chosen.kwargs))
    except ConfigError:
        raise
    except ValueError as error:
        options = ", ".join(f"{name}={value}" for name, value in chosen.options)
        raise ConfigError(f"{registered.kind} {chosen.name!r} refuses {options}: {error}") from error
