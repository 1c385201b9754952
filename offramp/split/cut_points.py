"""Where a model can be cut cleanly: at ends of its blocks that only one value crosses."""

from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from offramp.lookup import nearest
from offramp.meta_device import run_on_meta, written
from offramp.split.cut import Crossing, Cutter, Relations, has_batch
from offramp.split.fx_trace import fx_trace, with_flags
from offramp.split.logits import NoLogits, dtype_of, logits_of
from offramp.split.tracer import BATCHES, Traced
from offramp.split.untraceable import Untraceable, where

ImageShape = tuple[int, int, int]
WORKING = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers that do the work: what is not one of them, nor holds one, is a norm, an activation or pooling."""
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class CutPoints(NamedTuple):
    """A traced model, the ends of its blocks in order (name of the layer, node), and its classifier's name."""

    traced: Traced
    ends: tuple[tuple[str, fx.Node], ...]
    classifier: str


def find(model: nn.Module, shape: ImageShape, cut_layers: Collection[str] = ()) -> CutPoints:
    """Trace a model so that it can be cut at the ends of its blocks, and after the layers named in `cut_layers`.

    Blocks are found through the model's containers. A class of modules in which something else than its last value
    passes on (a residual block) is a block itself, wherever it occurs.

    Raises:
        ValueError: if it cannot take images of the shape, has no classifier, or a layer of `cut_layers` does not exist.
        Untraceable: if its forward pass cannot be written as a graph.
    """
    cut_layers = own_names(model, cut_layers)
    classifier = find_classifier(model, shape)
    needed = _above([*cut_layers, classifier])
    containers = {
        name
        for name, part in model.named_modules()
        if (isinstance(part, _CONTAINERS) or _repeats(part)) and "parametrizations" not in name.split(".")
    }
    opened = needed | containers | _above(containers)
    traced, opened = _trace_what_can_be(model, shape, opened - {""}, needed)
    names = [name for name, _ in _clean(model, traced, opened)]
    narrow = _above([*names, *cut_layers, classifier]) - {""}
    if narrow != opened:
        traced = fx_trace(model, shape, narrow)
    traced = with_flags(traced, model, shape, narrow)
    ends = [(name, traced.ends[name]) for name in names if name in traced.ends]
    return CutPoints(traced, tuple(ends), classifier)


def _repeats(part: nn.Module) -> bool:
    """Whether a module holds several blocks of a kind, as a stage does that is no container of PyTorch."""
    kinds = [type(child) for child in part.children() if any(isinstance(deep, WORKING) for deep in child.modules())]
    return len(kinds) > len(set(kinds))


def own_names(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The first name that the model has for each of these layers; a module may be registered under several.

    Raises:
        ValueError: if a layer does not exist, naming the nearest.
    """
    first = {part: name for name, part in model.named_modules()}
    known = {name: part for name, part in model.named_modules(remove_duplicate=False) if name}
    for name in names:
        if name not in known:
            raise ValueError(
                f"unknown layer {name!r} of {type(model).__name__}; {nearest(name, _short(name, [*known]))}"
            )
    return [first[known[name]] for name in names]


def _short(name: str, known: list[str]) -> list[str]:
    """The layers worth comparing with or listing: those as deep as the name, at least one level."""
    return [other for other in known if other.count(".") <= name.count(".")]


def find_classifier(model: nn.Module, shape: ImageShape) -> str:
    """The name of the layer that computes the logits.

    It is the last layer with a weight matrix (norms have none) that returns as many values as there are logits; in
    models that pool after their classifier (SqueezeNet), the last one that returns as many channels.

    Raises:
        ValueError: if the model cannot take images of this shape (the smallest that works is named), or there is none.
    """
    calls: list[tuple[str, Tensor]] = []
    hooks = [
        part.register_forward_hook(
            lambda part, inputs, output, name=name: calls.append((name, output)) if isinstance(output, Tensor) else None
        )
        for name, part in model.named_modules()
        if _is_layer(part)
    ]
    try:
        classes = logits_on_meta(model, shape).shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    fitting = [
        name
        for name, output in calls
        if output.dim() > 1 and (output[0].numel() == classes or (output.dim() == 4 and output.shape[1] == classes))
        if any(parameter.dim() > 1 for parameter in model.get_submodule(name).parameters())
    ]
    if not fitting:
        raise ValueError(
            f"{type(model).__name__} returns {classes} values, but no layer of its own with weights computes them; "
            "define the stages by hand (offramp.split.by_hand)"
        )
    return fitting[-1]


def _is_layer(part: nn.Module) -> bool:
    """Whether a module computes with weights of its own: one without children, or with parametrised weights."""
    if hasattr(part, "parametrizations"):
        return True
    return not list(part.children()) and bool(list(part.parameters(recurse=False)))


def logits_on_meta(model: nn.Module, shape: ImageShape, search: bool = True) -> Tensor:
    """The logits (meta) for images of this shape.

    Args:
        search: look for the smallest square that works if these do not.

    Raises:
        ValueError: if the model cannot take them; with the smallest square that works.
    """
    try:
        return _try(model, shape)
    except NoLogits as error:
        raise ValueError(f"{type(model).__name__} cannot be cut: {error}") from None
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if not search:
            raise ValueError(f"{type(model).__name__} cannot take images of {written(shape)} ({reason})") from None
        known = smallest(model, shape)
        if known is None:
            _check_channels(model, shape)
            raise Untraceable(
                f"{type(model).__name__} does not run on the meta device (shapes alone), for {written(shape)} or any "
                f"other square: {where(error)}: {reason}; if the size is not the reason, define the stages by hand "
                "(offramp.split.by_hand)",
                "",
            ) from None
        raise ValueError(
            f"{type(model).__name__} cannot take images of {written(shape)} ({reason}); the smallest square that works "
            f"is {known}×{known}"
        ) from None


def _check_channels(model: nn.Module, shape: ImageShape) -> None:
    """Raise ValueError if the model takes colour images and these are grey, or the other way round."""
    other = 1 if shape[0] == 3 else 3
    if smallest(model, (other, *shape[1:])) is not None:
        raise ValueError(
            f"{type(model).__name__} takes images of {other} channels, not {shape[0]}: build it for that number (a "
            "function of yours may take `channels`)"
        )


def _try(model: nn.Module, shape: ImageShape) -> Tensor:
    image = torch.empty((BATCHES[0], *shape), dtype=dtype_of(model), device="meta")
    logits = logits_of(run_on_meta(model, image))
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        what = written(tuple(logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__
        raise NoLogits(f"the model returns {what} for {BATCHES[0]} images instead of logits (B, C)")
    return logits


def smallest(model: nn.Module, shape: ImageShape) -> int | None:
    """The side of the smallest square images that a model takes, up to 512; None if there is none.

    Usual sizes are tried first, then all between the last that is too small and the first that works.
    """
    sizes = [0, *(side for side in range(1, 513) if side in _SIDES or side % 32 == 0)]
    for small, side in pairwise(sizes):
        if _works(model, (shape[0], side, side)):
            between = range(small + 1, side)
            return next((less for less in between if _works(model, (shape[0], less, less))), side)
    return None


_SIDES = (1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 20, 24, 28, 30, 31, 33, 40, 48, 56, 63, 75, 112, 299)


def _works(model: nn.Module, shape: ImageShape) -> bool:
    try:
        _try(model, shape)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError):
        return False
    return True


def _above(names: Iterable[str]) -> set[str]:
    """All modules that contain one of these."""
    return {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}


def _trace_what_can_be(
    model: nn.Module, shape: ImageShape, opened: set[str], needed: set[str]
) -> tuple[Traced, set[str]]:
    """Look into as many of the modules as can be traced; those of `needed` must be."""
    while True:
        try:
            return fx_trace(model, shape, opened), opened
        except Untraceable as error:
            if not error.path or error.path in needed:
                raise
            opened = {name for name in opened if name != error.path and not name.startswith(f"{error.path}.")}


def _clean(model: nn.Module, traced: Traced, opened: set[str]) -> list[tuple[str, fx.Node]]:
    """The ends of blocks: layers after which only their own value is used."""
    relations = Relations.from_graph(traced)
    order = relations.order
    ends = sorted(traced.ends.items(), key=lambda end: (order[end[1]], end[0].count("."), end[0]))
    state = {name: _passes_alone(model, traced, node, relations) for name, node in ends}
    closed: set[type] = set()
    while True:
        hidden = {name for name in opened if type(model.get_submodule(name)) in closed}
        inner = {name for name, _ in ends if any(name.startswith(f"{block}.") for block in hidden)}
        more = (
            {_block(model, name, opened) for name, _ in ends if name not in inner and not state[name]} - {None} - closed
        )
        if not more:
            break
        closed |= {kind for kind in more if kind is not None}
    return _distinct(
        [(name, node) for name, node in ends if state[name] and name not in inner and _is_map(traced, node)]
    )


def _distinct(ends: list[tuple[str, fx.Node]]) -> list[tuple[str, fx.Node]]:
    """One name per node: the outermost."""
    names: dict[fx.Node, str] = {}
    for name, node in ends:
        names.setdefault(node, name)
    return [(name, node) for node, name in names.items()]


def _passes_alone(model: nn.Module, traced: Traced, node: fx.Node, relations: Relations) -> bool:
    try:
        return len(Cutter(model, traced, [main_tensor(traced, node)], lambda node: False, relations).crossing(0)) == 1
    except Crossing:
        return False


def main_tensor(traced: Traced, node: fx.Node) -> fx.Node:
    """The tensor at a layer's end: its value, or the first of its values."""
    if isinstance(traced.values[node][0], tuple | list):
        return next((user for user in node.users if user.args[1:] == (0,)), node)
    return node


def _is_map(traced: Traced, node: fx.Node) -> bool:
    values = traced.values[main_tensor(traced, node)]
    return has_batch(values) and values[0].dim() in (3, 4)


def _block(model: nn.Module, name: str, opened: set[str]) -> type | None:
    """The class of the innermost module around a layer that is no mere container and occurs more than once."""
    kinds = [type(model.get_submodule(other)) for other in opened]
    while "." in name:
        name = name.rpartition(".")[0]
        kind = type(model.get_submodule(name))
        if name in opened and kind not in _CONTAINERS and kinds.count(kind) > 1:
            return kind
    return None
