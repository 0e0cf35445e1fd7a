"""Backbones from checkpoints on the Hugging Face hub or in a folder.

transformers takes seconds to import, so it is imported where a network is built and not with this package.
A model folder keeps the config of the checkpoint, so that a saved network is built without the checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from birdnet_core.errors import ConfigError

# Settings of a checkpoint's config that choose how transformers computes, or where it finds code, but not the
# network; some of them make it read from the hub. Names with an underscore before them are its own.
NOT_OF_THE_NETWORK = ("attn_implementation", "experts_implementation", "auto_map", "quantization_config")

_kept: ContextVar[Mapping[str, Any] | None] = ContextVar("kept", default=None)


@contextmanager
def built_from(kept: Mapping[str, Any]) -> Iterator[None]:
    """Build pretrained networks from `kept`, a checkpoint's config, with fresh weights while the block runs.

    Neither the checkpoint nor the hub is read; the caller loads the weights afterwards.
    """
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)


def config_to_keep(pretrained: str) -> dict[str, Any]:
    """Return what `built_from` takes of a checkpoint; `pretrained` is a hub id or a folder.

    Raises ConfigError when its config.json cannot be read any more.
    """
    from transformers import PretrainedConfig

    try:
        with _quiet():
            stated, _ = PretrainedConfig.get_config_dict(pretrained)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"the config of pretrained = {pretrained!r} cannot be read any more: {reason.rstrip('.')}. A "
            "model folder keeps it; put the checkpoint back, or connect to the network"
        ) from error
    return {key: value for key, value in stated.items() if is_of_the_network(key)}


def is_of_the_network(key: str) -> bool:
    """Return whether a setting of a checkpoint's config says which network it is."""
    return not key.startswith("_") and key not in NOT_OF_THE_NETWORK


def refuse_with_pretrained(model: str, option: str, value: object, default: object) -> None:
    """Raise ConfigError unless `option` is at its default: the checkpoint decides the architecture."""
    if value != default:
        raise ConfigError(
            f"model {model!r} takes {option} = {value!r} only without pretrained: the checkpoint decides the "
            f"architecture; leave {option} at {default!r} or pretrained at none"
        )


def checkpoint_config(model: str, config_class: Any, pretrained: str) -> Any:
    """Return the config of a checkpoint, or the one kept of it; `pretrained` is a hub id or a folder.

    Raises ConfigError when it cannot be read or is of another architecture than `config_class`.
    """
    with reading(_fault(model, pretrained), config_class.model_type):
        kept = _kept.get()
        stated = config_class.get_config_dict(pretrained)[0] if kept is None else dict(kept)
        if stated.get("model_type") != config_class.model_type:
            raise ValueError(f"its config.json says model_type = {stated.get('model_type')!r}")
        return config_class.from_dict(stated)


def build_backbone(
    model: str, network: Any, config: Any, pretrained: str | None, **arguments: Any
) -> nn.Module:
    """Return `network(config, **arguments)` with the weights of `pretrained`, or fresh ones for none.

    Under ``torch.device("meta")`` and within `built_from` no weights are read. Raises ConfigError when the
    checkpoint lacks a weight of the network, which transformers would draw at random.
    """
    if pretrained is None or _kept.get() is not None or torch.get_default_device().type == "meta":
        fresh: nn.Module = network(config, **arguments)
        return fresh
    with reading(_fault(model, pretrained), network.config_class.model_type):
        return loaded(network, pretrained, config, **arguments)


def loaded(network: Any, pretrained: str, config: Any, **arguments: Any) -> nn.Module:
    """Return `network` with the safetensors of `pretrained`; ValueError when these lack a weight of it."""
    made, found = network.from_pretrained(
        pretrained,
        config=config,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        **arguments,
    )
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ValueError(f"it lacks {len(missing)} weights, such as {missing[0]}")
    backbone: nn.Module = made
    return backbone


def _fault(model: str, pretrained: str) -> str:
    return f"model {model!r} cannot start from pretrained = {pretrained!r}"


@contextmanager
def reading(fault: str, kinds: str) -> Iterator[None]:
    """Turn errors of a checkpoint into ConfigError that begins with `fault`; nothing goes to the terminal."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        with _quiet():
            yield
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{fault}: {reason.rstrip('.')}. It takes the hub id or the folder of a checkpoint of {kinds}: "
            "config.json and safetensors"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and reports of transformers off the terminal; errors are raised anyway."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging as transformers

    before = transformers.get_verbosity(), hub.get_verbosity()
    has_bars = transformers.is_progress_bar_enabled()
    transformers.set_verbosity(logging.ERROR)
    hub.set_verbosity(logging.ERROR)
    transformers.disable_progress_bar()
    try:
        yield
    finally:
        transformers.set_verbosity(before[0])
        hub.set_verbosity(before[1])
        if has_bars:
            transformers.enable_progress_bar()
