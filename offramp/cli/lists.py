"""offramp nets | branches | methods | data: what there is, and the parameters of one by name."""

import inspect
from typing import Annotated, Any

from cyclopts import Parameter

from offramp.cli import emit
from offramp.names import unknown

Json = Annotated[bool, Parameter(negative="")]


def nets(name: str | None = None, /, *, json: Json = False) -> None:
    """List the networks, or one network's parameters.

    Args:
        name: A network.
        json: Print one JSON object.
    """
    from offramp import models

    _list("net", models.available(), name, lambda found: models.find(found).build, json)


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

    _list("method", methods.available(), name, methods.find, json)


def data(name: str | None = None, /, *, json: Json = False) -> None:
    """List the kinds of data, or one kind's parameters.

    Args:
        name: A kind of data.
        json: Print one JSON object.
    """
    from importlib import import_module

    from offramp import data

    _list("data", dict(data.available()), name, lambda found: import_module(f"offramp.data.{found}").build, json)


def _list(kind: str, offers: dict[str, str], name: str | None, build: Any, json: bool) -> None:
    from offramp.cli._show import stdout, table

    if name is None:
        if json:
            emit(offers)
            return
        for offer, line in offers.items():
            stdout.print(f"[bold]{offer:<12}[/] {line}", highlight=False)
        return
    if name not in offers:
        raise unknown(kind, name, offers, listing=f"offramp {kind}s" if kind != "data" else "offramp data")
    found = build(name)
    parameters = {
        key: {"type": inspect.formatannotation(spec.annotation), "default": spec.default}
        for key, spec in inspect.signature(found).parameters.items()
        if spec.kind is spec.KEYWORD_ONLY and spec.default is not spec.empty
    }
    if json:
        emit({"name": name, "about": offers[name], "parameters": parameters})
        return
    stdout.print(f"[bold]{name}[/]  {offers[name]}", highlight=False)
    stdout.print(inspect.getdoc(found) or "", highlight=False, markup=False)
    rows = [[f"--{kind}.{key}", str(spec["default"]), spec["type"]] for key, spec in parameters.items()]
    if rows:
        stdout.print()
        stdout.print(table("", ["parameter", "default", "type"], rows))
