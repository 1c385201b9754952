"""Network and optimizer made ready for the device and the processes of a run."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from offramp.methods._method import Method
from offramp.outputs import Batch
from offramp.protocols import Objective
from offramp.running_statistics import batch_norms
from offramp.step import StepContext
from offramp.train import optim, phases
from offramp.train.compiling import compiled_objective
from offramp.train.recipe import Recipe


def build_context(
    fabric: Any,
    net: nn.Module,
    method: Method,
    recipe: Recipe,
    static: bool,
    held_out: Callable[[], Batch] | None,
) -> tuple[StepContext, list[nn.Parameter]]:
    """What every optimizer step of a run works with, and the parameters that train.

    Args:
        static: steps are taken on tensors that stay where they are.
        held_out: the val batch of the current step.
    """
    wrapped, optimizer, trained = _wrapped(fabric, net, method.objective, recipe, static)
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    context = StepContext(
        fabric,
        wrapped,
        method.objective,
        optimizer,
        method.tap,
        recipe.clip,
        bare=net,
        held_out=held_out,
        scaler=scaler,
        compiled=compiled_objective(method, recipe),
        norms=tuple(batch_norms(net).values()),
    )
    return context, trained


def _wrapped(
    fabric: Any, net: nn.Module, objective: Objective, recipe: Recipe, static: bool
) -> tuple[Any, Any, list[nn.Parameter]]:
    """The network wrapped by Fabric, its optimizer and the parameters that train; the objective is on the device."""
    if isinstance(objective, nn.Module):
        objective.to(fabric.device)
    captured = static and fabric.device.type == "cuda"
    if recipe.strategy == "fsdp" and fabric.world_size > 1:  # which puts divided parameters in the place of whole ones
        wrapped = fabric.setup_module(net)
        trained = _trained(net, objective)
        return wrapped, fabric.setup_optimizers(optim.build(recipe, trained, phases.of_backbone(net))), trained
    if static:  # to where the optimizer's learning rate will be
        net.to(fabric.device)
    trained = _trained(net, objective)
    optimizer = optim.build(recipe, trained, phases.of_backbone(net), static=captured)
    wrapped, optimizer = fabric.setup(torch.compile(net) if recipe.compile else net, optimizer)
    return wrapped, optimizer, trained


def _trained(net: nn.Module, objective: Objective) -> list[nn.Parameter]:
    learned = list(objective.parameters()) if isinstance(objective, nn.Module) else []
    return [parameter for parameter in (*net.parameters(), *learned) if parameter.requires_grad]
