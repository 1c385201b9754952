"""Every value that cannot work is refused in one sentence, when the method is built or before it trains."""

import math
from pathlib import Path
from typing import Any

import pytest

from offramp.methods import find
from offramp.methods._check import choice, exit_numbers, positions
from offramp.methods.byot import Imitation

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("byot", {"alpha": 1.1}, r"alpha must be in \[0, 1\], got 1.1"),
    ("byot", {"temperature": 0.0}, "temperature must be greater than 0 and finite, got 0.0"),
    ("byot", {"beta": -1e-6}, "beta must be at least 0"),
    ("byot", {"final_ce_weight": -0.1}, "final_ce_weight must be at least 0"),
    ("byot", {"without_features": (0,)}, "without_features must name exits once each, 1 the shallowest"),
    ("dbt", {"alpha": -0.1}, "alpha must be in"),
    ("dbt", {"temperature": -4.0}, "temperature must be greater than 0"),
    ("dbt", {"rate": 0.9}, r"rate must be at least 1 \(the temperature only rises\) and finite, got 0.9"),
    ("dense", {"rate": float("nan")}, "rate must be at least 1 .* and finite, got nan"),
    ("dbt", {"limit": 1.5}, r"limit must be in \[0, 1\]"),
    ("dbt", {"scale": 0.0}, "scale must be greater than 0"),
    ("dense", {"weight": -1.0}, "weight must be at least 0"),
    ("dense", {"temperature": math.nan}, "temperature must be greater than 0 and finite, got nan"),
    ("eed", {"alpha": -1.0}, "alpha must be at least 0"),
    ("eed", {"beta": math.inf}, "beta must be at least 0 and finite, got inf"),
    ("eed", {"temperature": 0.0}, "temperature must be greater than 0"),
    ("eed", {"teachers": ()}, "teachers must name at least one exit"),
    ("eed", {"teachers": (2, 2)}, r"teachers must name exits once each, .* got \[2, 2\]"),
    ("beed", {"importance": 0.0}, "importance must be greater than 0"),
    ("beed", {"balance": -1.0}, "balance must be greater than 0"),
    ("beed", {"alpha": -1.0}, "alpha must be at least 0"),
    ("beed", {"beta": -1.0}, "beta must be at least 0"),
    ("beed", {"temperature": 0.0}, "temperature must be greater than 0"),
    ("hdkd", {"temperature": 0.0}, "temperature must be greater than 0"),
    ("hdkd", {"weights": (1.0,), "fixed": Path("run")}, "weights and fixed both set the loss weights"),
    ("hdbt", {"step_size": 0.0}, "step_size must be greater than 0"),
    ("hdbt", {"decay": 1.5}, r"decay must be in \[0, 1\]"),
    ("hmsdnet", {"alpha": 1.5}, r"alpha must be in \[0, 1\]"),
    ("hmsdnet", {"meta_every": -1}, "meta_every must be at least 0"),
    ("impr", {"gamma": 1.1}, r"gamma must be in \[0, 1\]"),
    ("ofa", {"temperature": 0.0}, "temperature must be greater than 0"),
    ("boostnet", {"weaken": ()}, "weaken needs one value, two values, or one for each exit"),
    ("boostnet", {"weaken": (-0.5,)}, "weaken must be at least 0"),
    ("boostnet", {"decay": 2.0}, "decay must be in"),
    ("l2w", {"epsilon": -1.0}, "epsilon must be at least 0"),
    ("l2w", {"hidden": 0}, "hidden must be greater than 0"),
    ("l2w", {"target": 0.0}, "target must be greater than 0"),
    *((name, {"alpha": 2.0}, "alpha must be in") for name in ("muse", "msd")),
    *((name, {"temperature": 0.0}, "temperature must be") for name in ("muse", "msd")),
    *((name, {"beta_begin": -1.0}, "beta_begin must be") for name in ("muse", "msd")),
    *((name, {"beta_end": -1.0}, "beta_end must be") for name in ("muse", "msd")),
]


@pytest.mark.parametrize(("name", "hyper", "message"), REFUSED)
def test_refused_when_built(name: str, hyper: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(name).build(**hyper)


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("eed", {"teachers": (1, 5)}, "teachers names exit 5, but the network has exits 1 to 3"),
        ("eed", {"teachers": (3, -1)}, r"teachers names exit 3 twice in \[3, -1\] for 3 exits"),
        ("byot", {"without_features": (-4,)}, "without_features names exit -4, but the network has exits 1 to 3"),
        (
            "hdkd",
            {"weights": (1.0, 2.0)},
            "weights gives 2 weights, but hdkd with 3 exits has 6 losses: 3 of the labels",
        ),
        ("hdbt", {"weights": (1.0,) * 6}, "weights gives 6 weights, but hdbt with 3 exits has 5 losses"),
        ("beed", {"balance": 1.5}, r"balance 1.5 .* 2 - 1.5\^2 = -0.250, negative: .* 3 exits .* at most 1.4142"),
    ],
)
def test_refused_when_the_exits_are_known(name: str, hyper: dict[str, Any], message: str) -> None:
    objective = find(name).build(**hyper).objective
    with pytest.raises(ValueError, match=message):
        objective.prepare_for_exits(exits=3, widths=(4, 4, 4))


def test_an_unknown_word_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match="imitation must be one of soft-ce, kl, got 'soft_ce'; the nearest is 'soft-ce'"
    ):
        choice("imitation", "soft_ce", Imitation)


def test_positions_are_counted_from_either_end() -> None:
    exit_numbers("teachers", (-1, 2, 1))
    assert positions("teachers", (-1, 2, 1), 4) == (0, 1, 3)
