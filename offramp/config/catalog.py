"""What networks, exit structures, methods and data sources are available, and the parameters of each."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from offramp import plugins
from offramp.argument_types import check_arguments
from offramp.config.files import keys
from offramp.discovery import first_line, from_outside, with_plugins
from offramp.docstrings import elsewhere, explained, summary
from offramp.hyperparameters import LISTINGS, defaults, hints_of
from offramp.lookup import unknown
from offramp.python_names import is_python

Kind = Literal["net", "branch", "method", "data"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a network, exit structure, method or data source: `--KIND.KEY` at the command line.

    Attributes:
        type: what it takes: a type's name, `comma-separated` after it for sequences, or words separated by ` | `.
        default: its default.
        about: what it means.
    """

    type: str
    default: Any
    about: str


@dataclass(frozen=True)
class Description:
    """One network, exit structure, method or data source.

    Attributes:
        name: its name, as in the option.
        about: description in one line.
        parameters: its parameters, by name.
        data_sets: by data set, values of parameters that the papers give for other data than CIFAR-100.
        summary: the documentation of its `build`, without parameters.
        package: of a plugin, its installed package and version; else None.
        family, fits: of a method, what the exits learn from, and the networks that it can train; else None.
        time, memory: of a method, time and peak memory of a training step relative to `joint`; None if not measured.
    """

    name: str
    about: str
    parameters: dict[str, Parameter]
    data_sets: dict[str, dict[str, str]]
    summary: str
    package: str | None = None
    family: str | None = None
    fits: str | None = None
    time: float | None = None
    memory: float | None = None


_PACKAGES: dict[Kind, str] = {
    "net": "offramp.models",
    "branch": "offramp.branches",
    "method": "offramp.methods",
    "data": "offramp.data",
}
"""Packages of the files that are listed, each with `built_in` and `find`; also the groups of plugins."""


@check_arguments
def available(kind: Kind) -> dict[str, str]:
    """{name: description} of all networks, exit structures, methods or data sources, including those of plugins.

    Nothing is imported. External models (`timm:NAME` and others) are not listed; `offramp.models.EXTERNAL` describes
    them.

    Args:
        kind: `net`, `branch`, `method` or `data`.
    Raises:
        ParameterError: if there is no such kind.
    """
    return with_plugins(_PACKAGES[kind], _built_in(kind))


def plugin_packages(kind: Kind) -> dict[str, str]:
    """{name: package and version} of those names of `available` that are from plugins."""
    return {name: plugin.origin for name, plugin in plugins.usable(_PACKAGES[kind], _built_in(kind)).items()}


def plugin_problems(kind: Kind) -> tuple[str, ...]:
    """A sentence for each installed plugin that cannot be used."""
    return plugins.problems(_PACKAGES[kind], _built_in(kind))


def _built_in(kind: Kind) -> dict[str, str]:
    names: dict[str, str] = import_module(_PACKAGES[kind]).built_in()
    return names


@check_arguments
def describe(kind: Kind, name: str) -> Description:
    """The documentation and the parameters of one network, exit structure, method or data source.

    Args:
        kind: `net`, `branch`, `method` or `data`.
        name: as listed by `available`, or `python:package.module`.
    Raises:
        ParameterError: if there is no such kind or name, with the nearest; if code from outside cannot be imported.
    """
    offers = available(kind)
    about = offers[name] if name in offers else _line_from_outside(kind, name, offers)
    build = import_module(_PACKAGES[kind]).find(name).build
    parameters = parameters_of(build)
    if kind == "data":  # every source takes those of `load` as well, except for those that are options of their own
        from offramp import data

        options = {"progress", *(key.replace("-", "_") for key in keys())}
        parameters |= {key: each for key, each in parameters_of(data.load).items() if key not in options}
    return Description(
        name=name,
        about=about,
        parameters=parameters,
        data_sets=elsewhere(build),
        summary=summary(build),
        package=plugin_packages(kind).get(name),
        **(_of_method(name) if kind == "method" else {}),
    )


def _of_method(name: str) -> dict[str, Any]:
    """What is known of a method besides its parameters."""
    from offramp import methods

    known = methods.about().get(name)
    return {} if known is None else {key: getattr(known, key) for key in ("family", "fits", "time", "memory")}


def _line_from_outside(kind: Kind, name: str, offers: Mapping[str, str]) -> str:
    """The first line of a module of the user's.

    Raises:
        ParameterError: if the name is none that can be described, with the nearest.
    """
    offer = None if kind == "net" and is_python(name) else from_outside(_PACKAGES[kind], name)
    if offer is None:
        raise unknown(kind, name, offers, listing=LISTINGS[kind])
    return first_line(offer.text)


def parameters_of(build: Callable[..., Any]) -> dict[str, Parameter]:
    """Type, default and meaning of the parameters that a `build` function has beside those that offramp passes."""
    hints, meaning = hints_of(build), explained(build)
    return {
        key: Parameter(_type(hints[key]), default, meaning.get(key, "")) for key, default in defaults(build).items()
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
