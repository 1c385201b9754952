"""Goals of `offramp calibrate` as they are typed.

Shares (accuracy, risk, delta): `0.6` and `60%` are the same. The drop is a difference of accuracies in percentage
points: `0.5` and `0.5%` are half a point.
"""

from typing import Literal, cast

from offramp.lookup import ParameterError
from offramp.runs.goal import Goal, Runtime, Unit

SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9}
AMBIGUOUS = 0.1
"""A plain drop below it is refused: 0.005 may be a share, which is half a point, or that part of a point."""


def goal_of(
    *,
    macs: str | None,
    ms: str | None,
    max_drop: str | None,
    target_accuracy: str | None,
    risk: str | None,
    delta: str | None,
    save: Unit | None,
    batch_size: int,
    runtime: Runtime | None,
    never_slower_at: tuple[int, ...],
    temperatures: str,
) -> Goal:
    """The goal that was typed.

    Raises:
        ParameterError: naming the option and the right spelling.
    """
    return Goal(
        macs=None if macs is None else _macs(macs),
        ms=None if ms is None else _ms(ms),
        max_drop=None if max_drop is None else points("max_drop", max_drop),
        target_accuracy=None if target_accuracy is None else _share("target_accuracy", target_accuracy),
        risk=None if risk is None else _share("risk", risk),
        delta=None if delta is None else _share("delta", delta),
        save=save,
        batch_size=batch_size,
        runtime=runtime,
        never_slower_at=never_slower_at,
        temperatures=parse_temperatures(temperatures),
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def points(name: str, text: str) -> float:
    """`0.5` and `0.5%`, half a percentage point -> 0.005; small plain numbers are refused."""
    number = _number(text.removesuffix("%"))
    if number is None or not 0 <= number < 100:
        raise ParameterError(
            f"{name} takes percentage points such as 0.5 or 0.5%, from 0 to below 100, got {text!r}", name
        )
    if not text.endswith("%") and 0 < number < AMBIGUOUS:
        raise ParameterError(
            f"{name}={text} is ambiguous: write {number:g}% or {100 * number:g}% (percentage points of accuracy)", name
        )
    return number / 100


def _share(name: str, text: str) -> float:
    """`0.6` and `60%` -> 0.6; `60` is refused."""
    number = _number(text.removesuffix("%"))
    if number is None or number != number:
        raise ParameterError(f"{name} takes a share such as 0.01, or percent such as 1%, got {text!r}", name)
    if text.endswith("%"):
        return number / 100
    if number > 1:
        raise ParameterError(f"{name}={text} is not a share: write {number:g}%, or {number / 100:g}", name)
    return number


def _macs(text: str) -> float:
    """`0.5` and `50%` -> 0.5 (of plain); `250M` -> 250e6."""
    suffix = text[-1:] if text[-1:] in SUFFIXES or text[-1:] == "%" else ""
    number = _number(text.removesuffix(suffix))
    value = None if number is None else number * SUFFIXES.get(suffix, 0.01 if suffix == "%" else 1.0)
    if value is None or not 0 < value < float("inf"):
        raise ParameterError(
            f"macs takes a share of the plain network's such as 0.5 or 50%, or a count such as 250M, got {text!r}",
            "macs",
        )
    if suffix in SUFFIXES and value <= 1:
        raise ParameterError(
            f"macs={text} is at most one operation: a share of the plain network's is written 0.5 or 50%", "macs"
        )
    return value


def _ms(text: str) -> float:
    """`0.5` and `0.5ms` -> 0.5."""
    number = _number(text.removesuffix("ms"))
    if number is None:
        raise ParameterError(f"ms takes milliseconds per image such as 0.5, not a share, got {text!r}", "ms")
    return number


def parse_temperatures(text: str) -> float | tuple[float, ...] | Literal["fit"]:
    """`fit`, or comma-separated numbers."""
    if text == "fit":
        return "fit"
    numbers = tuple(_number(part) for part in text.split(","))
    if None in numbers:
        raise ParameterError(
            f"temperatures takes `fit`, a positive number, or comma-separated numbers, one per exit, got {text!r}",
            "temperatures",
        )
    return cast(tuple[float, ...], numbers)
