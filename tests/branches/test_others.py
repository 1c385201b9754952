"""The exits that papers compare with: lct, tofd, linear and own; EED's strides; what `sketch` samples."""

from typing import Any

import pytest
import torch
from torch import nn

from offramp.branches import eed, lct, linear, own, sketch, tofd
from offramp.models import mobilenet, msdnet, pyramidnet, resnet, vgg, wrn
from offramp.models._inverted import InvertedResidual
from offramp.net import Backbone, Branch, Head, attach


def small(name: str = "resnet18", **options: Any) -> Backbone:
    return resnet.build(name, **{"classes": 5, "width": 4, **options})


def convolutions(branch: nn.Module | None) -> list[tuple[int, int, int, int, int]]:
    """(enters, leaves, kernel, stride, groups) of every convolution."""
    assert branch is not None
    result = [part for part in branch.modules() if isinstance(part, nn.Conv2d)]
    return [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0], c.groups) for c in result]


def test_tofd_is_one_separable_unit_per_deeper_stage() -> None:
    built = tofd.build(small("resnet50"), 1, 5)
    assert convolutions(built) == [
        (32, 32, 3, 2, 32),
        (32, 32, 1, 1, 1),
        (32, 32, 3, 1, 32),
        (32, 64, 1, 1, 1),
        (64, 64, 3, 2, 64),
        (64, 64, 1, 1, 1),
        (64, 64, 3, 1, 64),
        (64, 128, 1, 1, 1),
    ]
    assert all(part.bias is None for part in built.modules() if isinstance(part, nn.Conv2d))  # type: ignore[union-attr]


def test_lct_is_one_convolution_without_norm() -> None:
    for exit, stride in enumerate((8, 4, 2)):
        built = lct.build(small(), exit, 5)
        assert convolutions(built) == [(4 * 2**exit, 32, 3, stride, 1)]
        assert not any(isinstance(part, nn.BatchNorm2d) for part in built.modules())  # type: ignore[union-attr]
    outputs = attach(small(), lambda trunk, exit: lct.build(trunk, exit, 5))(torch.randn(2, 3, 32, 32))
    assert {tuple(m.shape) for m in outputs.maps} == {(2, 32, 4, 4)}


def test_lct_as_it_was() -> None:
    built = lct.build(small(image_size=8), 1, 5, original=True)
    assert convolutions(built) == [(8, 128, 3, 1, 1)]
    assert built is not None
    logits, feature, features, _ = built(torch.randn(2, 8, 4, 4))
    assert (logits.shape, feature.shape, features.shape) == ((2, 5), (2, 128 * 16), (2, 128, 4, 4))


@pytest.mark.parametrize("branch", [tofd, lct, eed])
def test_no_exit_behind_a_stem(branch: Any) -> None:
    net = wrn.build("wrn16-4", classes=5, width=4)
    assert branch.build(net, 0, 5) is None and branch.build(net, 1, 5) is not None


def test_linear_takes_maps_tokens_and_scales() -> None:
    def width(backbone: Backbone, exit: int) -> int:
        built = linear.build(backbone, exit, 5)
        assert isinstance(built, Branch) and isinstance(built.head, Head)
        assert not any(isinstance(part, nn.Conv2d) for part in built.modules())
        return built.head.classifier.in_features

    assert [width(small(), exit) for exit in range(3)] == [4, 8, 16]
    assert width(msdnet.build("msdnet", classes=5, setting="beed-4"), 0) == 88

    class Tokens(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.flatten(2).transpose(1, 2)

    stages = (nn.Sequential(nn.Conv2d(3, 6, 2, 2), Tokens()), nn.Sequential(nn.Linear(6, 8)))
    assert width(Backbone(stages, Head(8, 5), (3, 8, 8)), 0) == 6


def test_own_is_the_head_for_another_width() -> None:
    net = msdnet.build("msdnet", classes=5, setting="beed-4")
    assert convolutions(own.build(net, 0, 5)) == [(88, 128, 3, 2, 1), (128, 128, 3, 2, 1)]
    large = msdnet.build("msdnet", classes=5, setting="muse-4", width=2, growth=2)
    built = own.build(large, 0, 7)
    width = (2 + 4 * 2) * 4
    assert convolutions(built) == [(width, width, 3, 2, 1)] * 2
    ours = {id(p) for p in net.head.parameters()}
    assert not ours & {id(p) for p in own.build(net, 0, 5).parameters()}


def test_own_is_refused_where_there_are_none() -> None:
    with pytest.raises(ValueError) as caught:
        own.build(small(), 0, 5)
    assert str(caught.value) == (
        "own needs a network that was published with exits (msdnet); this one was not, take `sketch`"
    )


@pytest.mark.parametrize("branch", [linear, own, lct, tofd])
def test_exits_that_do_not_exist(branch: Any) -> None:
    name = branch.__name__.rpartition(".")[2]
    with pytest.raises(
        ValueError, match=rf"^{name} has exits 0 to 2 \(counted from 0\) on a network of 4 stages, got 3$"
    ):
        branch.build(small(), 3, 5)


def test_eed_strides() -> None:
    net = vgg.build("vgg19", classes=5, width=4)
    strides = [[stride for *_, stride, _ in convolutions(eed.build(net, exit, 5))] for exit in range(3)]
    assert strides == [[2, 4, 2], [2, 4], [2]]
    values = eed.build(net, 1, 5, strides=(1, 3, 5))
    assert [stride for *_, stride, _ in convolutions(values)] == [1, 3]
    for wrong in ((2,), (2, 0)):
        with pytest.raises(ValueError) as caught:
            eed.build(net, 1, 5, strides=wrong)
        assert str(caught.value) == f"eed needs 2 strides of at least 1 behind stage 2, got {list(wrong)}"


def body(branch: nn.Module) -> nn.Sequential:
    assert isinstance(branch, Branch) and isinstance(branch.body, nn.Sequential)
    return branch.body


def test_sketch_takes_one_block_of_every_group() -> None:
    """A stage of MobileNetV2 has groups of different widths, the last stage of VGG has two sizes."""
    built = body(sketch.build(mobilenet.build("mobilenetv2", classes=5), 1, 5))
    assert all(isinstance(block, InvertedResidual) for block in built)
    assert [(block.depthwise.stride[0], block.narrow[0].out_channels) for block in built] == [  # type: ignore[union-attr, index]
        (2, 64),
        (1, 96),
        (2, 160),
        (1, 320),
    ]
    last = body(sketch.build(vgg.build("vgg19", classes=5, width=4), 2, 5))
    assert [(block.pools, block.conv.out_channels) for block in last] == [(True, 32), (True, 32)]  # type: ignore[union-attr]


def test_sketch_draws_a_second_block_beside_the_groups() -> None:
    net = mobilenet.build("mobilenetv2", classes=5, width=4)
    counts = [len(body(sketch.build(net, 1, 5, sbc_extra=stage))) for stage in (0, 3, 4)]
    assert counts == [4, 5, 5]


def test_sketch_spans_a_group_that_widens_with_every_block() -> None:
    net = pyramidnet.build("pyramidnet110-270", classes=5, width=4, alpha=18, blocks=3)
    built = body(sketch.build(net, 1, 5))
    assert [(block.conv1.in_channels, block.conv1.out_channels, block.stride) for block in built] == [  # type: ignore[union-attr]
        (10, 16, 2),
        (16, 22, 2),
    ]


def test_sketch_refuses_msdnet() -> None:
    net = msdnet.build("msdnet", classes=5, setting="beed-4", width=2, growth=2)
    with pytest.raises(ValueError, match=r"^sketch cannot chain stage 4: .* fits nowhere on this network, `own` and"):
        sketch.build(net, 0, 5)
