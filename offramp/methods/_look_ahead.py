"""Looking one step ahead: how a loss after the next step depends on the weights of the losses that make the step.

The step ahead is affine in the weights, theta' = theta - xi sum_m w_m grad l_m(theta) (+ what does not depend on w), so

    dL(theta') / dw_m = -xi <grad L(theta'), grad l_m(theta)>,

and all of them together are ONE forward-mode product of the vector l with the direction -xi grad L(theta'): no second
derivative is needed. It equals double backward exactly, batch norms, dropout and reshaped gradients included, as long
as the product sees the batch, the mode and the random numbers of the step. No pass here touches running statistics.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from offramp.lookup import with_parameters
from offramp.losses.distributed import global_mean, processes
from offramp.meta_device import run_with
from offramp.net import Tap
from offramp.outputs import ExitOutputs, State
from offramp.running_statistics import KEPT
from offramp.running_statistics import batch_norms as norms_of

Tensors = dict[str, Tensor]
Rates = dict[str, float]
RngState = tuple[Tensor, Tensor | None]


def trained(net: nn.Module) -> Tensors:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}


def gradients(loss: Float[Tensor, ""], parameters: Tensors) -> Tensors:
    """Gradient of the loss by parameter, averaged over all processes."""
    by_parameter = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    if processes() > 1:  # a mean over one would copy every parameter
        by_parameter = tuple(global_mean(gradient) for gradient in by_parameter)
    return dict(zip(parameters, by_parameter, strict=True))


def rates(parameters: Tensors, optimizer: torch.optim.Optimizer, *, initial: bool = False) -> Rates:
    """By parameter the learning rate of its group: that of now, or that of the start of the run."""
    start = optimizer.defaults["lr"]
    by_part = {
        id(part): start * group.get("factor", 1.0) if initial else group["lr"]
        for group in optimizer.param_groups
        for part in group["params"]
    }
    return {name: by_part[id(part)] for name, part in parameters.items()}


def plain_step(parameters: Tensors, gradient: Tensors, rates: Rates) -> tuple[Tensors, Rates]:
    """theta' = theta - rate g, as leaves; and by parameter how far it moves per unit of gradient."""
    here = [tensor.detach() for tensor in parameters.values()]
    moves = torch._foreach_mul([gradient[name] for name in parameters], [rates[name] for name in parameters])
    return _leaves(parameters, torch._foreach_sub(here, moves)), rates


def own_step(
    parameters: Tensors, gradient: Tensors, optimizer: torch.optim.Optimizer, rates: Rates, *, nesterov: bool = True
) -> tuple[Tensors, Rates]:
    """theta' by the optimizer's own momentum and weight decay, which do not change; returns what `plain_step` returns.

    Args:
        rates: of the step, by parameter.
        nesterov: use Nesterov momentum if the optimizer does.
    Raises:
        ValueError: if the optimizer is not SGD, or has dampening or maximizes.
    """
    groups = {id(part): group for group in optimizer.param_groups for part in group["params"]}
    momenta, decays, twice = [], [], []
    for part in parameters.values():
        group = groups[id(part)]
        if "momentum" not in group:
            raise with_parameters(
                ValueError("a look-ahead by the optimizer's own step needs SGD: use optimizer=sgd"), "optimizer"
            )
        if group.get("dampening") or group.get("maximize"):
            raise ValueError("a look-ahead by the optimizer's own step needs SGD without dampening and maximize")
        momenta.append(float(group["momentum"]))
        decays.append(group["weight_decay"])
        twice.append(nesterov and group["nesterov"])
    here = [part.detach() for part in parameters.values()]
    moved = torch._foreach_add([gradient[name] for name in parameters], torch._foreach_mul(here, decays))
    steps = _with_momentum(moved, [optimizer.state.get(part, {}) for part in parameters.values()], momenta, twice)
    lengths = [rates[name] for name in parameters]
    following = torch._foreach_sub(here, torch._foreach_mul(steps, lengths))
    reaches = [rate * (1.0 + momentum if more else 1.0) for rate, momentum, more in zip(lengths, momenta, twice)]
    return _leaves(parameters, following), dict(zip(parameters, reaches, strict=True))


def _with_momentum(
    moved: Sequence[Tensor], states: Sequence[Mapping[str, Any]], momenta: Sequence[float], twice: Sequence[bool]
) -> list[Tensor]:
    """What SGD subtracts, times the rate, for gradients with weight decay; buffers do not change."""
    running = list(moved)
    begun = [place for place, state in enumerate(states) if state.get("momentum_buffer") is not None]
    if begun:
        kept = [states[place]["momentum_buffer"] for place in begun]
        carried = torch._foreach_mul(kept, [momenta[place] for place in begun])
        for place, tensor in zip(begun, torch._foreach_add(carried, [moved[place] for place in begun]), strict=True):
            running[place] = tensor
    if not any(twice):
        return running
    ahead = torch._foreach_add(list(moved), torch._foreach_mul(running, list(momenta)))
    return [further if more else tensor for further, tensor, more in zip(ahead, running, twice, strict=True)]


def _leaves(parameters: Tensors, tensors: Sequence[Tensor]) -> Tensors:
    """The tensors by name of parameter, as leaves."""
    return {name: tensor.requires_grad_() for name, tensor in zip(parameters, tensors, strict=True)}


def outputs_with(net: nn.Module, parameters: Tensors, inputs: State, tap: Tap) -> ExitOutputs:
    """Outputs of the network with these parameters; its own parameters and running statistics do not change."""
    buffers = _kept_buffers(net)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative, and other random numbers
        outputs: ExitOutputs = run_with(net, {**parameters, **buffers}, inputs, tap=tap)
    return outputs


def _kept_buffers(net: nn.Module) -> dict[str, Tensor | None]:
    """What takes the place of the network's buffers, so that they do not change.

    Without running statistics, a batch norm in training mode computes the same; in evaluation mode it only reads them.
    """
    statistics = {
        f"{name}.{kept}": None if norm.training else getattr(norm, kept)
        for name, norm in norms_of(net).items()
        for kept in KEPT
    }
    return {name: statistics[name] if name in statistics else buffer.clone() for name, buffer in net.named_buffers()}


def along(gradient: Tensors, reach: Rates) -> Tensors:
    """The direction -xi grad L, with each parameter's own xi."""
    moves = torch._foreach_mul(list(gradient.values()), [-reach[name] for name in gradient])
    return dict(zip(gradient, moves, strict=True))


def rng_state(device: torch.device) -> RngState:
    """The state of the random number generators of the CPU and of a GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def with_rng_state(state: RngState, device: torch.device) -> Iterator[None]:
    """In this context random numbers (of dropout) are drawn from this state; the generators' own state is kept."""
    now = rng_state(device)
    _set(state, device)
    try:
        yield
    finally:
        _set(now, device)


def _set(state: RngState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def batch_norms(net: nn.Module, *, running: bool) -> Iterator[None]:
    """In this context batch norms use running statistics if `running`, else those that the network's mode implies."""
    parts = [part for part in net.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training]
    for part in parts if running else ():
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True
