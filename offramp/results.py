"""Results of tasks as plain values: one form for Python and for `--json`."""

import dataclasses
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class HasDict(Protocol):
    """A result whose plain values are not its fields."""

    def as_dict(self) -> dict[str, Any]:
        """The plain values, by the names that `--json` prints."""
        ...


def as_dict(result: Any) -> dict[str, Any]:
    """The result of a task as plain values: exactly what `--json` prints.

    These are the fields of the result, by `dataclasses.asdict`. `Predictions` are the exception: like tables and CSV,
    they count exits from 1 (`Predictions.as_dict`).

    Raises:
        TypeError: if it is not a result.
    """
    return result.as_dict() if isinstance(result, HasDict) else dataclasses.asdict(result)
