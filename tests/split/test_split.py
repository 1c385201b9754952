"""Cutting, placing, stages by hand, weights: the edges, and what is said to those who ask for what cannot be."""

import linecache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from offramp.branches import sketch
from offramp.models import resnet
from offramp.net import Branch, Head, MultiExitNet, attach, fresh, plain
from offramp.optional import vision
from offramp.split import Untraceable, by_hand, load_state, places, split, state
from offramp.split.weights import read


def block(enters: int, leaves: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(enters, leaves, 3, stride, 1), nn.BatchNorm2d(leaves), nn.ReLU(inplace=True))


class Chain(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3 = block(3, 4), block(4, 8, 2), block(8, 8)
        self.fc = nn.Linear(8, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.layer3(self.layer2(self.layer1(inputs)))
        return self.fc(maps.mean((2, 3)))


def net(*after: str, classes: int = 5) -> MultiExitNet:
    widths = {"layer1": 4, "layer2": 8}
    backbone = split(Chain(classes), after, (3, 8, 8))
    return attach(backbone, lambda _, exit: Branch(nn.Identity(), Head(widths[after[exit]], classes)))


def test_stages_hold_the_blocks_between_the_cuts_and_the_head_begins_before_pooling() -> None:
    model = Chain()
    backbone = split(model, ["layer1", "layer2"], (3, 8, 8))
    assert [len(stage) for stage in backbone.stages] == [1, 1, 1]
    names = [list(dict(stage.named_parameters())) for stage in backbone.stages]
    assert names[1] == ["0.layer2.0.weight", "0.layer2.0.bias", "0.layer2.1.weight", "0.layer2.1.bias"]
    assert [name for name, _ in backbone.head.named_parameters()] == ["fc.weight", "fc.bias"]
    assert backbone.head.fc.weight is model.fc.weight  # type: ignore[union-attr]


def test_sources_for_tracebacks_are_kept_once() -> None:
    def kept() -> list[str]:
        return [name for name in linecache.cache if name.startswith("<offramp.split subgraph")]

    split(Chain(), ["layer1"], (3, 8, 8), check=False)
    before = kept()
    split(Chain(), ["layer1"], (3, 8, 8), check=False)
    assert before and kept() == before


def test_a_final_exit_without_a_head_is_named() -> None:
    network = net("layer1")
    network.branches[-1] = nn.Linear(8, 5)
    with pytest.raises(ValueError, match="the final exit, a Linear, has neither a `head` nor a `branch`"):
        state(network)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (["layr1"], "unknown layer 'layr1' of Chain; the nearest is 'layer1'"),
        (["layer2", "layer1"], "exits must be in the order of the forward pass: layer1,layer2, not layer2,layer1"),
        (["layer1", "layer1"], "two exits are at the same place: layer1 and layer1 end together"),
        (["layer1", "layer1.2"], "two exits are at the same place: layer1 and layer1.2 end together"),
        (
            ["fc"],
            "an exit after fc would not come before the final exit, which begins with the pooling of 8×4×4; exits can "
            "be attached after layer1.0, layer1.1, layer1, layer2.0, layer2.1, layer2, layer3.0, layer3.1",
        ),
        (["layer3"], "an exit after layer3 would not come before the final exit"),
    ],
)
def test_wrong_places_are_named(after: list[str], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        split(Chain(), after, (3, 8, 8))
    assert str(caught.value).startswith(said)


def test_a_model_without_any_place_says_so() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 5))
    with pytest.raises(
        ValueError, match=r"; nothing before that is a map or a sequence that an exit can be attached to$"
    ):
        split(flat, ["1"], (3, 8, 8))


def test_a_layer_that_is_never_called() -> None:
    model = Chain()
    model.unused = nn.Conv2d(1, 1, 1)
    with pytest.raises(
        ValueError, match=r"^the model never calls the layer unused by itself, so no exit can be attached after"
    ):
        split(model, ["unused"], (3, 8, 8))
    whole = split(model, ["layer1"], (3, 8, 8))
    assert state(whole).keys() == model.state_dict().keys()


class Batchless(Chain):
    """A mean over the batch is used behind the cut."""

    def forward(self, inputs: Tensor) -> Tensor:
        mean = inputs.mean(0)
        maps = self.layer3(self.layer2(self.layer1(inputs)) + mean.mean())
        return self.fc(maps.mean((2, 3)))


class Counting(Chain):
    """A condition on values."""

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.layer1(inputs)
        if maps.sum() > 0:
            maps = maps * 2
        return self.fc(self.layer3(self.layer2(maps)).mean((2, 3)))


class Listing(Chain):
    """As many operations as there are images."""

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.layer2(torch.stack([self.layer1(image[None])[0] for image in inputs]))
        return self.fc(self.layer3(maps).mean((2, 3)))


class Moody(Chain):
    """Something else is computed in training."""

    def forward(self, inputs: Tensor) -> Tensor:
        maps = self.layer2(self.layer1(inputs))
        if self.training:
            maps = maps * torch.rand_like(maps)
        return self.fc(self.layer3(maps).mean((2, 3)))


def test_what_cannot_pass_a_cut_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"^no exit can be attached after layer1: mean, 3×8×8 for 2 images, would have to be passed"
    ):
        split(Batchless(), ["layer1"], (3, 8, 8))


def test_weights_may_be_used_twice_between_exits_but_not_across_one() -> None:
    class Again(Chain):
        def forward(self, inputs: Tensor) -> Tensor:
            maps = self.layer3(self.layer2(self.layer1(inputs)))
            return self.fc(self.layer3(maps * 2).mean((2, 3)))

    model = Again()
    backbone = split(model, ["layer2"], (3, 8, 8))  # both calls in one stage
    inputs = torch.rand(2, 3, 8, 8)
    assert torch.equal(plain(backbone).eval()(inputs).logits[-1], model.eval()(inputs))

    class Across(Chain):
        def forward(self, inputs: Tensor) -> Tensor:
            maps = self.layer3(self.layer2(self.layer1(inputs)))
            return self.fc(self.layer3[0](maps).mean((2, 3)))

    with pytest.raises(
        ValueError, match=r"^the model uses the same weights before and after an exit \(layer3.0.*put it else"
    ):
        split(Across(), ["layer3.1"], (3, 8, 8))


def test_a_line_that_cannot_be_traced_is_named() -> None:
    with pytest.raises(
        Untraceable, match=r"^Counting does not .*: test_split.py, line \d+: `if maps.sum\(\) > 0:`: .*by hand"
    ):
        split(Counting(), ["layer1"], (3, 8, 8))
    with pytest.raises(
        Untraceable, match=r"^Listing cannot be traced: test_split.py, line \d+: `.*`: it depends on the num"
    ):
        split(Listing(), ["layer1"], (3, 8, 8))
    with pytest.raises(Untraceable, match=r"computes something else in training .* define the stages by hand"):
        split(Moody(), ["layer1"], (3, 8, 8))


def test_modules_that_no_cut_passes_may_do_what_they_like() -> None:
    class Odd(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps * 2 if self.training else maps.clone()

    model = Chain()
    model.layer2 = nn.Sequential(model.layer2, Odd())
    network = plain(split(model, ["layer1"], (3, 8, 8)))
    inputs = torch.rand(4, 3, 8, 8)
    for mode in (True, False):
        assert torch.equal(network.train(mode)(inputs).logits[-1], model.train(mode)(inputs))


def test_images_too_small_name_the_smallest_that_works() -> None:
    vgg = vision("torchvision.models").vgg11(num_classes=3)
    with pytest.raises(
        ValueError, match=r"^VGG cannot take images of 3×16×16 \(.*\); the smallest square .* is 32×32$"
    ):
        split(vgg, ["features.5"], (3, 16, 16))
    vit = vision("timm").create_model("vit_tiny_patch16_224", depth=1, num_classes=3)
    with pytest.raises(ValueError, match=r"^VisionTransformer cannot take images of 3×32×32 .* is 224×224$"):
        split(vit, ["blocks.0"], (3, 32, 32))


def test_the_smallest_that_works_is_the_smallest() -> None:
    model = Chain()
    model.layer1 = nn.Sequential(nn.Conv2d(3, 4, 9), nn.Conv2d(4, 4, 3))  # 11 pixels leave one
    with pytest.raises(ValueError, match=r"^Chain cannot take images of 3×8×8 .* works is 11×11$"):
        split(model, ["layer1"], (3, 8, 8))


@pytest.mark.parametrize(("takes", "channels"), [(3, 1), (1, 3)])
def test_images_of_other_channels(takes: int, channels: int) -> None:
    model = Chain()
    model.layer1 = block(takes, 4)
    with pytest.raises(
        ValueError,
        match=rf"^Chain takes images of {takes} channels, not {channels}: build it for that number \(a function",
    ):
        split(model, ["layer1"], (channels, 8, 8))


def test_a_model_without_a_classifier() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.BatchNorm2d(3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs).mean((2, 3))

    with pytest.raises(
        ValueError,
        match=r"^Mean returns 3 values, but no layer of its own with weights computes them; define the stages by",
    ):
        split(Mean(), ["layer"], (3, 8, 8))


def test_exits_at_equal_shares_of_the_operations() -> None:
    with torch.device("meta"):
        model = vision("timm").create_model("resnet50")
    shape = (3, 224, 224)
    known = places(model, shape)
    assert [place.share for place in known] == sorted(place.share for place in known)
    shares = {place.layer: place.share for place in known}
    assert 0.19 < shares["layer1"] < 0.25 and 0.75 < shares["layer3"] < 0.85
    from offramp.split import cut_points, exit_placement

    result = cut_points.find(model, shape)
    assert [len(exit_placement.equal(result, exits)) for exits in (1, 2, 3, 6)] == [0, 1, 2, 5]
    chosen = exit_placement.equal(result, 4)
    assert all(abs(shares[name] - wanted) <= 0.05 for name, wanted in zip(chosen, (0.25, 0.5, 0.75), strict=True)), (
        chosen
    )
    with pytest.raises(ValueError, match=r"^exits takes a number from 1 to 9 on this network, got 10; exits_aft"):
        split(Chain(), 10, (3, 8, 8))


def test_blocks_without_a_way_to_make_them_afresh() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gamma = nn.Conv2d(8, 8, 3, padding=1), nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, maps: Tensor) -> Tensor:
            return maps + self.gamma * self.conv(maps)

    def make() -> Chain:
        model = Chain()
        model.layer3 = nn.Sequential(Scaled(), Scaled())
        return model

    model = make()
    nn.init.constant_(model.layer3[0].gamma, 7.0)
    with pytest.raises(
        TypeError, match=r"cannot make a fresh copy of Subgraph: .*layer3.0 .*Scaled.* holds parameters of its own"
    ):
        fresh(split(model, ["layer2"], (3, 8, 8)).stages[1][0])
    backbone = split(model, ["layer2"], (3, 8, 8), make=make)
    network = attach(backbone, lambda trunk, exit: sketch.build(trunk, exit, 5))
    gammas = {name: float(p.detach().mean()) for name, p in network.named_parameters() if name.endswith("gamma")}
    assert sorted(gammas.values()) == [1.0, 1.0, 7.0]


def test_any_block_can_be_made_afresh_and_nothing_is_given_twice() -> None:
    model = Chain()
    backbone = split(model, ["layer1"], (3, 8, 8), make=Chain)
    blocks = list(backbone.stages[1])
    assert len(blocks) == 2
    built = [fresh(block) for block in (*blocks, blocks[0], fresh(blocks[1]))]
    weights = [p for part in (model, *built) for p in part.parameters()]
    assert len({id(p) for p in weights}) == len(weights)
    assert [list(part.state_dict()) for part in built[:2]] == [list(block.state_dict()) for block in blocks]


def test_stages_by_hand() -> None:
    model = Chain()
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc)
    backbone = by_hand([model.layer1, nn.Sequential(model.layer2, model.layer3)], head, (3, 8, 8))
    outputs = plain(backbone).eval()(torch.rand(2, 3, 8, 8))
    assert outputs.logits.shape == (1, 2, 5) and outputs.features[0].shape == (2, 8)
    assert outputs.maps[0].shape == (2, 8, 4, 4)


@pytest.mark.parametrize(
    ("stages", "head", "said"),
    [
        ([], nn.Identity(), "a network needs one stage or more, got none"),
        ([block(3, 4), block(8, 8)], nn.Identity(), "stage 2 does not take 4×8×8: "),
        ([block(3, 4)], nn.Linear(3, 2), "the head does not take 4×8×8: "),
        (
            [block(3, 4), nn.Flatten(0)],
            nn.Identity(),
            "stage 2 passes on something other than tensors whose first dimension is the batch",
        ),
    ],
)
def test_stages_by_hand_that_do_not_fit(stages: list[nn.Module], head: nn.Module, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        by_hand(stages, head, (3, 8, 8))
    assert str(caught.value).startswith(said)


class TestWeights:
    def test_missing_unexpected_and_misshapen_weights_are_all_named(self) -> None:
        values = {name: tensor for name, tensor in Chain().state_dict().items() if name != "layer1.0.bias"}
        values |= {"layer9.weight": torch.ones(1), "layer2.0.weight": torch.ones(8, 4, 1, 1)}
        with pytest.raises(ValueError) as caught:
            load_state(net("layer1"), values, "weights=a.pt")
        assert str(caught.value) == (
            "weights=a.pt do not fit the network: 1 missing (layer1.0.bias); 1 unexpected (layer9.weight); "
            "1 of another shape (layer2.0.weight (8, 4, 1, 1) instead of (8, 4, 3, 3))"
        )

    def test_a_classifier_of_other_classes_keeps_its_own(self) -> None:
        network, values = net("layer1"), Chain(9).state_dict()
        before = network.branches[-1].head.fc.weight.clone()  # type: ignore[union-attr]
        assert load_state(network, values, classes=True) == ["fc.bias", "fc.weight"]
        assert torch.equal(network.branches[-1].head.fc.weight, before)  # type: ignore[union-attr]
        assert torch.equal(state(network)["layer1.0.weight"], values["layer1.0.weight"])
        with pytest.raises(ValueError, match="2 of another shape"):
            load_state(network, values)

    def test_files(self, tmp_path: Path) -> None:
        values = Chain().state_dict()
        save_file({name: tensor.clone() for name, tensor in values.items()}, tmp_path / "a.safetensors")
        torch.save(values, tmp_path / "b.pt")
        torch.save({"model": {f"module.{name}": t for name, t in values.items()}, "epoch": 3}, tmp_path / "c.pth")
        for name in ("a.safetensors", "b.pt", "c.pth"):
            result = read(tmp_path / name)
            assert result.keys() == values.keys() and all(torch.equal(result[key], values[key]) for key in values)

    def test_files_that_hold_no_weights(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"^weights=.*none.pt: the file does not exist$"):
            read(tmp_path / "none.pt")
        with pytest.raises(ValueError, match=r"^weights=.* is a folder: name a file in it, such as .*last.safe"):
            read(tmp_path)
        (tmp_path / "a.safetensors").write_bytes(b"no")
        with pytest.raises(ValueError, match=r"^weights=.*a.safetensors is not a safetensors file: "):
            read(tmp_path / "a.safetensors")
        torch.save(Chain(), tmp_path / "whole.pt")
        with pytest.raises(ValueError, match=r"whole.pt cannot be read as weights alone: it holds .*Chain, such as"):
            read(tmp_path / "whole.pt")
        torch.save({"epoch": 3}, tmp_path / "state.pt")
        with pytest.raises(
            ValueError, match=r"state.pt contains no weights: it must be a mapping of names to tensors$"
        ):
            read(tmp_path / "state.pt")

    def test_a_runs_weights_fit_networks_with_other_exits(self) -> None:
        """Of a network that was split, and of one of ours, whose blocks are counted through its stages."""
        trained, other = net("layer1", "layer2"), net("layer2")
        load_state(other, {name: tensor.clone() for name, tensor in trained.state_dict().items()})
        assert all(torch.equal(tensor, state(trained)[name]) for name, tensor in state(other).items())
        one, two = (resnet.build("resnet18", classes=5, width=4) for _ in range(2))
        load_state(two, plain(one).state_dict())
        assert all(torch.equal(tensor, state(one)[name]) for name, tensor in state(two).items())
