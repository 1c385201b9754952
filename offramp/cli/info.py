"""offramp info: draw a network with its exits."""

from typing import Literal

from offramp.cli import emit_result
from offramp.cli._options import Dotted, Json, Layers, Stages, by_kind


def info(
    *,
    net: str = "resnet18",
    branch: str = "sketch",
    method: str = "joint",
    width: int | None = None,
    exits_after: Layers = (),
    exits_at: Stages = (),
    exits: int | Literal["auto"] | None = None,
    goal_macs: float | None = None,
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
        exits_after: Layers of an external model to attach exits to, comma-separated, such as layer1,layer2.
        exits_at: Stages to attach exits to, comma-separated, counted from 1, such as 2,3; default: all but the last.
        exits: Number of exits, the final one included. In external models they are placed at equal shares of the
            operations. `auto`: places and structure are chosen for --goal-macs.
        goal_macs: With --exits auto: target for the mean multiply-adds, as a share of the plain network's, such as 0.4.
        classes: Number of classes.
        channels: Channels of the input.
        image_size: Height and width of the input in pixels; default: the network's own.
    """
    from offramp.cli._console import stdout
    from offramp.config import Config
    from offramp.measure import network_summary
    from offramp.runs.info import NetworkInfo
    from offramp.runs.info import info as describe
    from offramp.runs.info_text import cheapest_lines

    config = Config(
        net=net,
        branch=branch,
        width=width,
        exits_after=exits_after,
        exits_at=exits_at,
        exits=exits,
        goal_macs=goal_macs,
        method=method,
        image_size=image_size,
        **by_kind(option or []),
    )
    result = describe(config, classes=classes, channels=channels)
    if json:
        emit_result(result)
    elif isinstance(result, NetworkInfo):
        for note in result.notes:
            stdout.print(note, highlight=False, markup=False, soft_wrap=True)
        stdout.print(network_summary.draw(result.summary), soft_wrap=True)
        for line in cheapest_lines(result):
            stdout.print(line, highlight=False, markup=False, soft_wrap=True)
    else:
        stdout.print(str(result), highlight=False, markup=False, soft_wrap=True)
