"""Training methods: one file each, named as on the command line."""

from typing import cast

from offramp.methods._method import Build
from offramp.names import discover, load


def available() -> dict[str, str]:
    """{name: what it is, in one sentence} of all methods, without importing any."""
    return discover("offramp.methods")


def find(name: str) -> Build:
    """The `build` function of a method.

    Raises:
        ValueError: if there is no such method, with the nearest name.
    """
    return cast(Build, load("method", "offramp.methods", name).build)
