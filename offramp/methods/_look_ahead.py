"""Looking one step ahead: how a loss after the next step depends on the weights of the losses that make the step.

The step ahead is affine in the weights, theta' = theta - xi sum_m w_m grad l_m(theta) (+ what does not depend on w), so

    dL(theta') / dw_m = -xi <grad L(theta'), grad l_m(theta)>,

and all of them together are ONE forward-mode product of the vector l with the direction -xi grad L(theta'): no second
derivative is needed. It equals double backward exactly, batch norms, dropout and reshaped gradients included, as long
as the product sees the batch, the mode and the random numbers of the step. No pass here touches running statistics.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

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
        tangent: Tensor = torch.func.jvp(losses, (here,), (direction,))[1]
    return tangent


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
