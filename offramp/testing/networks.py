"""Checks of networks and exit structures: gradients, order, segments, state, costs, precision."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from offramp.branches import linear
from offramp.measure import cost
from offramp.net import Backbone, BuildBackbone, MultiExitNet, attach, plain, segments
from offramp.testing.data import small_backbone
from offramp.testing.expect import expect

ImageShape = tuple[int, int, int]


def check_backbone(build: BuildBackbone) -> None:
    """Run all checks on a network with linear exits, and without exits.

    Args:
        build: returns a new `Backbone`.
    Raises:
        AssertionError: naming the check that failed, and why.
    """
    backbone = build()
    expect(isinstance(backbone, Backbone), f"build must return a Backbone, got {type(backbone).__name__}")
    classes = backbone.head(
        nn.Sequential(*(block for stage in backbone.stages for block in stage))(_images(backbone.shape))
    )
    check_network(attach(build(), lambda trunk, exit: linear.build(trunk, exit, classes[0].shape[1])), backbone.shape)
    check_network(plain(build()), backbone.shape)


def check_branch(
    build: Callable[..., nn.Module | None], backbone: Callable[[int], Backbone] = small_backbone, **parameters: Any
) -> None:
    """Run all checks on a network with exits of one structure.

    Args:
        build: (backbone, exit, classes, **parameters) -> branch, or None if there is no exit behind that stage.
        backbone: classes -> a new backbone; default a small ResNet18.
    Raises:
        AssertionError: naming the check that failed, and why.
    """
    trunk = backbone(5)
    net = attach(trunk, lambda trunk, exit: build(trunk, exit, 5, **parameters))
    expect(net.exits > 1, "the structure must have an exit behind one stage at least")
    check_network(net, trunk.shape)


def check_network(net: MultiExitNet, shape: ImageShape) -> None:
    """Run all checks on a network; it is not changed.

    Args:
        shape: (channels, height, width) of the inputs.
    Raises:
        AssertionError: naming the check that failed, and why.
    """
    for check in NETWORK_CHECKS:
        check(copy.deepcopy(net), shape)


def outputs_and_gradients_are_finite(net: MultiExitNet, shape: ImageShape) -> None:
    """Logits (E, B, C), one feature and one map per exit; every parameter gets a finite gradient."""
    outputs = net(_images(shape))
    exits, batch = outputs.logits.shape[:2]
    expect((exits, batch) == (net.exits, 4), f"logits must be (E, B, C), got {tuple(outputs.logits.shape)}")
    expect(len(outputs.features) == len(outputs.maps) == net.exits, "every exit must have a feature and a map")
    expect(bool(outputs.logits.isfinite().all()), "logits must be finite")
    outputs.logits.square().sum().backward()
    bad = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    expect(not bad, f"parameters without a finite gradient: {', '.join(bad)}")


def exits_are_in_order(net: MultiExitNet, shape: ImageShape) -> None:
    """An exit's gradient reaches its own stage and those before it, never a later one."""
    logits = net(_images(shape)).logits
    for exit in range(net.exits):
        net.zero_grad()
        logits[exit].sum().backward(retain_graph=True)
        reached = [any(p.grad is not None and p.grad.any() for p in stage.parameters()) for stage in net.stages]
        expect(not any(reached[exit + 1 :]), f"exit {exit + 1} depends on a later stage")
        expect(all(reached[: exit + 1]), f"exit {exit + 1} does not depend on all stages before it")


@torch.no_grad()
def segments_are_the_network(net: MultiExitNet, shape: ImageShape) -> None:
    """Segments run one by one give the network's logits, with all exits and with every other one."""
    net.eval()
    for flags in ([True] * net.exits, [exit % 2 == 1 for exit in range(net.exits - 1)] + [True]):
        expected = net(_images(shape)).logits[torch.tensor(flags)]
        state, carry = _images(shape), ()
        for number, (segment, logits) in enumerate(zip(segments(net, flags), expected, strict=True), 1):
            state, carry, answer = segment(state, carry)
            expect(torch.equal(answer, logits), f"segment {number} of exits {flags} differs from the network")


@torch.no_grad()
def state_dict_restores_the_network(net: MultiExitNet, shape: ImageShape) -> None:
    """A network with other weights that loads the state gives the same logits."""
    other = copy.deepcopy(net).eval()
    for parameter in net.eval().parameters():
        parameter.uniform_(-0.1, 0.1)
    expect(not torch.equal(net(_images(shape)).logits, other(_images(shape)).logits), "parameters must matter")
    other.load_state_dict(net.state_dict())
    expect(torch.equal(net(_images(shape)).logits, other(_images(shape)).logits), "state_dict must hold all state")


def exits_share_no_weight(net: MultiExitNet, shape: ImageShape) -> None:
    """No parameter belongs to two stages or branches."""
    parameter_ids = [id(p) for part in (*net.stages, *net.branches) for p in part.parameters()]
    expect(len(set(parameter_ids)) == len(parameter_ids), "a parameter is shared between stages or branches")


def costs_equal_torchs_counter(net: MultiExitNet, shape: ImageShape) -> None:
    """Multiply-adds counted on the meta device are half of the operations that torch counts while it runs."""
    net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(_images(shape, 1))
    pieces = cost.measure(net, shape)
    counted = cost.cumulative_of(pieces)[-1]
    expect(counted == sum(cost.as_run(pieces)), "segments must cost what the network costs")
    expect(
        2 * counted == counter.get_total_flops(), f"{2 * counted} operations, torch counts {counter.get_total_flops()}"
    )


def bfloat16_autocast_trains(net: MultiExitNet, shape: ImageShape) -> None:
    """Under autocast logits are bfloat16 and every gradient is finite."""
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(_images(shape))
    expect(outputs.logits.dtype == torch.bfloat16, f"logits must be bfloat16, got {outputs.logits.dtype}")
    outputs.logits.float().square().mean().backward()
    finite = all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    expect(finite, "gradients under bfloat16 autocast must be finite")


@torch.no_grad()
def channels_last_changes_nothing(net: MultiExitNet, shape: ImageShape) -> None:
    """The memory format does not change the logits."""
    net.double().eval()
    inputs = _images(shape).double()
    expected = net(inputs).logits
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(net(inputs.contiguous(memory_format=torch.channels_last)).logits, expected)


NETWORK_CHECKS: tuple[Callable[[MultiExitNet, ImageShape], None], ...] = (
    exits_share_no_weight,
    outputs_and_gradients_are_finite,
    exits_are_in_order,
    segments_are_the_network,
    state_dict_restores_the_network,
    costs_equal_torchs_counter,
    bfloat16_autocast_trains,
    channels_last_changes_nothing,
)


def _images(shape: ImageShape, batch: int = 4) -> Tensor:
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(1)) - 0.5
