"""Optimisers and learning rates; the rate follows from the position in the run, so resuming needs no state."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from offramp.train.recipe import Recipe


def build(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of the recipe over the given parameters."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        trained, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
    )


def rate(recipe: Recipe, epoch: int, done: float) -> float:
    """The learning rate.

    Args:
        epoch: 0-based; milestones switch at the START of the epoch, as the papers' code does.
        done: share of all steps already taken, in [0, 1).
    """
    if recipe.schedule == "onecycle":
        rise = recipe.warmup or 0.3
        if done < rise:
            return recipe.lr * (0.04 + 0.96 * _cosine(1 - done / rise))
        return recipe.lr * _cosine((done - rise) / (1 - rise))
    if done < recipe.warmup:
        return recipe.lr * done / recipe.warmup if done else recipe.lr * 1e-3
    if recipe.schedule == "cosine":
        return recipe.lr * _cosine((done - recipe.warmup) / (1 - recipe.warmup))
    if recipe.schedule == "step":
        passed = sum(epoch >= share * recipe.epochs - 1e-9 for share in recipe.milestones)
        return float(recipe.lr * recipe.gamma**passed)
    return recipe.lr


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give all parameter groups this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _cosine(share: float) -> float:
    """From 1 at share 0 to 0 at share 1."""
    return 0.5 * (1 + math.cos(math.pi * share))
