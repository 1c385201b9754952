"""Models with forward passes of every awkward kind: cut right, or refused with what to do."""

import random
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from offramp.branches import linear
from offramp.net import MultiExitNet, attach, plain
from offramp.split import by_hand, equivalence, model_sources, split, state
from offramp.split.random_state import random_state
from offramp.train.checkpoint import save_weights

SHAPE = (3, 16, 16)


class Net(nn.Module):
    """Two convolutions a and b, pooling, and the classifier fc; the subclasses change one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> Any:
        return self.fc(self.end(self.b(self.middle(self.a(inputs))).mean((2, 3))))

    def middle(self, maps: Tensor) -> Tensor:
        return maps

    def end(self, feature: Tensor) -> Tensor:
        return feature


class FunctionalDropout(Net):
    def end(self, feature: Tensor) -> Tensor:
        return F.dropout(feature, 0.2, self.training)


class FunctionalNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("variance", torch.ones(6))

    def end(self, feature: Tensor) -> Tensor:
        return F.batch_norm(feature, self.mean, self.variance, training=self.training)


class NotInTraining(Net):
    def end(self, feature: Tensor) -> Tensor:
        return F.dropout(feature, 0.2, training=not self.training)


class FrozenNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def middle(self, maps: Tensor) -> Tensor:
        return self.norm(maps)

    def train(self, mode: bool = True) -> "FrozenNorm":
        super().train(mode)
        self.norm.eval()
        return self


class Items(Net):
    """Assigns items of a list that a layer returned, and of a map."""

    class Two(nn.Module):
        def forward(self, maps: Tensor) -> list[Tensor]:
            return [maps, maps * 2]

    def __init__(self) -> None:
        super().__init__()
        self.two = self.Two()

    def middle(self, maps: Tensor) -> Tensor:
        parts = self.two(maps)
        parts[0] = parts[0] + parts[1]
        maps = parts[0] * 1.0
        maps[:, 0] = 0.5
        return maps


class Device(Net):
    """A condition that is the same on every device that offramp trains on."""

    def middle(self, maps: Tensor) -> Tensor:
        return maps * 2 if maps.device.type == "mps" else maps + torch.ones(1, device=maps.device)


class DictOutput(Net):
    def forward(self, inputs: Tensor) -> Any:
        return {"logits": super().forward(inputs), "extra": None}


def base(*end: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), *end)


def pooled(*end: nn.Module) -> nn.Sequential:
    return base(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *end)


def shared_module() -> nn.Module:
    class Block(nn.Module):
        def __init__(self, width: int, shared: nn.Module) -> None:
            super().__init__()
            self.shared, self.conv = shared, nn.Conv2d(width, width, 3, 1, 1)

        def forward(self, maps: Tensor) -> Tensor:
            return maps + self.conv(self.shared(maps))

    class Shares(Net):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Conv2d(4, 4, 3, 1, 1)
            self.one = nn.Sequential(*[Block(4, self.position) for _ in range(2)])

        def middle(self, maps: Tensor) -> Tensor:
            return self.one(maps)

    return Shares()


class Twice(Net):
    """Every layer has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(self.a, nn.ReLU(), self.b, nn.ReLU())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.features(inputs).mean((2, 3)))


class Tied(Net):
    """One weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.d.weight = self.c.weight

    def middle(self, maps: Tensor) -> Tensor:
        return self.d(self.c(maps).relu())


CUT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "functional dropout": (FunctionalDropout, "a"),
    "functional batch norm": (FunctionalNorm, "a"),
    "dropout outside of training": (NotInTraining, "a"),
    "own train()": (FrozenNorm, "norm"),
    "item assignment": (Items, "a"),
    "condition on another device": (Device, "a"),
    "dictionary": (DictOutput, "a"),
    "shared module": (shared_module, "a"),
    "two names": (Twice, "features.0"),
    "tied weight": (Tied, "a"),
    "parametrised classifier": (lambda: pooled(parametrizations.weight_norm(nn.Linear(6, 5))), "0"),
    "parametrised convolution": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), *pooled(nn.Linear(6, 5))[3:]), "0"
    ),
    "convolution, then pooling": (lambda: base(nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "0"),
    "norm behind the classifier": (lambda: pooled(nn.Linear(6, 5), nn.BatchNorm1d(5)), "0"),
    "float64": (lambda: pooled(nn.Linear(6, 5)).double(), "0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CUT)
def test_it_is_cut_right_and_the_model_is_left_as_it_was(kind: str) -> None:
    """`split` itself compares outputs, gradients and buffers; here are what it must not change, and the feature."""
    make, after = CUT[kind]
    torch.manual_seed(0)
    model = make().train()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    state_before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: {**vars(part)} for name, part in model.named_modules()}
    drawn = random_state()
    backbone = split(model, [after], SHAPE)
    assert random_state()[1:] == drawn[1:]  # the run-time shape checks of tests draw from Python's
    assert all(torch.equal(tensor, state_before[name]) for name, tensor in model.state_dict().items())
    assert {name: {**vars(part)} for name, part in model.named_modules()} == attributes
    assert next(model.parameters()).grad is not None
    assert not any(tensor.is_meta for tensor in model.parameters())
    assert set(state(backbone)) == set(model.state_dict())
    inputs = torch.rand(2, *SHAPE, dtype=next(model.parameters()).dtype)
    assert plain(backbone).eval()(inputs).features[-1].shape == (2, 6)


def with_exits(model: nn.Module, after: str) -> MultiExitNet:
    return attach(split(model, [after], SHAPE), lambda trunk, exit: linear.build(trunk, exit, 5))


def test_the_models_own_train_is_respected() -> None:
    model = FrozenNorm()
    net = with_exits(model, "norm").train()
    assert net.training and not model.norm.training
    net(torch.randn(4, *SHAPE))
    assert model.norm.running_mean is not None and not model.norm.running_mean.any()


def test_weights_with_two_names_are_saved_and_load(tmp_path: Path) -> None:
    net = with_exits(Twice(), "features.0")
    save_weights(tmp_path / "w.safetensors", net.state_dict(), {})
    loaded = load_file(tmp_path / "w.safetensors")
    assert loaded.keys() == net.state_dict().keys()
    with_exits(Twice(), "features.0").load_state_dict(loaded)


def test_modules_with_two_names_by_hand_keep_their_weights() -> None:
    shared = nn.Conv2d(4, 4, 3, 1, 1)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    by_hand([nn.Sequential(nn.Conv2d(3, 4, 3), shared), nn.Sequential(nn.ReLU(), shared)], head, SHAPE)
    assert not shared.weight.is_meta


class NoGrad(Net):
    def middle(self, maps: Tensor) -> Tensor:
        with torch.no_grad():
            return maps * 2


class Autocast(Net):
    def middle(self, maps: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return maps * 2


class BatchOfOne(Net):
    def middle(self, maps: Tensor) -> Tensor:
        return maps * 2 if maps.shape[0] == 1 else maps


class OnCuda(Net):
    def middle(self, maps: Tensor) -> Tensor:
        return maps * 2 if maps.is_cuda else maps


class LayerDrop(Net):
    def middle(self, maps: Tensor) -> Tensor:
        return maps if self.training and random.random() < 0.3 else maps * 2


class TorchLayerDrop(Net):
    def middle(self, maps: Tensor) -> Tensor:
        return maps if torch.rand(()) < 0.3 else maps * 2


class TupleOutput(Net):
    def forward(self, inputs: Tensor) -> Any:
        return super().forward(inputs), inputs


class Auxiliary(Net):
    aux_logits = True

    def end(self, feature: Tensor) -> Tensor:
        return feature * 2 if self.training else feature


class Scripted(Net):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.jit.trace(nn.ReLU(), torch.rand(1))

    def middle(self, maps: Tensor) -> Tensor:
        return self.inner(maps)


def lazy() -> nn.Module:
    model = Net()
    model.fc = nn.LazyLinear(5)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no_grad": (NoGrad, r"`return maps \* 2`: it computes without gradients \(torch.no_grad\), which a graph would"),
    "autocast": (Autocast, r"`with torch.autocast.*`: it computes within torch.autocast, which a graph would lose"),
    "batch of one": (BatchOfOne, r"`return maps .*`: it depends on the number of samples in the batch; cut"),
    "device": (OnCuda, r"`return maps \* 2 if maps.is_cuda else maps`: it depends on the device of the model; cut"),
    "layers dropped by Python": (LayerDrop, "it draws random numbers outside of its layers .* disable that; cut"),
    "layers dropped by PyTorch": (TorchLayerDrop, "it draws random numbers outside of its layers .* disable that"),
    "tuple": (TupleOutput, r"^TupleOutput cannot be cut: the model returns a tuple of 2 instead of logits .* wrap it"),
    "second classifier": (Auxiliary, r"^Auxiliary has another classifier in training .* build it with aux_lo"),
    "compiled layer": (Scripted, "^Scripted cannot be examined: its layer inner was compiled by torch.jit; build"),
    "data parallel": (lambda: nn.DataParallel(Net()), r"^a model within DataParallel cannot .*model.module\)$"),
    "without shapes": (lazy, r"^fc.weight of Net has no shape yet \(nn.Lazy...\): run the model once on a batch fi"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*nn.Lazy:UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_with_what_to_do(kind: str) -> None:
    make, said = REFUSED[kind]
    model = make()
    factories = [getattr(torch, name) for name in ("zeros", "rand", "ones")] + [torch.autocast.__enter__]
    with pytest.raises(ValueError, match=said):
        split(model, ["a"], SHAPE)
    assert factories == [getattr(torch, name) for name in ("zeros", "rand", "ones")] + [torch.autocast.__enter__]


class TestEquivalence:
    """The comparison alone, on networks whose cut form was changed."""

    @staticmethod
    def check(change: Callable[[Any], None], model: nn.Module) -> None:
        backbone = split(model, ["a"], SHAPE, check=False)
        change(backbone)
        equivalence.check(model, backbone, ["a"])

    def test_other_values_name_the_stage(self) -> None:
        with pytest.raises(ValueError, match=r"^the cut form of Net is not the model: for a batch of 1 in evaluation m"
                           r"ode, stage 1 \(up to a\) returns different values; cut elsewhere, or define"):  # fmt: skip
            self.check(lambda net: net.stages[0].append(nn.ReLU()), Net())

    def test_other_gradients_name_the_weight(self) -> None:
        class Detached(nn.Module):
            def forward(self, maps: Tensor) -> Tensor:
                return maps.detach()

        with pytest.raises(ValueError, match=r"batch of 3 in training mode, stage 1 .* a different gradient of a.w"):
            self.check(lambda net: net.stages[0].append(Detached()), Net())

    def test_other_buffers_are_named(self) -> None:
        class Counting(Net):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))

            def middle(self, maps: Tensor) -> Tensor:
                self.calls = self.calls + 1  # lost in a graph
                return maps + 0 * self.calls

        with pytest.raises(ValueError, match="the last stage or the head leaves different values in the buffer calls;"):
            self.check(lambda net: None, Counting())

    def test_zeros_at_the_start_hide_nothing(self) -> None:
        model = Net()
        nn.init.zeros_(model.fc.weight)
        with pytest.raises(ValueError, match=r"stage 1 .* returns different values"):
            self.check(lambda net: net.stages[0].append(nn.ReLU()), model)
        assert not model.fc.weight.any()

    def test_a_model_that_never_repeats_itself(self) -> None:
        class Clock(nn.Module):
            count = 0

            def forward(self, maps: Tensor) -> Tensor:
                Clock.count += 1
                return maps + Clock.count

        with pytest.raises(
            ValueError, match="the model itself returns different values in every pass, even with the s"
        ):
            self.check(
                lambda net: None,
                nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 3), clock=Clock(), rest=pooled(nn.Linear(6, 5))[2:])),
            )

    def test_models_that_fail_on_real_images(self) -> None:
        class Fails(nn.Module):
            def forward(self, maps: Tensor) -> Tensor:
                if not maps.is_meta:
                    raise RuntimeError("only shapes here")
                return maps

        with pytest.raises(ValueError, match=r"^Sequential itself fails for a batch of 1 .*only shapes here$"):
            split(nn.Sequential(Fails(), *pooled(nn.Linear(6, 5))), ["1"], SHAPE)


def test_the_search_path_of_python_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_doubles.py").write_text(
        "from torch import nn\ndef double(classes):\n"
        "    layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)\n"
        "    return nn.Sequential(*layers).double()"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with pytest.raises(
        ValueError, match=r"^python:my_doubles:double has weights in float64, but images come in float32"
    ):
        model_sources.build("python:my_doubles:double", classes=3, size=(16, 16))
    assert sys.path == before
