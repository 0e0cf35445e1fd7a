"""AdamW, the learning rate of every step, and the moving average of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from birdnet_core.config import OptimConfig
from birdnet_core.errors import ConfigError
from birdnet_core.records.metrics import Direction, is_better

WARMUP_START = 0.1


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019), fused, over the `parameter_groups` of `model`."""
    return torch.optim.AdamW(parameter_groups(model, config), lr=config.lr, fused=True)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups; weight decay applies to matrices and kernels only.

    Each group has its peak learning rate as ``peak_lr``: `config.backbone_lr` for the parameters of
    ``model.backbone``, `config.lr` for the rest. Raises ConfigError for a backbone_lr without a backbone.
    """
    backbone = getattr(model, "backbone", None)
    if config.backbone_lr is not None and backbone is None:
        raise ConfigError(
            f"optim.backbone_lr = {config.backbone_lr} needs a model with a backbone, and "
            f"{type(model).__name__} has none; use optim.lr, or a model that takes model.pretrained"
        )
    of_backbone = {id(p) for p in backbone.parameters()} if backbone is not None else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in of_backbone, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if is_decayed else 0.0,
            "peak_lr": config.backbone_lr if is_backbone and config.backbone_lr is not None else config.lr,
        }
        for (is_backbone, is_decayed), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def lr_share(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of `step` (from 0) as a share of its peak.

    Linear from a tenth over the warm-up, then the schedule over the rest of the budget; a warm-up as
    long as the budget or longer leaves no room for it. The cosine ends at 0 (Loshchilov & Hutter 2017,
    without restarts). One-cycle rises from 1/25 over 30 % of the way and falls to 4e-6, both as cosines, as
    torch's OneCycleLR has it. ``plateau`` is 1 here: `Plateau` lowers it.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return WARMUP_START + (1 - WARMUP_START) * step / warmup
    n, total = step - warmup, max(1, epochs * steps_per_epoch - warmup)
    if config.schedule == "cosine":
        return _cosine(1.0, 0.0, n / total)
    if config.schedule == "step":
        return config.decay_factor ** (n // (config.decay_epochs * steps_per_epoch))
    if config.schedule == "one_cycle":
        peak_at = 0.3 * total - 1
        if n <= peak_at:
            return _cosine(1 / 25, 1.0, n / peak_at if peak_at else 1.0)
        return _cosine(1.0, 1 / 25e4, (n - peak_at) / (total - 1 - peak_at))
    return 1.0


def is_open_ended(config: OptimConfig) -> bool:
    """Return whether no learning rate depends on the budget: a longer run begins like a shorter one."""
    return config.schedule in ("constant", "step", "plateau")


def _cosine(start: float, end: float, way: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * way))


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return the moving average of the weights of `model`, updated by its `update_parameters`.

    At step n the decay is min(decay, (1 + n) / (10 + n)): the average of a short run would otherwise stay
    close to the random start.
    """

    def update(average: Any, current: Any, _: Any) -> None:
        if not average[0].is_floating_point():  # counters of batch norm
            torch._foreach_copy_(average, current)
            return
        n = 1 + int(averaged.n_averaged)  # on the CPU: the argument is a copy on the device
        share = min(decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(average, current, 1 - share)

    averaged = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return averaged


class Plateau:
    """The share of the peak that is left after the plateaus so far; 1 under any other schedule."""

    def __init__(self, config: OptimConfig, direction: Direction) -> None:
        self.config = config
        self.direction = direction
        self.share = 1.0
        self.waited = 0
        self.best: float | None = None

    def after_epoch(self, monitored: float) -> None:
        """Update the share with the monitored metric of an epoch."""
        if self.config.schedule != "plateau":
            return
        if is_better(monitored, self.best, self.direction):
            self.best, self.waited = monitored, 0
            return
        self.waited += 1
        if self.waited >= self.config.decay_epochs:
            self.share, self.waited = self.share * self.config.decay_factor, 0

    def state_dict(self) -> dict[str, float | None]:
        return {"share": self.share, "waited": self.waited, "best": self.best}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self.__dict__.update(state)
