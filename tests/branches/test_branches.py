"""Exit structures: what the papers print about each, shapes, start values, and errors that name shapes."""

from typing import Any

import pytest
import torch
from torch import nn

from offramp import branches
from offramp.branches import beed, byot, eed, sketch
from offramp.models import resnet
from offramp.net import Backbone, Branch, Head, attach, fresh


def backbone(name: str = "resnet18", **options: Any) -> Backbone:
    return resnet.build(name, **{"classes": 5, "width": 4, **options})


def chain(branch: nn.Module, channels: int, size: int) -> list[tuple[int, ...]]:
    """The different shapes along a branch's body for maps (channels, size, size)."""
    assert isinstance(branch, Branch) and isinstance(branch.body, nn.Sequential)
    state, shapes = torch.randn(2, channels, size, size), []
    for block in branch.body:
        state = block(state)
        if not shapes or tuple(state.shape[1:]) != shapes[-1]:
            shapes.append(tuple(state.shape[1:]))
    return shapes


class Plain(nn.Module):
    """A stage for tests: what it passes on is given."""

    def __init__(self, leaves: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.leaves = leaves

    def forward(self, state: Any) -> Any:
        batch = state[0].shape[0] if isinstance(state, tuple) else state.shape[0]
        result = tuple(torch.empty(batch, *shape, device="meta") for shape in self.leaves)
        return result if len(result) > 1 else result[0]


def of_shapes(*stages: list[list[tuple[int, ...]]]) -> Backbone:
    """A backbone of given shapes: per stage, per block, what it passes on."""
    built = tuple(nn.Sequential(*[Plain(leaves) for leaves in blocks]) for blocks in stages)
    return Backbone(built, Head(stages[-1][-1][0][0], 5), (3, 8, 8))


def test_sketch_is_made_of_first_blocks_and_a_head() -> None:
    net = backbone("resnet50")
    result = sketch.build(net, 0, 5)
    assert isinstance(result, Branch) and isinstance(result.body, nn.Sequential)
    assert [type(block) for block in result.body] == [resnet.Bottleneck] * 3
    assert isinstance(result.head, Head)
    assert chain(result, 16, 32) == [(32, 16, 16), (64, 8, 8), (128, 4, 4)]
    assert chain(sketch.build(net, 2, 5), 64, 8) == [(128, 4, 4)]


def test_sketch_shares_nothing_with_the_trunk() -> None:
    net = backbone()
    ours = {id(p) for stage in net.stages for p in stage.parameters()} | {id(p) for p in net.head.parameters()}
    result = sketch.build(net, 0, 5)
    assert not ours & {id(p) for p in result.parameters()}
    first, trunk = result.body[0].conv1.weight, net.stages[1][0].conv1.weight  # type: ignore[union-attr, index]
    assert first.shape == trunk.shape and not torch.equal(first, trunk)


def test_sketch_takes_any_network() -> None:
    """Plain PyTorch layers without `construct`, tokens instead of maps."""

    class Tokens(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.flatten(2).transpose(1, 2)

    stages = (
        nn.Sequential(nn.Conv2d(3, 6, 2, 2), Tokens()),
        nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8)),
        nn.Sequential(nn.Linear(8, 8)),
    )
    net = attach(Backbone(stages, Head(8, 5), (3, 8, 8)), lambda backbone, exit: sketch.build(backbone, exit, 5))
    outputs = net(torch.randn(2, 3, 8, 8))
    assert outputs.logits.shape == (3, 2, 5)
    assert [tuple(m.shape) for m in outputs.maps] == [(2, 16, 8)] * 3


def test_sketch_draws_a_second_block_where_asked() -> None:
    net = backbone("resnet34")
    counts = [len(sketch.build(net, exit, 5, sbc_extra=3).body) for exit in range(3)]  # type: ignore[arg-type, union-attr]
    assert counts == [4, 3, 1]
    for wrong in (1, 5):
        with pytest.raises(ValueError, match=rf"^sbc_extra must be a stage from 2 to 4 .* got {wrong}$"):
            sketch.build(net, 0, 5, sbc_extra=wrong)


def test_sketch_names_both_shapes_where_blocks_cannot_be_chained() -> None:
    net = of_shapes([[(4, 8, 8)]], [[(4, 8, 8)], [(8, 4, 4)]], [[(8, 4, 4)]])
    with pytest.raises(ValueError) as caught:
        sketch.build(net, 0, 5)
    assert str(caught.value) == (
        "sketch cannot chain stage 2: its first block leaves 4×8×8, the whole stage 8×4×4, and no short "
        "sequence of its blocks does the same; it fits behind stage 2, `linear` exits fit everywhere "
        "(methods that compare features then need method.adapt=linear)"
    )
    assert isinstance(sketch.build(net, 1, 5), Branch)


def test_sketch_wants_the_classes_of_the_head() -> None:
    with pytest.raises(ValueError, match=r"^sketch copies the network's head, which has 5 classes, not 6$"):
        sketch.build(backbone(), 0, 6)


def test_byot_is_one_bottleneck_with_biases() -> None:
    net = backbone("resnet50")
    result = byot.build(net, 0, 5)
    convolutions = [part for part in result.modules() if isinstance(part, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [
        (16, 32, 1, 1),
        (32, 32, 8, 8),
        (32, 128, 1, 1),
    ]
    assert all(c.bias is not None for c in convolutions)
    assert chain(result, 16, 32) == [(32, 32, 32), (32, 4, 4), (128, 4, 4)]
    assert [part.kernel_size[0] for part in byot.build(net, 2, 5).modules() if isinstance(part, nn.Conv2d)] == [1, 2, 1]


def test_byot_hidden_width() -> None:
    result = byot.build(backbone(), 1, 5, hidden=7)
    assert chain(result, 8, 16) == [(7, 16, 16), (7, 4, 4), (32, 4, 4)]
    with pytest.raises(ValueError, match="byot needs a hidden width of at least 1, got 0"):
        byot.build(backbone(), 1, 5, hidden=0)


def test_byot_names_the_shape_that_is_too_small() -> None:
    # 3 → 2 → 1: rounding at each stage makes the product 4, larger than the maps
    net = of_shapes([[(4, 3, 3)]], [[(4, 2, 2)]], [[(4, 1, 1)]])
    with pytest.raises(ValueError, match=r"byot's exit behind stage 1 needs maps of 4×4 or more, .* passes on 4×3×3"):
        byot.build(net, 0, 5)


def test_eed_widths_follow_the_network() -> None:
    """Its Table III: 128, 256, 512 for basic blocks; 128, 256, 2048 for bottlenecks (here a sixteenth of that)."""
    assert chain(eed.build(backbone(), 0, 5), 4, 32)[1:] == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]  # type: ignore[arg-type]
    deep = backbone("resnet50")
    result = [eed.build(deep, exit, 5) for exit in range(3)]
    assert chain(result[0], 16, 32)[1:] == [(8, 16, 16), (16, 8, 8), (128, 4, 4)]  # type: ignore[arg-type]
    assert chain(result[1], 32, 16)[1:] == [(16, 8, 8), (128, 4, 4)]  # type: ignore[arg-type]
    assert chain(result[2], 64, 8)[1:] == [(128, 4, 4)]  # type: ignore[arg-type]


def test_eed_activates_a_raw_sum_and_leaves_the_trunk_alone() -> None:
    result = eed.build(backbone(), 2, 5)
    assert result is not None
    state = -torch.ones(2, 16, 8, 8)
    logits = result.eval()(state)[0]
    assert torch.equal(logits, result(torch.zeros(2, 16, 8, 8))[0])
    assert (state == -1).all()


def test_beed_units_have_no_expansion() -> None:
    result = beed.build(backbone(), 1, 5)
    assert result is not None
    convolutions = [part for part in result.modules() if isinstance(part, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [
        (8, 16, 1, 1),
        (16, 16, 3, 2),
        (16, 16, 1, 1),
        (16, 32, 1, 1),
        (32, 32, 3, 2),
        (32, 32, 1, 1),
    ]
    assert all(c.bias is None for c in convolutions)


@pytest.mark.parametrize("branch", [eed, beed])
def test_widths_can_be_given(branch: Any) -> None:
    net = backbone()
    assert {shape[0] for shape in chain(branch.build(net, 0, 5, widths=[3, 6, 9]), 4, 32)[1:]} >= {3, 6, 9}
    assert chain(branch.build(net, 2, 5, widths=[3, 6, 9]), 16, 8)[-1] == (9, 4, 4)
    for wrong in ([3, 6], [3, 0, 9]):
        with pytest.raises(ValueError, match="needs 3 widths of at least 1 on this network, got"):
            branch.build(net, 0, 5, widths=wrong)


@pytest.mark.parametrize("branch", [eed, beed])
def test_no_exit_behind_a_stem(branch: Any) -> None:
    """Wide ResNets and ResNeXt: sketch leaves behind the stem too, EED and BEED only where maps shrink."""
    net = of_shapes([[(4, 8, 8)]], [[(8, 8, 8)]], [[(16, 4, 4)]])
    assert branch.build(net, 0, 5) is None
    assert branch.build(net, 1, 5) is not None


@pytest.mark.parametrize("branch", [eed, beed, byot])
def test_maps_are_needed_where_convolutions_are(branch: Any) -> None:
    tokens = of_shapes([[(16, 4)]], [[(16, 4)]])
    with pytest.raises(ValueError, match=r"exits need one map .* but stage 1 passes on 16×4; `linear` exits fit"):
        branch.build(tokens, 0, 5)
    scales = of_shapes([[(4, 8, 8)]], [[(4, 8, 8), (8, 4, 4)]], [[(4, 8, 8)]])
    with pytest.raises(ValueError, match=r"but stage 2 passes on \(4×8×8, 8×4×4\)"):
        branch.build(scales, 0, 5)


@pytest.mark.parametrize("name", ["sketch", "byot", "eed", "beed"])
class TestEvery:
    def test_is_found(self, name: str) -> None:
        assert name in branches.available() and branches.available()[name].endswith(".")
        assert callable(branches.find(name).build)

    @pytest.mark.parametrize("exit", [-1, 3])
    def test_refuses_exits_that_do_not_exist(self, name: str, exit: int) -> None:
        with pytest.raises(
            ValueError, match=rf"^{name} has exits 0 to 2 \(counted from 0\) on a network of 4 stages, got {exit}$"
        ):
            branches.find(name).build(backbone(), exit, 5)

    def test_fits_digits(self, name: str) -> None:
        net = attach(backbone(channels=1, image_size=8), lambda b, exit: branches.find(name).build(b, exit, 5))
        outputs = net(torch.randn(2, 1, 8, 8))
        assert [tuple(m.shape) for m in outputs.maps] == [(2, 32, 1, 1)] * 4

    def test_features_are_never_negative_and_never_dead(self, name: str) -> None:
        net = attach(backbone(), lambda b, exit: branches.find(name).build(b, exit, 5))
        for feature in net(torch.randn(4, 3, 32, 32)).features:
            assert feature.min() >= 0 and feature.max() > 0

    def test_starts_as_the_network_does(self, name: str) -> None:
        torch.manual_seed(0)
        result = branches.find(name).build(backbone(width=32), 0, 5)
        for part in result.modules():
            if isinstance(part, nn.Conv2d):
                expected = (2 / (part.out_channels * part.kernel_size[0] * part.kernel_size[1])) ** 0.5
                assert part.weight.std().item() == pytest.approx(expected, rel=0.1)
            if isinstance(part, nn.BatchNorm2d):
                assert (part.weight == 1).all() and (part.bias == 0).all()


def test_a_branch_of_our_own_blocks_can_be_refreshed() -> None:
    result = byot.build(backbone(), 0, 5)
    twin = fresh(result)
    assert not torch.equal(next(twin.parameters()), next(result.parameters()))


def test_unknown_branches_name_the_nearest() -> None:
    with pytest.raises(ValueError) as caught:
        branches.find("scetch")
    assert str(caught.value) == "unknown branch 'scetch'; the nearest is 'sketch' (see `offramp branches`)"


def test_a_network_of_one_stage_has_no_early_exits() -> None:
    with pytest.raises(ValueError, match=r"^eed needs a network of two stages or more, this one has 1$"):
        eed.build(of_shapes([[(4, 8, 8)]]), 0, 5)


def test_every_stage_is_examined_once_for_all_exits() -> None:
    net, calls = backbone(), list[int]()
    for number, stage in enumerate(net.stages):
        stage[0].register_forward_hook(lambda *_, number=number: calls.append(number))
    attach(net, lambda trunk, exit: sketch.build(trunk, exit, 5))
    assert calls == [0, 1, 2, 3]


def test_a_network_that_changed_between_two_exits_is_examined_anew() -> None:
    net = backbone()
    assert beed.build(net, 2, 5)(torch.randn(2, 16, 8, 8))[1].shape == (2, 32)
    net.stages[3][0] = resnet.BasicBlock(16, 12, 2)
    net.stages[3][1] = resnet.BasicBlock(12, 12, 1)
    assert beed.build(net, 2, 5)(torch.randn(2, 16, 8, 8))[1].shape == (2, 12)
