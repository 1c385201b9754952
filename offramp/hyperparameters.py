"""Parameters from command lines and config files, as the types that the code declares."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from offramp.lookup import ParameterError, unknown
from offramp.text import quoted

KINDS = ("net", "branch", "method", "data")
"""What takes parameters of its own: `net.KEY`, `branch.KEY`, `method.KEY`, `data.KEY`."""

_NAMES: dict[Any, str] = {float: "a number", int: "a whole number", bool: "true or false", str: "text", Path: "a path"}
"""Types as messages name them."""

LISTINGS = {"net": "offramp nets", "branch": "offramp branches", "method": "offramp methods", "data": "offramp data"}


def arguments(kind: str, name: str, build: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The given parameters, converted to the types that `build` declares.

    Raises:
        ValueError: naming the parameter, its type and the nearest valid one.
    """
    hints = hints_of(build)
    offered = [
        key
        for key, spec in inspect.signature(build).parameters.items()
        if spec.kind is spec.KEYWORD_ONLY and key not in ("classes", "channels")
    ]
    converted = {}
    for key, value in values.items():
        if key.replace("-", "_") not in offered:
            raise unknown(f"parameter of {kind} {name}", key, offered, listing=f"{LISTINGS[kind]} {name}")
        converted[key.replace("-", "_")] = convert(value, hints[key.replace("-", "_")], f"{kind}.{key}")
    return converted


def hints_of(build: Callable[..., Any]) -> dict[str, Any]:
    """{parameter: its type}; of its default if it is not annotated, or with names that exist for type checkers only."""
    specs = inspect.signature(build).parameters
    try:
        hints = typing.get_type_hints(build)
    except (NameError, TypeError):
        hints = {key: spec.annotation for key, spec in specs.items() if not isinstance(spec.annotation, str)}
    return {
        key: _type_of(spec.default) if hints.get(key, spec.empty) is spec.empty else hints[key]
        for key, spec in specs.items()
    }


def _type_of(default: Any) -> Any:
    if isinstance(default, tuple | list):
        return tuple[Any, ...]
    return Any if default is None or default is inspect.Parameter.empty else type(default)


def defaults(build: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a `build` that have a default, with it."""
    return {
        key: spec.default
        for key, spec in inspect.signature(build).parameters.items()
        if spec.kind is spec.KEYWORD_ONLY and spec.default is not spec.empty and key not in ("classes", "channels")
    }


def convert(value: Any, hint: Any, parameter: str) -> Any:
    """`value` as the type `hint`, or a ParameterError that says what the parameter takes."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    for kind in typing.get_args(hint) if union else (hint,):
        fits, converted = _fit(value, kind)
        if fits:
            return converted
    choice = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType] if union else [hint]
    named = " or ".join(_NAMES.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds)
    wants = f"one of {', '.join(map(str, choice))}" if choice else named
    if typing.get_origin(hint) in (tuple, list, Sequence):
        items = {int: "whole numbers", float: "numbers"}.get(typing.get_args(hint)[0], "words")
        wants = f"comma-separated {items}"
    raise ParameterError(f"{parameter} takes {wants}, got {quoted(value)}", parameter)


def _fit(value: Any, kind: Any) -> tuple[bool, Any]:
    """Whether the value, typed or read from YAML, can be of this kind, and as what."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        same = [choice for choice in typing.get_args(kind) if str(choice) == str(value)]
        return bool(same), same[0] if same else None
    if kind in (str, Path):
        return isinstance(value, str | kind), kind(str(value))
    if origin in (tuple, list, Sequence):
        words = [part for part in value.split(",") if part] if isinstance(value, str) else value
        parts = words if isinstance(words, list | tuple) else [words]
        parts_converted = [_fit(part, typing.get_args(kind)[0]) for part in parts]
        return all(fits for fits, _ in parts_converted), tuple(part for _, part in parts_converted)
    parsed = value
    if isinstance(value, str):
        import yaml

        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            return False, None
    if kind is float and not isinstance(parsed, bool):
        try:
            return True, float(parsed)  # YAML reads 1e-6 as text
        except (TypeError, ValueError):
            return False, None
    return kind is Any or type(parsed) is kind, parsed
