"""Costs of every exit: operations by several conventions (one name each), parameters, milliseconds."""

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
from offramp.measure.timing import finish
from offramp.meta_device import blank, remembered, run_on_meta, smallest, written
from offramp.net import MultiExitNet
from offramp.protocols import is_chained

aten = torch.ops.aten
ImageShape = tuple[int, int, int]
Formula = Callable[..., int]
Convention = Mapping[Any, Formula]


@dataclass(frozen=True)
class Pieces:
    """The cost of each stage and of each branch alone, for one sample, in operations or milliseconds.

    `chained` marks branches that later exits need even if their own exit is disabled.
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


def macs(net: MultiExitNet, shape: ImageShape) -> list[int]:
    """Multiply-adds of convolutions and linear layers of the backbone up to each exit and its own branch, per sample.

    Other branches count only if the exit needs them (chained ones). Biases, norms, activations and pooling do not
    count.

    Args:
        shape: one input's (channels, height, width).
    """
    return macs_of(measure(net, shape))


def macs_of(pieces: Pieces) -> list[int]:
    """`macs` from the costs of the network's parts."""
    chained = [cost if needed else 0 for cost, needed in zip(pieces.branches, pieces.chained, strict=True)]
    costs = zip(accumulate(pieces.stages), accumulate(chained[:-1], initial=0), pieces.branches, strict=True)
    return [trunk + before + branch_cost for trunk, before, branch_cost in costs]


def macs_cumulative(net: MultiExitNet, shape: ImageShape) -> list[int]:
    """As `macs`, with the branches of all earlier exits: the cost of a sample that takes each exit, all enabled."""
    return cumulative_of(measure(net, shape))


def segment_macs(net: MultiExitNet, shape: ImageShape, enabled: Sequence[bool] | None = None) -> list[int]:
    """The multiply-adds of every segment: the stages since the last enabled exit, and the exit's branch.

    One number per enabled exit, as in `offramp.net.segments`; branches of disabled exits count only if later exits
    need them (chained ones).

    Raises:
        ValueError: if the flags do not fit the network or the final exit is disabled.
    """
    return as_run(measure(net, shape), enabled)


def as_run(pieces: Pieces, enabled: Sequence[bool] | None = None) -> list[Any]:
    """The cost of every segment, from the costs of its parts; one number per enabled exit.

    Raises:
        ValueError: if the flags do not fit the pieces or the final exit is disabled.
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


def msdnet_ops(net: MultiExitNet, shape: ImageShape) -> list[int]:
    """Operations as MSDNet's code counts them (Huang et al., ICLR 2018), with all earlier exits' branches.

    1 per multiply-add of convolutions and linear layers, 1 per bias of a linear layer, 1 per element of a ReLU, k²
    per output of a k×k pooling; batch norm does not count.
    """
    return cumulative_of(pieces(net, shape, "msdnet_ops"))


def eed_flops(net: MultiExitNet, shape: ImageShape) -> list[float]:
    """GFLOPs as in Table III of Exit-Ensemble Distillation: the backbone up to each exit and its own branch.

    Twice the giga-operations rounded to hundredths; an operation is a multiply-add of a convolution or linear layer,
    2 per element of a batch norm and 1 per element of an `nn.ReLU` inside an exit's branch (the authors' backbone calls
    ReLU as a function, which their counter does not count).
    """
    counted = pieces(net, shape, "eed_flops")
    exits = zip(accumulate(counted.stages), counted.branches, strict=True)
    return [round(2 * round((trunk + branch_cost) / 1e9, 2), 2) for trunk, branch_cost in exits]


def parameters(net: MultiExitNet) -> Parameters:
    """The numbers of parameters of the plain network, of every early exit's branch, and of all."""

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for p in {p for module in modules for p in module.parameters()})

    *early, final = net.branches
    return Parameters(count(net.stages, final), tuple(map(count, early)), count(net))


def milliseconds(run: Callable[[Any], Any], inputs: Any, repeats: int = 20) -> float:
    """The median time of `run(inputs)` in milliseconds, after two warm-up calls; waits for a GPU to finish.

    Raises:
        ValueError: if repeats is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    device = inputs.device if isinstance(inputs, Tensor) else None
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 2):
            finish(device)
            start = time.perf_counter()
            run(inputs)
            finish(device)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[2:])


def measure(
    net: MultiExitNet, shape: ImageShape, convention: Convention | None = None, *, relu_modules: bool = False
) -> Pieces:
    """Cost of every stage and branch for one input of this shape, counted on the meta device.

    Args:
        shape: one input's (channels, height, width).
        convention: additional formulas for torch's counter, in half operations; none: multiply-adds.
        relu_modules: also count 1 per element of every `nn.ReLU` inside a branch.

    Raises:
        ValueError: if the network cannot take inputs of this shape.
    """
    key = ("cost", net, shape, tuple(convention or ()), relu_modules)
    return remembered(key, lambda: _measure(net, shape, convention, relu_modules))  # type: ignore[no-any-return]


def _measure(net: MultiExitNet, shape: ImageShape, convention: Convention | None, relu_modules: bool) -> Pieces:
    stages, branches = [], []
    state: Any = blank(net, shape)
    carry: Any = ()
    for number, (stage, branch) in enumerate(zip(net.stages, net.branches, strict=True), 1):
        try:
            state, cost = _count(stage, convention, False, state)
            (_, _, _, carry), branch_cost = _count(branch, convention, relu_modules, state, carry)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            hint = smallest(net, shape)
            raise ValueError(
                f"inputs of {written(shape)} do not fit stage {number} or its exit: {reason}{hint}"
            ) from error
        stages.append(cost)
        branches.append(branch_cost)
    return Pieces(tuple(stages), tuple(branches), tuple(is_chained(branch) for branch in net.branches))


def pieces(net: MultiExitNet, shape: ImageShape, convention: str = "macs") -> Pieces:
    """Operations of each stage and each branch alone, by the name of a convention.

    Args:
        shape: one input's (channels, height, width).
        convention: `macs`, `msdnet_ops`, or `eed_flops` in single operations (half of what that paper prints); see the
            functions of these names. `as_run` adds the pieces up.

    Raises:
        ValueError: if the convention is unknown, or the network cannot take inputs of this shape.
    """
    conventions: dict[str, Convention] = {"macs": {}, "msdnet_ops": _MSDNET, "eed_flops": _EED}
    if convention not in conventions:
        raise unknown("convention", convention, conventions, listing="")
    return measure(net, shape, conventions[convention], relu_modules=convention == "eed_flops")


def cumulative_of(pieces: Pieces) -> list[int]:
    """The cost of a sample that takes each exit, all enabled, from the costs of the network's parts."""
    return [
        trunk + branch_cost
        for trunk, branch_cost in zip(accumulate(pieces.stages), accumulate(pieces.branches), strict=True)
    ]


def _count(module: nn.Module, convention: Convention | None, relu_modules: bool, *args: Any) -> tuple[Any, int]:
    """The module's output on the meta device, and its cost; torch's counter counts a multiply-add as two."""
    elements: list[int] = []
    hooks = [
        part.register_forward_hook(lambda part, inputs, output: elements.append(output.numel()))
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
    return lambda input_shape, *args, **kwargs: int(2 * each * prod(input_shape))


def _linear_with_bias(bias: Any, left: Any, right: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return int(2 * (left[0] * left[1] * right[1] + prod(out_shape)))


def _window(input_shape: Any, kernel: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    # max pooling returns (values, indices); a kernel size that is one number is square
    sizes = list(kernel) if len(kernel) == 2 else [kernel[0]] * 2
    out = out_shape[0] if isinstance(out_shape[0], (tuple, list, torch.Size)) else out_shape
    return int(2 * prod(sizes) * prod(out))


def _whole_map(input_shape: Any, *args: Any, **kwargs: Any) -> int:
    return int(2 * prod(input_shape))


def _mean_over_space(input_shape: Any, dims: Any = None, *args: Any, **kwargs: Any) -> int:
    over = sorted(dim % len(input_shape) for dim in dims or ())
    return _whole_map(input_shape) if len(input_shape) == 4 and over == [2, 3] else 0


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
