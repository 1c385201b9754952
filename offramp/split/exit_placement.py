"""Places for exits at equal shares of the multiply-adds."""

from itertools import accumulate
from typing import NamedTuple

from torch import Tensor, fx

from offramp.lookup import with_parameters
from offramp.split import blocks
from offramp.split.cut_points import CutPoints, main_tensor

NEAR = 0.05
"""How far from the asked share a place may be, to be preferred for lying between two resolutions."""


class Place(NamedTuple):
    """A possible place of an exit: the layer before it, the share of the multiply-adds up to it.

    `shape_changes` says whether the shape of the state changes after it.
    """

    layer: str
    share: float
    shape_changes: bool


def places(cut_points: CutPoints) -> list[Place]:
    """All places before the pooling between the model's blocks, in order; blocks that return no tensor are left out."""
    traced = cut_points.traced
    nodes = list(traced.graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    spent = list(accumulate(traced.macs.get(node, 0) for node in nodes))
    limit = order[blocks.head_nodes(traced, cut_points.classifier).map]
    ends: list[tuple[str, fx.Node]] = [(name, main_tensor(traced, node)) for name, node in cut_points.ends]
    ends = [(name, node) for name, node in ends if order[node] < limit and spent[order[node]] > 0]
    ends = [(name, node) for name, node in ends if isinstance(traced.values[node][0], Tensor)]
    shapes = [tuple(traced.values[node][0].shape[1:]) for _, node in ends]
    changes = [index + 1 == len(ends) or shape != shapes[index + 1] for index, shape in enumerate(shapes)]
    return [
        Place(name, spent[order[node]] / spent[-1], change) for (name, node), change in zip(ends, changes, strict=True)
    ]


def equal(cut_points: CutPoints, exits: int) -> list[str]:
    """The layers after which to put all exits but the final one, at shares 1/exits, 2/exits, ... of the multiply-adds.

    Raises:
        ValueError: if there are fewer places.
    """
    choice = places(cut_points)
    if exits < 1 or exits - 1 > len(choice):
        raise with_parameters(
            ValueError(
                f"exits takes a number from 1 to {len(choice) + 1} on this network, got {exits}; exits_after can name "
                "other layers, within blocks too"
            ),
            "exits",
            "exits_after",
        )
    names: list[str] = []
    for number in range(1, exits):
        target = number / exits
        candidates = choice[: len(choice) - (exits - 1 - number)]
        best = min(candidates, key=lambda place: _score(place, target))
        names.append(best.layer)
        choice = choice[choice.index(best) + 1 :]
    return names


def _score(place: Place, target: float) -> tuple[bool, bool, float]:
    distance = abs(place.share - target)
    return distance > NEAR, not place.shape_changes and distance <= NEAR, distance
