"""Training methods: one file each, named as on the command line."""

from types import ModuleType

from offramp.names import discover, load


def available() -> dict[str, str]:
    """{name: what it is, in one sentence} of all methods, without importing any."""
    return discover("offramp.methods")


def find(name: str) -> ModuleType:
    """The method's module; its `build(**hyper)` makes the `Method`.

    Raises:
        ValueError: if there is no such method, with the nearest name.
    """
    return load("method", "offramp.methods", name)
