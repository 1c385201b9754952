"""Costs: every published count to the last digit, each convention against a count by hand, segments as run."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from offramp import branches, models
from offramp.measure import cost
from offramp.net import Branch, Head, MultiExitNet, attach, segments
from offramp.outputs import Carry


@cache
def published(net: str, branch: str, form: str = "cifar") -> tuple[MultiExitNet, tuple[int, int, int]]:
    """A network at its published size, on the meta device."""
    classes = 100 if form == "cifar" else 1000
    with torch.device("meta"):
        backbone = models.find(net).build(net, classes=classes, form=form)
        build = branches.find(branch).build
        return attach(backbone, lambda backbone, exit: build(backbone, exit, classes)), backbone.shape


@pytest.mark.parametrize(
    ("net", "branch", "form", "main", "giga", "mega", "branch_sizes", "total"),
    [
        ("resnet18", "sketch", "cifar", 11.220, 0.5555, (329.0, 404.5, 480.0), (4.874, 4.643, 3.724), 24.462),
        ("resnet18", "byot", "cifar", 11.220, 0.5555, (179.0, 296.5, 425.4), (1.176, 0.398, 0.217), 13.011),
        ("resnet18", "eed", "cifar", 11.220, 0.5555, (209.4, 324.8, 440.1), (1.601, 1.527, 1.232), 15.581),
        ("resnet18", "beed", "cifar", 11.220, 0.5555, (303.8, 387.7, 471.6), (3.669, 3.497, 2.807), 21.193),
        ("resnet50", "sketch", "cifar", 23.705, 1.2980, (585.0, 798.9, 1155.4), (8.136, 7.757, 6.244), 45.843),
        ("resnet50", "byot", "cifar", 23.705, 1.2980, (639.5, 706.6, 1100.9), (18.171, 5.719, 2.836), 50.431),
        ("resnet50", "eed", "cifar", 23.705, 1.2980, (389.9, 706.6, 1335.8), (5.518, 6.108, 19.083), 54.415),
        ("resnet152", "sketch", "cifar", 58.341, 3.7223, (585.0, 1084.1, 3579.7), (8.136, 7.757, 6.244), 80.479),
        ("resnet152", "byot", "cifar", 58.341, 3.7223, (639.5, 991.8, 3525.2), (18.171, 5.719, 2.836), 85.067),
        ("resnet18", "sketch", "imagenet", 11.690, 1.8141, (1120.4, 1351.7, 1582.9), (5.335, 5.105, 4.186), 26.316),
        ("resnet50", "sketch", "imagenet", 25.557, 4.0892, (1905.5, 2560.6, 3652.5), (9.980, 9.601, 8.089), 53.227),
        ("resnet50", "eed", "imagenet", 25.557, 4.0892, (1308.2, 2278.0, 4204.8), (7.362, 7.952, 20.927), 61.799),
    ],
)
def test_published_counts(
    net: str,
    branch: str,
    form: str,
    main: float,
    giga: float,
    mega: tuple[float, ...],
    branch_sizes: tuple[float, ...],
    total: float,
) -> None:
    built, shape = published(net, branch, form)
    sizes = cost.parameters(built)
    *early, final = cost.macs(built, shape)
    assert (round(sizes.main / 1e6, 3), round(sizes.total / 1e6, 3)) == (main, total)
    assert tuple(round(size / 1e6, 3) for size in sizes.branches) == branch_sizes
    assert round(final / 1e9, 4) == giga
    assert tuple(round(count / 1e6, 1) for count in early) == mega


@pytest.mark.parametrize(
    ("net", "table"),
    [
        ("resnet18", [0.42, 0.66, 0.88, 1.12]),
        ("resnet50", [0.78, 1.42, 2.68, 2.60]),
        ("resnet101", [0.78, 1.42, 5.12, 5.04]),
    ],
)
def test_eed_flops_reproduce_its_table_3(net: str, table: list[float]) -> None:
    assert cost.eed_flops(*published(net, "eed")) == table


def test_byot_costs_as_much_as_sketch_at_muse_figure_3s_width() -> None:
    """MUSE Fig. 3: on ResNet50 the bottleneck branches together cost what sketch does at a hidden width near 500."""

    def together(hidden: int | None) -> int:
        if hidden is None:
            return sum(cost.measure(*published("resnet50", "sketch")).branches)
        with torch.device("meta"):
            backbone = models.find("resnet50").build("resnet50", classes=100)
            build = branches.find("byot").build
            net = attach(backbone, lambda backbone, exit: build(backbone, exit, 100, hidden=hidden))
        return sum(cost.measure(net, backbone.shape).branches)

    assert together(558) == pytest.approx(together(None), rel=0.001)


@pytest.mark.parametrize(("extra", "percent"), [(0, (15.7, 29.1)), (3, (17.6, 31.0))])
def test_muses_shares_for_resnet152(extra: int, percent: tuple[float, float]) -> None:
    """MUSE prints 18 % and 31 %: one more block of the third group, as `sbc_extra=3` draws it."""
    with torch.device("meta"):
        backbone = models.find("resnet152").build("resnet152", classes=100)
        build = branches.find("sketch").build
        net = attach(backbone, lambda backbone, exit: build(backbone, exit, 100, sbc_extra=extra))
    first, second, _, final = cost.macs(net, backbone.shape)
    assert (round(100 * first / final, 1), round(100 * second / final, 1)) == percent


class Chained(Branch):
    """A branch whose carry later exits need."""

    chained_exit = True

    def forward(self, state: torch.Tensor, carry: Carry = ()) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Carry]:
        logits, feature, features, _ = super().forward(state, carry)
        return logits, feature, features, (logits,)


def by_hand(branch: type[Branch] = Branch) -> MultiExitNet:
    """Stages of 3·3·3·4·64 and 4·8·16 multiply-adds; branches of 4·2·64 + 2·5 and 8·5."""
    stages = [
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)),
    ]
    body = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
    return MultiExitNet(stages, [branch(body, Head(2, 5)), Branch(nn.Identity(), Head(8, 5))])


TRUNK, REST, FIRST, LAST = 3 * 9 * 4 * 64, 4 * 8 * 16, 4 * 2 * 64 + 2 * 5, 8 * 5
SHAPE = (3, 8, 8)


def test_macs_count_no_other_branch() -> None:
    assert cost.macs(by_hand(), SHAPE) == [TRUNK + FIRST, TRUNK + REST + LAST]


def test_macs_count_the_branches_that_an_exit_needs() -> None:
    """A plain network of exits in a chain runs those before its final one."""
    assert cost.macs(by_hand(Chained), SHAPE) == [TRUNK + FIRST, TRUNK + FIRST + REST + LAST]
    assert cost.macs(by_hand(Chained), SHAPE)[-1] == cost.segment_macs(by_hand(Chained), SHAPE, (False, True))[0]


def test_cumulative_macs_count_every_branch_on_the_way() -> None:
    assert cost.macs_cumulative(by_hand(), SHAPE) == [TRUNK + FIRST, TRUNK + FIRST + REST + LAST]


def test_msdnet_ops_by_hand() -> None:
    relu, pooled, head_pool = 4 * 64, 4 * 4 * 16, 8 * 16
    first = TRUNK + relu + FIRST + 2 * 64 + 2 * 64 + 5  # the branch's ReLU and global pooling (2×8×8 each), its bias
    assert cost.msdnet_ops(by_hand(), SHAPE) == [first, first + pooled + REST + head_pool + LAST + 5]


@pytest.mark.parametrize(
    ("pool", "operations"),
    [
        (nn.MaxPool2d(3, 2, 1), 9 * 4 * 16),
        (nn.AvgPool2d((2, 4)), 8 * 4 * 8),
        (nn.AdaptiveAvgPool2d(1), 4 * 64),
        (nn.AdaptiveAvgPool2d(4), 4 * 64),
        (nn.ReLU6(), 4 * 64),
        (nn.ReLU(inplace=True), 4 * 64),
        (nn.BatchNorm2d(4), 0),
    ],
)
def test_msdnet_ops_of_layers(pool: nn.Module, operations: int) -> None:
    net = MultiExitNet([nn.Sequential(pool)], [Branch(nn.Identity(), Head(4, 1))])
    after = pool(torch.randn(2, 4, 8, 8))
    head = after[0].numel() + 4 + 1
    assert cost.msdnet_ops(net, (4, 8, 8)) == [operations + head]


def test_eed_flops_see_norms_everywhere_and_relus_in_branches_only() -> None:
    body = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    net = MultiExitNet([nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())], [Branch(body, Head(4, 5))])
    # 0.4 G elements: norms in trunk and branch 2 × 0.8 G, the branch's ReLU 0.4 G, the trunk's nothing
    assert cost.eed_flops(net, (4, 10_000, 10_000)) == [4.0]


@pytest.mark.parametrize("enabled", [(True, True), (False, True)])
@pytest.mark.parametrize("branch", [Branch, Chained])
def test_segment_macs_equal_what_segments_run(enabled: Sequence[bool], branch: type[Branch]) -> None:
    net = by_hand(branch).eval()
    state: object = torch.randn(1, *SHAPE)
    carry: Carry = ()
    counted = []
    for segment in segments(net, enabled):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            state, carry, _ = segment(state, carry)
        counted.append(counter.get_total_flops() // 2)
    assert cost.segment_macs(net, SHAPE, enabled) == counted


def test_a_chained_branch_that_is_off_is_still_paid_for() -> None:
    off = [False, True]
    assert cost.segment_macs(by_hand(Branch), SHAPE, off) == [TRUNK + REST + LAST]
    assert cost.segment_macs(by_hand(Chained), SHAPE, off) == [TRUNK + FIRST + REST + LAST]


@pytest.mark.parametrize("enabled", [(True,), (True, False), (True, True, True)])
def test_flags_that_do_not_fit(enabled: Sequence[bool]) -> None:
    with pytest.raises(ValueError, match=r"^`enabled` must hold 2 flags with the last one true, got \["):
        cost.segment_macs(by_hand(), SHAPE, enabled)


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"^inputs of 1×8×8 do not fit stage 1 or its exit: .*channel") as caught:
        cost.macs(by_hand(), (1, 8, 8))
    assert "\n" not in str(caught.value)


def test_shared_parameters_count_once_in_the_total() -> None:
    net = by_hand()
    sizes = cost.parameters(net)
    assert sizes.total == sizes.main + sum(sizes.branches) == sum(p.numel() for p in net.parameters())
    twins = MultiExitNet(
        [nn.Identity(), nn.Identity()], [Branch(nn.Identity(), head := Head(3, 2)), Branch(nn.Identity(), head)]
    )
    assert cost.parameters(twins) == cost.Parameters(main=8, branches=(8,), total=8)


def test_counting_leaves_the_network_alone() -> None:
    net = by_hand()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    cost.macs(net, SHAPE)
    cost.eed_flops(net, SHAPE)
    assert net.training and all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(part._forward_hooks for part in net.modules())


def test_milliseconds_are_measured_without_gradients() -> None:
    calls = []

    def run(inputs: torch.Tensor) -> None:
        calls.append(torch.is_inference_mode_enabled())

    assert cost.milliseconds(run, torch.zeros(1), repeats=3) >= 0
    assert calls == [True] * 5
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        cost.milliseconds(run, torch.zeros(1), repeats=0)


def test_pieces_by_every_convention() -> None:
    net = published("resnet18", "sketch")
    by_name = {name: cost.pieces(*net, name) for name in ("macs", "msdnet_ops", "eed_flops")}
    every = {name: list(np.cumsum(built.stages) + np.cumsum(built.branches)) for name, built in by_name.items()}
    assert every["macs"] == cost.macs_cumulative(*net) and every["msdnet_ops"] == cost.msdnet_ops(*net)
    eed = by_name["eed_flops"]
    exits = np.cumsum(eed.stages) + np.array(eed.branches)
    assert [round(2 * round(exit / 1e9, 2), 2) for exit in exits] == cost.eed_flops(*net)
    assert cost.as_run(by_name["macs"], (False, True, False, True)) == cost.segment_macs(
        *net, (False, True, False, True)
    )
    with pytest.raises(ValueError, match="unknown convention 'mac'; the nearest is 'macs'"):
        cost.pieces(*net, "mac")
