"""Whether a model and its cut form compute the same: outputs, gradients and buffers, on real batches in both modes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from offramp.meta_device import restored
from offramp.net import Backbone
from offramp.split.logits import dtype_of, logits_of
from offramp.split.random_state import same_random_state, seed
from offramp.split.unchanged import buffers_of, same_buffers, same_tensors
from offramp.split.untraceable import BY_HAND, where

TOLERANCE = {"cpu": 1e-4, "cuda": 1e-2}
"""Largest difference, as a share of the largest value; GPUs choose other algorithms from one call to the next."""
MACS = 500_000_000
"""Multiply-adds for one image, up to which all batches are compared; images of larger networks are made smaller."""
FIXED = 2_000_000_000
"""As `MACS`, of networks that take images of one size only."""
LARGEST = 10_000_000
"""Values of a weight up to which its gradient is compared; VGG's hidden classifiers would take most of the time."""
STEP = 32
"""Smaller images have sides of a multiple of this, which is by how much most networks reduce them."""
NOISE = 1e-2
"""Gradients below this share of the model's largest gradient are compared with that, as what is left of sums to 0."""


class Pass(NamedTuple):
    """What a forward pass, and in training a backward pass, computed.

    `states` are the outputs at the cuts, `gradients` are by the id of the parameter, `buffers` by the model's names.
    """

    states: list[Tensor]
    logits: Tensor
    gradients: dict[int, Tensor | None]
    buffers: dict[str, Tensor]


class Case(NamedTuple):
    """A comparison: the size of the batch, and the mode; in training gradients are compared too."""

    batch: int
    training: bool

    def __str__(self) -> str:
        return f"for a batch of {self.batch} in {'training' if self.training else 'evaluation'} mode"


ONE, THREE = Case(1, training=False), Case(3, training=False)
TRAIN_ONE, TRAIN_THREE = Case(1, training=True), Case(3, training=True)


class Pair(NamedTuple):
    """A model, its cut form, and the layers at the cuts."""

    model: nn.Module
    backbone: Backbone
    cut_layers: Sequence[str]


Forward = Callable[[Tensor], tuple[list[Tensor], Tensor]]
"""Images -> the outputs at the cuts, logits."""


def check(
    model: nn.Module,
    backbone: Backbone,
    cut_layers: Sequence[str],
    *,
    device: str | torch.device | None = None,
    macs: int = 0,
) -> None:
    """Compare a model with the network that was cut from it; both are left as they were, random numbers included.

    Weights that are all equal (zeros at the start) are made unequal for the comparison. A model that has weights on the
    meta device is not run. Batches of 1 and 3 are compared, in evaluation and, gradients and buffers included, in
    training. A network of more than `MACS` multiply-adds is compared on one image of its own size, and on all other
    batches on images that leave about `MACS`, if both sides take them. If they take one size only, a network of more
    than `FIXED` is compared on three images in evaluation and on one in training (on three if one is too few for it).

    Args:
        cut_layers: the layers at the cuts, in order.
        device: where to compare; default where the model is.
        macs: multiply-adds of the model for one image.
    Raises:
        ValueError: naming the first stage that differs.
    """
    if any(tensor.is_meta for tensor in model.parameters()):
        return
    modules = _modules(backbone)
    net = nn.ModuleList(modules)
    meta_names = [name for part in modules for name, tensor in part.named_parameters() if tensor.is_meta]
    if meta_names:
        raise ValueError(f"{type(model).__name__} cannot be cut: {meta_names[0]} would lose its values; {BY_HAND}")
    with same_random_state(), same_tensors(model, net), restored(model), restored(net):
        if device is not None:
            model.to(device)
            net.to(device)
        with _unequal(model):
            _compare_all(Pair(model, backbone, cut_layers), macs)


def _compare_all(pair: Pair, macs: int) -> None:
    """Compare evaluation and training, one image and three, at a cost that does not grow with the network."""
    shape = pair.backbone.shape
    if macs <= MACS:
        _compare_each(pair, shape)
    elif _equal_when_small(pair, macs):
        _compare(pair, shape, ONE)
    elif macs <= FIXED:
        _compare_each(pair, shape)
    else:
        _compare(pair, shape, THREE)
        _compare(pair, shape, TRAIN_ONE) or _compare(pair, shape, TRAIN_THREE)


def _compare_each(pair: Pair, shape: tuple[int, ...]) -> None:
    for case in (ONE, THREE, TRAIN_THREE, TRAIN_ONE):
        _compare(pair, shape, case)


def _equal_when_small(pair: Pair, macs: int) -> bool:
    """Whether both sides take images that leave about `MACS`, or some larger ones, and compute the same then."""
    channels, *sides = pair.backbone.shape
    factor = math.sqrt(MACS / macs)
    small = [STEP * max(1, round(side * factor / STEP)) for side in sides]
    while all(less < side for less, side in zip(small, sides, strict=True)):
        with suppress(ValueError):
            for case in (THREE, TRAIN_THREE, TRAIN_ONE):
                _compare(pair, (channels, *small), case)
            return True
        small = [2 * less for less in small]
    return False


def _modules(backbone: Backbone) -> list[nn.Module]:
    return [*(block for stage in backbone.stages for block in stage), backbone.head]


def _compare(pair: Pair, shape: tuple[int, ...], case: Case) -> bool:
    """Raise ValueError if both sides differ; whether the model can be run on this batch."""
    model, backbone, cut_layers = pair
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(case.batch)
    images = torch.randn(case.batch, *shape, generator=generator).to(device, dtype_of(model))
    name = type(model).__name__

    def run_model() -> Pass:
        return _run([model], partial(_forward_model, model, cut_layers), images, case)

    try:
        expected = run_model()
    except Exception as error:  # a model may fail in any way
        reason = " ".join(str(error).split())[:200]
        if case.training and "more than 1 value per channel" in reason:
            return False  # a batch norm cannot train on this batch
        raise ValueError(f"{name} itself fails {case}: {where(error)}: {reason}") from error
    try:
        difference = _difference(
            expected, _run(_modules(backbone), partial(_forward, backbone), images, case), backbone
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the cut form of {name} fails {case}, the model itself does not: {reason}; {BY_HAND}"
        ) from error
    if difference is None:
        return True
    if _difference(expected, run_model(), backbone) is not None:
        raise ValueError(
            f"the cut form of {name} cannot be checked: {case}, the model itself returns different values in every "
            "pass, even with the same random numbers; split(..., check=False) cuts it unchecked"
        )
    stage, what = difference
    part = f"stage {stage + 1} (up to {cut_layers[stage]})" if stage < len(cut_layers) else "the last stage or the head"
    raise ValueError(f"the cut form of {name} is not the model: {case}, {part} {what}; {BY_HAND}")


def _run(modules: Sequence[nn.Module], forward: Forward, images: Tensor, case: Case) -> Pass:
    """A pass that begins with the same random numbers and buffers as any other."""
    net = nn.ModuleList(modules)
    parameters = list(net.parameters())
    for parameter in parameters:
        parameter.grad = None
    seed(0)
    with same_buffers(modules), restored(net):
        for parameter in parameters:
            parameter.requires_grad_(parameter.requires_grad and parameter.numel() <= LARGEST)
        for part in modules:
            part.train(case.training)
        with torch.set_grad_enabled(case.training):
            states, logits = forward(images)
            if case.training and logits.requires_grad:
                logits.square().sum().backward()  # type: ignore[no-untyped-call]
        gradients = {id(parameter): parameter.grad for parameter in parameters}
        buffers = {name: buffer.clone() for name, buffer in buffers_of(modules).items()}
    return Pass(states, logits.detach(), gradients, buffers)


def _forward(backbone: Backbone, images: Tensor) -> tuple[list[Tensor], Tensor]:
    state, states = images, []
    for stage in backbone.stages:
        state = stage(state)
        states.append((state[-1] if isinstance(state, tuple) else state).detach().clone())
    return states[:-1], backbone.head(state)[0]


def _forward_model(model: nn.Module, cut_layers: Sequence[str], images: Tensor) -> tuple[list[Tensor], Tensor]:
    outputs: dict[str, Tensor] = {}

    def record(module: nn.Module, inputs: Any, output: Any, *, name: str) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        outputs[name] = first.detach().clone()

    hooks = [model.get_submodule(name).register_forward_hook(partial(record, name=name)) for name in cut_layers]
    try:
        logits = logits_of(model(images))
    finally:
        for hook in hooks:
            hook.remove()
    return [outputs[name] for name in cut_layers], logits


def _difference(expected: Pass, actual: Pass, backbone: Backbone) -> tuple[int, str] | None:
    """The first stage, from 0, that computed something else, and what; None if all are equal."""
    for stage, (original, cut) in enumerate(zip(expected.states, actual.states, strict=True)):
        upright = (
            original.permute(0, 3, 1, 2) if original.dim() == 4 else original
        )  # maps (B, H, W, D) are handed on as (B, D, H, W)
        if not _close(original, cut) and not _close(upright, cut):
            return stage, "returns different values"
    if not _close(expected.logits, actual.logits):
        return len(expected.states), "returns different logits"
    last = [*backbone.stages[-1], backbone.head]
    for stage, blocks in enumerate([*(list(stage) for stage in backbone.stages[:-1]), last]):
        for name, parameter in (named for block in blocks for named in block.named_parameters()):
            if not _same_gradient(expected, actual, parameter):
                return stage, f"computes a different gradient of {name}"
        for name in (name for block in blocks for name, _ in block.named_buffers()):
            if (
                name in expected.buffers
                and name in actual.buffers
                and not _close(expected.buffers[name], actual.buffers[name])
            ):
                return stage, f"leaves different values in the buffer {name}"
    return None


def _same_gradient(expected: Pass, actual: Pass, parameter: Tensor) -> bool:
    """Whether a parameter has the same gradient in both; none is as good as zeros."""
    original, cut = (each.gradients.get(id(parameter)) for each in (expected, actual))
    if original is cut or (original is not None and cut is not None and torch.equal(original, cut)):
        return True
    original, cut = (torch.zeros_like(parameter) if each is None else each for each in (original, cut))
    largest = max((float(grad.abs().max()) for grad in expected.gradients.values() if grad is not None), default=0.0)
    return _close(original, cut, NOISE * largest)


def _close(original: Tensor, cut: Tensor, least: float = 0.0) -> bool:
    """Whether two tensors are equal up to rounding, as a share of the first one's largest value, or of `least`."""
    if original.shape != cut.shape or original.dtype != cut.dtype:
        return False
    if torch.equal(original, cut):
        return True
    if not original.is_floating_point():
        return False
    finite = original[original.isfinite()].abs()
    largest = max(float(finite.max()) if finite.numel() else 0.0, least)
    return torch.allclose(
        cut, original, rtol=0.0, atol=TOLERANCE.get(original.device.type, 1e-2) * largest, equal_nan=True
    )


@contextmanager
def _unequal(model: nn.Module) -> Iterator[None]:
    """Within, weights of which all are equal are not, so that none of them hides a difference (layer scale of 0)."""
    changed: list[tuple[Tensor, float]] = []
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.is_floating_point() and tensor.numel() and tensor.flatten()[0] == tensor.flatten()[-1]:
                lowest, highest = tensor.aminmax()
                if lowest == highest:
                    changed.append((tensor, float(lowest)))
                    tensor.add_(0.1 * torch.randn(tensor.shape).to(tensor))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in changed:
                weight.fill_(value)
