"""One optimiser step: forward, the method's terms, backward, update."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offramp.methods._method import Objective, Terms
from offramp.net import Tap
from offramp.outputs import Batch


@dataclass
class Parts:
    """What a step works on.

    `net` is wrapped for device and precision by `fabric` and answers float32; `objective` is a function or a Module.
    """

    fabric: Any
    net: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    tap: Tap
    clip: float = 0.0


def one_step(parts: Parts, batch: Batch, progress: float) -> Terms:
    """Minimise the sum of the objective's terms on one batch; answers the terms, detached."""
    outputs = parts.net(batch.inputs, tap=parts.tap)
    terms = parts.objective(outputs, batch, progress)
    loss = torch.stack(list(terms.values())).sum()
    parts.fabric.backward(loss)
    _share_gradients(parts)
    if parts.clip:
        nn.utils.clip_grad_norm_([p for group in parts.optimizer.param_groups for p in group["params"]], parts.clip)
    parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    return {name: term.detach() for name, term in terms.items()}


def _share_gradients(parts: Parts) -> None:
    """Average the gradients of an objective's learned parts over all processes; the network's own wrapper does its."""
    if parts.fabric.world_size == 1 or not isinstance(parts.objective, nn.Module):
        return
    for parameter in parts.objective.parameters():
        gradient: Tensor | None = parameter.grad
        if gradient is not None:
            parameter.grad = parts.fabric.all_reduce(gradient, reduce_op="mean")
