"""Where exits are attached, and of which structure, so that a goal of operations can be reached; counted on meta."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from offramp.config import multi_net
from offramp.config.build import build_backbone
from offramp.config.resolve import ResolvedConfig, resolve
from offramp.lookup import ParameterError

if TYPE_CHECKING:
    from torch import nn

    from offramp.net import Backbone

STRUCTURES = ("sketch", "byot", "linear")
"""Structures that are tried after the one that is given, from the most to the least of the network."""
EARLY = 3
"""Maximum number of early exits to place."""
FIRST = 0.5
"""The first exit costs at most this share of the goal, so that the others may continue within the goal."""
SECOND = 0.9
"""Otherwise at most this share, so that nearly all samples have to take the first exit."""
CANDIDATES = 8
"""Exits that an external model is cut into to look for places."""

ImageShape = tuple[int, int, int]


class PlanCosts(NamedTuple):
    """Operations of the plain network, and of a sample that leaves behind each stage (from 1) that can have an exit."""

    plain: int
    exits: dict[int, int]


def planned(config: ResolvedConfig, classes: int, shape: ImageShape) -> tuple[ResolvedConfig, tuple[str, ...]]:
    """The configuration with exits in place of `exits=auto`, and a note; others are returned as they are.

    Args:
        classes: C; shape: (channels, height, width) of the inputs.
    Raises:
        ParameterError: if no exit of any structure is cheap enough, saying how cheap they get.
    """
    if config.exits != "auto":
        return config, ()
    if len(multi_net.names(config.net)) > 1:
        raise ParameterError(f"exits=auto is for one network, got net={config.net}", "exits", "net")
    if config.exits_at or config.exits_after:
        raise ParameterError(
            "exits=auto chooses the places of exits: omit exits_at and exits_after",
            *("exits", "exits_at", "exits_after"),
        )
    assert config.goal_macs is not None
    layers, backbone = _candidates(config, classes, shape)
    costs_by_name = {
        name: costs for name in _structures(config) if (costs := costs_of(backbone, name, config, classes, shape))
    }
    name, stages = _choice(config, costs_by_name)
    places: dict[str, Any] = {"exits_at": stages}
    if layers:
        places = {"exits_after": tuple(layers[stage - 1] for stage in stages)}
    where = ", ".join(map(str, next(iter(places.values()))))
    first, plain = costs_by_name[name].exits[stages[0]], costs_by_name[name].plain
    note = (
        f"exits for {config.goal_macs:g} of the plain network's operations: {name} exits after {where}; the first one "
        f"costs {first / plain:.2f} of them ({gains_text({name: plain / first})})"
    )
    options = config.branch_options if name == config.branch else {}
    planned = dataclasses.replace(config, exits=None, goal_macs=None, branch=name, branch_options=options, **places)
    return resolve(planned), (note,)


def _structures(config: ResolvedConfig) -> list[str]:
    return list(dict.fromkeys((config.branch, *STRUCTURES)))


def _candidates(config: ResolvedConfig, classes: int, shape: ImageShape) -> tuple[list[str], "Backbone"]:
    """The network cut wherever exits are considered, on meta; and the layers before the cuts of an external model."""
    import torch

    from offramp import models

    whole = dataclasses.replace(config, exits=None, exits_at=(), exits_after=(), goal_macs=None)
    with torch.device("meta"):
        if models.is_external(config.net):
            layers = _layers(whole, classes, shape)
            whole = dataclasses.replace(whole, exits_after=tuple(layers))
        else:
            layers = []
        return layers, build_backbone(whole, classes=classes, channels=shape[0], size=shape[1:], check=False)


def _layers(config: ResolvedConfig, classes: int, shape: ImageShape) -> list[str]:
    """Layers of an external model at about equal shares of its operations; none if it comes in stages of its own."""
    from offramp.net import Backbone
    from offramp.split import model_sources, places

    model = model_sources.construct(
        config.net, classes=classes, channels=shape[0], size=shape[1:], **dict(config.net_options)
    )
    if isinstance(model, Backbone):
        return []
    candidates = places(model, shape)
    shares = [number / CANDIDATES for number in range(1, CANDIDATES)]
    nearest = (
        [min(candidates, key=lambda place: abs(place.share - share)).layer for share in shares] if candidates else []
    )
    return [place.layer for place in candidates if place.layer in nearest]


def costs_of(
    backbone: "Backbone",
    structure: str,
    config: ResolvedConfig,
    classes: int,
    shape: ImageShape,
    only: Sequence[int] = (),
) -> PlanCosts | None:
    """What exits of a structure cost behind each stage; None if it cannot be attached to this network.

    Args:
        only: consider these stages alone, counted from 1.
    """
    import torch

    from offramp import branches
    from offramp.measure import cost
    from offramp.net import attach
    from offramp.split.lazy import lazy

    build = branches.find(structure).build
    options = config.branch_options if structure == config.branch else {}
    stages: list[int] = []

    def branch(trunk: "Backbone", exit: int) -> "nn.Module | None":
        if only and exit + 1 not in only:
            return None
        try:
            module: nn.Module | None = build(trunk, exit, classes, **options)
        except ValueError:
            return None
        if module is not None:
            stages.append(exit + 1)
        return module

    with torch.device("meta"):
        net = attach(backbone, branch)
    counted = cost.macs(lazy(net, shape), shape)
    return PlanCosts(counted[-1], dict(zip(stages, counted, strict=False))) if stages else None


def _choice(config: ResolvedConfig, costs_by_name: Mapping[str, PlanCosts]) -> tuple[str, tuple[int, ...]]:
    """The first structure that has a cheap enough exit, and the stages to attach exits to."""
    goal = config.goal_macs or 0.0
    for share in (FIRST, SECOND):
        for name, costs in costs_by_name.items():
            cheap = [stage for stage, macs in costs.exits.items() if macs <= share * goal * costs.plain]
            if cheap:
                return name, _spread(max(cheap), [stage for stage in costs.exits if stage > max(cheap)])
    least = {name: costs.plain / min(costs.exits.values()) for name, costs in costs_by_name.items()}
    reason = "no structure fits the network"
    if least:
        smallest = math.ceil(100 / (SECOND * max(least.values()))) / 100
        reason = f"early exit is {gains_text(least)}"
        reason += f"; take goal_macs={smallest:g} or more" if smallest < 1 else ""
    raise ParameterError(f"goal_macs={goal:g}: no exit of {config.net} is that cheap: {reason}", "goal_macs")


def _spread(first: int, later: Sequence[int]) -> tuple[int, ...]:
    """The first stage, and as many later ones as there may be, evenly."""
    count = min(EARLY - 1, len(later))
    return (first, *(later[(number + 1) * len(later) // (count + 1)] for number in range(count)))


def cheapest(
    config: ResolvedConfig, classes: int, shape: ImageShape, backbone: "Backbone | None" = None
) -> dict[str, float]:
    """How many times cheaper than the plain network early exit can get, by structure, with exits at these places.

    That is where every sample takes the first exit: no policy saves more.

    Args:
        backbone: the network without its exits, where it is built already.
    """
    import torch

    if backbone is None:
        with torch.device("meta"):
            backbone = build_backbone(config, classes=classes, channels=shape[0], size=shape[1:], check=False)
    places = tuple(config.exits_at) or tuple(range(1, len(backbone.stages)))
    gains = {}
    for name in _structures(config) if places else ():
        costs = costs_of(backbone, name, config, classes, shape, only=(min(places),))
        if costs:
            gains[name] = costs.plain / min(costs.exits.values())
    return gains


def gains_text(gains: Mapping[str, float]) -> str:
    """`at most 1.6 times cheaper with sketch; 4.2 times with byot`."""
    (first, gain), *others = gains.items()
    texts = [f"at most {gain:.1f} times cheaper with {first}"]
    return "; ".join([*texts, *(f"{more:.1f} times with {name}" for name, more in others)])
