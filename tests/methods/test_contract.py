"""What every training method must keep: terms, labels, progress, numbers of exits, precision, learning."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.methods import available, find
from offramp.methods._method import Method
from offramp.net import Backbone, Branch, Head
from offramp.outputs import Batch, ExitOutputs

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
EVERY = pytest.mark.parametrize(("name", "hyper"), VARIANTS, ids=IDS)
SAMPLES, CLASSES, WIDTH = 6, 3, 4
ALONE = ("vanilla", "joint", "equilibrium", "hmsdnet", "boostnet", "l2w", "one")


def outputs(exits: int, dtype: torch.dtype = torch.float32) -> ExitOutputs:
    generator = torch.Generator().manual_seed(exits)
    logits = torch.randn(exits, SAMPLES, CLASSES, generator=generator).to(dtype).requires_grad_()
    maps = [torch.randn(SAMPLES, WIDTH, 2, 2, generator=generator).to(dtype).requires_grad_() for _ in range(exits)]
    return ExitOutputs(logits, tuple(features.mean((2, 3)) for features in maps), tuple(maps))


def batch(soft: bool = False) -> Batch:
    labels = torch.arange(SAMPLES) % CLASSES
    return Batch(torch.zeros(SAMPLES, 1), F.one_hot(labels, CLASSES).float() if soft else labels, torch.arange(SAMPLES))


def build(name: str, hyper: dict[str, Any], exits: int) -> Callable[..., dict[str, Tensor]]:
    torch.manual_seed(0)
    objective = find(name).build(**hyper).objective
    if hasattr(objective, "prepare_for_exits"):
        assert objective.prepare_for_exits(exits=exits, widths=(WIDTH,) * exits) == ()
    return objective


@EVERY
@pytest.mark.parametrize("exits", [2, 4, 7])
def test_terms_are_finite_scalars_with_a_gradient(name: str, hyper: dict[str, Any], exits: int) -> None:
    given = outputs(exits)
    terms = build(name, hyper, exits)(given, batch(), 0.3)
    assert terms and all(term.shape == () and torch.isfinite(term) for term in terms.values())
    sum(terms.values()).backward()
    assert torch.isfinite(given.logits.grad).all() and given.logits.grad[-1].any()


@EVERY
def test_one_exit_works_or_is_refused(name: str, hyper: dict[str, Any]) -> None:
    objective = find(name).build(**hyper).objective
    if name in ALONE:
        objective = build(name, hyper, 1)
        assert list(objective(outputs(1), batch(), 0.0)) == ["ce"]
        return
    for attempt in (
        lambda: objective.prepare_for_exits(exits=1, widths=(4,)),
        lambda: objective(outputs(1), batch(), 0.0),
    ):
        several = "dml lets networks teach each other and needs at least 2 of them, got 1"
        exits = f"{name} lets exits teach each other .* network has 1.*joint or vanilla"
        with pytest.raises(ValueError, match=several if name == "dml" else exits):
            attempt()


@EVERY
def test_soft_labels_of_one_class_are_that_class(name: str, hyper: dict[str, Any]) -> None:
    hard = build(name, hyper, 4)(outputs(4), batch(), 0.3)
    soft = build(name, hyper, 4)(outputs(4), batch(soft=True), 0.3)
    torch.testing.assert_close(soft, hard)


@EVERY
def test_progress_changes_only_annealed_terms(name: str, hyper: dict[str, Any]) -> None:
    early, late = (build(name, hyper, 4)(outputs(4), batch(), progress) for progress in (0.0, 0.9))
    annealed = name in ("muse", "msd") and hyper.get("schedule", "cosine") == "cosine"
    expected = {"features"} if annealed else {"kl"} if name == "one" and "ramp_up" not in hyper else set()
    assert {term for term in early if not torch.equal(early[term], late[term])} == expected


@EVERY
def test_bf16_outputs_give_float32_terms(name: str, hyper: dict[str, Any]) -> None:
    half = outputs(4, torch.bfloat16)
    full = ExitOutputs(
        half.logits.detach().float(),
        tuple(feature.detach().float() for feature in half.features),
        tuple(features.detach().float() for features in half.maps),
    )
    objective = build(name, hyper, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = objective(half, batch(), 0.3)
    assert all(term.dtype == torch.float32 for term in got.values())
    rough = {"features"} if hyper.get("adapt") else set()  # a learned layer itself runs in bf16
    for term, value in build(name, hyper, 4)(full, batch(), 0.3).items():
        torch.testing.assert_close(got[term], value, rtol=2e-2 if term in rough else 1e-6, atol=1e-7)


def backbone() -> Backbone:
    stages = tuple(
        nn.Sequential(nn.Conv2d(1 if exit == 0 else WIDTH, WIDTH, 3, padding=1), nn.ReLU()) for exit in range(3)
    )
    return Backbone(stages, Head(WIDTH, CLASSES), (1, 4, 4))


def network(method: Method) -> nn.Module:
    return method.network(backbone, lambda backbone, exit: Branch(nn.Identity(), Head(WIDTH, CLASSES)))


@EVERY
def test_gradient_steps_lower_the_loss(name: str, hyper: dict[str, Any]) -> None:
    torch.manual_seed(0)
    method = find(name).build(**hyper)
    net, objective = network(method), method.objective
    if hasattr(objective, "prepare_for_exits"):
        objective.prepare_for_exits(exits=net.exits, widths=(WIDTH,) * net.exits)
        objective.eval()  # the temperature of DBT stays, so that losses are comparable
    learned = [*net.parameters(), *(objective.parameters() if isinstance(objective, nn.Module) else ())]
    optimizer = torch.optim.SGD(learned, lr=0.01)
    given = batch()._replace(inputs=torch.randn(SAMPLES, 1, 4, 4))
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = sum(objective(net(given.inputs), given, 0.0).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", available())
def test_parameters_are_keywords_and_documented(name: str) -> None:
    build = find(name).build
    text = inspect.getdoc(build) or ""
    for parameter in inspect.signature(build).parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.annotation is not inspect.Parameter.empty
        assert f"\n    {parameter.name}: " in text, f"{name} does not document {parameter.name}"


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
    given = outputs(4)
    terms = build(name, hyper, 4)(given, batch(), 0.0)
    sum(value for key, value in terms.items() if key != "ce").backward()
    assert not given.logits.grad[-1].any()
    assert all(row.any() for row in given.logits.grad[:-1])
    if features:
        assert given.maps[-1].grad is None
        assert all(features.grad.any() for features in given.maps[:-1])


def test_dense_without_detach_pulls_the_teachers_too() -> None:
    given = outputs(4)
    build("dense", {"detach_teachers": False}, 4)(given, batch(), 0.0)["soft-ce"].backward()
    assert given.logits.grad[-1].any()
