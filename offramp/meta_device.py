"""Modules run with other tensors than their own: on the meta device, shapes and costs without computing anything."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from offramp.lookup import with_parameters
from offramp.outputs import State

Shape = tuple[int, ...]


def run_on_meta(module: nn.Module, *args: Any, training: bool = False, whole: bool = False, **kwargs: Any) -> Any:
    """Output of the module for arguments on the meta device, in evaluation mode unless `training`.

    The module itself is left as it is: no weight is moved or copied; modes, buffers and attributes stay.

    Args:
        whole: run batch norms and activations as well, for those who count their operations.
    Raises:
        ValueError: if the module holds one that was compiled by `torch.jit.script`, whose weights cannot be replaced.
    """
    refuse_scripted(module)
    with restored(module), torch.no_grad():
        module.train(training)
        for part in [] if whole or training else _shape_keeping(module):
            part.forward = partial(_like_inputs, part)
        _replace_by_meta(module)
        return module(*args, **kwargs)


_remembered: ContextVar[dict[Any, Any] | None] = ContextVar("_remembered", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Within, `remembered` computes a result once; for code that does not change the modules that it asks about."""
    token = _remembered.set({})
    try:
        yield
    finally:
        _remembered.reset(token)


def remembered(key: Any, compute: Callable[[], Any]) -> Any:
    """The result of `compute`, or within `remembering` that of the first call with this key."""
    results = _remembered.get()
    if results is None:
        return compute()
    if key not in results:
        results[key] = compute()
    return results[key]


class TooLarge(Exception):
    """A network has more parameters than it may have."""


@contextmanager
def at_most(values: int, tensors: int) -> Iterator[None]:
    """Within, modules are built on the meta device, and no more of them than have this many parameters.

    Args:
        values: of all parameters; tensors: how many parameters.
    Raises:
        TooLarge: at the end, if one more was registered; nothing is built after that.
    """
    left = [values, tensors]

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        if parameter is not None:
            left[0] -= parameter.numel()
            left[1] -= 1
            if min(left) < 0:
                raise TooLarge

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    finally:
        hook.remove()
        if min(left) < 0:
            raise TooLarge


def refuse_scripted(module: nn.Module) -> None:
    """Refuse a module that is, or holds, one compiled by `torch.jit.script` or `torch.jit.trace`.

    Raises:
        ValueError: naming it.
    """
    for prefix, part in _named_modules(module):
        if isinstance(part, torch.jit.ScriptModule):
            what = f"its layer {prefix[:-1]}" if prefix else "it"
            raise ValueError(
                f"{type(module).__name__} cannot be examined: {what} was compiled by torch.jit; build the network with "
                "the module as it was before torch.jit.script or torch.jit.trace"
            )


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Within, code may change a module's modes, attributes, hooks and registered tensors; afterwards all are restored.

    The values of parameters and buffers that are changed in place are not.
    """
    attributes = [(vars(part), dict(vars(part))) for _, part in _named_modules(module)]
    tables = [(table, dict(table)) for _, before in attributes for table in before.values() if type(table) in _TABLES]
    parameters = [tensor for _, before in attributes for tensor in before["_parameters"].values() if tensor is not None]
    trained = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        yield
    finally:
        for present, before in (*attributes, *tables):
            if present or before:
                present.clear()
                present.update(before)
        for parameter, requires_grad in trained:
            parameter.requires_grad = requires_grad


_TABLES = frozenset((dict, OrderedDict))


def _named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `module.named_modules()`, with a full stop behind every name but the first, in a fraction of the time."""
    named: dict[int, tuple[str, nn.Module]] = {}

    def visit(prefix: str, part: nn.Module) -> None:
        if id(part) not in named:
            named[id(part)] = (prefix, part)
            for name, child in part._modules.items():
                if child is not None:
                    visit(f"{prefix}{name}.", child)

    visit("", module)
    return iter(named.values())


def run_with(module: nn.Module, tensors: Mapping[str, Tensor | None], *args: Any, **kwargs: Any) -> Any:
    """Output of the module with these tensors, by name, in the place of its parameters and buffers; None for none.

    As `torch.func.functional_call`, which leaves its tensors in modules that have two names (PyTorch issue 164759).
    """
    twins = {
        id(tensor): tensors[prefix + name]
        for prefix, part in _named_modules(module)
        for group in (part._parameters, part._buffers)
        for name, tensor in group.items()
        if prefix + name in tensors
    }
    with restored(module):
        _replace(module, lambda tensor: twins.get(id(tensor), tensor))
        return module(*args, **kwargs)


def _replace_by_meta(module: nn.Module) -> None:
    """Put a tensor on the meta device in the place of every tensor; one that has several names stays one."""
    twins: dict[int, Tensor] = {}

    def twin(tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        if id(tensor) not in twins:
            twins[id(tensor)] = torch.empty_like(tensor, device="meta").detach()
        return twins[id(tensor)]

    _replace(module, twin)


def _replace(module: nn.Module, twin: Callable[[Tensor], Tensor | None]) -> None:
    """Put another tensor in the place of every parameter, buffer and tensor attribute."""
    for _, part in _named_modules(module):
        for group in (part._parameters, part._buffers):
            group.update({name: None if tensor is None else twin(tensor) for name, tensor in group.items()})  # type: ignore[misc]
        for key, value in vars(part).items():
            if isinstance(value, Tensor) and value.dim():
                vars(part)[key] = twin(value)
            elif type(value) is list and any(isinstance(each, Tensor) for each in value):  # recurrent layers' weights
                vars(part)[key] = [twin(each) if isinstance(each, Tensor) else each for each in value]


_SHAPE_KEEPING = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm),
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid),
)


def _shape_keeping(module: nn.Module) -> list[nn.Module]:
    """PyTorch's own norms and activations in it, as they are: one that was changed or derived may do more."""
    return [part for _, part in _named_modules(module) if type(part) in _SHAPE_KEEPING and "forward" not in vars(part)]


def _like_inputs(part: nn.Module, inputs: Tensor) -> Tensor:
    """Output of such a layer on the meta device; PyTorch's own, in Python, take most of a network's time."""
    if not _fits(part, inputs):
        return type(part).forward(part, inputs)  # type: ignore[no-any-return]  # which may say what is wrong
    return inputs if getattr(part, "inplace", False) else torch.empty_like(inputs)


def _fits(part: nn.Module, inputs: Tensor) -> bool:
    """Whether the layer takes the input, and returns one of the same type and strides."""
    if isinstance(part, _BatchNorm):
        part._check_input_dim(inputs)  # type: ignore[no-untyped-call]
        return inputs.dim() > 1 and inputs.shape[1] == part.num_features and part.running_mean is not None
    if isinstance(part, nn.LayerNorm):
        sizes = part.normalized_shape
        same_type = all(each.dtype == inputs.dtype for each in part.parameters())
        return inputs.shape[-len(sizes) :] == sizes and inputs.is_contiguous() and same_type
    return True


def blank(module: nn.Module, shape: tuple[int, int, int], batch: int = 1) -> Tensor:
    """An input (batch, channels, height, width) on the meta device, in the precision of the module's weights."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return torch.empty((batch, *shape), dtype=dtype, device="meta")


def check_input(module: nn.Module, shape: tuple[int, int, int]) -> None:
    """Refuse inputs (channels, height, width) that the module cannot take.

    Raises:
        ValueError: with PyTorch's reason, and the smallest square inputs that fit where larger ones do.
    """
    reason = _refusal(module, shape)
    if reason is not None:
        raise ValueError(f"inputs of {written(shape)} do not fit the network: {reason}{smallest(module, shape)}")


def check_single(module: nn.Module, shape: tuple[int, int, int]) -> None:
    """Refuse to train on batches of one sample where a batch norm would see one value per channel.

    Raises:
        ValueError: naming the option.
    """
    try:
        run_on_meta(module, blank(module, shape), training=True)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise with_parameters(
            ValueError(
                "a batch norm of this network cannot train on a single sample: raise batch_size to 2 or more per device"
            ),
            "batch_size",
        ) from None


def smallest(module: nn.Module, shape: tuple[int, int, int]) -> str:
    """The end of a sentence about inputs that do not fit: the smallest square that does, if any up to 1024 does."""
    channels, side = shape[0], max(shape[1:])
    while side < 1024 and _refusal(module, (channels, side, side)):
        side *= 2
    if _refusal(module, (channels, side, side)):
        return ""
    low, high = min(shape[1:]), side  # `low` is refused or not square, `high` fits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _refusal(module, (channels, middle, middle)) else (low, middle)
    return f"; the smallest that fit are {written((channels, high, high))}"


def _refusal(module: nn.Module, shape: tuple[int, int, int]) -> str | None:
    """The first line of PyTorch's error for inputs of this shape, None if they fit."""
    try:
        run_on_meta(module, blank(module, shape))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def shape_of(state: State) -> Shape | tuple[Shape, ...]:
    """The shape of a state without its batch; of a tuple of tensors, the tuple of their shapes."""
    if isinstance(state, Tensor):
        return tuple(state.shape[1:])
    return tuple(tuple(tensor.shape[1:]) for tensor in state)


def written(shape: Shape | tuple[Shape, ...]) -> str:
    """A shape for a person: 64×8×8, and (64×8×8, 128×4×4) for a tuple of tensors."""
    if any(isinstance(size, tuple) for size in shape):
        return f"({', '.join('×'.join(map(str, part)) for part in shape if isinstance(part, tuple))})"
    return "×".join(map(str, shape))
