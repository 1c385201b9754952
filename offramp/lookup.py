"""Names that people type: what a folder of the package offers, and the nearest spelling when a name is unknown."""

import ast
import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

E = TypeVar("E", bound=Exception)


class ParameterError(ValueError):
    """A name that does not exist, or the value of a parameter that makes no sense.

    Args:
        message: one sentence that names parameters as Python does (`batch_size`, `method.alpha`, `tap=own`).
        parameters: the names in it, so that the command line can write them as its options.
    """

    def __init__(self, message: str, *parameters: str) -> None:
        super().__init__(message)
        self.parameters = parameters


def with_parameters(error: E, *parameters: str) -> E:
    """The error, which says now which parameters its message names, as a `ParameterError` does."""
    error.__dict__["parameters"] = parameters
    return error


def nearest(name: str, options: Iterable[str]) -> str:
    """The sentence part that helps: "the nearest is 'muse'", or the whole choice where nothing is near.

    The order of the options breaks ties; case does not count.
    """
    choice = list(options)
    folded = {option.casefold(): option for option in reversed(choice)}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.5)
    if near:
        return f"the nearest is {folded[near[0]]!r}"
    return f"there are {', '.join(map(repr, choice))}" if choice else "there are none"


def unknown(kind: str, name: str, options: Iterable[str], *, listing: str | None = None) -> ParameterError:
    """The error for a name that does not exist: "unknown method 'muze'; the nearest is 'muse' (see `offramp methods`)".

    Args:
        kind: what was asked for, in the singular ("method", "net", "option").
        listing: the command that lists what there is; default `offramp <kind>s`, in the plural, and none at all for "".
    """
    command = f"offramp {kind}{'es' if kind.endswith('ch') else 's'}" if listing is None else listing
    hint = f" (see `{command}`)" if command else ""
    return ParameterError(f"unknown {kind} {name!r}; {nearest(name, options)}{hint}")


def discover(package: ModuleType | str) -> dict[str, str]:
    """{name: first line of its docstring} of the files in a package, sorted, without importing any of them.

    A file whose name begins with an underscore is no offer. `package` is the module or its dotted name.
    """
    return {name: next(iter(text.splitlines()), "") for name, text in docstrings(package).items()}


def docstrings(package: ModuleType | str) -> dict[str, str]:
    """{name: its whole docstring} of the files that `discover` finds, without importing any of them."""
    module = importlib.import_module(package) if isinstance(package, str) else package
    found: dict[str, str] = {}
    for entry in pkgutil.iter_modules(module.__path__):
        if not entry.name.startswith("_") and not entry.ispkg:
            found[entry.name] = _docstring(Path(entry.module_finder.path) / f"{entry.name}.py")  # type: ignore[union-attr]
    return dict(sorted(found.items()))


@cache
def _docstring(file: Path) -> str:
    """Parsed once in a process: every name that is looked up asks for all files of its room."""
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def load(kind: str, package: ModuleType | str, name: str) -> ModuleType:
    """Import the file of that name from a package of ours.

    Raises:
        ValueError: if there is no such file, with the nearest name.
    """
    offered = discover(package)
    if name not in offered:
        raise unknown(kind, name, offered)
    return importlib.import_module(f"{package if isinstance(package, str) else package.__name__}.{name}")
