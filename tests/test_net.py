"""Networks with exits: attaching branches, tapping, making modules afresh, and segments that run one by one."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from offramp.branches import byot
from offramp.models import wrn
from offramp.net import Backbone, Branch, Head, MultiExitNet, attach, fresh, only_behind, plain, segments, share
from offramp.outputs import Carry, State

WIDTH, CLASSES, EXITS = 4, 5, 4
INPUTS = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Chained(Branch):
    """A branch that adds the logits of the exit before and counts its calls."""

    chained_exit = True

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__(body, head)
        self.calls = 0

    def forward(self, state: Tensor, carry: Carry = ()) -> tuple[Tensor, Tensor, Tensor, Carry]:
        self.calls += 1
        logits, feature, features, _ = super().forward(state, carry)
        logits = logits + carry[0] if carry else logits
        return logits, feature, features, (logits,)


def stage(enters: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(enters, WIDTH, 3, padding=1), nn.ReLU())


def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(tuple(stage(WIDTH if exit else 3) for exit in range(EXITS)), Head(WIDTH, CLASSES), (3, 8, 8))


def network(branch: type[Branch] = Branch, exits: Sequence[int] = range(EXITS - 1)) -> MultiExitNet:
    def built(trunk: Backbone, exit: int) -> Branch | None:
        return branch(nn.Identity(), Head(WIDTH, CLASSES)) if exit in exits else None

    return attach(backbone(), built).eval()


def test_exits_are_shallow_to_deep_and_the_heads_is_last() -> None:
    trunk = backbone()
    net = attach(trunk, lambda trunk, exit: Branch(nn.Identity(), Head(WIDTH, CLASSES)))
    result = net(INPUTS)
    assert net.exits == EXITS and result.logits.shape == (EXITS, 6, CLASSES)
    state = INPUTS
    for exit, part in enumerate(trunk.stages):
        state = part(state)
        assert torch.equal(result.maps[exit], state)
        assert torch.equal(result.features[exit], state.mean((2, 3)))
    assert torch.equal(result.logits[-1], trunk.head(state)[0])


def test_a_stage_without_an_exit_is_fused_with_the_next_and_answers_the_same() -> None:
    whole, fewer = network(), network(exits=[1])
    assert [len(part) for part in fewer.stages] == [4, 4]
    assert torch.equal(fewer(INPUTS).maps[0], whole(INPUTS).maps[1])
    assert torch.equal(fewer(INPUTS).maps[-1], whole(INPUTS).maps[-1])


def test_plain_has_one_exit() -> None:
    net = plain(backbone())
    assert net.exits == 1
    assert torch.equal(net(INPUTS).logits[0], network()(INPUTS).logits[-1])


def test_tokens_are_pooled_over_themselves() -> None:
    logits, feature, tokens = Head(WIDTH, CLASSES)(INPUTS.flatten(2).movedim(1, 2).repeat(1, 1, 2)[..., :WIDTH])
    assert (logits.shape, feature.shape, tokens.shape) == ((6, CLASSES), (6, WIDTH), (6, 64, WIDTH))
    assert torch.equal(feature, tokens.mean(1))


def test_a_heads_norm_comes_before_pooling_and_is_in_the_map() -> None:
    head = Head(3, CLASSES, nn.ReLU)
    logits, feature, features = head(INPUTS)
    assert torch.equal(features, INPUTS.relu()) and torch.equal(feature, features.mean((2, 3)))
    assert torch.equal(logits, head.classifier(feature))


def test_a_tap_sees_every_exit_and_may_divide_the_gradient() -> None:
    seen: list[tuple[int, int]] = []

    def cut(state: State, exit: int, exits: int) -> tuple[State, State]:
        seen.append((exit, exits))
        assert isinstance(state, Tensor)
        return state.detach(), state

    net = network()
    result = net(INPUTS, tap=cut)
    assert seen == [(exit, EXITS) for exit in range(EXITS)]
    torch.testing.assert_close(result.logits, net(INPUTS).logits)
    result.logits.sum().backward()
    assert all(p.grad is None for p in net.stages.parameters())
    assert share(INPUTS, 0, 1) == (INPUTS, INPUTS)


@pytest.mark.parametrize("counts", [(0, 0), (2, 1), (1, 2)])
def test_stages_and_branches_come_in_pairs(counts: tuple[int, int]) -> None:
    stages, branches = ([nn.Identity()] * count for count in counts)
    with pytest.raises(ValueError, match=f"got {counts[0]} stages and {counts[1]} branches"):
        MultiExitNet(stages, branches)


FLAGS = [(True,) * 4, (False, True, False, True), (True, False, False, True), (False, False, False, True)]


@pytest.mark.parametrize("enabled", FLAGS)
@pytest.mark.parametrize("branch", [Branch, Chained])
@torch.no_grad()
def test_segments_run_one_by_one_are_the_network(branch: type[Branch], enabled: tuple[bool, ...]) -> None:
    net = network(branch)
    expected = net(INPUTS).logits[list(enabled)]
    state: State = INPUTS
    carry: Carry = ()
    parts = segments(net, enabled)
    assert len(parts) == sum(enabled)
    for part, logits in zip(parts, expected, strict=True):
        state, carry, answer = part(state, carry)
        assert torch.equal(answer, logits)


@torch.no_grad()
def test_branches_that_are_off_run_only_where_later_exits_need_them() -> None:
    net = network(Chained)
    (alone,) = segments(net, [False, False, False, True])
    alone(INPUTS)
    assert [branch.calls for branch in list(net.branches)[:-1]] == [1, 1, 1]
    assert len(list(segments(network(), [False, False, False, True])[0].parameters())) == 2 * EXITS + 2


def test_segments_are_in_the_mode_of_the_network() -> None:
    """An exporter would warn of the one that is in training mode by mistake."""
    assert not any(segment.training for segment in segments(network()))
    assert all(segment.training for segment in segments(network().train()))


def test_segments_share_the_networks_weights() -> None:
    net = network()
    ours = {id(p) for p in net.parameters()}
    parts = segments(net)
    assert {id(p) for part in parts for p in part.parameters()} == ours


@pytest.mark.parametrize("enabled", [(True,) * 3, (True, True, True, False), ()])
def test_flags_that_do_not_fit(enabled: tuple[bool, ...]) -> None:
    with pytest.raises(ValueError, match="`enabled` must hold 4 flags with the last one true, got"):
        segments(network(), enabled)


def test_a_fresh_module_shares_nothing_and_is_initialised_anew() -> None:
    built = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        for tensor in (*built.parameters(), built[1].running_mean):
            tensor.fill_(7)
    twin = fresh(built)
    assert [type(part) for part in twin] == [nn.Conv2d, nn.BatchNorm2d]
    assert not twin[0].weight.eq(7).any() and twin[1].weight.eq(1).all() and twin[1].running_mean.eq(0).all()
    assert all(tensor.eq(7).all() for tensor in built.parameters())


def test_a_module_that_says_how_is_constructed_again() -> None:
    head = Head(WIDTH, CLASSES, nn.ReLU)
    twin = fresh(head)
    assert isinstance(twin, Head) and isinstance(twin.norm, nn.ReLU) and twin is not head
    assert not torch.equal(twin.classifier.weight, head.classifier.weight)
    assert isinstance(fresh(twin), Head)


class Scale(nn.Module):
    """A parameter of its own and no way to reset it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def test_a_module_that_cannot_be_made_afresh_is_named() -> None:
    with pytest.raises(TypeError, match=r"fresh copy of Sequential: 1 \(Scale\) holds parameters of its own"):
        fresh(nn.Sequential(nn.Linear(1, 1), Scale()))


def test_exits_only_behind_named_stages() -> None:
    """BYOT's exits on wide ResNets as BEED's tables have them: behind groups 1 and 2, not behind the stem."""
    backbone = wrn.build("wrn16-4", classes=5)
    assert attach(backbone, lambda trunk, exit: byot.build(trunk, exit, 5)).exits == 4
    net = attach(backbone, only_behind((2, 3), lambda trunk, exit: byot.build(trunk, exit, 5)))
    assert net.exits == 3
    convolutions = [next(p for p in branch.modules() if isinstance(p, nn.Conv2d)) for branch in net.branches[:-1]]
    assert [(conv.in_channels, conv.out_channels) for conv in convolutions] == [(64, 64), (128, 64)]
    for stages in ((4,), (0, 2)):
        with pytest.raises(
            ValueError, match=rf"^exits_at must name stages from 1 to 3 of this network, got {stages[0]}$"
        ):
            attach(backbone, only_behind(stages, lambda trunk, exit: byot.build(trunk, exit, 5)))
