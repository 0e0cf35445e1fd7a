"""AdamW and the learning rate of every step."""

from __future__ import annotations

import math

import torch
from torch import nn

from birdnet_core.config import OptimConfig

WARMUP_START = 0.1


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019), fused, with weight decay on matrices and kernels only."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of `step` (from 0): linear from lr/10 over the warm-up, then the schedule.

    The cosine ends at 0 after the last step of the budget (Loshchilov & Hutter 2017, without restarts). A
    warm-up as long as the budget or longer leaves no room for it and is cut by the budget.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    total = epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (WARMUP_START + (1 - WARMUP_START) * step / warmup)
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
