"""Errors about names and parameters that people type: which one is wrong, and the nearest spelling."""

import difflib
from collections.abc import Iterable
from typing import TypeVar

from offramp.text import quoted

E = TypeVar("E", bound=Exception)


class ParameterError(ValueError):
    """A name that does not exist, or the value of a parameter that is invalid.

    Args:
        message: one sentence that names parameters as Python does (`batch_size`, `method.alpha`, `tap=method`).
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
    """The sentence part that helps: "the nearest is 'muse'", or the whole choice if nothing is near.

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
        listing: the command that lists the valid names; default `offramp <kind>s`, in the plural, and none at all for
            "".
    """
    command = f"offramp {kind}{'es' if kind.endswith('ch') else 's'}" if listing is None else listing
    hint = f" (see `{command}`)" if command else ""
    return ParameterError(f"unknown {kind} {quoted(name)}; {nearest(name, options)}{hint}")
