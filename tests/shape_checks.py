"""Checks the annotated types and shapes of every function of offramp at run time.

jaxtyping's import hook applies `jaxtyping.jaxtyped(typechecker=...)` to every function. That decorator binds all
arguments and checks them twice in every call, also where no shape is annotated: half of the time of a small training.
Here, beartype checks arguments and result once, and axes are compared only in functions that annotate shapes. As with
jaxtyping, `jaxtyping.config.update("jaxtyping_disable", True)` turns the checks off.
"""

import functools
import types
import typing
from typing import Any, NamedTuple

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook, jaxtyped


def install() -> None:
    """Check every module of offramp that is imported from now on."""
    jaxtyping.jaxtyped = lambda *, typechecker: checked  # what the code of the hook calls
    install_import_hook("offramp", "beartype.beartype")


def checked(function: Any) -> Any:
    """The function with types and shapes checked in every call; a dataclass with the types of its fields checked."""
    if isinstance(function, type):
        return jaxtyped(typechecker=beartype)(function)
    if not function.__annotations__:
        return function
    check: Check | None = None

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal check
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        check = check or _check(function)
        if not check.has_shapes:
            return check.types_checked(*args, **kwargs)
        with jaxtyped("context"):
            return check.types_checked(*args, **kwargs)

    # in tracebacks it is a check, as those that beartype makes, and no code of a model (offramp.split.untraceable)
    called.__code__ = called.__code__.replace(co_filename="<@beartype(shape_checks)>")
    return called


class Check(NamedTuple):
    """A function with its types checked, the annotations it has, and whether those have shapes."""

    types_checked: Any
    annotations: dict[str, Any]
    has_shapes: bool


_inner: dict[types.CodeType, Check] = {}
"""The checks of functions inside others, which are made again whenever the outer one runs, by their code."""
_FUNCTION = "__beartype_func"
"""The keyword, with a default, under which code that beartype wrote has the function it checks."""


def _check(function: Any) -> Check:
    """The check of a function that is called for the first time: beartype needs a millisecond to compile one."""
    written = dict(function.__annotations__)
    same = _inner.get(function.__code__)
    if same and same.annotations == written:
        return same._replace(types_checked=_around(same.types_checked, function))
    function.__annotations__ = {name: _resolved(hint, function.__globals__) for name, hint in written.items()}
    check = Check(beartype(function), written, any(map(_has_shape, function.__annotations__.values())))
    function.__annotations__ = written
    if "<locals>" in function.__qualname__ and _FUNCTION in (check.types_checked.__kwdefaults__ or {}):
        _inner[function.__code__] = check
    return check


def _around(types_checked: Any, function: Any) -> Any:
    """The same check around another function of the same code."""
    check = types_checked
    again = types.FunctionType(check.__code__, check.__globals__, check.__name__, check.__defaults__, check.__closure__)
    again.__kwdefaults__ = {**check.__kwdefaults__, _FUNCTION: function}
    return again


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    """Names in quotes are replaced by what they mean; Any if they mean nothing outside a type checker."""
    if not _is_quoted(hint):
        return hint
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"": hint}), names, include_extras=True)[""]
    except NameError:
        return Any


def _is_quoted(hint: Any) -> bool:
    return isinstance(hint, str | typing.ForwardRef) or any(map(_is_quoted, _arguments(hint)))


def _has_shape(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_shape, _arguments(hint)))


def _arguments(hint: Any) -> tuple[Any, ...]:
    if isinstance(hint, list):  # of Callable[[...], ...]
        return tuple(hint)
    return () if typing.get_origin(hint) is typing.Literal else typing.get_args(hint)
