"""Optimizers and learning rates; the rate follows from the position in the run, so resuming needs no state."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from offramp.train import sharding
from offramp.train.recipe import Recipe


def build(
    recipe: Recipe, parameters: Iterable[nn.Parameter], backbone: Iterable[nn.Parameter] = (), *, static: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of the recipe over these parameters; those of the backbone with `lr_backbone`, if it is set.

    Args:
        static: its steps are to be captured as a CUDA graph: the learning rate is a tensor on the GPU, where the
            parameters must be.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if recipe.lr_backbone is not None:
        slow = {id(parameter) for parameter in backbone}
        groups = [
            {"params": [p for p in trained if id(p) in slow], "factor": recipe.lr_backbone / recipe.lr},
            {"params": [p for p in trained if id(p) not in slow], "factor": 1.0},
        ]
        groups = [group for group in groups if group["params"]]
    lr: Any = torch.tensor(recipe.lr, device=trained[0].device) if static else recipe.lr
    # The fused kernel reads and writes memory once, the others once per operation. Divided parameters have none, and
    # where a loss scaler skips a step because gradients are not finite, that of SGD still spoils the momentum.
    fused = recipe.precision != "16" and not any(isinstance(parameter, DTensor) for parameter in trained)
    how: dict[str, Any] = {"lr": lr, "weight_decay": recipe.weight_decay} | ({"fused": True} if fused else {})
    if recipe.optimizer == "adamw":
        built: torch.optim.Optimizer = torch.optim.AdamW(groups, **how, capturable=static)
    else:
        built = torch.optim.SGD(groups, **how, momentum=recipe.momentum, nesterov=recipe.nesterov)
    for group in built.param_groups if static else ():
        group["lr"] = lr.clone()  # every group has its own
    if fused:
        built.register_step_pre_hook(_make_ready)
    return built


def _make_ready(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """What fused kernels need: they read memory in order, whatever the strides; momentum begins for all parameters.

    Gradients get the memory layout of their parameters. Momentum of parameters that have their first gradient after
    others (a part of the network that was not used before) is 0, which gives the same step as none.
    """
    for group in optimizer.param_groups:
        graded = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in graded:
            parameter.grad = sharding.like(parameter.grad, parameter)
        if group.get("momentum"):
            late = [part for part in graded if optimizer.state.get(part, {}).get("momentum_buffer") is None]
            for parameter in late if len(late) < len(graded) else ():
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def rate(recipe: Recipe, epoch: int, done: float, epochs: int | None = None) -> float:
    """The learning rate.

    Args:
        epoch: 0-based; milestones switch at the START of the epoch, as the papers' code does.
        done: share of all steps already taken, in [0, 1).
        epochs: of the schedule, if it is not the whole run.
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
        passed = sum(epoch >= share * (epochs or recipe.epochs) - 1e-9 for share in recipe.milestones)
        return float(recipe.lr * recipe.gamma**passed)
    return recipe.lr


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give all parameter groups this learning rate, times the group's own factor if it has one.

    A rate that is a tensor is written in place, where a CUDA graph reads it.
    """
    for group in optimizer.param_groups:
        rate = lr * group.get("factor", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


HOW = ("lr", "fused", "foreach", "capturable")
"""What a parameter group says of how the optimizer computes: this process's, not that of a checkpoint."""


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer over the same parameters, however that one computed."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    divided = {
        index: {name: sharding.like(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    options = [{key: group[key] for key in HOW if key in group} for group in optimizer.param_groups]
    # The groups that are loaded say on which device the numbers of steps are to be.
    groups = [{**group, **how} for group, how in zip(state["param_groups"], options, strict=True)]
    optimizer.load_state_dict({**state, "state": divided, "param_groups": groups})
    for group, how in zip(optimizer.param_groups, options, strict=True):  # with the rate's own tensor
        group.update(how)


def _cosine(share: float) -> float:
    """From 1 at share 0 to 0 at share 1."""
    return 0.5 * (1 + math.cos(math.pi * share))
