"""Exit structures: one file each, with `build(backbone, exit, classes, **options) -> branch` (None: no exit there)."""

from importlib import import_module
from typing import Any

from offramp.discovery import Offer, discover, load, offers

_SHAPES = ("check_exit", "maps")
"""What exit structures from outside need to know of a backbone; it imports torch, so it is imported when used."""


def available() -> dict[str, str]:
    """{branch: first line of its file} of this package and of plugins, without importing any of them."""
    return offers(__name__)


def built_in() -> dict[str, str]:
    """{name: first line of its file} of the exit structures of this package, without importing any of them."""
    return discover(__name__)


def find(name: str) -> Offer:
    """The code of an exit structure; its `build(backbone, exit, classes, **options)` makes one branch.

    Args:
        name: as listed, or `python:package.module`, also `python:package.module:function`.
    Raises:
        ValueError: if there is none of this name, naming the nearest; if code from outside cannot be imported.
    """
    return load("branch", __name__, name)


def __getattr__(name: str) -> Any:
    if name in _SHAPES:
        return getattr(import_module(f"{__name__}._stages"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
