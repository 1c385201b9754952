"""offramp nets | branches | methods | data | recipes: what is available, and the parameters of one by name."""

import sys
from collections.abc import Mapping
from itertools import groupby
from textwrap import fill
from typing import TYPE_CHECKING, Any

from offramp.cli import emit, emit_result
from offramp.cli._options import Json
from offramp.text import as_typed, one_line

if TYPE_CHECKING:
    from offramp.config.catalog import Description, Kind
    from offramp.methods import About

WIDTH = 79
NOTATION = (
    "Notation: K exits, the last of which is the final exit; z_k, F_k and CE_k: logits, features and cross-entropy of "
    "exit k; sg: stop-gradient; KL_T(p -> q) and H_T(p -> q): KL divergence and cross-entropy of the softmax of "
    "student q from that of teacher p, at temperature T."
)
"""Of the formulas of methods."""


def nets(name: str | None = None, /, *, json: Json = False) -> None:
    """List the networks, or one network's parameters.

    Args:
        name: Name of a network; default: list all.
    """
    from offramp.models import EXTERNAL

    _show("net", name, json, external=EXTERNAL)


def branches(name: str | None = None, /, *, json: Json = False) -> None:
    """List the exit structures, or one structure's parameters.

    Args:
        name: Name of an exit structure; default: list all.
    """
    _show("branch", name, json)


def methods(name: str | None = None, /, *, json: Json = False) -> None:
    """List the training methods, or one method's parameters.

    Args:
        name: Name of a method; default: list all.
    """
    if name is not None:
        _show("method", name, json)
        return
    from offramp.methods import about

    if json:
        emit({name: method._asdict() for name, method in about().items()})
    else:
        _show_methods(about())
    _show_problems("method")


def data(name: str | None = None, /, *, json: Json = False) -> None:
    """List the data sources, or one source's parameters.

    Args:
        name: Name of a data source; default: list all.
    """
    _show("data", name, json)


def recipes(name: str | None = None, /, *, json: Json = False) -> None:
    """List the recipes that ship with offramp, or print one recipe's file.

    Args:
        name: Name of a recipe; default: list all.
    """
    from offramp.cli._console import list_offers
    from offramp.config import recipes

    if name is not None:
        text = recipes.find(name).read_text(encoding="utf-8")
        if json:
            emit({"name": name, "text": text})
        else:
            print(text, end="")
    elif json:
        emit(recipes.available())
    else:
        list_offers(recipes.available())


def _show(kind: "Kind", name: str | None, json: bool, external: Mapping[str, str] | None = None) -> None:
    """Print all names of a kind, or the documentation and the parameters of one.

    Args:
        external: names that have no parameters to show, with one line each.
    """
    from offramp.cli._console import list_offers
    from offramp.config import catalog

    if name is not None:
        description = catalog.describe(kind, name)
        if json:
            emit_result(description)
        else:
            _show_one(kind, description)
        return
    if json:
        emit(catalog.available(kind))
    else:
        packages = catalog.plugin_packages(kind)
        lines = {name: line + _from_package(packages.get(name)) for name, line in catalog.available(kind).items()}
        list_offers({**lines, **(external or {})})
    _show_problems(kind)


def _show_methods(about: "Mapping[str, About]") -> None:
    """One entry for each method, families together."""
    _print("Methods by what exits learn from.")
    _print("step, memory: time and peak memory of a training step, relative to joint")
    for family, members in groupby(about.items(), lambda item: item[1].family):
        _print(f"\n{family:<15}   step  memory", "bold")
        for name, method in members:
            fits = method.fits.partition("; ")[0]
            _print(f"{name:<15}  {_times(method.time):>6}  {_times(method.memory):>6}  {fits}")
            line = method.line + _from_package(method.package)
            _print(fill(line, WIDTH, initial_indent="    ", subsequent_indent="    "), "dim")


def _show_one(kind: str, description: "Description") -> None:
    """What it is, every parameter with default, type and meaning, and the values for other data."""
    name = description.name
    _print(fill(f"{name}  {description.about}", WIDTH))
    if description.package is not None:
        _print(fill(f"Package: {description.package}.", WIDTH))
    if description.family is not None:
        measured = {"time": description.time, "memory": description.memory}
        costs = ", ".join(f"{key} {value:.2f} x joint's" for key, value in measured.items() if value is not None)
        line = f"Family: {description.family}. A training step: {costs or 'not measured'}. Fits {description.fits}."
        _print(fill(line, WIDTH))
    _print("")
    for paragraph in description.summary.split("\n\n"):
        _print(fill(" ".join(paragraph.split()), WIDTH))
    if kind == "method" and description.package is None:
        _print(fill(NOTATION, WIDTH))
    for key, parameter in description.parameters.items():
        _print(f"\n--{kind}.{key} {_written(parameter.default)}   ({parameter.type})")
        if parameter.about:
            _print(_indented(parameter.about, "    "))
    if description.data_sets:
        _print("\nDefaults are for CIFAR-100. For other data:")
    for data_set, pairs in description.data_sets.items():
        words = " ".join(f"--{kind}.{key} {value}" for key, value in pairs.items())
        _print(_indented(f"{data_set}: {words}", "      "))


def _show_problems(kind: "Kind") -> None:
    """Sentences on stderr about plugins that cannot be used, after a list."""
    from offramp.config.catalog import plugin_problems

    for problem in plugin_problems(kind):
        print(f"offramp: {one_line(problem)}", file=sys.stderr)


def _print(text: str, style: str | None = None) -> None:
    from offramp.cli._console import stdout

    stdout.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _indented(text: str, further: str) -> str:
    return fill(text, WIDTH, initial_indent="    ", subsequent_indent=further, break_on_hyphens=False)


def _from_package(package: str | None) -> str:
    """What follows the description of a plugin."""
    return f" (package {package})" if package else ""


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def _written(default: Any) -> str:
    """A default as it would be typed; a dash for none."""
    if default is None or default == ():
        return "–"
    return str(default).lower() if isinstance(default, bool) else as_typed(default)
