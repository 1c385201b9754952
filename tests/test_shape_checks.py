"""The checks of `shape_checks.py`, which all tests rely on, are there."""

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from shape_checks import checked
from torch import Tensor

from offramp.losses.cross_entropy import cross_entropy


def scaled(values: Float[Tensor, "E B"], factors: Float[Tensor, "B"], lost: int = 0) -> Float[Tensor, "E B"]:
    return (values * factors)[:, lost:]


def name(value: "int", other: "NoSuchType | None" = None) -> list["str"]:  # noqa: F821
    return [value] if value < 0 else [str(value)]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (lambda: cross_entropy(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)), "logits"),
        (lambda: checked(scaled)(torch.zeros(2, 3), torch.zeros(4)), "factors"),
        (lambda: checked(scaled)(torch.zeros(2, 3, dtype=torch.long), torch.zeros(3)), "values"),
        (lambda: checked(scaled)(torch.zeros(2, 3), torch.zeros(3), lost=1), "return"),
        (lambda: checked(name)("1"), "value"),
        (lambda: checked(name)(-1), "return"),
    ],
    ids=["package", "axis", "dtype", "result axis", "type", "result type"],
)
def test_what_does_not_fit_is_an_error(call: Callable[[], Any], wrong: str) -> None:
    with pytest.raises(Exception, match=wrong) as caught:
        call()
    assert type(caught.value).__module__.startswith("beartype.roar")


def test_the_checks_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert checked(name)(-1) == [-1]
    assert checked(scaled)(torch.zeros(2, 3), torch.zeros(3), lost=1).shape == (2, 2)


def test_what_fits_passes_and_the_next_call_has_its_own_axes() -> None:
    for count in (3, 4):
        assert checked(scaled)(torch.zeros(2, count), torch.zeros(count)).shape == (2, count)
    assert checked(name)(1, other=[]) == ["1"] and checked(name).__annotations__ == name.__annotations__


def test_a_function_inside_another_is_checked_whenever_it_is_made() -> None:
    def outer(result: Any) -> Any:
        def inner(value: int) -> int:
            return result

        return checked(inner)

    first, second, wrong = outer(1), outer(2), outer("3")
    assert [first(0), second(0), first(0)] == [1, 2, 1]
    for call in (lambda: second("0"), lambda: wrong(0)):
        with pytest.raises(Exception, match="violates type hint"):
            call()
