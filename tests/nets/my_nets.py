"""Networks that a user might have written; tests name them as `python:my_nets:FUNCTION` (see the fixture `own`)."""

import os
from typing import Any

from torch import Tensor, nn

from offramp.net import Backbone
from offramp.split import by_hand


def small(classes: int, channels: int = 3) -> nn.Sequential:
    """Convolutions 0, 2 and 4, halving the maps twice; without batch norms, so that two processes do as one."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


class Fault(nn.Module):
    """Hands on no numbers in the second process, the `$FAULT`-th time that it trains."""

    calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and inputs.device.type != "meta" and os.environ.get("LOCAL_RANK") == "1":
            self.calls += 1
            if self.calls == int(os.environ.get("FAULT", "0")):
                return inputs * float("nan")
        return inputs


def faulty(classes: int, channels: int = 3) -> nn.Sequential:
    """The small one, with a fault behind its last convolution."""
    parts = list(small(classes, channels))
    return nn.Sequential(*parts[:5], Fault(), *parts[5:])


class Windows(nn.Module):
    """Takes no images smaller than its windows."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 4, 4), nn.Linear(4, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.second(self.first(inputs)).mean((2, 3)))
        return logits


def windows(classes: int) -> nn.Module:
    return Windows(classes)


def staged(num_classes: int, in_chans: int = 3) -> Backbone:
    """A backbone in two stages of its own."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    return by_hand([nn.Conv2d(in_chans, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)], head, (in_chans, 8, 8))


def wrong(classes: Any) -> Any:
    """No network at all."""
    return classes


def deaf() -> nn.Module:
    """Does not ask for the number of classes."""
    return nn.Linear(1, 1)


def careless(classes: int) -> nn.Module:
    """Fails in a way that is no ValueError."""
    nets: dict[str, nn.Module] = {}
    return nets["model"]


def larger(classes: int) -> nn.Module:
    """Wants a package that is not there."""
    import no_such_package

    net: nn.Module = no_such_package.net()
    return net
