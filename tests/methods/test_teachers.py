"""Who teaches gets no gradient: imitation pulls each student by (own answer - teacher's answer), and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.methods import find
from offramp.outputs import Batch, ExitOutputs

EXITS, SAMPLES, CLASSES, T = 4, 6, 5, 3.0
Expected = Callable[[Tensor], Tensor]


def outputs() -> ExitOutputs:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(EXITS, SAMPLES, CLASSES, generator=draw, dtype=torch.float64).requires_grad_()
    maps = [torch.randn(SAMPLES, 4, 2, 2, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(EXITS)]
    return ExitOutputs(logits, tuple(features.mean((2, 3)) for features in maps), tuple(maps))


def soft(logits: Tensor) -> Tensor:
    return (logits / T).softmax(-1)


def mutual(z: Tensor) -> Tensor:
    p = soft(z)
    return p - (p.sum(0) - p) / (EXITS - 1)


def by_deeper(z: Tensor) -> Tensor:
    p = soft(z)
    return torch.stack([sum((p[j] - p[i] for i in range(j + 1, EXITS)), torch.zeros_like(p[j])) for j in range(EXITS)])


def by_mean(z: Tensor) -> Tensor:
    return soft(z) - soft(z.mean(0))


def by_weighted_mean(z: Tensor) -> Tensor:
    weights = torch.tensor([1.6**k for k in range(EXITS)], dtype=z.dtype)
    ensemble = (weights[:, None, None] * z).sum(0) / weights.sum()
    balance = torch.tensor([1.15 ** (EXITS - 1 - k) for k in range(EXITS)], dtype=z.dtype)
    return balance[:, None, None] * (soft(z) - soft(ensemble))


# The share of the imitation in the loss, and what pulls each student: d/dz of T^2 KL_T is T (p - p_teacher) / B.
PULLS: list[tuple[str, dict[str, Any], float, Expected]] = [
    ("muse", {}, 0.5, mutual),
    ("msd", {}, 0.5, mutual),
    ("dense", {}, 1.0 / (EXITS - 1), by_deeper),
    ("eed", {}, 1.0, by_mean),
    ("eed", {"imitation": "kl"}, 1.0, by_mean),
    ("beed", {}, 1.0, by_weighted_mean),
]


@pytest.mark.parametrize(("name", "hyper", "share", "expected"), PULLS)
def test_a_teacher_is_not_pulled_towards_its_students(
    name: str, hyper: dict[str, Any], share: float, expected: Expected
) -> None:
    values = outputs()
    objective = find(name).build(**hyper).objective
    objective.prepare_for_exits(exits=EXITS, widths=(4,) * EXITS)
    terms = objective(
        values, Batch(torch.zeros(SAMPLES, 1), torch.arange(SAMPLES) % CLASSES, torch.arange(SAMPLES)), 0.0
    )
    (imitation,) = (terms[key] for key in terms if key not in ("ce", "features"))
    result = torch.autograd.grad(imitation, values.logits, retain_graph=True)[0]
    torch.testing.assert_close(result, share * T / SAMPLES * expected(values.logits.detach()))


@pytest.mark.parametrize("name", ["muse", "msd"])
def test_the_superpeer_is_not_pulled_by_features(name: str) -> None:
    values = outputs()
    objective = find(name).build().objective
    objective.prepare_for_exits(exits=EXITS, widths=(4,) * EXITS)
    labels = torch.arange(SAMPLES) % CLASSES
    objective(values, Batch(torch.zeros(SAMPLES, 1), labels, labels), 0.0)["features"].backward()
    assert values.maps[-1].grad is None and all(features.grad.any() for features in values.maps[:-1])


@pytest.mark.parametrize(("name", "pooled"), [("eed", True), ("beed", False)])
def test_the_mean_of_the_features_is_a_constant_to_its_students(name: str, pooled: bool) -> None:
    values = outputs()
    leaves = [f.detach().requires_grad_() for f in (values.features if pooled else values.maps)]
    values = values._replace(**{"features" if pooled else "maps": tuple(leaves)})
    objective = find(name).build(importance=1.0).objective if name == "beed" else find(name).build().objective
    objective.prepare_for_exits(exits=EXITS, widths=(4,) * EXITS)
    labels = torch.arange(SAMPLES) % CLASSES
    term = objective(values, Batch(torch.zeros(SAMPLES, 1), labels, labels), 0.0)["features"]
    result = torch.autograd.grad(term, leaves)
    target = torch.stack([leaf.detach() for leaf in leaves]).mean(0)
    for leaf, gradient in zip(leaves, result, strict=True):
        twice = 2.0 * (leaf.detach() - target) / leaf.numel() * (0.1 if name == "beed" else 1.0)
        either = (leaf > 0) | (target > 0) if pooled else torch.ones_like(leaf, dtype=torch.bool)
        torch.testing.assert_close(gradient, twice * either)
