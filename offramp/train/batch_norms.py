"""Batch norms whose statistics are those of the batches of all processes together, on CPUs and GPUs alike.

PyTorch's `SyncBatchNorm` runs on GPUs alone, and replaces modules. Here the function that all batch norms call is
replaced while a step is taken, so that names of weights, copies of the network and external models stay as they are.
"""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from offramp.losses.distributed import processes

_SIGNATURE = inspect.signature(F.batch_norm)


def over_all_processes(wanted: bool) -> AbstractContextManager[Any]:
    """In this context batch norms in training mode use the statistics of all processes' batches, if `wanted`."""
    return _Synchronised() if wanted and processes() > 1 else nullcontext()


class _Synchronised(TorchFunctionMode):
    def __torch_function__(
        self, called: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, or for a batch norm that trains its synchronised form."""
        if called is F.batch_norm:
            call = _SIGNATURE.bind(*args, **(kwargs or {}))
            call.apply_defaults()
            if call.arguments["training"]:
                return batch_norm(**{name: value for name, value in call.arguments.items() if name != "training"})
        return called(*args, **(kwargs or {}))


def batch_norm(
    input: Float[Tensor, "B D ..."],
    running_mean: Float[Tensor, "_"] | None,
    running_var: Float[Tensor, "_"] | None,
    weight: Float[Tensor, "_"] | None,
    bias: Float[Tensor, "_"] | None,
    momentum: float,
    eps: float,
) -> Float[Tensor, "B D ..."]:
    """`torch.nn.functional.batch_norm` in training mode, on the statistics of all processes; one exchange each way.

    The gradient is that of the mean over the processes of their losses, once gradients of weights are averaged.
    """
    with torch.no_grad():
        mean, variance, count = _statistics(input)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * count / (count - 1)).to(running_var.dtype), momentum)
    scale = torch.ones_like(mean) if weight is None else weight
    shift = torch.zeros_like(mean) if bias is None else bias
    normalised: Tensor = _Normalise.apply(input, scale, shift, mean, variance, count, eps)  # type: ignore[no-untyped-call]
    return normalised


def _statistics(
    maps: Float[Tensor, "B D ..."],
) -> tuple[Float[Tensor, "_"], Float[Tensor, "_"], Float[Tensor, ""]]:
    """Mean and variance of every channel over all processes, and the number of values; shares may differ in size."""
    maps = maps if maps.dtype == torch.float64 else maps.float()
    variance, mean = torch.var_mean(maps, [axis for axis in range(maps.dim()) if axis != 1], correction=0)
    share = torch.cat([mean, variance, mean.new_tensor([maps.numel() // maps.shape[1]])])
    shares = [torch.empty_like(share) for _ in range(processes())]
    dist.all_gather(shares, share)
    table, width = torch.stack(shares), len(mean)
    means, variances, counts = table[:, :width], table[:, width:-1], table[:, -1:]
    count = counts.sum()
    together = (counts * means).sum(0) / count
    return together, (counts * (variances + (means - together).square())).sum(0) / count, count


class _Normalise(torch.autograd.Function):
    """y = g (x - mean) / deviation + b, where mean and deviation depend on the x of all processes."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, *about: Any) -> Tensor:
        """Normalise by statistics (mean, variance, count, eps) of all processes."""
        mean, variance, count, eps = about
        ctx.save_for_backward(maps, weight, mean, variance, count)
        ctx.eps = eps
        return torch.native_batch_norm(maps, weight, bias, mean, variance, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """dx = a (dy - mean dy - xhat mean(xhat dy)) with a = g / deviation, means over all processes."""
        maps, weight, mean, variance, count = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        moved, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(  # a GPU needs mean and inverse, too
            gradients[0], maps, weight, mean, variance, mean, inverse, False, ctx.eps, (True, True, True)
        )
        sums = torch.stack([by_weight, by_bias])
        dist.all_reduce(sums)
        steep = weight * inverse
        slope = steep * inverse * sums[0] / count
        shape = (-1, *[1] * (maps.dim() - 2))
        offset = steep * sums[1] / count - slope * mean
        moved = moved - (maps * slope.view(shape) + offset.view(shape)).to(moved.dtype)
        return moved, by_weight, by_bias, None, None, None, None
