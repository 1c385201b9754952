"""Looking one step ahead: how a loss after the next step depends on the weights of the losses that make the step.

The step ahead is affine in the weights, theta' = theta - xi sum_m w_m grad l_m(theta) (+ what does not depend on w), so

    dL(theta') / dw_m = -xi <grad L(theta'), grad l_m(theta)>,

and all of them together are ONE forward-mode product of the vector l with the direction -xi grad L(theta'): no second
derivative is needed. It equals double backward exactly, batch norms, dropout and reshaped gradients included, as long
as the product sees the batch, the mode and the random numbers of the step. No pass here touches running statistics.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from offramp.losses.across import global_mean, processes
from offramp.net import Tap
from offramp.outputs import ExitOutputs, State

Tensors = dict[str, Tensor]
Dice = tuple[Tensor, Tensor | None]


def trained(net: nn.Module) -> Tensors:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}


def gradients(loss: Float[Tensor, ""], parameters: Tensors) -> Tensors:
    """Gradient of the loss by parameter, averaged over all processes."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    if processes() > 1:  # a mean over one would copy every parameter
        found = tuple(global_mean(gradient) for gradient in found)
    return dict(zip(parameters, found, strict=True))


def plain_step(parameters: Tensors, gradient: Tensors, rate: float) -> tuple[Tensors, dict[str, float]]:
    """theta' = theta - rate g, as leaves; and by parameter how far it moves per unit of gradient."""
    ahead = {name: tensor.detach() - rate * gradient[name] for name, tensor in parameters.items()}
    return _leaves(ahead), dict.fromkeys(parameters, rate)


def own_step(
    parameters: Tensors, gradient: Tensors, optimizer: torch.optim.Optimizer, rate: float, *, nesterov: bool = True
) -> tuple[Tensors, dict[str, float]]:
    """theta' by the optimiser's own momentum and weight decay, which it keeps as they are; answers as `plain_step`.

    Args:
        rate: of the step.
        nesterov: follow Nesterov's form where the optimiser does.
    Raises:
        ValueError: if the optimiser is not SGD.
    """
    ahead, reach = {}, {}
    groups = {id(part): group for group in optimizer.param_groups for part in group["params"]}
    for name, part in parameters.items():
        group = groups[id(part)]
        if "momentum" not in group:
            raise ValueError("a look-ahead by the optimiser's own step is made for sgd: take --optimizer sgd")
        here, momentum = part.detach(), group["momentum"]
        moved = gradient[name] + group["weight_decay"] * here
        kept = optimizer.state[part].get("momentum_buffer") if part in optimizer.state else None
        running = moved if kept is None else momentum * kept + moved
        twice = nesterov and group["nesterov"]
        ahead[name] = here - rate * (moved + momentum * running if twice else running)
        reach[name] = rate * (1.0 + momentum if twice else 1.0)
    return _leaves(ahead), reach


def _leaves(tensors: Tensors) -> Tensors:
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def answer(net: nn.Module, parameters: Tensors, inputs: State, tap: Tap) -> ExitOutputs:
    """What the network answers with these parameters; its own parameters and running statistics stay as they are."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    outputs: ExitOutputs = functional_call(net, (parameters, buffers), (inputs,), {"tap": tap})
    return outputs


def product(
    losses: Callable[[Tensors], Float[Tensor, "..."]], parameters: Tensors, direction: Tensors
) -> Float[Tensor, "..."]:
    """Derivative of all `losses` of this process at these parameters in a direction: one forward-mode product."""
    here = {name: tensor.detach() for name, tensor in parameters.items()}
    device = next(iter(here.values())).device.type
    with warnings.catch_warnings(), torch.autocast(device, enabled=False):
        # torch scripts its own rules on first use, with a function that torch itself deprecates
        warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated", DeprecationWarning)
        with _NormsAtOnce():
            tangent: Tensor = torch.func.jvp(losses, (here,), (direction,))[1]
    return tangent


class _NormsAtOnce(TorchFunctionMode):
    """Within, batch norms on statistics of the batch are differentiated forwards by whole kernels.

    PyTorch's own rule takes a dozen passes over the maps, a third of the product's time in `benchmarks/hdkd.py`. No
    running statistics are kept: nobody would look at them.
    """

    def __torch_function__(
        self, called: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, or what stands for it."""
        if called is F.batch_norm:
            given = _BATCH_NORM.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            if given.arguments["training"] and given.arguments["weight"] is not None:
                return _NormAtOnce.apply(*(given.arguments[name] for name in ("input", "weight", "bias", "eps")))[0]  # type: ignore[no-untyped-call]
        return called(*args, **(kwargs or {}))


_BATCH_NORM = inspect.signature(F.batch_norm)


class _NormAtOnce(torch.autograd.Function):
    """Batch norm y = g xhat + b; its derivative in a direction.

    dy = J dx + xhat dg + db, where J = g/s (1 - 11'/N - xhat xhat'/N) is its own transpose: J dx is what the kernel of
    the backward pass makes of dx, the rest a batch norm with dg and db for g and b.
    """

    @staticmethod
    def forward(maps: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D, ...), (D,), (D,) -> the answer, the batch's means and inverse deviations."""
        return torch.native_batch_norm(maps, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """What the derivative needs."""
        maps, weight, _, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_forward(maps, weight, *output[1:])

    @staticmethod
    def jvp(ctx: Any, along: Tensor, weight_along: Tensor, bias_along: Tensor, _: None) -> tuple[Tensor, None, None]:
        """The derivative in a direction of the maps, the weight and the bias."""
        maps, weight, mean, inverse = ctx.saved_tensors
        mask = (True, False, False)
        through: Tensor = torch.ops.aten.native_batch_norm_backward(
            along, maps, weight, None, None, mean, inverse, True, ctx.eps, mask
        )[0]
        variance = inverse.pow(-2) - ctx.eps
        rest = torch.native_batch_norm(maps, weight_along, bias_along, mean, variance, False, 0.0, ctx.eps)[0]
        return through.add_(rest), None, None


def along(gradient: Tensors, reach: dict[str, float]) -> Tensors:
    """The direction -xi grad L, with each parameter's own xi."""
    return {name: -reach[name] * part for name, part in gradient.items()}


def dice(device: torch.device) -> Dice:
    """The state of the random numbers, to be thrown again."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def thrown_again(state: Dice, device: torch.device) -> Iterator[None]:
    """Within, random numbers (dropout's) repeat from this state; afterwards they go on as if nothing had been drawn."""
    now = dice(device)
    _set(state, device)
    try:
        yield
    finally:
        _set(now, device)


def _set(state: Dice, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def batch_norms(net: nn.Module, *, running: bool) -> Iterator[None]:
    """Within, batch norms use their running statistics if `running`, else what the network's mode says."""
    parts = [part for part in net.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training]
    for part in parts if running else ():
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True
