"""Every network with every exit structure: what all of them promise. A new one is tested by existing."""

import copy
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp import branches, models
from offramp.net import Backbone, MultiExitNet, attach, plain
from offramp.testing import NETWORK_CHECKS

CLASSES = 5
DIFFERENT_WIDTHS = {"linear"}
"""Branches whose features have different widths by design; the branch's file must say why."""

REFUSED = {
    ("msdnet", "sketch"): "sketch cannot chain stage 4: .* fits nowhere on this network, `own` and `linear` exits fit",
    **{
        ("msdnet", branch): rf"^{branch} exits need one map .* stage 1 passes on \(.*\); `own` and `linear` exits fit$"
        for branch in ("beed", "byot", "eed", "lct", "tofd")
    },
}
"""(family, branch) pairs that do not fit, with what the refusal says. `own` needs a network with exits of its own."""


def family(net: str) -> str:
    return models.find(net).__name__.rpartition(".")[2]


def fits(net: str, branch: str) -> bool:
    return (family(net), branch) not in REFUSED and (branch != "own" or family(net) == "msdnet")


def pairs(fitting: bool = True) -> Iterator[Any]:
    """One network per family with every branch; the others only in the full grid."""
    seen: set[str] = set()
    for net, line in models.available().items():
        marks = [pytest.mark.full] if line in seen else []
        seen.add(line)
        for branch in branches.available():
            if fits(net, branch) == fitting:
                yield pytest.param(net, branch, id=f"{net}-{branch}", marks=marks)


def tiny(net: str) -> Backbone:
    """The smallest form of a network that its options offer."""
    torch.manual_seed(0)
    backbone = models.find(net).build(net, classes=CLASSES, **options(net))
    assert isinstance(backbone, Backbone)
    return backbone


def options(net: str) -> dict[str, int]:
    size = 32 if net == "vgg19" else 16
    wanted = {"width": 4, "channels": 3, "image_size": size, "blocks": 1, "alpha": 12, "exits": 4, "growth": 2}
    offered = inspect.signature(models.find(net).build).parameters
    return {key: value for key, value in wanted.items() if key in offered}


def cached_net(net: str, branch: str) -> MultiExitNet:
    """The network as it was built: a copy of its modules would take ten times as long."""
    network, state = _made(net, branch)
    network.to(torch.float32, memory_format=torch.contiguous_format).train().zero_grad()
    network.load_state_dict(state)
    return network


@cache
def _made(net: str, branch: str) -> tuple[MultiExitNet, dict[str, Tensor]]:
    build = branches.find(branch).build
    network = attach(tiny(net), lambda backbone, exit: build(backbone, exit, CLASSES))
    return network, copy.deepcopy(network.state_dict())


def images(net: str, batch: int = 4) -> Tensor:
    return torch.rand(batch, *shape_of(net), generator=torch.Generator().manual_seed(1)) - 0.5


@cache
def shape_of(net: str) -> tuple[int, int, int]:
    return tiny(net).shape


every_pair = pytest.mark.parametrize(("net", "branch"), list(pairs()))


def cross() -> Iterator[Any]:
    """One family with every branch, and every family with the branch that it is meant for; all pairs in full."""
    quick = {tuple(parameters.values) for parameters in representatives()}
    for parameters in pairs():
        net, branch = parameters.values
        more = [] if family(net) == "resnet" or (net, branch) in quick else [pytest.mark.full]
        yield pytest.param(net, branch, id=parameters.id, marks=[*parameters.marks, *more])


def representatives() -> Iterator[Any]:
    """The branch that each family is meant for, once per family."""
    result = {family(net): (net, "sketch" if fits(net, "sketch") else "own") for net in reversed(models.available())}
    yield from (pytest.param(*pair, id="-".join(pair)) for pair in result.values())


@pytest.mark.parametrize(("net", "branch"), list(cross()))
@pytest.mark.parametrize("check", NETWORK_CHECKS, ids=[check.__name__ for check in NETWORK_CHECKS])
def test_the_contract(check: Callable[..., None], net: str, branch: str) -> None:
    check(cached_net(net, branch), shape_of(net))


@every_pair
def test_features_are_what_the_classifier_sees(net: str, branch: str) -> None:
    widths = {feature.shape[1] for feature in cached_net(net, branch)(images(net)).features}
    assert len(widths) == 1 or branch in DIFFERENT_WIDTHS


@every_pair
def test_the_final_exit_is_the_plain_network(net: str, branch: str) -> None:
    network = cached_net(net, branch)
    stages = tuple(stage for stage in network.stages if isinstance(stage, nn.Sequential))
    alone = plain(Backbone(stages, network.branches[-1].head, shape_of(net))).eval()  # type: ignore[arg-type]
    assert torch.equal(alone(images(net)).logits[-1], network.eval()(images(net)).logits[-1])


@pytest.mark.parametrize(("net", "branch"), list(pairs(fitting=False)))
def test_what_does_not_fit_says_what_does(net: str, branch: str) -> None:
    message = REFUSED.get((family(net), branch), r"^own needs a network that was published with exits \(msdnet\)")
    with pytest.raises(ValueError, match=message):
        cached_net(net, branch)


@pytest.mark.parametrize("net", [pytest.param(p.values[0], marks=p.marks) for p in pairs() if p.values[1] == "linear"])
def test_without_early_exits(net: str) -> None:
    network = plain(tiny(net)).eval()
    assert network.exits == 1
    with_exits = cached_net(net, "linear").eval()
    assert torch.equal(network(images(net)).logits[0], with_exits(images(net)).logits[-1])


COMPILE = """
import torch
from offramp import branches, models
from offramp.net import attach

build = branches.find({branch!r}).build
network = attach(models.find({net!r}).build({net!r}, classes=5, **{options}), lambda b, exit: build(b, exit, 5)).eval()
inputs = torch.rand(4, *{shape})
expected = network(inputs).logits
made = torch.compile(network, backend="aot_eager", fullgraph=True)(inputs).logits
torch.testing.assert_close(made, expected)
made.square().sum().backward()
assert all(p.grad is not None for p in network.parameters())
"""


@pytest.mark.full
@pytest.mark.parametrize(("net", "branch"), list(representatives()))
def test_compiles_as_one_graph(net: str, branch: str) -> None:
    """In a process of its own: torch cannot trace the run-time shape checks that tests put around everything."""
    source = COMPILE.format(net=net, branch=branch, options=options(net), shape=shape_of(net))
    done = subprocess.run([sys.executable, "-W", "error", "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
