"""AdamW, the learning rate of every step, and the moving average of the weights."""

from __future__ import annotations

import bisect
import copy
import math
from typing import Any

import torch
from torch import nn

from birdnet_core.config import OptimConfig
from birdnet_core.errors import ConfigError
from birdnet_core.records.metrics import Direction, is_better

WARMUP_START = 0.1
DECAY_SHARE = 0.2
"""The share of the epochs up to its end that a decay of ``wsd`` takes (Hägele et al. 2024, section 3)."""


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019), fused, over the `parameter_groups` of `model`."""
    groups = parameter_groups(model, config)
    is_gpu = groups[0]["params"][0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=config.lr, fused=True, capturable=is_gpu)


def has_rates_in_tensors(device: torch.device) -> bool:
    """Return whether the optimizer reads its learning rates from tensors on `device`: on a GPU."""
    return device.type == "cuda"


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set the learning rate of every group to `share` of its peak.

    In a tensor it stays the same one, so that a graph reads what is set.
    """
    for group in optimizer.param_groups:
        rate, device = share * group["peak_lr"], group["params"][0].device
        if not has_rates_in_tensors(device):
            group["lr"] = rate
        elif isinstance(group["lr"], torch.Tensor) and group["lr"].device == device:
            group["lr"].fill_(rate)
        else:  # of a new optimizer, or of a checkpoint
            group["lr"] = torch.full((), rate, device=device)


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
    torch's OneCycleLR has it. ``wsd`` (warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395) decays as
    1 - sqrt of the way, the best form of Hägele et al. 2024, arXiv:2405.18392. ``plateau`` is 1 here:
    `Plateau` lowers it.
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
    if config.schedule == "wsd":
        return _decayed(
            [*(end for end in config.decay_before if end < epochs), epochs], step / steps_per_epoch
        )
    return 1.0


def _decayed(ends: list[int], epoch: float) -> float:
    """Return the share of the peak that is left at `epoch` by the decays before `ends`."""
    n = bisect.bisect_right(ends, epoch)
    start = max(ends[n - 1] if n else 0, (1 - DECAY_SHARE) * ends[n])
    return 1 - math.sqrt(max(0.0, (epoch - start) / (ends[n] - start)))


def is_open_ended(config: OptimConfig) -> bool:
    """Return whether no learning rate depends on the budget: a longer run begins like a shorter one."""
    return config.schedule in ("constant", "step", "plateau")


def _cosine(start: float, end: float, way: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * way))


class MovingAverage:
    """The moving average `module` of the weights of a network, and of its buffers.

    The first update copies. At update n the decay is min(decay, (1 + n) / (10 + n)): the average of a short
    run would otherwise stay close to the first weights. It is counted on the device, where a graph counts on.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.n_updates = torch.zeros((), device=next(model.parameters()).device)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the present weights of `model`."""
        self.n_updates += 1
        n = self.n_updates
        kept = ((1 + n) / (10 + n)).clamp(max=self.decay) * (n > 1)
        averages, values = (
            [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]
            for net in (self.module, model)
        )
        ways = torch._foreach_sub(values, averages)
        torch._foreach_mul_(ways, 1 - kept)
        torch._foreach_add_(averages, ways)
        for counter, value in zip(self.module.buffers(), model.buffers(), strict=True):
            if not counter.is_floating_point():  # of batch norm
                counter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "n_updates": self.n_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.n_updates.copy_(state["n_updates"])


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
