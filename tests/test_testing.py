"""The contract tests that plugin authors run: they pass what is right and name what is wrong."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.branches import sketch
from offramp.losses.cross_entropy import cross_entropy
from offramp.methods import find
from offramp.methods._method import Method
from offramp.net import Backbone, Branch, Head
from offramp.outputs import Batch, ExitOutputs
from offramp.testing import check_backbone, check_branch, check_method, small_backbone


def test_a_branch_and_a_network_in_one_line_each() -> None:
    check_branch(sketch.build)
    check_backbone(small_backbone)


def objective(outputs: ExitOutputs, batch: Batch, progress: float) -> dict[str, Tensor]:
    return {"ce": cross_entropy(outputs.logits, batch.labels).sum()}


def scheduled(outputs: ExitOutputs, batch: Batch, progress: float) -> dict[str, Tensor]:
    return {"ce": (1 + progress) * objective(outputs, batch, progress)["ce"]}


def half(outputs: ExitOutputs, batch: Batch, progress: float) -> dict[str, Tensor]:
    return {"ce": objective(outputs, batch, progress)["ce"] + outputs.logits.mean().to(torch.bfloat16) * 0.5}


def first_exit(outputs: ExitOutputs, batch: Batch, progress: float) -> dict[str, Tensor]:
    return {"ce": cross_entropy(outputs.logits[:1], batch.labels).sum()}


def build(*, weight: float = 1.0) -> Method:
    """Joint training.

    Args:
        weight: not used.
    """
    return Method(objective)


def undocumented(*, weight: float = 1.0) -> Method:
    """Joint training."""
    return Method(objective)


def building(function: Any) -> Callable[..., Method]:
    return lambda: Method(function)


def test_a_method_that_keeps_the_contract() -> None:
    check_method(build)
    check_method(find("hdkd").build, init="ones")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (undocumented, "the docstring of build must explain weight in Args"),
        (building(scheduled), r"terms \['ce'\] change over a run, but scheduled is \[\]"),
        (building(first_exit), "the final exit must get a gradient"),
        (building(lambda outputs, batch, progress: {}), "an objective must return at least one term"),
    ],
)
def test_a_method_that_breaks_it_is_told_how(method: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_method(method)


class Later(nn.Module):
    """A branch with a weight that nothing depends on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head, self.unused = Head(width, 5), nn.Parameter(torch.zeros(1))

    def forward(
        self, state: Tensor, carry: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        return (*self.head(state), carry)


def test_a_branch_or_network_that_breaks_it_is_told_how() -> None:
    with pytest.raises(AssertionError, match=r"parameters without a finite gradient: branches\.0\.unused"):
        check_branch(lambda trunk, exit, classes: Later(4) if exit == 0 else None)
    with pytest.raises(AssertionError, match="the structure must have an exit behind one stage at least"):
        check_branch(lambda trunk, exit, classes: None)
    head = Head(4, 5)
    with pytest.raises(AssertionError, match="a parameter is shared between stages or branches"):
        check_branch(lambda trunk, exit, classes: Branch(nn.Identity(), head) if exit < 2 else None, shared)
    with pytest.raises(AssertionError, match="build must return a Backbone, got Linear"):
        check_backbone(lambda: nn.Linear(1, 1))


def shared(classes: int) -> Backbone:
    stages = tuple(nn.Sequential(nn.Conv2d(3 if not exit else 4, 4, 3, padding=1), nn.ReLU()) for exit in range(3))
    return Backbone(stages, Head(4, classes), (3, 8, 8))


def test_what_shared_parameters_look_like() -> None:
    """As if each method had written its own."""
    muse, msd, hmsdnet = (find(name).build for name in ("muse", "msd", "hmsdnet"))
    assert set(inspect.signature(msd).parameters) - set(inspect.signature(muse).parameters) == {"reverse_kl"}
    assert not {"temperature", "name", "teachers"} & set(inspect.signature(hmsdnet).parameters)
    text = inspect.getdoc(hmsdnet) or ""
    assert text.index("Args:") < text.index("    init: ") < text.index("    meta_every: ") < text.index("Raises:")
    with pytest.raises(TypeError):
        muse(reverse_kl=True)
    with pytest.raises(TypeError, match="unknown"):
        msd(unknown=1)
