"""Every network with every exit structure: what all of them promise. A new one is tested by existing."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from offramp import branches, models
from offramp.measure import cost
from offramp.net import Backbone, MultiExitNet, attach, plain, segments

CLASSES = 5
DIFFERENT_WIDTHS: frozenset[tuple[str, str]] = frozenset()
"""(net, branch) pairs whose features have different widths by design; the branch's file must say why."""


def pairs() -> Iterator[Any]:
    """One network per family with every branch; the others only in the full grid."""
    seen: set[str] = set()
    for net, line in models.available().items():
        marks = [pytest.mark.full] if line in seen else []
        seen.add(line)
        for branch in branches.available():
            yield pytest.param(net, branch, id=f"{net}-{branch}", marks=marks)


def tiny(net: str) -> Backbone:
    """The smallest form of a network that its options offer."""
    build = models.find(net).build
    wanted = {"width": 4, "channels": 3, "image_size": 32}
    offered = inspect.signature(build).parameters
    torch.manual_seed(0)
    backbone = build(net, classes=CLASSES, **{key: value for key, value in wanted.items() if key in offered})
    assert isinstance(backbone, Backbone)
    return backbone


def made(net: str, branch: str) -> MultiExitNet:
    build = branches.find(branch).build
    return attach(tiny(net), lambda backbone, exit: build(backbone, exit, CLASSES))


def images(net: str, batch: int = 4) -> Tensor:
    return torch.rand(batch, *tiny(net).shape, generator=torch.Generator().manual_seed(1)) - 0.5


pytestmark = pytest.mark.parametrize(("net", "branch"), list(pairs()))


def test_forward_and_backward(net: str, branch: str) -> None:
    network = made(net, branch)
    outputs = network(images(net))
    assert outputs.logits.shape == (network.exits, 4, CLASSES)
    assert len(outputs.features) == len(outputs.maps) == network.exits
    assert outputs.logits.isfinite().all()
    outputs.logits.square().sum().backward()
    untouched = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not untouched


def test_features_are_what_the_classifier_sees(net: str, branch: str) -> None:
    widths = {feature.shape[1] for feature in made(net, branch)(images(net)).features}
    assert len(widths) == 1 or (net, branch) in DIFFERENT_WIDTHS


def test_exits_are_in_order_and_the_final_one_is_the_plain_network(net: str, branch: str) -> None:
    """An exit's gradient reaches its own stage and those before it, never a later one."""
    network = made(net, branch)
    for exit in range(network.exits):
        network.zero_grad()
        network(images(net)).logits[exit].sum().backward()
        reached = [any(p.grad is not None and p.grad.any() for p in stage.parameters()) for stage in network.stages]
        assert reached == [number <= exit for number in range(network.exits)]
    alone = plain(Backbone(tuple(map(_sequential, network.stages)), network.branches[-1].head, tiny(net).shape)).eval()  # type: ignore[arg-type]
    assert torch.equal(alone(images(net)).logits[-1], network.eval()(images(net)).logits[-1])


def _sequential(stage: nn.Module) -> nn.Sequential:
    assert isinstance(stage, nn.Sequential)
    return stage


@pytest.mark.parametrize("enabled", [lambda exits: [True] * exits, lambda exits: [k % 2 == 1 for k in range(exits)]])
@torch.no_grad()
def test_segments_one_by_one_are_the_network(net: str, branch: str, enabled: Callable[[int], list[bool]]) -> None:
    network = made(net, branch).eval()
    flags = [*enabled(network.exits)[:-1], True]
    expected = network(images(net)).logits[torch.tensor(flags)]
    state, carry = images(net), ()
    for segment, logits in zip(segments(network, flags), expected, strict=True):
        state, carry, answer = segment(state, carry)
        assert torch.equal(answer, logits)


@torch.no_grad()
def test_state_dict_round_trip(net: str, branch: str) -> None:
    network, other = made(net, branch), made(net, branch)
    for parameter in network.parameters():
        parameter.uniform_(-0.1, 0.1)
    assert not torch.equal(network.eval()(images(net)).logits, other.eval()(images(net)).logits)
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(images(net)).logits, other(images(net)).logits)


def test_early_exits_share_no_weight_with_anything(net: str, branch: str) -> None:
    network = made(net, branch)
    own = [p for stage in network.stages for p in stage.parameters()]
    own += [p for exit in network.branches for p in exit.parameters()]
    assert len({id(p) for p in own}) == len(own)


def test_macs_equal_torchs_counter(net: str, branch: str) -> None:
    network = made(net, branch).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images(net, 1))
    shape = tiny(net).shape
    assert cost.macs_cumulative(network, shape)[-1] == sum(cost.segment_macs(network, shape))
    assert 2 * cost.macs_cumulative(network, shape)[-1] == counter.get_total_flops()


def test_bfloat16_autocast(net: str, branch: str) -> None:
    network = made(net, branch)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(images(net))
    assert outputs.logits.dtype == torch.bfloat16
    outputs.logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@torch.no_grad()
def test_channels_last_gives_the_same_answer(net: str, branch: str) -> None:
    network = made(net, branch).double().eval()
    inputs = images(net).double()
    expected = network(inputs).logits
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(network(inputs.contiguous(memory_format=torch.channels_last)).logits, expected)
