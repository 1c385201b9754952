"""The forward-mode product of `_look_ahead`, faster than by PyTorch's own rules.

Batch norms are differentiated by whole kernels; convolutions that were computed before at the same parameters are
taken from their record.
"""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Tensors = dict[str, Tensor]


class RecordedConvolutions(TorchFunctionMode):
    """Records results of convolutions, in order, for `product`; none under autocast, which rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Kept] = []

    def __torch_function__(
        self, called: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function."""
        result = called(*args, **(kwargs or {}))
        if _is_convolution(called, args):
            detached = result.detach()
            self.kept.append(Kept(args[1].data_ptr(), detached, detached._version))
        return result


class Kept(NamedTuple):
    """A recorded convolution: address of its weight, result, and the result's version, which a change raises."""

    weight: int
    result: Tensor
    version: int


def _is_convolution(called: Any, args: tuple[Any, ...]) -> bool:
    """Whether a call is a convolution in full precision with positional maps and weights."""
    return called is F.conv2d and len(args) > 1 and not torch.is_autocast_enabled(args[1].device.type)


def product(
    losses: Callable[[Tensors], Float[Tensor, "..."]],
    parameters: Tensors,
    direction: Tensors,
    convolved: RecordedConvolutions | None = None,
) -> Float[Tensor, "..."]:
    """Derivative of all `losses` of this process at these parameters in a direction: one forward-mode product.

    Args:
        convolved: recorded when the same losses were computed at the same parameters; emptied here.
    Raises:
        ValueError: if no loss seems to depend on the parameters.
    """
    device = next(iter(parameters.values())).device.type
    with warnings.catch_warnings(), torch.autocast(device, enabled=False), torch.no_grad(), forward_ad.dual_level():
        # torch scripts its own rules on first use, with a function that torch itself deprecates
        warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated", DeprecationWarning)
        dual = {name: _dual(tensor.detach(), direction[name]) for name, tensor in parameters.items()}
        with _Forwards(convolved.kept if convolved else []):
            _, tangents = _parts(losses(dual))
    if tangents is None:
        raise ValueError("the network cannot look ahead: a function within it has no forward-mode derivative")
    return tangents


def _dual(value: Tensor, along: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(value, along)  # type: ignore[no-untyped-call]
    return dual


def _parts(dual: Tensor) -> tuple[Tensor, Tensor | None]:
    """A tensor's value, and its derivative if it has one."""
    value, along = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
    return value, along


class _Forwards(TorchFunctionMode):
    """Faster forward-mode rules than PyTorch's own.

    Batch norms on statistics of the batch are differentiated by whole kernels, where PyTorch's rule takes a dozen
    passes over the maps; their running statistics do not change. Recorded convolutions are not computed again, up to
    the first that differs from its record.
    """

    def __init__(self, convolved: list[Kept]) -> None:
        super().__init__()
        self.convolved = convolved
        self.convolved.reverse()

    def __torch_function__(
        self, called: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, or its faster rule."""
        result = None
        if called is F.batch_norm:
            bound = _BATCH_NORM.bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            norm = [bound.arguments[name] for name in ("input", "weight", "bias", "eps")]
            if bound.arguments["training"] and all(part is not None for part in norm):
                result = _batch_norm(*norm)
        elif self.convolved and _is_convolution(called, args):
            kept = self.convolved.pop()
            if kept.weight == args[1].data_ptr():
                result = _convolution(kept, *args, **(kwargs or {}))
            else:
                self.convolved.clear()
        return called(*args, **(kwargs or {})) if result is None else result


_BATCH_NORM = inspect.signature(F.batch_norm)


def _batch_norm(maps: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """y = g xhat + b on statistics of the batch, (B, D, ...).

    dy = a (dx - mean dx - xhat mean(xhat dx)) + xhat dg + db with a = g / deviation: the means are what the kernel of
    the backward pass finds, and all but a dx is a batch norm with other weights.
    """
    (maps, along), (weight, turning), (bias, shifting) = _parts(maps), _parts(weight), _parts(bias)
    result, mean, inverse = torch.native_batch_norm(maps, weight, bias, None, None, True, 0.0, eps)
    turning = torch.zeros_like(weight) if turning is None else turning
    shifting = torch.zeros_like(bias) if shifting is None else shifting
    steep = weight * inverse
    if along is not None:
        _, turned, shifted = torch.ops.aten.native_batch_norm_backward(
            along, maps, weight, None, None, mean, inverse, True, eps, (False, True, True)
        )
        share = steep / (maps.numel() // maps.shape[1])
        turning, shifting = turning - share * turned, shifting - share * shifted
    tangent = torch.native_batch_norm(maps, turning, shifting, mean, inverse.pow(-2) - eps, False, 0.0, eps)[0]
    return _dual(result, tangent if along is None else tangent.addcmul_(along, steep.view(-1, *[1] * (maps.dim() - 2))))


def _convolution(
    kept: Kept, maps: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any, **named: Any
) -> Tensor:
    """A convolution whose result was recorded, unless it was changed since."""
    (maps, along), (weight, turning) = _parts(maps), _parts(weight)
    bias, shifting = (None, None) if bias is None else _parts(bias)
    usable = kept.result._version == kept.version
    result = kept.result if usable else F.conv2d(maps, weight, bias, *how, **named)
    moves = [F.conv2d(along, weight, None, *how, **named)] if along is not None else []
    moves += [F.conv2d(maps, turning, None, *how, **named)] if turning is not None else []
    if not moves and shifting is None:
        return result
    tangent = moves[0] if moves else torch.zeros_like(result)
    tangent = tangent.add_(moves[1]) if len(moves) == 2 else tangent
    return _dual(result, tangent if shifting is None else tangent.add_(shifting[:, None, None]))
