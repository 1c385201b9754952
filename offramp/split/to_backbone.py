"""A model's pieces put together: stages of blocks and a head, in the form that every network of offramp has."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, fx, nn

from offramp.meta_device import written
from offramp.net import Backbone
from offramp.split import blocks
from offramp.split.cut import Crossing, Cutter, has_batch
from offramp.split.cut_points import CutPoints, ImageShape, main_tensor, own_names
from offramp.split.graph_module import Rebuilder, Subgraph, plan, put_tensor
from offramp.split.tracer import Traced


def assemble(
    model: nn.Module,
    cut_points: CutPoints,
    cut_layers: Sequence[str],
    shape: ImageShape,
    make: Callable[[], nn.Module] | None,
) -> Backbone:
    """Cut a traced model after the layers named in `cut_layers`; the stages hold the model's own modules.

    Raises:
        ValueError: if the layers are not in order, not before the pooling, or a value cannot cross a cut.
    """
    end = blocks.head_nodes(cut_points.traced, cut_points.classifier)
    cut_layers = own_names(model, cut_layers)
    groups = _groups(model, cut_points, _in_order(cut_points, cut_layers, end), end)
    subgraphs = _subgraphs(model, cut_points.traced, groups, end, shape, cut_layers)
    shared = _shared(subgraphs, groups)
    if any(len(groups[stage]) > 1 for stage in shared):
        groups = [group[-1:] if stage in shared else group for stage, group in enumerate(groups)]
        subgraphs = _subgraphs(model, cut_points.traced, groups, end, shape, cut_layers)
        shared = _shared(subgraphs, groups)
    if shared:
        names = sorted(_twice(subgraphs))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"the model uses the same weights before and after an exit ({', '.join(names[:3])}{more}); put it elsewhere"
        )
    bounds = [sum(map(len, groups[:index])) for index in range(len(groups) + 1)]
    if make is not None:
        rebuilder = Rebuilder(make, [subgraphs[index].plan for index in _sampled(cut_points.traced, groups)])
        for part in subgraphs[bounds[1] :]:
            rebuilder.attach(part)
    _add_unused(model, subgraphs)
    stages = tuple(nn.Sequential(*subgraphs[a:b]) for a, b in pairwise(bounds))
    return Backbone(stages, subgraphs[-1], shape)


def _sampled(traced: Traced, groups: Sequence[Sequence[fx.Node]]) -> list[int]:
    """The parts that a branch is likely to sample: each later stage's first, those that change shape, the head."""
    flat = [node for group in groups for node in group]
    first = len(groups[0])
    shapes = [tuple(traced.values[node][0].shape[1:]) for node in flat]
    starts = {sum(map(len, groups[:index])) for index in range(1, len(groups))}
    likely = [index for index in range(first, len(flat)) if index in starts or shapes[index] != shapes[index - 1]]
    return [*likely, len(flat)]


def order_of(traced: Traced) -> dict[fx.Node, int]:
    """The place of every node in the graph."""
    return {node: index for index, node in enumerate(traced.graph.nodes)}


def _in_order(cut_points: CutPoints, cut_layers: Sequence[str], end: blocks.HeadNodes) -> list[fx.Node]:
    """The nodes to cut after, checked."""
    traced, order = cut_points.traced, order_of(cut_points.traced)
    cuts: list[fx.Node] = []
    for name in cut_layers:
        if name not in traced.ends:
            raise ValueError(f"the model never calls the layer {name} by itself, so no exit can be attached after it")
        node = main_tensor(traced, traced.ends[name])
        value = traced.values[node]
        if order[node] >= order[end.map]:
            raise ValueError(
                f"an exit after {name} would not come before the final exit, which begins with the pooling of "
                f"{written(tuple(traced.values[end.map][0].shape[1:]))}; {_choice(cut_points, end)}"
            )
        if not has_batch(value) or value[0].dim() not in (3, 4):
            raise ValueError(
                f"an exit needs a map or a sequence with the batch as first dimension, but {name} passes on "
                f"{written(tuple(value[0].shape)) if isinstance(value[0], Tensor) else type(value[0]).__name__}"
            )
        if node in cuts:
            raise ValueError(
                f"two exits are at the same place: {cut_layers[cuts.index(node)]} and {name} end together; "
                + _choice(cut_points, end)
            )
        cuts.append(node)
    ranked = [name for _, name in sorted(zip(map(order.__getitem__, cuts), cut_layers, strict=True))]
    if ranked != list(cut_layers):
        raise ValueError(
            f"exits must be in the order of the forward pass: {','.join(ranked)}, not {','.join(cut_layers)}"
        )
    return cuts


def _choice(cut_points: CutPoints, end: blocks.HeadNodes) -> str:
    """The end of a sentence about a wrong place: the layers at whose end only their own value passes on."""
    order = order_of(cut_points.traced)
    names = [name for name, node in cut_points.ends if order[main_tensor(cut_points.traced, node)] < order[end.map]]
    if not names:
        return "nothing before that is a map or a sequence that an exit can be attached to"
    return f"exits can be attached after {', '.join(names if len(names) <= 12 else [*names[:5], '…', *names[-6:]])}"


def _groups(model: nn.Module, cut_points: CutPoints, cuts: list[fx.Node], end: blocks.HeadNodes) -> list[list[fx.Node]]:
    """The last nodes of the blocks of every stage; the head begins after the last of them."""
    traced, order = cut_points.traced, order_of(cut_points.traced)
    ends = {main_tensor(traced, node) for _, node in cut_points.ends} | set(cuts)
    ends = {node for node in ends if order[node] <= order[end.map]}
    if not cuts or not any(order[node] > order[cuts[-1]] for node in ends):
        ends.add(end.map)
    units = blocks.units(model, traced, sorted(ends, key=order.__getitem__))
    bounds = [-1, *(order[cut] for cut in cuts), len(order)]
    stages = [[unit for unit in units if a < order[unit.end] <= b] for a, b in pairwise(bounds)]
    stages[-1] = stages[-1][: blocks.before_head(stages[-1], traced)]
    return [blocks.join(stage) for stage in stages]


def _subgraphs(
    model: nn.Module,
    traced: Traced,
    groups: list[list[fx.Node]],
    end: blocks.HeadNodes,
    shape: ImageShape,
    cut_layers: Sequence[str],
) -> list[Subgraph]:
    flat = [node for group in groups for node in group]
    last = {group[-1]: name for group, name in zip(groups, cut_layers, strict=False)}
    cutter = Cutter(model, traced, flat, layout(traced, [*flat, end.map], shape))
    try:
        graphs = [cutter.graph(index) for index in range(len(flat))]
        graphs.append(cutter.graph(len(flat), (end.logits, end.feature, end.map)))
    except Crossing as error:
        where = f"after {last[error.cut]}" if error.cut in last else "at this place"
        raise ValueError(f"no exit can be attached {where}: {error}; put it elsewhere") from None
    return [Subgraph(plan(graph, model, borrowed, traced), model) for graph, borrowed in graphs]


def layout(traced: Traced, nodes: Sequence[fx.Node], shape: ImageShape) -> Callable[[fx.Node], bool]:
    """Whether a node's value is a map (B, H, W, D); where its sizes allow both readings, the other maps decide."""

    def reading(node: fx.Node) -> int:
        sizes = traced.values[node][0].shape
        if len(sizes) != 4 or shape[1] != shape[2]:
            wide = len(sizes) == 4 and _ratio(sizes[1], sizes[2], shape) and not _ratio(sizes[2], sizes[3], shape)
            return int(wide)
        return int(sizes[1] == sizes[2] != sizes[3]) - int(sizes[2] == sizes[3] != sizes[1])

    votes = sum(map(reading, nodes))

    def channels_last(node: fx.Node) -> bool:
        if traced.values[node][0].dim() != 4:
            return False
        sizes = traced.values[node][0].shape[1:]
        return votes > 0 if sizes[0] == sizes[1] == sizes[2] else reading(node) > 0

    return channels_last


def _ratio(height: int, width: int, shape: ImageShape) -> bool:
    """Whether a map has the form of the images, up to a padded row or column."""
    return abs(height * shape[2] - width * shape[1]) <= max(shape[1:])


def _shared(subgraphs: Sequence[Subgraph], groups: Sequence[Sequence[fx.Node]]) -> set[int]:
    """The stages (the head counts as one more) that hold weights which another part holds too."""
    twice = _twice(subgraphs)
    stage_of = [stage for stage, group in enumerate(groups) for _ in group] + [len(groups)]
    return {
        stage
        for part, stage in zip(subgraphs, stage_of, strict=True)
        if stage < len(groups) and twice & {name for name, _ in part.named_parameters()}
    }


def _twice(subgraphs: Sequence[Subgraph]) -> set[str]:
    """Names of parameters that more than one part holds."""
    counts = Counter(id(p) for part in subgraphs for p in part.parameters())
    return {name for part in subgraphs for name, p in part.named_parameters() if counts[id(p)] > 1}


def _add_unused(model: nn.Module, subgraphs: Sequence[Subgraph]) -> None:
    """Register what no part has a name for, so that the model's state_dict stays whole.

    Another name of a tensor goes to the part that holds it, weights that are never used to the head.
    """
    registered = {name for part in subgraphs for name in part.state_dict(keep_vars=True)}
    holder = {id(tensor): part for part in subgraphs for tensor in part.state_dict(keep_vars=True).values()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in registered and isinstance(tensor, Tensor):
            put_tensor(holder.get(id(tensor), subgraphs[-1]), name, tensor, True)
