"""The position of a run, and everything except the network's weights that it needs to continue with equal results."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from offramp.lookup import with_parameters
from offramp.step import StepContext
from offramp.train import optim, sharding
from offramp.train.checkpoint import Checkpoint
from offramp.train.moving_average import MovingAverage
from offramp.train.recipe import Recipe


@dataclass
class Position:
    """The position of a run: the next epoch and the next step within it, and the best epoch on val so far."""

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = -1
    seconds: float = 0.0


def collect_state(context: StepContext, average: MovingAverage | None) -> dict[str, Any]:
    """The state of optimizer, objective, moving average and random numbers; every process must call this."""
    fabric, objective = context.fabric, context.objective
    cuda = fabric.device.type == "cuda"
    return {
        "optimizer": sharding.whole(context.optimizer.state_dict()),
        "objective": objective.state_dict() if isinstance(objective, nn.Module) else {},
        "average": average.state_dict() if average else {},
        "precision": fabric.strategy.precision.state_dict(),
        "rng": _gather(fabric, torch.get_rng_state()),
        "rng_cuda": _gather(fabric, torch.cuda.get_rng_state(fabric.device)) if cuda else None,
    }


def _gather(fabric: Any, state: Tensor) -> Tensor:
    """The random state of every process, one row each."""
    if fabric.world_size == 1:
        return state[None]
    local = state.to(fabric.device)
    rows = [torch.empty_like(local) for _ in range(fabric.world_size)]
    dist.all_gather(rows, local)
    return torch.stack(rows).cpu()


def _own(states: Tensor, fabric: Any) -> Tensor:
    """The random state of this process; more processes than before take turns. PyTorch needs one that is no view."""
    return states[fabric.global_rank % len(states)].clone()


def trained_on(checkpoint: Checkpoint) -> dict[str, str]:
    """The kind of device that a checkpoint was written on, and its settings if it has them."""
    device = "cpu" if checkpoint.state["rng_cuda"] is None else "cuda"
    return {"device": device, **checkpoint.state.get("settings", {})}


def settings(recipe: Recipe) -> dict[str, str]:
    """What the numbers of a step depend on, beside the device."""
    return {"precision": recipe.precision, "memory_format": recipe.memory_format}


def change_of_device(before: Mapping[str, str], device: str, recipe: Recipe, step: int) -> dict[str, Any]:
    """The record that steps from this one on are computed on another kind of device than those before.

    Args:
        before: what `trained_on` returned.
    """
    old = {f"{key}_before": value for key, value in before.items() if key != "device"}
    now = {"device": device, **settings(recipe)}
    return {"kind": "device", "step": step, "before": before["device"], **old, **now}


def restore_state(
    checkpoint: Checkpoint, net: nn.Module, context: StepContext, average: MovingAverage | None, steps: int
) -> None:
    """Restore weights and everything of `collect_state`; random numbers last.

    Args:
        steps: of an epoch.
    Raises:
        ValueError: if the checkpoint is of another network, or of epochs of another length.
    """
    fabric, objective, state = context.fabric, context.objective, checkpoint.state
    if state.get("steps", steps) != steps:
        raise with_parameters(
            ValueError(
                f"{checkpoint.path} is of epochs of {state['steps']} steps, and {fabric.world_size} process(es) make "
                f"{steps} of the same data, because a batch that leaves a process one sample is dropped: continue with "
                "the number of devices that the run had"
            ),
            "devices",
        )
    try:
        local = net.state_dict()
        net.load_state_dict({name: sharding.like(value, local.get(name)) for name, value in checkpoint.weights.items()})
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"{checkpoint.path} does not fit the network, which was another one then: {why}") from None
    optim.restore(context.optimizer, state["optimizer"])
    if state.get("precision"):
        fabric.strategy.precision.load_state_dict(state["precision"])
    if isinstance(objective, nn.Module):
        objective.load_state_dict(state["objective"])
    if average:
        average.restore(state["average"])
    torch.set_rng_state(_own(state["rng"], fabric))
    if state["rng_cuda"] is not None and fabric.device.type == "cuda":
        torch.cuda.set_rng_state(_own(state["rng_cuda"], fabric), fabric.device)
