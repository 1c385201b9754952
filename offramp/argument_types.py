"""Arguments of public functions and fields of public dataclasses have the types that they declare, or are refused."""

import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from offramp.hyperparameters import hints_of
from offramp.lookup import ParameterError
from offramp.text import quoted

P = ParamSpec("P")
R = TypeVar("R")
NAMES: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "booleans"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
}
"""Types as messages name them: one value, several."""
NUMBERS = {int: Integral, float: Real}
SHOWN = 60
"""Characters of a value's `repr` that a message shows; of longer ones it names the type."""


class Mismatch(Exception):
    """A value is not of the declared type."""


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function so that it refuses, before it runs, arguments of other types than it declares.

    Strings become paths, and NumPy's numbers Python's; lists are accepted for tuples. Items of iterators are not
    checked.

    Raises:
        ParameterError: naming the parameter, what it takes and what it got.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's message about missing and unknown parameters names the function
        hints = _hints(function)
        for name, value in bound.arguments.items():
            if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(check(f"each of {name}", one, hints.get(name, Any)) for one in value)
            elif signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = check(name, value, hints.get(name, Any))
        return function(*bound.args, **bound.kwargs)

    return checked


def check_fields(instance: Any) -> None:
    """Refuses values of other types than a dataclass declares, as `check_arguments`; for its `__post_init__`.

    Raises:
        ParameterError: naming the field, what it takes and what it got.
    """
    declared: Any = type(instance)
    for name, hint in _hints(declared).items():
        value = getattr(instance, name)
        checked = check(name, value, hint)
        if checked is not value:
            object.__setattr__(instance, name, checked)


def check(name: str, value: Any, hint: Any) -> Any:
    """The value of a parameter; strings as paths and NumPy's numbers as Python's, as declared.

    Raises:
        ParameterError: if it is not of the declared type.
    """
    try:
        return _conform(value, hint)
    except Mismatch:
        text = quoted(value, SHOWN + 1)
        got = text if len(text) <= SHOWN and "\n" not in text else f"an object of type {type(value).__name__}"
        raise ParameterError(f"{name} must be {_wanted(hint)}, got {got}", name) from None


@cache
def _hints(declared: Any) -> dict[str, Any]:
    """{parameter or field: type}."""
    try:
        return typing.get_type_hints(declared, include_extras=True)
    except NameError:  # names that exist for type checkers only
        return hints_of(declared)


def _conform(value: Any, hint: Any) -> Any:
    """The value, with strings as paths and NumPy's numbers as Python's, as declared.

    Raises:
        Mismatch: if it is not of this type.
    """
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _conform(value, kinds[0])
    if origin in (typing.Union, types.UnionType):
        return _conform_any(value, kinds)
    if origin is Literal:
        fits = isinstance(value, str | int) and value in kinds
    elif origin is not None and isinstance(origin, type) and issubclass(origin, Iterable):
        return _conform_items(value, origin, kinds)
    elif origin is Callable:
        fits = callable(value)
    elif hint is Path:
        fits = isinstance(value, str | os.PathLike)
        value = Path(value) if fits and not isinstance(value, Path) else value
    elif hint in NUMBERS:
        fits = isinstance(value, NUMBERS[hint]) and not isinstance(value, bool)
        value = hint(value) if fits and type(value) not in NUMBERS else value
    else:
        fits = hint is Any or not isinstance(hint, type) or isinstance(value, hint)
    if not fits:
        raise Mismatch
    return value


def _conform_any(value: Any, kinds: tuple[Any, ...]) -> Any:
    if isinstance(value, str) and str in kinds:  # also if it could be a path
        return value
    for kind in kinds:
        try:
            return _conform(value, kind)
        except Mismatch:
            continue
    raise Mismatch


def _conform_items(value: Any, origin: type, kinds: tuple[Any, ...]) -> Any:
    """The same for mappings, sequences (arrays as well) and, without their items, iterators."""
    if issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise Mismatch
        for key, part in value.items():
            _conform(key, kinds[0]), _conform(part, kinds[1])
        return value
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if isinstance(value, str | bytes | Mapping) or not (sized or (origin is Iterable and isinstance(value, Iterable))):
        raise Mismatch
    if not sized:
        return value
    fixed = origin is tuple and kinds[-1] is not ...
    if fixed and len(kinds) != len(value):
        raise Mismatch
    items = [_conform(item, kinds[index if fixed else 0]) for index, item in enumerate(value)]
    return value if all(one is other for one, other in zip(items, value, strict=True)) else items


def _wanted(hint: Any, several: bool = False) -> str:
    """What a parameter takes, in words: one value of this type, or several."""
    origin, kinds = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return str(kinds[1])
    if origin in (typing.Union, types.UnionType):
        covered = {types.NoneType, *([int] if float in kinds else []), *([str] if Path in kinds else [])}
        return _joined([_wanted(kind, several) for kind in kinds if kind not in covered])
    if origin is Literal:
        return _joined([repr(choice) for choice in kinds])
    if origin is Callable:
        return ("a function", "functions")[several]
    if origin is not None:
        return _wanted_items(origin, kinds, several)
    package = "offramp." if hint.__module__.startswith("offramp.") else ""
    named = f"an instance of {package}{hint.__name__}", f"instances of {package}{hint.__name__}"
    return NAMES.get(hint, named)[several]


def _wanted_items(origin: type, kinds: tuple[Any, ...], several: bool) -> str:
    if origin is tuple and kinds[-1] is not ...:
        return ("a tuple", "tuples")[several] + f" of {' and '.join(map(_wanted, kinds))}"
    name, item = ("dict", kinds[1]) if issubclass(origin, Mapping) else ("list", kinds[0])
    return (f"a {name}", f"{name}s")[several] + ("" if item is Any else f" of {_wanted(item, True)}")


def _joined(choices: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
