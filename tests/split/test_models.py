"""Every model that must be splittable: the same answers, gradients and names; segments, export, blocks made afresh."""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import forked
import pytest
import torch
from torch import Tensor, nn

from offramp.branches import linear, sketch
from offramp.bundle.onnx import operators_kept
from offramp.measure import cost
from offramp.net import Backbone, Branch, Head, MultiExitNet, attach, segments
from offramp.optional import vision
from offramp.outputs import State
from offramp.split import cut_points, exit_placement, load_state, split, state
from offramp.split.logits import logits_of

CLASSES = 5


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    after: tuple[str, ...]
    side: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.side, self.side


def of_timm(name: str, after: str, side: int = 224, **options: Any) -> Case:
    return Case(
        lambda: vision("timm").create_model(name, num_classes=CLASSES, **options), tuple(after.split(",")), side
    )


def of_torchvision(name: str, after: str, side: int = 224) -> Case:
    return Case(
        lambda: vision("torchvision.models").get_model(name, num_classes=CLASSES), tuple(after.split(",")), side
    )


def of_transformers(kind: str, after: str, side: int, **options: Any) -> Case:
    def make() -> nn.Module:
        library = vision("transformers")
        config = library.AutoConfig.for_model(kind, num_labels=CLASSES, **options)
        built: nn.Module = library.AutoModelForImageClassification.from_config(config)
        return built

    return Case(make, tuple(after.split(",")), side)


class Skips(nn.Module):
    """Two skip connections over one cut; a size, a mask and a learned scale are used on both sides of it."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3 if k == 0 else 8, 8, 3, padding=1) for k in range(3))
        self.four, self.five = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.register_buffer("shift", torch.linspace(0, 1, 8), persistent=False)
        self.fc = nn.Linear(12, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        batch, _, height, width = inputs.shape
        scale = self.scale.exp()
        mask = torch.ones(height, width, device=inputs.device).tril().view(1, 1, height, width)
        shift = self.shift.view(-1, 1, 1) * 2
        first = self.one(inputs) * scale
        second = self.relu(self.two(first) + shift)
        third = self.three(second)
        third = self.relu(third)
        third = nn.functional.dropout(third, 0.5, self.training)
        fourth = self.norm(self.four(third) * mask + first * scale + shift)
        last = self.five(fourth + second.reshape(batch, 8, height, width))
        return self.fc(last.mean((2, 3)))


SMALL = {
    "resnet": of_timm("resnet50", "layer1,layer2,layer3", 32, layers=(1, 1, 1, 1)),
    "convnext": of_timm("convnext_tiny", "stages.0,stages.1,stages.2", 64, depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
    "mobilenetv3": of_timm("mobilenetv3_small_100", "blocks.1,blocks.2,blocks.3", 64),
    "densenet": of_timm(
        "densenet121", "features.denseblock1,features.denseblock2,features.denseblock3", 64,
        growth_rate=4, block_config=(2, 2, 2, 2),
    ),
    "vit": of_timm(
        "vit_small_patch16_224", "blocks.0,blocks.1,blocks.2", 32,
        img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3,
    ),
    "swin": of_timm(
        "swin_tiny_patch4_window7_224", "layers.0,layers.1,layers.2", 64,
        img_size=64, window_size=4, embed_dim=12, depths=(1, 2, 2, 1), num_heads=(1, 2, 3, 4),
    ),
    "mixer": of_timm("mixer_s32_224", "blocks.1,blocks.3,blocks.5", 64, img_size=64),
    "torchvision": of_torchvision("resnet18", "layer1,layer2,layer3", 32),
    "transformers": of_transformers(
        "vit", "vit.layers.0,vit.layers.1", 32,
        image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=4, num_attention_heads=3, intermediate_size=48,
    ),
    "skips": Case(Skips, ("three",), 8),
}  # fmt: skip
REAL = {
    "resnet50": of_timm("resnet50", "layer1,layer2,layer3"),
    "convnext_tiny": of_timm("convnext_tiny", "stages.0,stages.1,stages.2"),
    "efficientnet_b0": of_timm("efficientnet_b0", "blocks.1,blocks.2,blocks.4"),
    "mobilenetv3_small_100": of_timm("mobilenetv3_small_100", "blocks.1,blocks.2,blocks.3"),
    "regnety_008": of_timm("regnety_008", "s1,s2,s3"),
    "densenet121": of_timm("densenet121", "features.denseblock1,features.denseblock2,features.denseblock3"),
    "vit_small_patch16_224": of_timm("vit_small_patch16_224", "blocks.2,blocks.5,blocks.8"),
    "swin_tiny_patch4_window7_224": of_timm("swin_tiny_patch4_window7_224", "layers.0,layers.1,layers.2"),
    "mixer_s32_224": of_timm("mixer_s32_224", "blocks.1,blocks.3,blocks.5"),
    "resnext50_32x4d": of_timm("resnext50_32x4d", "layer1,layer2,layer3"),
    "resnet18": of_torchvision("resnet18", "layer1,layer2,layer3"),
    "vgg16_bn": of_torchvision("vgg16_bn", "features.12,features.22,features.32"),
    "mobilenet_v2": of_torchvision("mobilenet_v2", "features.3,features.6,features.13"),
    "inside-a-block": of_timm("resnet50", "layer1.1.conv2,layer3.0.conv1", 64),
    "inside-a-dense-block": of_timm("densenet121", "features.denseblock2.denselayer3", 64),
    "transformers-resnet": of_transformers("resnet", "resnet.encoder.stages.0,resnet.encoder.stages.2", 64),
    "transformers-swin": of_transformers(
        "swin", "swin.encoder.layers.0,swin.encoder.layers.1", 64, image_size=64, window_size=2
    ),
    "transformers-convnext": of_transformers("convnext", "convnext.encoder.stages.0,convnext.encoder.stages.2", 64),
}


FAMILIES = ("convnext", "densenet", "vit", "torchvision", "skips")
"""One model of each kind: layer scale, concatenation, tokens, residual blocks, skip connections over a cut."""


def cases(quick: Sequence[str] = tuple(SMALL)) -> list[Any]:
    """All models; models that `quick` does not name, and real sizes, are in the full grid only."""
    return [
        pytest.param(case, id=name, marks=() if name in quick else pytest.mark.full)
        for name, case in {**SMALL, **REAL}.items()
    ]


def with_exits(backbone: Backbone) -> MultiExitNet:
    return attach(backbone, lambda trunk, exit: linear.build(trunk, exit, CLASSES))


def images(case: Case, batch: int = 3) -> Tensor:
    return torch.randn(batch, *case.shape, generator=torch.Generator().manual_seed(1))


def stir(model: nn.Module) -> nn.Module:
    """Make every weight count: some models start with zeros at their ends."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@cache
def prepared(case: Case) -> tuple[nn.Module, MultiExitNet]:
    """A model and its split form, which holds the same modules."""
    torch.manual_seed(0)
    model = stir(case.make())
    return model, with_exits(split(model, case.after, case.shape))


every = pytest.mark.parametrize("case", cases())
of_each_family = pytest.mark.parametrize("case", cases(FAMILIES))


@every
@torch.no_grad()
def test_the_last_exit_is_the_model(case: Case) -> None:
    """For another number of images than the model was traced with, too; names and weights are the model's own.

    `prepared` has compared outputs, gradients and buffers of both for batches of 1 and 3 (`check`).
    """
    model, net = (part.eval() for part in prepared(case))
    expected = logits_of(model(images(case, 5)))
    outputs = net(images(case, 5))
    assert outputs.logits.shape == (len(case.after) + 1, 5, CLASSES)
    assert (outputs.logits[-1] - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(native.dim() in (3, 4) and native.shape[0] == 5 for native in outputs.maps)
    assert {id(p) for p in model.parameters()} <= {id(p) for p in net.parameters()}


def test_in_place_operations_behind_a_cut_do_not_reach_an_exit() -> None:
    """Neither its map nor what it has kept for its gradient."""
    case = SMALL["skips"]
    backbone = split(case.make(), case.after, case.shape, check=False)
    net = attach(backbone, lambda trunk, exit: Branch(nn.Conv2d(8, 8, 1), Head(8, CLASSES)))
    state: State = images(case)
    handed_on: Any = net.stages[0](state)
    before = handed_on[-1].clone()
    logits = net.branches[0](handed_on[-1])[0]
    net.stages[1](handed_on)
    assert torch.equal(handed_on[-1], before)
    logits.square().sum().backward()


@every
@torch.no_grad()
def test_segments_one_by_one_are_the_network(case: Case) -> None:
    net = prepared(case)[1].eval()
    expected = net(images(case)).logits
    state, carry = images(case), ()
    for segment, logits in zip(segments(net), expected, strict=True):
        state, carry, answer = segment(state, carry)
        assert torch.equal(answer, logits)
        assert all(tensor.shape[0] == 3 for tensor in (state if isinstance(state, tuple) else (state,)))


@every
@torch.no_grad()
def test_samples_may_leave_between_segments(case: Case) -> None:
    net = prepared(case)[1].eval()
    expected = net(images(case)).logits[-1]
    state, carry = images(case), ()
    keep = torch.tensor([0, 2])
    for number, segment in enumerate(segments(net)):
        state, carry, answer = segment(state, carry)
        if number == 0:
            state = tuple(tensor[keep] for tensor in state) if isinstance(state, tuple) else state[keep]
    assert (answer - expected[keep]).abs().max() <= 1e-5 * expected.abs().max()


@of_each_family
@torch.no_grad()
def test_the_models_state_dict_loads_in_both_directions(case: Case) -> None:
    model, net = (part.eval() for part in prepared(case))
    expected = logits_of(model(images(case)))
    assert state(net).keys() == model.state_dict().keys()
    other = stir(copy.deepcopy(net))
    load_state(other, model.state_dict())
    assert (other(images(case)).logits[-1] - expected).abs().max() <= 1e-5 * expected.abs().max()
    again = case.make().eval()
    again.load_state_dict(state(net))
    assert torch.equal(logits_of(again(images(case))), expected)


@of_each_family
@torch.no_grad()
def test_every_exit_exports(case: Case) -> None:
    net = prepared(case)[1].eval()
    values: State = images(case, 2)
    for segment in segments(net):
        program = torch.export.export(segment, (values,))
        next_state, _, logits = segment(values)
        answer = program.module()(values)[2]
        assert (answer - logits).abs().max() <= 1e-4 * logits.abs().max()
        values = next_state


@pytest.mark.full
@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in {**SMALL, **REAL}.items()])
@pytest.mark.filterwarnings("ignore:::torch.onnx", "ignore::DeprecationWarning", "ignore::FutureWarning")
@torch.no_grad()
def test_every_exit_becomes_onnx(case: Case, tmp_path: Path) -> None:
    net = prepared(case)[1].eval()
    values: State = images(case, 2)
    for number, segment in enumerate(segments(net)):
        with operators_kept():
            program = torch.onnx.export(segment, (values,), dynamo=True, verbose=False)
        assert program is not None
        program.save(tmp_path / f"{number}.onnx")
        values = segment(values)[0]


@of_each_family
def test_deep_copies_and_other_devices(case: Case) -> None:
    """The moving average of weights is a deep copy; costs are counted on the meta device."""
    net = prepared(case)[1].eval()
    twin = copy.deepcopy(net)
    assert not {id(p) for p in net.parameters()} & {id(p) for p in twin.parameters()}
    assert twin.state_dict().keys() == net.state_dict().keys()
    assert torch.equal(twin(images(case)).logits, net(images(case)).logits)
    assert cost.macs(net, case.shape)[-1] > cost.macs(net, case.shape)[0]
    assert twin.to("meta")(images(case).to("meta")).logits.device.type == "meta"


@of_each_family
def test_bfloat16(case: Case) -> None:
    """As the model itself computes in it, and it trains."""
    model, net = (part.eval() for part in prepared(case))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = logits_of(model(images(case))).float()
        result = net(images(case)).logits[-1].float()
    assert (result - expected).abs().max() <= 1e-2 * expected.abs().max()
    net.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(images(case)).logits
    logits.float().square().mean().backward()
    reached = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert reached and all(gradient.isfinite().all() for gradient in reached)
    net.zero_grad()


@of_each_family
@torch.no_grad()
def test_channels_last_gives_the_same_answer(case: Case) -> None:
    net = copy.deepcopy(prepared(case)[1].eval())
    expected = net(images(case)).logits
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    result = net(images(case).contiguous(memory_format=torch.channels_last)).logits
    assert (result - expected).abs().max() <= 1e-4 * expected.abs().max()


COMPILE = """
import sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, {folder!r})
import torch
import {module} as these
case = these.SMALL[{name!r}]
net = these.prepared(case)[1].train()
net(these.images(case))  # what libraries make once, such as tables of positions
torch.manual_seed(0)
expected = net(these.images(case)).logits
torch.manual_seed(0)
found = torch.compile(net, backend="aot_eager", fullgraph=True)(these.images(case)).logits
assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), (found - expected).abs().max()
found.square().sum().backward()
assert all(p.grad is not None for p in net.stages.parameters())
"""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "skips" else pytest.mark.full) for name in SMALL]
)
def test_compiles_as_one_graph(name: str) -> None:
    """In a process of its own: torch cannot trace the run-time shape checks that tests put around everything."""
    here = Path(__file__)
    source = COMPILE.format(folder=str(here.parent), module=here.stem, name=name)
    done = forked.run_code(source)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "mobilenet_v2" else pytest.mark.full) for n in REAL if "inside" not in n]
)
def test_exits_at_equal_shares_are_within_five_points_where_a_boundary_is(name: str) -> None:
    with torch.device("meta"):
        model = REAL[name].make()
    result = cut_points.find(model, REAL[name].shape)
    known = {each.layer: each.share for each in exit_placement.places(result)}
    for exits in (2, 3, 4, 5, 6):
        shares = [known[layer] for layer in exit_placement.equal(result, exits)]
        assert shares == sorted(shares) and len(shares) == exits - 1
        for number, share in enumerate(shares, 1):
            wanted = number / exits
            nearest = min(abs(other - wanted) for other in known.values())
            assert abs(share - wanted) <= max(0.05, nearest), (exits, number, share)


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(SMALL[name], id=name) for name in ("convnext", "swin")),
        *(pytest.param(SMALL[name], id=name, marks=pytest.mark.full) for name in ("resnet", "vit")),
    ],
)
def test_sketch_makes_one_block_of_each_stage_as_the_model_does(case: Case) -> None:
    """Also what has no `reset_parameters`: layer scale, tables of position biases."""
    torch.manual_seed(0)
    model = stir(case.make())
    backbone = split(model, case.after, case.shape, make=case.make, check=False)
    net = attach(backbone, lambda trunk, exit: sketch.build(trunk, exit, CLASSES))
    assert [len(branch.body) for branch in net.branches[:-1]] == [3, 2, 1]
    assert {feature.shape[1] for feature in net(images(case)).features} == {net(images(case)).features[-1].shape[1]}
    trunk = {id(p) for p in model.parameters()}
    ours = [p for branch in net.branches[:-1] for p in branch.parameters()]
    assert not trunk & {id(p) for p in ours} and len({id(p) for p in ours}) == len(ours)
    built = dict(case.make().named_parameters())
    for name, parameter in net.branches[0].body[0].named_parameters():
        if name.endswith(("gamma", "bias", "norm.weight", "bn1.weight")):
            assert torch.equal(parameter, built[name]), (
                name
            )  # constants at the start, which `stir` has changed in the trunk
