"""offramp info: a network with its exits, drawn for a person."""

from typing import Annotated

from cyclopts import Parameter

from offramp.cli import emit
from offramp.cli._argv import options as parse_options


def info(
    *,
    net: str = "resnet18",
    branch: str = "sketch",
    width: int | None = None,
    exits_after: tuple[str, ...] = (),
    exits: int | None = None,
    classes: int = 100,
    channels: int = 3,
    image_size: int | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    option: Annotated[list[str] | None, Parameter(negative="", show=False)] = None,
) -> None:
    """Stages, shapes, parameters and costs of every exit.

    Args:
        net: The network (`offramp nets`); `--net.KEY` sets its parameters.
        branch: The structure of the exits (`offramp branches`); `--branch.KEY` sets its parameters.
        width: Base channels of the network.
        exits_after: Layers after which exits stand, such as layer1,layer2 (networks of others).
        exits: How many exits, the final one included (networks of others: at equal shares of the operations).
        classes: Number of classes.
        channels: Channels of the input.
        image_size: Side of the input in pixels (default: what the network is made for).
        json: Print one JSON object.
    """
    import torch

    from offramp.config import Config, build_backbone, build_method, build_net, resolve
    from offramp.measure import cost, draw
    from offramp.net import MultiExitNet

    if image_size is not None and image_size < 1:
        raise ValueError(f"--image-size must be at least 1, got {image_size}")
    options = parse_options(option or [])
    config = Config(
        net=net, branch=branch, width=width, exits_after=exits_after, exits=exits, method="joint", options=options
    )
    config = resolve(config)
    with torch.device("meta"):
        size = None if image_size is None else (image_size, image_size)
        shape = build_backbone(config, classes=classes, channels=channels, size=size).shape
        shape = (channels, image_size or shape[1], image_size or shape[2])
        built = build_net(config, build_method(config), classes=classes, shape=shape)
    assert isinstance(built, MultiExitNet)
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
    from offramp.cli._show import stdout

    stdout.print(
        draw.draw(draw.describe(built, shape, f"{net} with {branch} exits, {classes} classes")), soft_wrap=True
    )
