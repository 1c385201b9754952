"""Weights, gradients and optimizer state divided over the processes (FSDP2), for networks too large for one device.

Files do not depend on it: a checkpoint holds whole tensors, so that a run may continue undivided, or by more processes.
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from offramp.methods._method import Method
from offramp.net import MultiExitNet
from offramp.train.recipe import Recipe


def why_not(method: Method, recipe: Recipe, net: nn.Module) -> str:
    """What of a run cannot be divided; nothing if it can."""
    objective = method.objective
    reasons = {
        "several networks side by side": not isinstance(net, MultiExitNet),
        "methods with steps of their own": method.step is not None or any(part.step for part in method.phases),
        "phases that freeze parts": method.freezes or recipe.tune != "all",
        "learned parts of a method": isinstance(objective, nn.Module) and any(True for _ in objective.parameters()),
        "a moving average, ema": recipe.ema > 0,
        "compile": recipe.compile,
        "precision=16": recipe.precision == "16",
    }
    return next((name for name, holds in reasons.items() if holds), "")


def strategy(processes: int) -> ModelParallelStrategy:
    """Fabric's strategy: every tensor divided over all processes."""
    return ModelParallelStrategy(shard, data_parallel_size=processes, tensor_parallel_size=1)


def shard(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Divide every block of a stage, every branch and what remains; each is whole only while it computes."""
    assert isinstance(net, MultiExitNet)
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # the only one that can be divided
    blocks = [block for stage in net.stages for block in (stage if isinstance(stage, nn.Sequential) else [stage])]
    warnings.filterwarnings(
        "ignore", r"FSDP2-wrapped module \(FSDP(Branch|MultiExitNet)\) returned a view"
    )  # not written to
    for part in (*(block for block in blocks if list(block.parameters())), *net.branches, net):
        fully_shard(part, mesh=mesh["data_parallel"], reshard_after_forward=True)
    return net


def is_sharded(net: nn.Module) -> bool:
    """Whether a network's weights are divided over the processes."""
    return any(isinstance(parameter, DTensor) for parameter in net.parameters())


def whole(state: Any) -> Any:
    """Nested dictionaries and lists with divided tensors made whole, on the host; every process must call this."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    return [whole(value) for value in state] if isinstance(state, list) else state


def like(value: Any, parameter: Tensor | None) -> Any:
    """A tensor of the parameter's shape as the parameter is: divided if it is, else laid out in memory as it is."""
    if parameter is None or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    if isinstance(parameter, DTensor):
        here = value.to(parameter.device_mesh.device_type)
        return distribute_tensor(here, parameter.device_mesh, parameter.placements, src_data_rank=None)
    if _laid_out_alike(value, parameter):
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _laid_out_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape have their elements in the same order in memory."""
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    return one.stride() == other.stride() or all(size == 1 or here == there for size, here, there in strides)


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def everywhere(flags: Tensor) -> Tensor:
    """Whether each flag is set in all processes."""
    least = flags.to(torch.uint8)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return least.bool()


def take_first_buffers(net: nn.Module) -> None:
    """Give every process the buffers of the first, batch statistics among them."""
    for buffer in net.buffers():
        dist.broadcast(buffer, 0)
