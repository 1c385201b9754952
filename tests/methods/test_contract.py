"""What every training method must keep (`offramp.testing`), in many settings; and which exits only teach."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import Tensor

from offramp.methods import available, find
from offramp.testing import METHOD_CHECKS
from offramp.testing.methods import batch, outputs, prepared_objective, steps_lower_the_loss

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in available()),
    ("byot", {"imitation": "kl", "features": "norm", "without_features": (1,), "adapt": "all"}),
    ("dbt", {"rising": False, "imitation": "kl"}),
    ("dense", {"rising": True, "detach_teachers": False}),
    ("eed", {"imitation": "mse", "teachers": (1, -1)}),
    ("eed", {"imitation": "kl", "teachers": (-1,), "final_learns": False}),
    ("muse", {"schedule": "off", "detach_teachers": False}),
    ("msd", {"reverse_kl": True, "features": "mean", "schedule": "constant"}),
    ("beed", {"mode": "eed"}),
    ("beed", {"mode": "kd"}),
    ("hdkd", {"init": "random", "detach_teachers": False}),
    ("hdbt", {"init": "ds"}),
    ("ofa", {"reduction": "elements"}),
    ("boostnet", {"equal": True}),
    ("l2w", {"centre": "mat", "sees": "both"}),
    ("dml", {"temperature": 3.0}),
    ("one", {"ramp_up": 0.0}),
    ("one", {"form": "ensemble"}),
    ("eed", {"weights": "learned", "beta": 0.0}),
    ("eed", {"weights": "learned", "teachers": (1, -1), "imitation": "mse"}),
    ("imta", {"links": False}),
    ("impr", {"links": True}),
    ("ztw", {"norm": "layer", "combine": "arithmetic", "ensemble_final": False}),
]
IDS = [f"{name}-{'-'.join(map(str, hyper))}" if hyper else name for name, hyper in VARIANTS]


def checks() -> Iterator[Any]:
    """Every check of every setting; that steps lower the loss of a method as it is, tests/contract shows as well."""
    for (name, hyper), id in zip(VARIANTS, IDS, strict=True):
        for check in METHOD_CHECKS:
            twice = check is steps_lower_the_loss and not hyper
            marks = [pytest.mark.full] if twice else []
            yield pytest.param(check, name, hyper, id=f"{check.__name__}-{id}", marks=marks)


@pytest.mark.parametrize(("check", "name", "hyper"), list(checks()))
def test_the_contract(check: Callable[..., None], name: str, hyper: dict[str, Any]) -> None:
    check(find(name).build, hyper)


@pytest.mark.parametrize("name", available())
def test_one_exit_is_refused_in_words_that_help(name: str) -> None:
    objective = find(name).build().objective
    prepare = getattr(objective, "prepare_for_exits", lambda exits, widths: None)
    for attempt in (lambda: prepare(exits=1, widths=(4,)), lambda: objective(outputs(1), batch(), 0.0)):
        try:
            attempt()
        except ValueError as error:
            networks = "dml lets networks teach each other and needs at least 2 of them, got 1"
            exits = f"{name} lets exits teach each other .* network has 1.*joint or vanilla"
            assert re.search(networks if name == "dml" else exits, str(error))


def build(name: str, hyper: dict[str, Any], exits: int) -> Callable[..., dict[str, Tensor]]:
    return prepared_objective(find(name).build, hyper, exits)


# The exits that only teach: no gradient may reach their logits through the imitation, nor their features.
ONLY_TEACHES = [
    ("byot", {}, "soft-ce", True),
    ("byot", {"imitation": "kl"}, "kl", True),
    ("dbt", {}, "soft-ce", False),
    ("dense", {}, "soft-ce", False),
    ("hdkd", {}, "soft-ce", False),
    ("hdbt", {}, "soft-ce", False),
    ("ofa", {}, "kl", False),
    ("impr", {}, "kl", False),
    ("imta", {}, "kl", False),
    ("eed", {"teachers": (-1,), "final_learns": False}, "soft-ce", True),
    ("eed", {"teachers": (-1,), "final_learns": False, "imitation": "mse"}, "mse", True),
    ("beed", {"mode": "kd"}, "kl", True),
    ("one", {"ramp_up": 0.0}, "kl", False),
]


@pytest.mark.parametrize(("name", "hyper", "term", "features"), ONLY_TEACHES)
def test_the_final_exit_gets_no_gradient_where_it_only_teaches(
    name: str, hyper: dict[str, Any], term: str, features: bool
) -> None:
    values = outputs(4)
    terms = build(name, hyper, 4)(values, batch(), 0.0)
    sum(value for key, value in terms.items() if key != "ce").backward()
    assert not values.logits.grad[-1].any()
    assert all(row.any() for row in values.logits.grad[:-1])
    if features:
        assert values.maps[-1].grad is None
        assert all(features.grad.any() for features in values.maps[:-1])


def test_dense_without_detach_pulls_the_teachers_too() -> None:
    values = outputs(4)
    build("dense", {"detach_teachers": False}, 4)(values, batch(), 0.0)["soft-ce"].backward()
    assert values.logits.grad[-1].any()
