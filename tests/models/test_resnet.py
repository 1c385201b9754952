"""ResNets: the published counts, both forms, the start values, and errors that help."""

import pytest
import torch
from torch import nn

from offramp import models
from offramp.models import resnet
from offramp.net import Backbone, MultiExitNet, fresh, plain


def tiny(name: str = "resnet18", **options: object) -> Backbone:
    return resnet.build(name, **{"classes": 5, "width": 4, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "form", "classes", "millions"),
    [
        ("resnet18", "cifar", 100, "11.220"),
        ("resnet34", "cifar", 100, "21.328"),
        ("resnet50", "cifar", 100, "23.705"),
        ("resnet152", "cifar", 100, "58.341"),
        ("resnet18", "imagenet", 1000, "11.690"),
        ("resnet34", "imagenet", 1000, "21.798"),
        ("resnet50", "imagenet", 1000, "25.557"),
        ("resnet101", "imagenet", 1000, "44.549"),
        ("resnet152", "imagenet", 1000, "60.193"),
    ],
)
def test_parameters_equal_the_published_counts(name: str, form: str, classes: int, millions: str) -> None:
    with torch.device("meta"):
        net = plain(resnet.build(name, classes=classes, form=form))
    assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.3f}" == millions


def test_digits_fit() -> None:
    net = plain(tiny(channels=1, image_size=8))
    outputs = net(torch.randn(2, 1, 8, 8))
    assert outputs.logits.shape == (1, 2, 5)
    assert outputs.maps[-1].shape == (2, 32, 1, 1)


def test_shape_is_what_the_form_or_the_caller_says() -> None:
    assert tiny().shape == (3, 32, 32)
    assert tiny(form="imagenet").shape == (3, 224, 224)
    assert tiny(channels=1, image_size=8).shape == (1, 8, 8)


def stage_sizes(backbone: Backbone, size: int) -> list[tuple[int, int]]:
    state, sizes = torch.randn(1, backbone.shape[0], size, size), []
    for stage in backbone.stages:
        state = stage.eval()(state)
        sizes.append((state.shape[1], state.shape[2]))
    return sizes


def test_stages_halve_the_maps_and_double_the_width() -> None:
    assert stage_sizes(tiny(), 32) == [(4, 32), (8, 16), (16, 8), (32, 4)]
    assert stage_sizes(tiny("resnet50"), 32) == [(16, 32), (32, 16), (64, 8), (128, 4)]
    assert stage_sizes(tiny(form="imagenet"), 64) == [(4, 16), (8, 8), (16, 4), (32, 2)]


def test_stages_divided_into_parts_compute_the_same() -> None:
    backbones = tiny("resnet101"), tiny("resnet101", parts=(1, 2, 4, 1))
    assert [len(stage) for stage in backbones[1].stages] == [4, 2, 2, 5, 6, 6, 6, 3]
    whole, parted = (plain(backbone).eval() for backbone in backbones)
    parted.load_state_dict(dict(zip(parted.state_dict(), whole.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(whole(images).logits, parted(images).logits)


@pytest.mark.parametrize("parts", [(1, 1, 1), (1, 1, 3, 1), (0, 1, 1, 1)])
def test_parts_fit_the_blocks(parts: tuple[int, ...]) -> None:
    given = ",".join(map(str, parts))
    with pytest.raises(
        ValueError, match=f"net.parts of resnet18 must be four numbers from 1 to its 2,2,2,2 blocks, got {given}"
    ):
        tiny(parts=parts)


def test_the_stem_relu_can_be_left_out() -> None:
    inputs = torch.randn(4, 3, 8, 8)
    assert tiny().stages[0][0](inputs).min() == 0
    assert tiny(stem_relu=False).stages[0][0](inputs).min() < 0


def test_a_block_leaves_its_input_alone() -> None:
    for name in ("resnet18", "resnet50"):
        for block in (part for stage in tiny(name).stages for part in list(stage)[-2:]):
            inputs = torch.randn(2, next(p for n, p in block.named_parameters() if n.endswith("weight")).shape[1], 8, 8)
            kept = inputs.clone()
            block(inputs)
            assert torch.equal(inputs, kept)


def test_start_values_hold_for_fresh_blocks_too() -> None:
    wide = resnet.BasicBlock(64, 64, 1)
    for block in (wide, fresh(wide)):
        assert isinstance(block, resnet.BasicBlock)
        spread = block.conv1.weight.std().item()
        assert spread == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)  # PyTorch's own start would give 0.024
        assert torch.equal(block.bn1.weight, torch.ones(64)) and not block.bn1.bias.any()
    assert not torch.equal(fresh(wide).conv1.weight, wide.conv1.weight)  # type: ignore[operator, union-attr]


def test_every_block_can_be_made_afresh() -> None:
    for name in ("resnet18", "resnet50"):
        backbone = tiny(name)
        for part in [*(block for stage in backbone.stages for block in stage), backbone.head]:
            twin = fresh(part)
            assert {k: v.shape for k, v in twin.state_dict().items()} == {
                k: v.shape for k, v in part.state_dict().items()
            }
            assert not {id(p) for p in twin.parameters()} & {id(p) for p in part.parameters()}


def test_the_same_seed_gives_the_same_network() -> None:
    def built() -> MultiExitNet:
        torch.manual_seed(3)
        return plain(tiny())

    one, two = built().state_dict(), built().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet19"}, "unknown net 'resnet19'; the nearest is 'resnet18' (see `offramp nets`)"),
        ({"form": "imagenette"}, "unknown form 'imagenette'; the nearest is 'imagenet'"),
        ({"width": 0}, "resnet18 needs width of at least 1, got 0"),
        ({"classes": 0}, "resnet18 needs classes of at least 1, got 0"),
        ({"channels": -1}, "resnet18 needs channels of at least 1, got -1"),
        ({"image_size": 0}, "resnet18 needs image_size of at least 1, got 0"),
    ],
)
def test_errors_say_what_to_do(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        tiny(**{"name": "resnet18", **options})  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_networks_are_found_by_name() -> None:
    assert models.find("resnet50") is resnet
    assert set(resnet.NETS) <= set(models.available())
    assert models.available()["resnet18"].startswith("ResNet 18/34/50/101/152")
    with pytest.raises(ValueError, match=r"^unknown net 'resnet5'; the nearest is 'resnet50' \(see `offramp nets`\)$"):
        models.find("resnet5")


def test_convolutions_have_no_bias_and_the_head_has_one() -> None:
    net = plain(tiny())
    assert all(part.bias is None for part in net.modules() if isinstance(part, nn.Conv2d))
    assert sum(isinstance(part, nn.Linear) and part.bias is not None for part in net.modules()) == 1
