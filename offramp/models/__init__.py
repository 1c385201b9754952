"""Networks: one file per family, each with `NETS` (the names it builds) and `build(name, ...) -> Backbone`."""

import importlib
from functools import cache
from pathlib import Path

from offramp import plugins
from offramp.discovery import Offer, discover, from_outside, with_plugins
from offramp.lookup import unknown
from offramp.python_names import parsed

EXTERNAL = {
    "timm:NAME": "A network of timm, newly initialised (`pip install 'offramp[vision]'`).",
    "torchvision:NAME": "A network of torchvision, newly initialised (`pip install 'offramp[vision]'`).",
    "transformers:TYPE": "A classifier of transformers, by type or folder (`pip install 'offramp[transformers]'`).",
    "python:MODULE:FUNCTION": "The model or the stages (`offramp.split.by_hand`) that your function returns.",
}
"""External models, by the part before the colon; `offramp.split.model_sources` builds them."""


def form_of(image_size: int) -> str:
    """The form of a ResNet for images of this side in pixels: `cifar` below 64, else `imagenet`."""
    return "cifar" if image_size < 64 else "imagenet"


def is_external(name: str) -> bool:
    """Whether a name is that of an external model."""
    return ":" in name


def available() -> dict[str, str]:
    """{network: first line of its family's file}, those of plugins too, without importing any of them."""
    return with_plugins(__name__, built_in())


def built_in() -> dict[str, str]:
    """{network: first line of its family's file} of this package, without importing any of them."""
    return {net: line for family, line in discover(__name__).items() for net in _nets(family)}


def find(name: str) -> Offer:
    """The code of the family that builds the network of this name; its `build(name, classes=..., ...)` does.

    Raises:
        ValueError: if no family has it, naming the nearest; if a plugin cannot be imported.
    """
    for family in discover(__name__):
        if name in _nets(family):
            return importlib.import_module(f"{__name__}.{family}")
    builder = None if is_external(name) else from_outside(__name__, name)
    if builder is None:
        raise unknown("net", name, available())
    return builder


@cache
def _nets(family: str) -> tuple[str, ...]:
    """`NETS` of a family, read from its source."""
    return plugins.nets(parsed(Path(__file__).parent / f"{family}.py"), f"{__name__}.{family}")
