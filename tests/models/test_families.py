"""What the blocks of every family promise: inputs left alone, fresh copies, start values, errors that help."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp import models
from offramp.models import efficientnet, mobilenet, pyramidnet, resnext, vgg, wrn
from offramp.models._inverted import InvertedResidual
from offramp.net import Backbone, fresh, plain
from offramp.protocols import Reconstructible

FAMILIES = [vgg, wrn, resnext, pyramidnet, mobilenet, efficientnet]
SMALL = {"width": 4, "blocks": 2, "alpha": 12}


def tiny(family: Any, **options: Any) -> Backbone:
    offered = inspect.signature(family.build).parameters
    values = {"classes": 5, **{key: value for key, value in SMALL.items() if key in offered}, **options}
    backbone = family.build(values.pop("name", family.NETS[0]), **values)
    assert isinstance(backbone, Backbone)
    return backbone


def blocks(backbone: Backbone) -> Iterator[tuple[nn.Module, Tensor]]:
    """Every block with an input for it."""
    state = torch.rand(2, *backbone.shape) - 0.5
    for block in (part for stage in backbone.stages for part in stage):
        yield block, state
        state = block(state).detach()
    yield backbone.head, state


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_leaves_its_input_alone(family: Any) -> None:
    for block, inputs in blocks(tiny(family)):
        kept = inputs.clone()
        block(inputs)
        assert torch.equal(inputs, kept), type(block).__name__


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_can_be_made_afresh(family: Any) -> None:
    for part, inputs in blocks(tiny(family)):
        assert isinstance(part, Reconstructible)
        twin = fresh(part)
        shapes = [{key: value.shape for key, value in module.state_dict().items()} for module in (twin, part)]
        assert type(twin) is type(part) and shapes[0] == shapes[1]
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in part.parameters()}
        ours, theirs = twin(inputs), part(inputs)
        assert [t.shape for t in ours] == [t.shape for t in theirs]


@pytest.mark.parametrize("family", FAMILIES)
def test_start_values(family: Any) -> None:
    """He et al.'s, of the convolutions large enough to tell."""
    for part in plain(tiny(family, width=32)).modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 4000:
            expected = (2 / (part.out_channels * part.kernel_size[0] * part.kernel_size[1])) ** 0.5
            assert part.weight.std().item() == pytest.approx(expected, rel=0.1)
        if isinstance(part, nn.BatchNorm2d):
            assert (part.weight == 1).all() and (part.bias == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_say_what_to_do(family: Any) -> None:
    name = family.NETS[0]
    offered = inspect.signature(family.build).parameters
    for option in {"classes", "channels", "image_size", "third", *SMALL} & set(offered):
        with pytest.raises(ValueError) as caught:
            tiny(family, **{option: 0})
        assert str(caught.value) == f"{name} needs {option} of at least 1, got 0"
    with pytest.raises(ValueError) as caught:
        tiny(family, name=f"{name}x")
    assert str(caught.value) == f"unknown net '{name}x'; the nearest is '{name}' (see `offramp nets`)"


def test_vgg_names_its_smallest_images() -> None:
    with pytest.raises(ValueError) as caught:
        tiny(vgg, image_size=31)
    assert str(caught.value) == "vgg19 halves its images five times: image_size must be at least 32, got 31"


@pytest.mark.parametrize("family", FAMILIES)
def test_channels_and_image_size_are_parameters(family: Any) -> None:
    backbone = tiny(family, channels=1, image_size=40)
    assert backbone.shape == (1, 40, 40)
    assert plain(backbone)(torch.randn(2, 1, 40, 40)).logits.shape == (1, 2, 5)


@pytest.mark.parametrize("family", [wrn, resnext, pyramidnet, mobilenet, efficientnet])
def test_odd_sizes_down_to_digits_fit(family: Any) -> None:
    for size in (8, 9, 15):
        assert plain(tiny(family))(torch.randn(2, 3, size, size)).logits.isfinite().all()


def test_depths_of_wide_resnets() -> None:
    counts = {name: len(wrn.build(name, classes=5, width=1).stages[1]) for name in wrn.NETS}
    assert counts == {"wrn16-4": 2, "wrn20-8": 3, "wrn22-10": 3, "wrn28-4": 4, "wrn28-10": 4, "wrn44-8": 7}


def test_wide_blocks_add_the_input_itself_where_nothing_changes() -> None:
    block = wrn.WideBlock(4, 4, 1)
    nn.init.zeros_(block.conv2.weight)
    inputs = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(inputs), inputs)
    assert wrn.WideBlock(4, 8, 2)(inputs).shape == (2, 8, 3, 3)


def test_pyramid_blocks_average_and_pad_the_input() -> None:
    block = pyramidnet.PyramidBlock(4, 6, 2, 9)
    nn.init.zeros_(block.bn3.weight)
    inputs = torch.randn(2, 4, 6, 6)
    built = block(inputs)
    torch.testing.assert_close(built[:, :4], nn.functional.avg_pool2d(inputs, 2))
    assert built.shape == (2, 6, 3, 3) and not built[:, 4:].any()
    assert block.sketch_block()(inputs).shape == (2, 9, 3, 3)


def test_groups_of_a_resnext() -> None:
    four, eight = (resnext.build(name, classes=5, width=4) for name in resnext.NETS)
    for backbone, cardinality in ((four, 4), (eight, 8)):
        convolutions = [part for part in backbone.stages[2].modules() if isinstance(part, nn.Conv2d)]
        assert {c.groups for c in convolutions if c.kernel_size == (3, 3)} == {cardinality}


def test_inverted_residuals() -> None:
    inputs = torch.randn(2, 4, 6, 6)
    plain_block = InvertedResidual(4, 4, 1, planes=4)
    assert plain_block.widen is None and plain_block.adds
    nn.init.zeros_(plain_block.narrow[1].weight)  # type: ignore[arg-type]
    assert torch.equal(plain_block(inputs), inputs)
    squeezed = InvertedResidual(4, 8, 2, planes=24, kernel=5, squeeze=1)
    assert squeezed(inputs).shape == (2, 8, 3, 3) and not squeezed.adds
    assert squeezed.squeeze is not None and squeezed.squeeze.reduce.bias is not None


def test_mobilenet_hands_out_what_enters_its_wide_head() -> None:
    """Features of all exits must be comparable: 320 wide, not the 1280 of the last convolution (here an eighth)."""
    outputs = plain(tiny(mobilenet))(torch.randn(2, 3, 32, 32))
    assert outputs.features[0].shape == (2, 40) and outputs.maps[0].shape == (2, 40, 4, 4)
    torch.testing.assert_close(outputs.features[0], outputs.maps[0].mean((2, 3)))
    assert plain(tiny(efficientnet, wide_head=True))(torch.randn(2, 3, 32, 32)).features[0].shape == (2, 40)


def test_networks_are_found_by_name() -> None:
    for family in FAMILIES:
        assert all(models.find(name) is family for name in family.NETS)
