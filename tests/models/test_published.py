"""The papers' networks with the papers' exits: every published or verified count to the last printed digit."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from offramp import branches, models
from offramp.measure import cost
from offramp.net import MultiExitNet, attach, plain


def on_meta(
    net: str, branch: str | None, options: Mapping[str, Any] = {}, of_branch: Mapping[str, Any] = {}, classes: int = 100
) -> tuple[MultiExitNet, tuple[int, int, int]]:
    with torch.device("meta"):
        backbone = models.find(net).build(net, classes=classes, **options)
        if branch is None:
            return plain(backbone), backbone.shape
        build = branches.find(branch).build
        return attach(backbone, lambda trunk, exit: build(trunk, exit, classes, **of_branch)), backbone.shape


B0 = ("efficientnetb0", "beed")
AS_PRINTED = {"widths": (144, 240, 320)}


@pytest.mark.parametrize(
    ("net", "branch", "options", "of_branch", "main", "giga", "mega", "branch_sizes", "total"),
    [
        ("resnet18", "tofd", {}, {}, 11.220, 0.5555, (162.8, 293.5, 424.5), (0.320, 0.306, 0.254), 12.101),
        ("resnet152", "tofd", {}, {}, 58.341, 3.7223, (373.1, 942.4, 3508.7), (4.377, 4.174, 3.375), 70.267),
        ("wrn16-4", "beed", {}, {}, 2.772, 0.3926, (224.9, 308.7), (0.888, 0.715), 4.376),
        ("wrn20-8", "sketch", {}, {}, 17.204, 2.4542, (642.2, 1246.2, 1850.2), (4.810, 4.642, 3.724), 30.381),
        ("wrn20-8", "sketch", {"blocks": 2}, {}, 11.008, 1.5482, (642.2, 944.2, 1246.2), (4.810, 4.642, 3.724), 24.184),
        ("wrn22-10", "sketch", {}, {}, 26.856, 3.8278, (996.7, 1940.4, 2884.1), (7.493, 7.236, 5.802), 47.386),
        ("wrn28-10", "eed", {}, {}, 36.537, 5.2434, (1914.2, 3578.8), (2.370, 1.909), 40.815),
        (
            "resnext29-8x64d",
            "sketch",
            {},
            {},
            34.519,
            5.3874,
            (1964.8, 3105.7, 4246.5),
            (11.085, 10.607, 8.503),
            64.714,
        ),
        ("mobilenetv2", "beed", {}, {}, 2.352, 0.0881, (122.6, 72.7, 77.1), (1.729, 1.495, 1.089), 6.665),
        (*B0, {}, {}, 3.627, 0.1096, (138.6, 88.0, 88.5), (1.958, 1.722, 1.094), 8.402),
        (*B0, {"third": 60}, AS_PRINTED, 3.693, 0.1210, (138.6, 96.9, 99.9), (1.958, 1.727, 1.094), 8.472),
    ],
)
def test_counts_with_exits(
    net: str,
    branch: str,
    options: dict[str, Any],
    of_branch: dict[str, Any],
    main: float,
    giga: float,
    mega: tuple[float, ...],
    branch_sizes: tuple[float, ...],
    total: float,
) -> None:
    built, shape = on_meta(net, branch, options, of_branch)
    sizes = cost.parameters(built)
    *early, final = cost.macs(built, shape)
    assert (round(sizes.main / 1e6, 3), round(sizes.total / 1e6, 3)) == (main, total)
    assert tuple(round(size / 1e6, 3) for size in sizes.branches) == branch_sizes
    assert round(final / 1e9, 4) == giga
    assert tuple(round(count / 1e6, 1) for count in early) == mega


@pytest.mark.parametrize(
    ("net", "options", "classes", "millions", "giga"),
    [
        ("vgg19", {}, 100, "20.087", "0.3982"),
        ("resnext29-4x64d", {}, 100, "17.655", "2.7366"),
        ("resnext29-8x64d", {}, 10, "34.427", "5.3873"),  # the paper prints 34.4 M
        ("wrn28-10", {}, 10, "36.479", "5.2433"),  # the paper prints 36.5 M
        ("wrn44-8", {}, 100, "41.991", "6.0780"),
        ("wrn44-8", {"blocks": 6}, 100, "35.794", "5.1721"),
        ("wrn28-4", {}, 100, "5.872", "0.8456"),
        ("pyramidnet110-270", {}, 100, "28.511", "4.7180"),
        ("efficientnetb0", {"wide_head": True}, 100, "4.136", "0.1163"),
    ],
)
def test_counts_of_plain_networks(net: str, options: dict[str, Any], classes: int, millions: str, giga: str) -> None:
    built, shape = on_meta(net, None, options, classes=classes)
    assert f"{cost.parameters(built).total / 1e6:.3f}" == millions
    assert f"{cost.macs(built, shape)[0] / 1e9:.4f}" == giga


def test_vgg_reproduces_eeds_table_3() -> None:
    assert cost.eed_flops(*on_meta("vgg19", "eed")) == [0.14, 0.24, 0.50, 0.80]
    assert cost.eed_flops(*on_meta("vgg19", "eed", of_branch={"strides": (2, 2, 4)})) != [0.14, 0.24, 0.50, 0.80]


@pytest.mark.parametrize(
    ("net", "taps"),
    [
        ("vgg19", [(64, 32), (128, 16), (256, 8), (512, 2)]),
        ("wrn16-4", [(16, 32), (64, 32), (128, 16), (256, 8)]),
        ("resnext29-8x64d", [(64, 32), (256, 32), (512, 16), (1024, 8)]),
        ("pyramidnet110-270", [(16, 32), (106, 32), (196, 16), (286, 8)]),
        ("mobilenetv2", [(24, 32), (32, 16), (96, 8), (320, 4)]),
        ("efficientnetb0", [(24, 32), (40, 16), (112, 8), (320, 4)]),
    ],
)
def test_exits_leave_where_the_papers_have_them(net: str, taps: list[tuple[int, int]]) -> None:
    from offramp.branches._stages import maps

    with torch.device("meta"):
        backbone = models.find(net).build(net, classes=100)
    assert [(channels, height) for channels, height, _ in maps("any", backbone)] == taps


@pytest.mark.parametrize(
    ("net", "sketch", "eed"),
    [("wrn16-4", 4, 3), ("resnext29-4x64d", 4, 3), ("pyramidnet110-270", 4, 3), ("vgg19", 4, 4)],
)
def test_the_stem_gives_sketch_its_fourth_classifier(net: str, sketch: int, eed: int) -> None:
    options = {"blocks": 2} if net == "pyramidnet110-270" else {}
    assert on_meta(net, "sketch", options)[0].exits == sketch
    assert {on_meta(net, branch, options)[0].exits for branch in ("eed", "beed", "tofd", "lct")} == {eed}
