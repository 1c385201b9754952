"""The pieces between the ends of a model's layers, joined to blocks; what of them belongs to the head."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import fx, nn

from offramp.split.cut_points import WORKING
from offramp.split.tracer import Traced


class LayerUnit(NamedTuple):
    """The part between the ends of two layers: its last node, its heaviest module's class, the shapes around it.

    `works` says whether it has a convolution or linear layer; `pointwise` that these look at one position at a time.
    """

    end: fx.Node
    kind: type | None
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    works: bool
    pointwise: bool

    @property
    def changes(self) -> bool:
        """Whether it changes the shape."""
        return self.input_shape != self.output_shape

    @property
    def bare(self) -> bool:
        """Whether it is one layer of PyTorch, so that norm and activation after it belong to it."""
        return self.kind is not None and issubclass(self.kind, WORKING)


def units(model: nn.Module, traced: Traced, ends: Sequence[fx.Node]) -> list[LayerUnit]:
    """The units that end with the given nodes, in order."""
    result = []
    between: list[nn.Module] = []
    last = next(node for node in traced.graph.nodes if node.op == "placeholder")
    end_nodes = set(ends)
    for node in traced.graph.nodes:
        if node.op == "call_module":
            between.append(model.get_submodule(str(node.target)))
        if node in end_nodes:
            result.append(_unit(traced, last, node, between))
            last, between = node, []
    return result


def _unit(traced: Traced, previous: fx.Node, end: fx.Node, modules: list[nn.Module]) -> LayerUnit:
    layers = [part for module in modules for part in module.modules() if isinstance(part, WORKING)]
    heaviest = max(modules, key=lambda module: sum(p.numel() for p in module.parameters()), default=None)
    wide = any(isinstance(part, nn.modules.conv._ConvNd) and max(part.kernel_size) > 1 for part in layers)
    input_shape, output_shape = (tuple(traced.values[node][0].shape[1:]) for node in (previous, end))
    return LayerUnit(
        end,
        None if heaviest is None else type(heaviest),
        input_shape,
        output_shape,
        bool(layers),
        bool(layers) and not wide,
    )


def before_head(stage_units: Sequence[LayerUnit], traced: Traced) -> int:
    """How many of a last stage's units are blocks; those after them belong to the head.

    The head takes norms, activations and pooling at the end, and layers that only widen the features at each position
    (EfficientNet's last convolution), unless nothing would be left.
    """
    keep = len(stage_units)
    while keep:
        trailing = keep
        while trailing and not stage_units[trailing - 1].works:
            trailing -= 1
        if not trailing:
            return len(stage_units)
        last = stage_units[trailing - 1]
        if last.changes and last.pointwise and _positions(last.input_shape, last.output_shape):
            keep = trailing - 1
            continue
        pools = [index for index in range(trailing, keep) if stage_units[index].changes]
        return (pools[0] if pools else keep) if last.bare else trailing
    return len(stage_units)


def _positions(input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> bool:
    """Whether a change of shape is one of width alone, at the first or last dimension."""
    return len(input_shape) == len(output_shape) and (
        input_shape[1:] == output_shape[1:] or input_shape[:-1] == output_shape[:-1]
    )


def join(stage_units: Sequence[LayerUnit]) -> list[fx.Node]:
    """The last nodes of a stage's blocks.

    Norms and activations belong to the layer before them, pooling to the layer after it; a layer that only changes
    the shape (ConvNeXt's and Swin's downsampling) belongs to the block after it.
    """
    blocks: list[list[LayerUnit]] = []
    waiting: list[LayerUnit] = []
    for unit in stage_units:
        if not unit.works and (unit.changes or waiting or not blocks):
            waiting.append(unit)
        elif not unit.works or (blocks and _leads_into(blocks[-1], [*waiting, unit])):
            blocks[-1] += [*waiting, unit]
            waiting = []
        else:
            blocks.append([*waiting, unit])
            waiting = []
    if waiting:
        blocks = [*blocks[:-1], [*(blocks[-1] if blocks else []), *waiting]]
    return [block[-1].end for block in blocks]


def _leads_into(block: list[LayerUnit], following: list[LayerUnit]) -> bool:
    """Whether a block is a change of shape that the next unit, of another kind, continues from."""
    working = [unit for unit in block if unit.works]
    lone = len(working) == 1 and any(unit.changes for unit in block)
    return lone and working[0].kind is not following[-1].kind and not any(unit.changes for unit in following)


class HeadNodes(NamedTuple):
    """The end of a model: what enters the classifier, the map before pooling, the logits."""

    feature: fx.Node
    map: fx.Node
    logits: fx.Node


def head_nodes(traced: Traced, classifier: str) -> HeadNodes:
    """Follow the classifier's input back to where it still was a map.

    Raises:
        ValueError: if there is no map on the way.
    """
    call = next(node for node in reversed(traced.graph.nodes) if node.op == "call_module" and node.target == classifier)
    logits = next(node for node in reversed(traced.graph.nodes) if node.op == "output").args[0]
    feature = call.args[0] if call.args else next(iter(call.kwargs.values()))
    assert isinstance(feature, fx.Node) and isinstance(logits, fx.Node)
    path = _way_back(traced, feature)
    map_node = _before_pooling(traced, path)
    if map_node is None:
        raise ValueError(
            f"nothing before the classifier {classifier} is a map or a sequence that exits can be attached to"
        )
    width = max(traced.values[feature][0].shape[1:])
    return HeadNodes(feature, _upright(traced, map_node, path, width), logits)


def _before_pooling(traced: Traced, path: list[fx.Node]) -> fx.Node | None:
    """The last map or sequence on the way to the classifier, given backwards; None if there is none.

    Sizes alone do not tell it: small images make maps of 1×1 long before the pooling.
    """
    start = next((index for index, node in enumerate(path) if _dims(traced, node) > 2), None)
    if start is None:
        return None
    if start and _pools(path[start - 1]):
        return path[start]
    for node, previous in zip(path[start:], path[start + 1 :], strict=False):
        if not _flat(traced, node):
            return node
        if _pools(node):
            return previous
    return path[start]


def _way_back(traced: Traced, node: fx.Node) -> list[fx.Node]:
    """The chain of nodes that each have one input that depends on the samples, from the given one backwards."""
    path = [node]
    while True:
        inputs = [other for other in path[-1].all_input_nodes if _dims(traced, other) > 1]
        if len(inputs) != 1:
            return path
        path.append(inputs[0])


def _upright(traced: Traced, map_node: fx.Node, path: list[fx.Node], width: int) -> fx.Node:
    """Before a transposition (B, T, D) -> (B, D, T) that only the pooling needs."""
    index = path.index(map_node)
    shape = traced.values[map_node][0].shape
    if len(shape) == 3 and shape[1] == width != shape[2] and index + 1 < len(path):
        input_shape = traced.values[path[index + 1]][0].shape
        return path[index + 1] if tuple(input_shape[1:]) == (shape[2], shape[1]) else map_node
    return map_node


def _dims(traced: Traced, node: fx.Node) -> int:
    value = traced.values[node][0]
    return getattr(value, "ndim", 0)


def _flat(traced: Traced, node: fx.Node) -> bool:
    """Whether a value is a vector per sample, be it (B, D) or (B, D, 1, 1)."""
    sizes = traced.values[node][0].shape[1:]
    return bool(sum(size != 1 for size in sizes) <= 1)


def _pools(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return "pool" in str(name) or name == "mean"
