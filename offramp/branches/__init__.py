"""Exit structures: one file each, with `build(backbone, exit, classes, **options) -> branch` (None: no exit there)."""

from types import ModuleType

from offramp.lookup import discover, load


def available() -> dict[str, str]:
    """{branch: first line of its file}, without importing any of them."""
    return discover(__name__)


def find(name: str) -> ModuleType:
    """The module of an exit structure; its `build(backbone, exit, classes, **options)` makes one branch.

    Raises:
        ValueError: if there is none of this name, naming the nearest.
    """
    return load("branch", __name__, name)
