"""A traced graph cut into pieces: what has to cross each cut, and what is computed again after it."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from offramp.meta_device import written
from offramp.split.tracer import BATCHES, Traced

Node = fx.Node
_SIZES = ("shape", "dtype", "device", "ndim")
_SIZE_METHODS = ("size", "dim", "numel")


class Crossing(ValueError):
    """A value that a cut would have to pass on and cannot; `cut` is the node before the cut."""

    def __init__(self, message: str, cut: Node) -> None:
        super().__init__(message)
        self.cut = cut


class Relations(NamedTuple):
    """What is true of a graph's nodes wherever it is cut.

    `order` is the place of each; `source` the node that a node only looks into (parts of a tuple, sizes); `data`
    whether its value depends on the samples.
    """

    order: dict[Node, int]
    source: dict[Node, Node]
    data: dict[Node, bool]

    @classmethod
    def from_graph(cls, traced: Traced) -> "Relations":
        """Those of a traced graph."""
        relations = cls({node: index for index, node in enumerate(traced.graph.nodes)}, {}, {})
        for node in relations.order:
            source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
            if source is not None and _looks_into(node, traced.values.get(source)):
                relations.source[node] = source
            sized = _is_size(node) or not _has_tensor(traced.values.get(node))
            relations.data[node] = node.op == "placeholder" or (
                not sized and any(relations.data[argument] for argument in node.all_input_nodes)
            )
        return relations


def _looks_into(node: Node, value: Any) -> bool:
    """Whether a node only looks into the value of its first argument: parts of a tuple, sizes."""
    return _is_size(node) or (node.target is operator.getitem and not isinstance((value or (None,))[0], Tensor))


class Cutter:
    """A traced graph with cuts after some of its nodes.

    Args:
        cuts: the nodes to cut after, in the order of the graph; each is a tensor with the batch first.
        channels_last: whether maps (B, H, W, D) among the cuts are passed on as (B, D, H, W).
        relations: those of the graph, if they are known already.
    """

    def __init__(
        self,
        model: nn.Module,
        traced: Traced,
        cuts: Sequence[Node],
        channels_last: Callable[[Node], bool],
        relations: "Relations | None" = None,
    ) -> None:
        self.model, self.traced, self.cuts, self.channels_last = model, traced, list(cuts), channels_last
        self.order, source, self.data = relations or Relations.from_graph(traced)
        self.piece: dict[Node, int] = {}
        ends = [self.order[cut] for cut in cuts]
        for node, index in self.order.items():
            self.piece[node] = self.piece[source[node]] if node in source else sum(end < index for end in ends)

    def crossing(self, index: int) -> list[Node]:
        """The values that cross cut `index`: tensors with the batch first, the cut's own last.

        Raises:
            Crossing: if a value that depends on the samples has no batch in front.
        """
        main = self.cuts[index]
        nodes = []
        for node in self.order:
            crosses = self.piece[node] <= index and any(self.piece[user] > index for user in node.users)
            if crosses and node is not main and self._carried(node, main):
                nodes.append(node)
        return [*nodes, main]

    def _carried(self, node: Node, cut: Node) -> bool:
        """Whether a value crosses cuts as it is (or expanded over the batch); others are computed again after them."""
        value = self.traced.values[node]
        if node.target == "training" or not _has_tensor(value):
            return False
        if not isinstance(value[0], Tensor):
            raise Crossing(
                f"{node.name}, a {type(value[0]).__name__} of tensors, would have to be passed as a whole", cut
            )
        if has_batch(value):
            return True
        if self.data[node]:
            sizes = written(tuple(value[0].shape))
            raise Crossing(
                f"{node.name}, {sizes} for {BATCHES[0]} images, would have to be passed, but its first dimension is "
                "not the batch",
                cut,
            )
        return not self._repeatable(node)

    def _repeatable(self, node: Node) -> bool:
        """Whether a value without samples in it can be computed again without holding a weight twice."""
        if node.op == "get_attr":
            return not isinstance(self._tensor(str(node.target)), nn.Parameter)
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            return not module.state_dict() and all(map(self._repeatable, node.all_input_nodes))
        return all(
            self._repeatable(before) for before in node.all_input_nodes if _has_tensor(self.traced.values[before])
        )

    def _tensor(self, path: str) -> Any:
        return self.traced.constants[path] if path in self.traced.constants else operator.attrgetter(path)(self.model)

    def graph(self, index: int, outputs: tuple[Node, Node, Node] | None = None) -> tuple[fx.Graph, set[str]]:
        """The graph of piece `index`, (state) -> state, and the buffers that it borrows from earlier pieces.

        Args:
            outputs: logits, feature and map, which the last piece returns; no cut follows it.
        """
        piece = _Piece(self, index)
        for node in self.order:
            needed = self.data[node] or not node.users  # the others when something here asks for them
            if self.piece[node] == index and needed and node.op not in ("placeholder", "output"):
                piece.copy(node)
        if outputs is None:
            piece.hand_on(self.crossing(index))
        else:
            piece.return_head(*outputs)
        piece.graph.eliminate_dead_code(_must_stay)
        return piece.graph, piece.borrowed


class _Piece:
    """The graph of one piece while it is written."""

    def __init__(self, cutter: Cutter, index: int) -> None:
        self.cutter, self.index = cutter, index
        self.graph = fx.Graph()
        self.copies: dict[Node, Node] = {}
        self.borrowed: set[str] = set()
        state = self.graph.placeholder("state")
        come = cutter.crossing(index - 1) if index else [node for node in cutter.order if node.op == "placeholder"]
        self.main = come[-1]
        for place, node in enumerate(come):
            value = self.graph.call_function(operator.getitem, (state, place)) if len(come) > 1 else state
            self.copies[node] = self._receive(node, value)

    def _receive(self, node: Node, value: Node) -> Node:
        """A value as the piece's nodes know it: maps in the model's own layout, shared maps safe from changes."""
        if self.index and node is self.main and self.cutter.channels_last(node):
            value = self.graph.call_method("permute", (value, 0, 2, 3, 1))
        elif self.index and not has_batch(self.cutter.traced.values[node]):
            value = self.graph.call_function(operator.getitem, (value, 0))
        users = [user for user in node.users if self.cutter.piece[user] == self.index]
        if self.index and any(_in_place(user, node, self.cutter.model) for user in users):
            value = self.graph.call_method("clone", (value,))  # an exit has the same map
        return value

    def copy(self, node: Node) -> Node:
        """Write a node of the traced graph."""
        self.copies[node] = self.graph.node_copy(node, self.lookup)
        return self.copies[node]

    def lookup(self, node: Node) -> Any:
        """The value of a traced node in this piece: written here, handed on, or computed again."""
        if node in self.copies:
            return self.copies[node]
        if self.cutter.piece[node] == self.index:
            return self.copy(node)
        if node.op == "get_attr":
            self.borrowed.add(str(node.target))
            return self.copy(node)
        if node.target is getattr and node.args[1] in ("device", "dtype"):
            self.copies[node] = self.graph.call_function(getattr, (self.copies[self.main], node.args[1]))
            return self.copies[node]
        values = self.cutter.traced.values[node]
        known, value = self._plain(values)
        return value if known else self.copy(node)

    def _plain(self, values: Sequence[Any]) -> tuple[bool, Any]:
        """A number, or a tuple of numbers, as a literal; the number of samples as that of the state."""
        if isinstance(values[0], tuple | list):
            parts = [self._plain(part) for part in zip(*values, strict=True)]
            return all(known for known, _ in parts), tuple(value for _, value in parts)
        if isinstance(values[0], Tensor | torch.device):
            return False, None
        if tuple(values) == BATCHES:
            return True, self.graph.call_method("size", (self.copies[self.main], 0))
        return all(value == values[0] for value in values), values[0]

    def hand_on(self, nodes: Sequence[Node]) -> None:
        """Return a state: one tensor, or a tuple whose last entry is the cut's own value."""
        values = []
        for node in nodes:
            value = self.lookup(node)
            if node is nodes[-1] and self.cutter.channels_last(node):
                value = self.graph.call_method("permute", (value, 0, 3, 1, 2))
            elif not has_batch(self.cutter.traced.values[node]):
                value = self.graph.call_function(_spread, (value, self.lookup(nodes[-1])))
            values.append(value)
        self.graph.output(values[0] if len(values) == 1 else tuple(values))

    def return_head(self, logits: Node, feature: Node, maps: Node) -> None:
        """Return what a head returns: logits (B, C), feature (B, D), and the map as exits see it."""
        pooled, before = self.lookup(feature), self.lookup(maps)
        sizes = self.cutter.traced.values[feature][0].shape[1:]
        if len(sizes) == 3 and feature is maps:  # the model pools after its classifier
            pooled = self.graph.call_method("mean", (pooled, (1, 2) if self.cutter.channels_last(maps) else (2, 3)))
        elif len(sizes) > 1:
            pooled = self.graph.call_method("flatten", (pooled, 1))
        if self.cutter.channels_last(maps):
            before = self.graph.call_method("permute", (before, 0, 3, 1, 2))
        self.graph.output((self.lookup(logits), pooled, before))


def _spread(value: Tensor, like: Tensor) -> Tensor:
    """A value without batch as a view that has one, so that it can cross a cut."""
    return value.unsqueeze(0).expand(like.size(0), *value.shape)


def has_batch(values: Sequence[Any]) -> bool:
    """Whether a value is one tensor with the batch in front and nothing else that depends on it."""
    if not all(isinstance(value, Tensor) and value.dim() > 0 for value in values):
        return False
    same = all(value.shape[1:] == values[0].shape[1:] for value in values)
    return same and tuple(value.shape[0] for value in values) == BATCHES


def _has_tensor(values: Any) -> bool:
    if isinstance(values, tuple | list):
        return any(_has_tensor(value) for value in values)
    return isinstance(values, Tensor)


def _is_size(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZE_METHODS
    return node.target is getattr and node.args[1] in _SIZES


def _in_place(user: Node, node: Node, model: nn.Module) -> bool:
    """Whether a node may change its first argument."""
    if not user.args or user.args[0] is not node:
        return False
    if user.op == "call_module":
        return bool(getattr(model.get_submodule(str(user.target)), "inplace", False))
    if user.op == "call_method":
        name = str(user.target)
        return name.endswith("_") and not name.endswith("__")
    name = getattr(user.target, "__name__", "")
    in_place = name in ("iadd", "isub", "imul", "itruediv", "setitem") or (
        name.endswith("_") and not name.startswith("_")
    )
    return in_place or bool(user.kwargs.get("inplace"))


def _must_stay(node: Node) -> bool:
    """Whether a node must stay though nobody uses its value; only looks at sizes are certain to do nothing."""
    return not (_is_size(node) or node.target is operator.getitem or node.op == "get_attr")
