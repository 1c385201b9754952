"""Arguments that follow `self.training`, made to follow it in a graph too."""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import fx, nn

from offramp.split.tracer import BATCHES, Traced, same_call
from offramp.split.untraceable import BY_HAND, Untraceable


def mark_training(traced: Traced, in_training: fx.Graph, model: nn.Module) -> None:
    """Let every argument that follows `self.training` follow it in the graph, too.

    A graph of plain values would keep the mode in which it was traced (F.dropout(x, training=self.training)).

    Raises:
        Untraceable: if the two passes differ in more than such arguments.
    """
    graph = traced.graph
    pairs = list(zip(graph.nodes, in_training.nodes, strict=False))
    if len(graph.nodes) != len(in_training.nodes) or not all(same_call(*pair) for pair in pairs):
        raise Untraceable(_different(model), "")
    merge = _Merge(traced, dict(zip(in_training.nodes, graph.nodes, strict=True)), _different(model))
    for node, twin in pairs:
        with graph.inserting_before(node):
            node.args = tuple(merge(*pair) for pair in zip(node.args, twin.args, strict=True))
            node.kwargs = {key: merge(node.kwargs[key], twin.kwargs.get(key)) for key in node.kwargs}


class _Merge(NamedTuple):
    """Merges an argument in evaluation with the same in training; `same` maps nodes of the second graph to the first's.

    `different` is the error if they cannot be merged.
    """

    traced: Traced
    same: Mapping[fx.Node, fx.Node]
    different: str

    def __call__(self, plain: Any, training: Any) -> Any:
        if isinstance(plain, tuple | list) and isinstance(training, tuple | list) and len(plain) == len(training):
            return type(plain)([self(*pair) for pair in zip(plain, training, strict=True)])
        if isinstance(plain, slice) and isinstance(training, slice):
            ends = zip(*((each.start, each.stop, each.step) for each in (plain, training)), strict=True)
            return slice(*[self(*pair) for pair in ends])
        if isinstance(plain, bool) and isinstance(training, bool) and plain != training:
            return self.flag(training)
        if isinstance(training, fx.Node):
            training = self.same[training]
        if plain is not training and plain != training:
            raise Untraceable(self.different, "")
        return plain

    def flag(self, training: bool) -> fx.Node:
        """A node for `self.training`, or its opposite."""
        graph, values = self.traced.graph, self.traced.values
        flag = graph.create_node("get_attr", "training")
        values[flag] = (False,) * len(BATCHES)
        if training:
            return flag
        opposite = graph.call_function(operator.not_, (flag,))
        values[opposite] = (True,) * len(BATCHES)
        return opposite


def _different(model: nn.Module) -> str:
    if getattr(model, "aux_logits", False):
        return (
            f"{type(model).__name__} has another classifier in training (aux_logits), which the cut form would lose: "
            "build it with aux_logits=False"
        )
    return (
        "the model's forward computes something else in training than in evaluation, in a module that an exit cuts; "
        + BY_HAND
    )
