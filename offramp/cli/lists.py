"""offramp nets | branches | methods | data: what there is, and the parameters of one by name."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter

from offramp.cli import emit
from offramp.config import keys
from offramp.names import unknown
from offramp.parameters import defaults

Json = Annotated[bool, Parameter(negative="")]


def nets(name: str | None = None, /, *, json: Json = False) -> None:
    """List the networks, or one network's parameters.

    Args:
        name: A network.
        json: Print one JSON object.
    """
    from offramp import models

    offers = models.available() | ({} if name or json else models.DOORS)
    _list("net", offers, name, lambda found: models.find(found).build, json)


def branches(name: str | None = None, /, *, json: Json = False) -> None:
    """List the structures of exits, or one structure's parameters.

    Args:
        name: An exit structure.
        json: Print one JSON object.
    """
    from offramp import branches

    _list("branch", branches.available(), name, lambda found: branches.find(found).build, json)


def methods(name: str | None = None, /, *, json: Json = False) -> None:
    """List the training methods, or one method's parameters.

    Args:
        name: A method.
        json: Print one JSON object.
    """
    from offramp import methods

    _list("method", methods.available(), name, lambda found: methods.find(found).build, json)


def data(name: str | None = None, /, *, json: Json = False) -> None:
    """List the kinds of data, or one kind's parameters.

    Args:
        name: A kind of data.
        json: Print one JSON object.
    """
    from importlib import import_module

    from offramp import data

    offers = dict(data.available())
    _list("data", offers, name, lambda found: import_module(f"offramp.data.{found}").build, json, data.load)


def _list(
    kind: str,
    offers: dict[str, str],
    name: str | None,
    build: Any,
    json: bool,
    shared: Callable[..., Any] | None = None,
) -> None:
    """Print all offers, or one's docstring and parameters; `shared` takes parameters that every offer has as well."""
    from rich.markup import escape

    from offramp.cli._show import stdout, table

    if name is None:
        if json:
            emit(offers)
            return
        width = max(map(len, offers), default=0)
        for offer, line in offers.items():
            stdout.print(f"[bold]{offer:<{width}}[/] {escape(line)}", highlight=False)
        return
    if name not in offers:
        raise unknown(kind, name, offers, listing="offramp data" if kind == "data" else None)
    found = build(name)
    parameters = _parameters(found)
    if shared:
        own = {"progress", *(key.replace("-", "_") for key in keys())}  # these are options of their own
        parameters |= {key: about for key, about in _parameters(shared).items() if key not in own}
    if json:
        emit({"name": name, "about": offers[name], "parameters": parameters})
        return
    stdout.print(f"[bold]{name}[/]  {offers[name]}", highlight=False)
    stdout.print(inspect.getdoc(found) or "", highlight=False, markup=False)
    rows = [[f"--{kind}.{key}", str(spec["default"]), spec["type"]] for key, spec in parameters.items()]
    if rows:
        stdout.print()
        stdout.print(table("", ["parameter", "default", "type"], rows))


def _parameters(found: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """Type and default of what `--KIND.KEY` sets."""
    specs = inspect.signature(found).parameters
    return {
        key: {"type": inspect.formatannotation(specs[key].annotation), "default": default}
        for key, default in defaults(found).items()
    }
