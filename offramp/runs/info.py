"""The stages, exits, shapes and costs of a network before anything is trained; computed on the meta device."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from offramp.argument_types import check_arguments
from offramp.config import Config, ResolvedConfig, build_backbone, build_method, build_net, multi_net, of_kind, resolve
from offramp.config.plan import cheapest, planned
from offramp.lookup import ParameterError
from offramp.runs.info_text import network_text, networks_text

if TYPE_CHECKING:
    from torch import nn

    from offramp.measure.network_summary import NetworkSummary
    from offramp.multi_net import Cohort, GatedFan
    from offramp.net import Backbone, BuildBackbone, BuildBranch, MultiExitNet


@dataclass(frozen=True)
class NetworkInfo:
    """A network with exits.

    Attributes:
        net: name of the network.
        branch: name of the exit structure.
        shape: (channels, height, width) of the input.
        classes: number of classes.
        macs: multiply-adds of the backbone up to each exit and of the exit's own branch.
        macs_cumulative: the same with the branches of all earlier exits.
        msdnet_ops: operations as MSDNet's paper counts them.
        eed_flops: GFLOPs as in EED's Table III, rounded to hundredths.
        parameters: numbers of parameters: `main` (without early exits), `branches` (of each early exit), `total`.
        options: all parameters of network, branch and method.
        summary: every stage and exit in words and numbers; `offramp info` draws it.
        cheapest: by exit structure, the ratio of the operations of the plain network to those up to exit 1: the largest
            possible saving, if every sample exits there. Empty without early exits.
        notes: the choices that were made for `exits=auto`.
    """

    net: str
    branch: str
    shape: tuple[int, int, int]
    classes: int
    macs: list[int]
    macs_cumulative: list[int]
    msdnet_ops: list[int]
    eed_flops: list[float]
    parameters: dict[str, Any]
    options: dict[str, dict[str, Any]]
    summary: "NetworkSummary"
    cheapest: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return network_text(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


@dataclass(frozen=True)
class NetworksInfo:
    """Several networks, or branches with a gated ensemble, that are trained together.

    Attributes:
        net: names of the networks.
        method: name of the method.
        shape: (channels, height, width) of the input.
        classes: number of classes.
        outputs: names of the outputs.
        macs: multiply-adds of the network behind each output.
        macs_cumulative: multiply-adds of the networks up to each output.
        parameters: `outputs`, the number of parameters behind each one, and `total`.
        cost: forward multiply-adds per image, and number of parameters, of everything that is trained.
        options: all parameters of network, branch and method.
    """

    net: str
    method: str
    shape: tuple[int, int, int]
    classes: int
    outputs: tuple[str, ...]
    macs: list[int]
    macs_cumulative: list[int]
    parameters: dict[str, Any]
    cost: dict[str, Any]
    options: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        return networks_text(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


@check_arguments
def info(config: Config, *, classes: int = 100, channels: int = 3) -> NetworkInfo | NetworksInfo:
    """The stages, shapes, parameters and costs of a network, without training or running it.

    Args:
        config: network, exits and method; `image_size` is the height and width of the inputs, by default those of the
            network.
        classes: number of classes.
        channels: channels of the input.
    Raises:
        ValueError: if a name is unknown or a value is invalid.
    """
    from offramp.meta_device import remembering
    from offramp.net import MultiExitNet

    if config.image_size is not None and config.image_size < 1:
        raise ParameterError(f"image_size must be at least 1, got {config.image_size}", "image_size")
    resolved = resolve(config)
    shape = _shape(resolved, classes, channels)
    resolved, notes = planned(resolved, classes, shape)
    backbones: list[Backbone] = []
    net = _build(resolved, classes, shape, backbones)
    if isinstance(net, MultiExitNet):
        with remembering():
            return _network(net, resolved, shape, backbones, classes, notes)
    return _networks(net, resolved, shape, classes)  # type: ignore[arg-type]  # what methods build otherwise


def _shape(config: ResolvedConfig, classes: int, channels: int) -> tuple[int, int, int]:
    """The shape of the input: the given side, or what the network is made for."""
    import torch

    from offramp import models
    from offramp.split import model_sources

    side = config.image_size
    if side is not None:
        return channels, side, side
    first = replace(of_kind(config, multi_net.names(config.net)[0]), goal_macs=None, exits=None)
    with torch.device("meta"):
        if models.is_external(first.net):
            usual = model_sources.shape(first.net, classes=classes, channels=channels, options=first.net_options)
        else:
            usual = build_backbone(first, classes=classes, channels=channels).shape
    _, height, width = usual
    return channels, height, width


def _build(
    config: ResolvedConfig, classes: int, shape: tuple[int, int, int], backbones: "list[Backbone]"
) -> "nn.Module":
    """The network on the meta device; the backbones that it is built of are appended to `backbones`."""
    import torch

    method = build_method(config)

    def network(build: "BuildBackbone", branch: "BuildBranch") -> "nn.Module":
        def recorded() -> "Backbone":
            backbones.append(build())
            return backbones[-1]

        return method.network(recorded, branch)

    with torch.device("meta"):
        return build_net(config, replace(method, network=network), classes=classes, shape=shape)


def _network(
    net: "MultiExitNet",
    config: ResolvedConfig,
    shape: tuple[int, int, int],
    backbones: "Sequence[Backbone]",
    classes: int,
    notes: tuple[str, ...],
) -> NetworkInfo:
    from offramp.measure import cost, network_summary
    from offramp.split.lazy import lazy

    parameters = cost.parameters(net)
    running = lazy(net, shape)
    title = f"{config.net} with {config.branch} exits, {classes} classes"
    return NetworkInfo(
        net=config.net,
        branch=config.branch,
        shape=shape,
        classes=classes,
        macs=list(cost.macs(running, shape)),
        macs_cumulative=list(cost.macs_cumulative(running, shape)),
        msdnet_ops=list(cost.msdnet_ops(net, shape)),
        eed_flops=list(cost.eed_flops(net, shape)),
        parameters={"main": parameters.main, "branches": parameters.branches, "total": parameters.total},
        options=config.options,
        summary=network_summary.describe(net, shape, title, running=running),
        cheapest=cheapest(config, classes, shape, backbones[0]) if net.exits > 1 else {},
        notes=notes,
    )


def _networks(
    net: "Cohort | GatedFan", config: ResolvedConfig, shape: tuple[int, int, int], classes: int
) -> NetworksInfo:
    from offramp.measure import multi_net as measure

    parameters = [sum(part.numel() for part in net.deploy(output).parameters()) for output in range(net.exits)]
    cost = measure.training_cost(net, shape)
    return NetworksInfo(
        net=config.net,
        method=config.method,
        shape=shape,
        classes=classes,
        outputs=tuple(net.names),
        macs=list(measure.macs(net, shape)),
        macs_cumulative=list(measure.macs_cumulative(net, shape)),
        parameters={"outputs": parameters, "total": cost["parameters"]},
        cost=cost,
        options=config.options,
    )
