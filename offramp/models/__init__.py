"""Networks: one file per family, each with `NETS` (the names it builds) and `build(name, ...) -> Backbone`."""

import ast
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType

from offramp.lookup import discover, unknown

DOORS = {
    "timm:NAME": "A network of timm, newly initialised (`pip install 'offramp[vision]'`).",
    "torchvision:NAME": "A network of torchvision, newly initialised (`pip install 'offramp[vision]'`).",
    "transformers:TYPE": "A classifier of transformers, by type or folder (`pip install 'offramp[transformers]'`).",
    "python:MODULE:FUNCTION": "What a function of yours builds: a model, or stages by `offramp.split.by_hand`.",
}
"""Networks of others, by what stands before the colon; `offramp.split.model_sources` builds them."""


def form_of(image_size: int) -> str:
    """The form of a ResNet for images of this side in pixels: `cifar` below 64, else `imagenet`."""
    return "cifar" if image_size < 64 else "imagenet"


def is_door(name: str) -> bool:
    """Whether a name is one of a network of others."""
    return ":" in name


def available() -> dict[str, str]:
    """{network: first line of its family's file}, without importing any of them."""
    return {net: line for family, line in discover(__name__).items() for net in _nets(family)}


def find(name: str) -> ModuleType:
    """The family's module that builds the network of this name; its `build(name, classes=..., ...)` does.

    Raises:
        ValueError: if no family has it, naming the nearest.
    """
    for family in discover(__name__):
        if name in _nets(family):
            return importlib.import_module(f"{__name__}.{family}")
    raise unknown("net", name, available())


@cache
def _nets(family: str) -> tuple[str, ...]:
    """`NETS` of a family, read from its source: listing names must not cost the import of torch."""
    for statement in ast.parse((Path(__file__).parent / f"{family}.py").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if any(isinstance(target, ast.Name) and target.id == "NETS" for target in targets):
                return tuple(map(str, ast.literal_eval(statement.value)))
    raise TypeError(f"offramp/models/{family}.py has no NETS, a literal tuple of the names that it builds")
