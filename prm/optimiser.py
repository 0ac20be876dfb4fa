"""The supervised loop's optimiser and its learning rate."""

import math
from typing import Any

import torch
from torch import nn

from prm.config import FitConfig


def lr_factor(update: int, total: int, config: "FitConfig") -> float:
    """Return the learning rate of update 1..total as a share of the peak."""
    warmup = round(config.warmup_ratio * total)
    if update <= warmup:
        return update / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    # 0 at the first update after the warm-up, just short of 1 at the last, which so still learns.
    elapsed = (update - warmup - 1) / (total - warmup)
    decay = 1 - elapsed if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * elapsed))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * decay


def make_optimizer(model: nn.Module, config: "FitConfig") -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, decaying matrices only."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )


def set_learning_rate(optimizer: Any, value: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value
