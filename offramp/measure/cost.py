"""What every exit costs: operations by several conventions (each under its own name), parameters, milliseconds."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from offramp.lookup import unknown
from offramp.meta_device import blank, run_on_meta, smallest, written
from offramp.net import MultiExitNet
from offramp.protocols import is_chained

aten = torch.ops.aten
Image = tuple[int, int, int]
Formula = Callable[..., int]
Convention = Mapping[Any, Formula]


@dataclass(frozen=True)
class Pieces:
    """The cost of every stage and of every branch on its own, for one sample, in operations or milliseconds.

    `chained` marks branches that later exits need even where nobody leaves.
    """

    stages: tuple[Any, ...]
    branches: tuple[Any, ...]
    chained: tuple[bool, ...]


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: the plain network, each early exit's branch, and everything (shared ones once)."""

    main: int
    branches: tuple[int, ...]
    total: int


def macs(net: MultiExitNet, shape: Image) -> list[int]:
    """Multiply-adds of convolutions and linear layers of the trunk up to each exit plus its own branch, per sample.

    Of other branches only earlier ones are counted that it needs (chained ones); biases, norms, activations and
    pooling cost nothing.

    Args:
        shape: one input's (channels, height, width).
    """
    pieces = measure(net, shape)
    chained = [cost if needed else 0 for cost, needed in zip(pieces.branches, pieces.chained, strict=True)]
    costs = zip(accumulate(pieces.stages), accumulate(chained[:-1], initial=0), pieces.branches, strict=True)
    return [trunk + before + own for trunk, before, own in costs]


def macs_cumulative(net: MultiExitNet, shape: Image) -> list[int]:
    """As `macs`, with every earlier exit's branch: what a sample has cost when it reaches each exit, all enabled."""
    return _cumulative(measure(net, shape))


def segment_macs(net: MultiExitNet, shape: Image, enabled: Sequence[bool] | None = None) -> list[int]:
    """The multiply-adds of every segment as run: the stages since the last enabled exit and the exit's branch.

    One number per enabled exit, as `offramp.net.segments` makes them; branches of exits that are switched off are
    counted only where later exits need them (chained ones).

    Raises:
        ValueError: if the flags do not fit the network or the final exit is switched off.
    """
    return as_run(measure(net, shape), enabled)


def as_run(pieces: Pieces, enabled: Sequence[bool] | None = None) -> list[Any]:
    """The cost of every segment as run, put together from its pieces; one number per enabled exit.

    Raises:
        ValueError: if the flags do not fit the pieces or the final exit is switched off.
    """
    exits = len(pieces.stages)
    flags = [True] * exits if enabled is None else list(enabled)
    if len(flags) != exits or not flags[-1]:
        raise ValueError(f"`enabled` must hold {exits} flags with the last one true, got {flags}")
    costs, running = [], 0
    for on, chained, stage, branch in zip(flags, pieces.chained, pieces.stages, pieces.branches, strict=True):
        running += stage + (branch if on or chained else 0)
        if on:
            costs.append(running)
            running = 0
    return costs


def msdnet_ops(net: MultiExitNet, shape: Image) -> list[int]:
    """Operations as MSDNet's code counts them (Huang et al., ICLR 2018), with all earlier exits' branches.

    1 per multiply-add of convolutions and linear layers, 1 per bias of a linear layer, 1 per element of a ReLU, k²
    per output of a k×k pooling; batch norm costs nothing.
    """
    return _cumulative(pieces(net, shape, "msdnet_ops"))


def eed_flops(net: MultiExitNet, shape: Image) -> list[float]:
    """GFLOPs as Table III of Exit-Ensemble Distillation prints them: trunk up to each exit plus its own branch.

    Twice the giga-operations rounded to hundredths; an operation is a multiply-add of a convolution or linear layer,
    2 per element of a batch norm and 1 per element of an `nn.ReLU` inside an exit's branch (the authors' trunk calls
    ReLU as a function, which their counter does not see).
    """
    found = pieces(net, shape, "eed_flops")
    exits = zip(accumulate(found.stages), found.branches, strict=True)
    return [round(2 * round((trunk + own) / 1e9, 2), 2) for trunk, own in exits]


def parameters(net: MultiExitNet) -> Parameters:
    """The numbers of parameters of the plain network, of every early exit's branch, and of all."""

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for p in {p for module in modules for p in module.parameters()})

    *early, final = net.branches
    return Parameters(count(net.stages, final), tuple(map(count, early)), count(net))


def milliseconds(run: Callable[[Any], Any], inputs: Any, repeats: int = 20) -> float:
    """The median time of `run(inputs)` in milliseconds, after two calls to warm up; a GPU is waited for.

    Raises:
        ValueError: if repeats is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 2):
            _wait(inputs)
            start = time.perf_counter()
            run(inputs)
            _wait(inputs)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[2:])


def _wait(inputs: Any) -> None:
    if isinstance(inputs, Tensor) and inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)


def measure(
    net: MultiExitNet, shape: Image, convention: Convention | None = None, *, relu_modules: bool = False
) -> Pieces:
    """Cost of every stage and branch for one input of this shape, counted on the meta device.

    Args:
        shape: one input's (channels, height, width).
        convention: formulas that torch's counter uses besides its own, in half operations; none gives multiply-adds.
        relu_modules: count 1 per element of every `nn.ReLU` inside a branch as well.

    Raises:
        ValueError: if the network cannot take inputs of this shape.
    """
    stages, branches = [], []
    state: Any = blank(net, shape)
    carry: Any = ()
    for number, (stage, branch) in enumerate(zip(net.stages, net.branches, strict=True), 1):
        try:
            state, cost = _count(stage, convention, False, state)
            (_, _, _, carry), own = _count(branch, convention, relu_modules, state, carry)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            hint = smallest(net, shape)
            raise ValueError(
                f"inputs of {written(shape)} do not fit stage {number} or its exit: {reason}{hint}"
            ) from error
        stages.append(cost)
        branches.append(own)
    return Pieces(tuple(stages), tuple(branches), tuple(is_chained(branch) for branch in net.branches))


def pieces(net: MultiExitNet, shape: Image, convention: str = "macs") -> Pieces:
    """Operations of every stage and every branch on their own, by the name of a convention.

    Args:
        shape: one input's (channels, height, width).
        convention: `macs`, `msdnet_ops`, or `eed_flops` in single operations (half of what that paper prints); see the
            functions of these names. `as_run` puts the pieces together.

    Raises:
        ValueError: if the convention is unknown, or the network cannot take inputs of this shape.
    """
    conventions: dict[str, Convention] = {"macs": {}, "msdnet_ops": _MSDNET, "eed_flops": _EED}
    if convention not in conventions:
        raise unknown("convention", convention, conventions, listing="")
    return measure(net, shape, conventions[convention], relu_modules=convention == "eed_flops")


def _cumulative(pieces: Pieces) -> list[int]:
    return [trunk + own for trunk, own in zip(accumulate(pieces.stages), accumulate(pieces.branches), strict=True)]


def _count(module: nn.Module, convention: Convention | None, relu_modules: bool, *args: Any) -> tuple[Any, int]:
    """The module's answer on the meta device, and its cost; torch's counter counts a multiply-add as two."""
    elements: list[int] = []
    hooks = [
        part.register_forward_hook(lambda part, given, made: elements.append(made.numel()))
        for part in module.modules()
        if relu_modules and isinstance(part, nn.ReLU)
    ]
    counter = FlopCounterMode(display=False, custom_mapping=dict(convention or {}))
    try:
        with counter:
            answer = run_on_meta(module, *args, whole=bool(convention))
    finally:
        for hook in hooks:
            hook.remove()
    return answer, counter.get_total_flops() // 2 + sum(elements)


def _elements(each: int) -> Formula:
    return lambda given, *args, **kwargs: int(2 * each * prod(given))


def _linear_with_bias(bias: Any, left: Any, right: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return int(2 * (left[0] * left[1] * right[1] + prod(out_shape)))


def _window(given: Any, kernel: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    # max pooling answers (values, indices); a kernel written as one number is square
    sizes = list(kernel) if len(kernel) == 2 else [kernel[0]] * 2
    out = out_shape[0] if isinstance(out_shape[0], (tuple, list, torch.Size)) else out_shape
    return int(2 * prod(sizes) * prod(out))


def _whole_map(given: Any, *args: Any, **kwargs: Any) -> int:
    return int(2 * prod(given))


def _mean_over_space(given: Any, dims: Any = None, *args: Any, **kwargs: Any) -> int:
    over = sorted(dim % len(given) for dim in dims or ())
    return _whole_map(given) if len(given) == 4 and over == [2, 3] else 0


_MSDNET: Convention = {
    aten.addmm: _linear_with_bias,
    **dict.fromkeys((aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_), _elements(1)),
    **dict.fromkeys((aten.avg_pool2d, aten.max_pool2d_with_indices), _window),
    aten.mean: _mean_over_space,
    aten._adaptive_avg_pool2d: _whole_map,
}
_EED: Convention = dict.fromkeys(
    (aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm), _elements(2)
)
