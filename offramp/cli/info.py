"""offramp info: draw a network with its exits."""

from typing import TYPE_CHECKING

from offramp.cli import emit
from offramp.cli._options import Dotted, Json, Layers, by_kind
from offramp.lookup import ParameterError
from offramp.measure.units import count

if TYPE_CHECKING:
    from torch import nn

    from offramp.config import Config


def info(
    *,
    net: str = "resnet18",
    branch: str = "sketch",
    method: str = "joint",
    width: int | None = None,
    exits_after: Layers = (),
    exits: int | None = None,
    classes: int = 100,
    channels: int = 3,
    image_size: int | None = None,
    json: Json = False,
    option: Dotted = None,
) -> None:
    """Draw a network with its exits: stages, shapes, parameters, costs.

    Args:
        net: The network (`offramp nets`), also timm:NAME, torchvision:NAME, transformers:TYPE,
            python:MODULE:FUNCTION; `--net.KEY` sets its parameters.
        branch: The structure of the exits (`offramp branches`); `--branch.KEY` sets its parameters.
        method: The method, if it trains several networks (dml, one); `--method.KEY` sets its parameters.
        width: Base channels of the network.
        exits_after: Layers of an external model to attach exits to, such as layer1,layer2.
        exits: Number of exits, the final one included; external models get them at equal shares of the operations.
        classes: Number of classes.
        channels: Channels of the input.
        image_size: Height and width of the input in pixels; default: the network's own.
        json: Print one JSON object.
    """
    import torch

    from offramp.config import Config, build_backbone, build_method, build_net, multi_net, of_kind, resolve
    from offramp.measure import cost, network_summary
    from offramp.net import MultiExitNet

    if image_size is not None and image_size < 1:
        raise ParameterError(f"--image-size must be at least 1, got {image_size}")
    options = by_kind(option or [])
    config = resolve(
        Config(
            net=net,
            branch=branch,
            width=width,
            exits_after=exits_after,
            exits=exits,
            method=method,
            image_size=image_size,
            **options,
        )
    )
    with torch.device("meta"):
        size = None if image_size is None else (image_size, image_size)
        first = of_kind(config, multi_net.names(net)[0])
        shape = build_backbone(first, classes=classes, channels=channels, size=size).shape
        shape = (channels, image_size or shape[1], image_size or shape[2])
        built = build_net(config, build_method(config), classes=classes, shape=shape)
    if not isinstance(built, MultiExitNet):
        _several(built, config, shape, classes, json)
        return
    if json:
        parameters = cost.parameters(built)
        emit(
            {
                "net": net,
                "branch": branch,
                "shape": shape,
                "classes": classes,
                "macs": cost.macs(built, shape),
                "macs_cumulative": cost.macs_cumulative(built, shape),
                "msdnet_ops": cost.msdnet_ops(built, shape),
                "eed_flops": cost.eed_flops(built, shape),
                "parameters": {"main": parameters.main, "branches": parameters.branches, "total": parameters.total},
                "options": config.options,
            }
        )
        return
    from offramp.cli._console import stdout

    stdout.print(
        network_summary.draw(network_summary.describe(built, shape, f"{net} with {branch} exits, {classes} classes")),
        soft_wrap=True,
    )


def _several(net: "nn.Module", config: "Config", shape: tuple[int, int, int], classes: int, json: bool) -> None:
    """Networks that are trained together: parameters and operations of each, and of all."""
    from offramp.cli._console import stdout, table
    from offramp.measure import multi_net
    from offramp.multi_net import Cohort, GatedFan

    assert isinstance(net, Cohort | GatedFan)
    parameters = [sum(part.numel() for part in net.deploy(output).parameters()) for output in range(net.exits)]
    macs, trained = multi_net.macs(net, shape), multi_net.training_cost(net, shape)
    if json:
        emit(
            {
                "net": config.net,
                "method": config.method,
                "shape": shape,
                "classes": classes,
                "outputs": net.names,
                "macs": macs,
                "macs_cumulative": multi_net.macs_cumulative(net, shape),
                "parameters": {"outputs": parameters, "total": trained["parameters"]},
                "options": config.options,
            }
        )
        return
    rows = [[name, count(size), count(cost)] for name, size, cost in zip(net.names, parameters, macs, strict=True)]
    rows.append(["all that is trained", count(trained["parameters"]), count(trained["macs"])])
    title = f"{config.method} on {config.net}, {classes} classes, input {'×'.join(map(str, shape))}"
    stdout.print(table(title, ["", "parameters", "MACs"], rows), soft_wrap=True)
