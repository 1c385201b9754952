"""offramp nets | branches | methods | data | recipes: what is available, and the parameters of one by name."""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

from offramp import plugins
from offramp.cli import emit
from offramp.cli._options import Json
from offramp.config import keys
from offramp.discovery import discover, first_line, from_outside, with_plugins
from offramp.docstrings import elsewhere, explained, summary
from offramp.hyperparameters import defaults, hints_of
from offramp.lookup import unknown
from offramp.python_names import is_python
from offramp.text import one_line

if TYPE_CHECKING:
    from offramp.discovery import Offer
    from offramp.methods import About

WIDTH = 79


def nets(name: str | None = None, /, *, json: Json = False) -> None:
    """List the networks, or one network's parameters.

    Args:
        name: A network.
    """
    from offramp import models

    more = {} if name or json else models.EXTERNAL
    _list("net", models.__name__, models.built_in(), name, models.find, json, external=more)


def branches(name: str | None = None, /, *, json: Json = False) -> None:
    """List the exit structures, or one structure's parameters.

    Args:
        name: An exit structure.
    """
    from offramp import branches

    _list("branch", branches.__name__, discover(branches.__name__), name, branches.find, json)


def methods(name: str | None = None, /, *, json: Json = False) -> None:
    """List the training methods, or one method's parameters.

    Args:
        name: A method.
    """
    from offramp import methods

    about, ours = methods.about(), discover(methods.__name__)
    if name is not None:
        known = about.get(name)
        more = dict(known._asdict(), line=None) if known else {}
        _list("method", methods.__name__, ours, name, methods.find, json, more=more)
        return
    if json:
        emit({name: said._asdict() for name, said in about.items()})
    else:
        _show_methods(about)
    _say_problems(methods.__name__, ours)


def recipes(name: str | None = None, /, *, json: Json = False) -> None:
    """List the recipes that ship with offramp, or print one recipe's file.

    Args:
        name: A recipe.
    """
    from offramp.cli._console import list_offers
    from offramp.config import recipes

    if name is None:
        if json:
            emit(recipes.available())
        else:
            list_offers(recipes.available())
        return
    text = recipes.find(name).read_text(encoding="utf-8")
    if json:
        emit({"name": name, "text": text})
    else:
        print(text, end="")


def _show_methods(about: "Mapping[str, About]") -> None:
    """One entry for each method, families together."""
    from offramp.cli._console import stdout

    def say(text: str, style: str | None = None) -> None:
        stdout.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    say("step and memory: a training step and its peak memory relative to joint, measured")
    for family, members in groupby(about.items(), lambda item: item[1].family):
        say(f"\n{family:<15}   step  memory", "bold")
        for name, said in members:
            say(f"{name:<15}  {_times(said.time):>6}  {_times(said.memory):>6}  {said.fits.partition('; ')[0]}")
            line = said.line + _from_package(said.package)
            say(fill(line, WIDTH, initial_indent="    ", subsequent_indent="    "), "dim")


def _from_package(package: str | None) -> str:
    """What follows the description of a plugin."""
    return f" (package {package})" if package else ""


def _say_problems(package: str, ours: Mapping[str, str]) -> None:
    """Sentences on stderr about plugins that cannot be used, after a list."""
    for problem in plugins.problems(package, ours):
        print(f"offramp: {one_line(problem)}", file=sys.stderr)


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def data(name: str | None = None, /, *, json: Json = False) -> None:
    """List the data sources, or one source's parameters.

    Args:
        name: A data source.
    """
    from offramp import data

    _list("data", data.__name__, data.built_in(), name, data.find, json, shared=data.load)


def _list(
    kind: str,
    package: str,
    ours: dict[str, str],
    name: str | None,
    find: "Callable[[str], Offer]",
    json: bool,
    *,
    external: Mapping[str, str] | None = None,
    shared: Callable[..., Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print all offers, or one's docstring and parameters.

    Args:
        package: where the files are that offer them, and the group of plugins.
        ours: what that package offers, with one line each.
        external: names that have no parameters to show, with one line each.
        shared: takes parameters that every offer has as well.
        more: what else there is to say of the one.
    """
    from offramp.cli._console import list_offers

    offers = with_plugins(package, ours)
    origins = {name: plugin.origin for name, plugin in plugins.usable(package, ours).items()}
    if name is None:
        if json:
            emit(offers)
        else:
            lines = {name: line + _from_package(origins.get(name)) for name, line in offers.items()}
            list_offers({**lines, **(external or {})})
        _say_problems(package, ours)
        return
    if name not in offers:
        offers |= {name: _line_from_outside(kind, package, name, offers)}
    found = find(name).build
    parameters = _parameters(found)
    if shared:
        own = {"progress", *(key.replace("-", "_") for key in keys())}  # these are options of their own
        parameters |= {key: about for key, about in _parameters(shared).items() if key not in own}
    said = {key: value for key, value in {**(more or {}), "package": origins.get(name)}.items() if value is not None}
    if json:
        emit({"name": name, "about": offers[name], **said, "parameters": parameters, "data_sets": elsewhere(found)})
        return
    _show_one(kind, name, offers[name], said, found, parameters)


def _line_from_outside(kind: str, package: str, name: str, offers: Mapping[str, str]) -> str:
    """The first line of a module of the user's.

    Raises:
        ParameterError: if the name is none that can be described, with the nearest.
    """
    found = None if kind == "net" and is_python(name) else from_outside(package, name)
    if found is None:
        raise unknown(kind, name, offers, listing="offramp data" if kind == "data" else None)
    return first_line(found.text)


def _show_one(
    kind: str, name: str, line: str, said: Mapping[str, Any], build: Any, parameters: Mapping[str, dict[str, Any]]
) -> None:
    """One offer: what it is, every parameter with default, type and meaning, and the values for other data."""
    from offramp.cli._console import stdout

    def say(text: str) -> None:
        stdout.print(text, highlight=False, markup=False, soft_wrap=True)

    say(fill(f"{name}  {line}", WIDTH))
    if "package" in said:
        say(fill(f"Package: {said['package']}.", WIDTH))
    if "family" in said:
        costs = ", ".join(f"{key} {said[key]:.2f} x joint's" for key in ("time", "memory") if key in said)
        say(fill(f"Family: {said['family']}. A step: {costs or 'not measured'}. Fits {said['fits']}.", WIDTH))
    say("")
    for paragraph in summary(build).split("\n\n"):
        say(fill(" ".join(paragraph.split()), WIDTH))
    for key, spec in parameters.items():
        say(f"\n--{kind}.{key} {_written(spec['default'])}   ({spec['type']})")
        if spec["about"]:
            say(fill(spec["about"], WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))
    values = elsewhere(build)
    if values:
        say("\nDefaults are for CIFAR-100. For other data:")
    for data, pairs in values.items():
        words = " ".join(f"--{kind}.{key} {value}" for key, value in pairs.items())
        say(fill(f"{data}: {words}", WIDTH, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False))


def _parameters(build: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """Type, default and meaning of what `--KIND.KEY` sets."""
    hints, meaning = hints_of(build), explained(build)
    return {
        key: {"type": _type(hints[key]), "default": default, "about": meaning.get(key, "")}
        for key, default in defaults(build).items()
    }


def _type(hint: Any) -> str:
    """A type as one reads it: the words of a Literal, `comma-separated` for sequences, else as annotated."""
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(_type(kind) for kind in typing.get_args(hint) if kind is not type(None)))
    if typing.get_origin(hint) in (tuple, list, Sequence):
        return f"{_type(typing.get_args(hint)[0])}, comma-separated"
    return "path" if hint is Path else inspect.formatannotation(hint)


def _written(default: Any) -> str:
    """A default as it would be typed; a dash for none."""
    if default is None or default == ():
        return "–"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)
