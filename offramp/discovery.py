"""From a name to code with a `build`: files of a package of ours, installed plugins, modules of the user's."""

import ast
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

from offramp import plugins, python_names
from offramp.lookup import unknown
from offramp.python_names import Builder

Offer = ModuleType | Builder
"""The object behind a name; its `build` returns the method, branch, network or data source."""


def discover(package: str) -> dict[str, str]:
    """{name: first line of its docstring} of the files in a package, sorted, without importing any of them.

    Files whose names begin with an underscore are left out. `package` is the dotted name.
    """
    return {name: first_line(text) for name, text in docstrings(package).items()}


def docstrings(package: str) -> dict[str, str]:
    """{name: its whole docstring} of the files that `discover` finds, without importing any of them."""
    module = importlib.import_module(package)
    texts: dict[str, str] = {}
    for entry in pkgutil.iter_modules(module.__path__):
        if not entry.name.startswith("_") and not entry.ispkg:
            texts[entry.name] = _docstring(Path(entry.module_finder.path) / f"{entry.name}.py")  # type: ignore[union-attr]
    return dict(sorted(texts.items()))


@cache
def _docstring(file: Path) -> str:
    """Parsed once in a process: every name that is looked up asks for all files of its package."""
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def first_line(text: str) -> str:
    """The first line of a docstring, "" if it is empty."""
    return next(iter(text.splitlines()), "")


def offers(package: str) -> dict[str, str]:
    """{name: first line of its docstring} of the files of a package and of plugins, without importing any of them."""
    return with_plugins(package, discover(package))


def with_plugins(package: str, ours: dict[str, str]) -> dict[str, str]:
    """`ours` and {name: first line of its docstring} of the plugins of a package."""
    if package not in plugins.GROUPS:
        return ours
    return ours | {name: first_line(plugin.text) for name, plugin in plugins.usable(package, ours).items()}


def load(kind: str, package: str, name: str) -> Offer:
    """Import the object behind a name: a file of the package, else a plugin, else `python:MODULE`.

    Raises:
        ValueError: if there is none, with the nearest name; if code from outside cannot be imported.
    """
    if name in discover(package):
        return importlib.import_module(f"{package}.{name}")
    builder = from_outside(package, name)
    if builder is None:
        raise unknown(kind, name, offers(package))
    return builder


def from_outside(package: str, name: str) -> Builder | None:
    """Import the plugin of this name, or `python:MODULE`; None if there is no such plugin.

    Raises:
        ParameterError: if it cannot be imported, with the reason.
    """
    if python_names.is_python(name):
        return python_names.load(name)
    return plugins.load(package, name) if package in plugins.GROUPS else None
