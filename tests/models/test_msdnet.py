"""MSDNet: every figure of its code's counter, the plan of its scales, its settings, and errors that help."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from offramp.branches import linear, own
from offramp.measure import cost
from offramp.meta_device import blank, run_on_meta, shape_of
from offramp.models import msdnet
from offramp.models._msdnet_layers import Layer, Transition
from offramp.net import Backbone, MultiExitNet, attach, fresh, plain, segments


def build(**options: Any) -> Backbone:
    return msdnet.build("msdnet", **{"classes": 5, **options})


def tiny(**options: Any) -> Backbone:
    return build(**{"setting": "beed-4", "width": 2, "growth": 2, **options})


@cache
def published(setting: str) -> tuple[MultiExitNet, tuple[int, int, int]]:
    classes = 1000 if msdnet.SETTINGS[setting].form == "imagenet" else 100
    with torch.device("meta"):
        backbone = build(setting=setting, classes=classes)
        return attach(backbone, lambda trunk, exit: own.build(trunk, exit, classes)), backbone.shape


@cache
def counted(setting: str) -> list[int]:
    return cost.msdnet_ops(*published(setting))


@pytest.mark.parametrize(
    ("setting", "unit", "operations", "millions"),
    [
        ("hdkd-cifar-8", 1e6, "6.860 14.350 27.291 48.449 81.574 112.638 152.921 192.689", "5.311"),
        ("hdkd-imagenet-23", 1e9, "0.3399 0.6855 1.0082 1.2545 1.3605", "23.96"),
        ("muse-1", 1e6, "6.860 14.350 27.537 41.715 58.481", "2.079"),
        ("muse-3", 1e6, "15.140 34.508 50.013 67.738 83.735", "2.534"),
        pytest.param("muse-3-deep", 1e6, "6.86 17.37 39.89 74.05 112.7", "3.009", marks=pytest.mark.full),
        pytest.param("anytime", 1e6, "15.14 25.51 37.10 46.33 57.34 66.96 75.94", "3.068", marks=pytest.mark.full),
    ],
)
def test_operations_and_parameters(setting: str, unit: float, operations: str, millions: str) -> None:

    def like(value: float, printed: str) -> str:
        return f"{value:.{len(printed.partition('.')[2])}f}"

    printed = operations.split()
    assert [like(ops / unit, text) for ops, text in zip(counted(setting), printed, strict=True)] == printed
    assert like(cost.parameters(published(setting)[0]).total / 1e6, millions) == millions


@pytest.mark.parametrize(
    ("setting", "unit", "printed"),
    [
        ("hdkd-cifar-8", 1e6, (6.85, 14.4, 27.3, 48.4, 81.6, 113, 153, 193)),
        ("hdkd-imagenet-23", 1e9, (0.34, 0.69, 1.01, 1.25, 1.36)),
    ],
)
def test_hdkds_tables(setting: str, unit: float, printed: tuple[float, ...]) -> None:
    """Each of its figures to half a unit of its last digit; only the first, 6.860, is cut to 6.85."""
    for ops, figure in zip(counted(setting), printed, strict=True):
        last = 10.0 ** -len(str(figure).partition(".")[2])
        assert ops / unit == pytest.approx(figure, abs=0.011 if figure == 6.85 else 0.51 * last)


def test_the_literal_23_layers_do_not_match_hdkds_table() -> None:
    with torch.device("meta"):
        backbone = build(setting="hdkd-imagenet-23", base=7, step=4, classes=1000)
        net = attach(backbone, lambda trunk, exit: own.build(trunk, exit, 1000))
    operations = [round(count / 1e9, 3) for count in cost.msdnet_ops(net, backbone.shape)]
    assert (operations[0], operations[-1]) == (0.630, 1.744)


def test_widths_of_features_and_scales() -> None:
    net, shape = published("hdkd-imagenet-23")
    assert [f.shape[1] for f in run_on_meta(net, blank(net, shape)).features] == [384, 384, 352, 304, 560]
    net, shape = published("hdkd-cifar-8")
    assert [f.shape[1] for f in run_on_meta(net, blank(net, shape)).features] == [128] * 8
    state: Any = blank(net, shape)
    coarsest, scales = [], []
    for stage in net.stages:
        state = run_on_meta(stage, state)
        assert isinstance(state, tuple)
        coarsest.append(state[-1].shape[1])
        scales.append(len(state))
    assert coarsest == [88, 136, 208, 304, 236, 380, 308, 500]
    assert scales == [3, 3, 3, 3, 2, 2, 1, 1]


def test_transitions_follow_layers_13_and_25() -> None:
    layer, after = 0, []
    for block in (part for stage in published("hdkd-cifar-8")[0].stages for part in stage):  # type: ignore[union-attr]
        layer += isinstance(block, Layer)
        if isinstance(block, Transition):
            after.append(layer)
    assert (layer, after) == (36, [13, 25])


@pytest.mark.parametrize("exits", range(4, 12))
def test_any_number_of_exits(exits: int) -> None:
    net = plain(tiny(exits=exits, mode="even"))
    assert net(torch.randn(2, 3, 32, 32)).logits.shape == (1, 2, 5)
    backbone = tiny(exits=exits, mode="even")
    assert len(backbone.stages) == exits
    assert attach(backbone, lambda trunk, exit: own.build(trunk, exit, 5)).exits == exits


def layers(backbone: Backbone) -> list[int]:
    return [sum(isinstance(block, Layer) for block in stage) for stage in backbone.stages]


def test_steps_between_exits() -> None:
    assert layers(tiny(base=3, step=2, mode="even")) == [3, 2, 2, 2]
    assert layers(tiny(base=1, step=1, mode="lin_grow")) == [1, 2, 3, 4]
    assert layers(tiny(base=2, step=2, mode="lin_grow")) == [2, 3, 5, 7]


def live(backbone: Backbone) -> list[int]:
    state, result = torch.randn(2, *backbone.shape), []
    for block in (part for stage in backbone.stages for part in stage):
        state = block(state)
        if isinstance(block, Layer):
            result.append(len(state))
    return result


def test_pruning() -> None:
    """Ten layers, three scales: `max` drops one after each third, `min` in the last two layers."""
    assert live(tiny()) == [3, 3, 3, 3, 2, 2, 2, 2, 1, 1]
    assert live(tiny(prune="min")) == [3, 3, 3, 3, 3, 3, 3, 3, 2, 1]

    def narrowed(backbone: Backbone) -> int:
        return sum(isinstance(block, Transition) for stage in backbone.stages for block in stage)

    assert narrowed(tiny()) == narrowed(tiny(prune="min")) == 2
    assert narrowed(tiny(reduction=0.0)) == 0


def test_factors_and_bottlenecks() -> None:
    backbone = tiny(factors=(1, 2, 4, 4), bottlenecks=(1, 2, 4, 8), exits=4)
    state = backbone.stages[0](torch.randn(2, 3, 32, 32))
    assert shape_of(state) == ((4, 32, 32), (8, 16, 16), (16, 8, 8), (16, 4, 4))
    inner = [keep[0].out_channels for keep in backbone.stages[0][1].keeps]  # type: ignore[index, union-attr]
    assert inner == [2, 4, 8, 8]  # factor × what leaves: 1·2, 2·2, 4·4 and 8·4, at most what enters: 2, 4, 8, 8


def test_large_images_begin_with_a_biased_convolution_and_pooling() -> None:
    backbone = tiny(form="imagenet", image_size=64)
    assert backbone.shape == (3, 64, 64) and tiny(form="imagenet").shape == (3, 224, 224)
    finest = backbone.stages[0][0].finest  # type: ignore[union-attr]
    assert finest[0].kernel_size == (7, 7) and finest[0].bias is not None  # type: ignore[index, union-attr]
    assert shape_of(backbone.stages[0](torch.randn(2, 3, 64, 64)))[0] == (4, 16, 16)


def test_start_values() -> None:
    """PyTorch's own by default, as the released code in effect has; He's where asked for, in exits as well."""
    for init in ("torch", "he"):
        backbone = build(setting="beed-4", init=init)
        net = attach(backbone, lambda trunk, exit: own.build(trunk, exit, 5))
        large = [part for part in net.modules() if isinstance(part, nn.Conv2d) and part.weight.numel() > 4000]
        linear = [part for part in net.modules() if isinstance(part, nn.Linear)]
        assert large and linear
        for part in large:
            area = part.kernel_size[0] * part.kernel_size[1]
            he, torchs = (2 / (part.out_channels * area)) ** 0.5, (1 / (3 * part.in_channels * area)) ** 0.5
            assert part.weight.std().item() == pytest.approx(he if init == "he" else torchs, rel=0.1)
        assert all(bool(part.bias.any()) == (init == "torch") for part in linear)


def test_blocks_leave_their_input_alone_and_can_be_made_afresh() -> None:
    backbone = tiny()
    state: Any = torch.randn(2, 3, 32, 32)
    for block in [part for stage in backbone.stages for part in stage] + [backbone.head]:
        kept = [scale.clone() for scale in state] if isinstance(state, tuple) else [state.clone()]
        built = block(state)
        assert all(map(torch.equal, state if isinstance(state, tuple) else (state,), kept))
        assert [part.shape for part in fresh(block)(state)] == [part.shape for part in built]
        state = tuple(part.detach() for part in built)


def test_exits_stand_on_the_coarsest_scale() -> None:
    net = attach(tiny(), lambda trunk, exit: own.build(trunk, exit, 5)).eval()
    state = net.stages[0](torch.randn(2, 3, 32, 32))
    logits = net.branches[0](state)[0]
    assert torch.equal(net.branches[0]((*[torch.zeros_like(part) for part in state[:-1]], state[-1]))[0], logits)
    assert not torch.equal(net.branches[0]((*state[:-1], torch.zeros_like(state[-1])))[0], logits)


def test_linear_exits_fit_and_segments_run_one_by_one() -> None:
    backbone = tiny()
    net = attach(backbone, lambda trunk, exit: linear.build(trunk, exit, 5)).eval()
    inputs = torch.randn(2, 3, 32, 32)
    outputs = net(inputs)
    assert outputs.features[0].shape == (2, 16)  # (2 + 2) × 4
    state: Any = inputs
    for number, segment in enumerate(segments(net)):
        state, _, logits = segment(state)
        assert torch.equal(logits, outputs.logits[number])


def test_options_beat_the_setting() -> None:
    values = {"exits": 5, "base": 2, "step": 3, "mode": "even", "form": "imagenet"}
    backbone = tiny(setting="hdkd-cifar-8", image_size=64, **values)
    assert layers(backbone) == [2, 3, 3, 3, 3] and backbone.shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"setting": "muse1"}, "unknown setting 'muse1'; the nearest is 'muse-1'"),
        ({"mode": "odd"}, "unknown mode 'odd'; there are 'even', 'lin_grow'"),
        ({"form": "cifar10"}, "unknown form 'cifar10'; the nearest is 'cifar'"),
        ({"prune": "maximum"}, "unknown prune 'maximum'; the nearest is 'max'"),
        ({"init": "xavier"}, "unknown init 'xavier'; there are 'torch', 'he'"),
        ({"exits": 0}, "msdnet needs exits of at least 1, got 0"),
        ({"base": 0}, "msdnet needs base of at least 1, got 0"),
        ({"step": -1}, "msdnet needs step of at least 1, got -1"),
        ({"width": 0}, "msdnet needs width of at least 1, got 0"),
        ({"growth": 3}, "msdnet needs an even growth, half comes from the next finer scale, got 3"),
        ({"reduction": 1.5}, "msdnet needs a reduction in [0, 1], got 1.5"),
        (
            {"factors": (1, 2), "bottlenecks": (1,)},
            "msdnet needs as many bottlenecks as factors, all at least 1, got [1] and [1, 2]",
        ),
        (
            {"factors": (0, 2)},
            "msdnet needs as many bottlenecks as factors, all at least 1, got [0, 2] and [0, 2]",
        ),
        ({"factors": ()}, "msdnet needs as many bottlenecks as factors, all at least 1, got [] and []"),
    ],
)
def test_errors_say_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        tiny(**options)
    assert str(caught.value) == message
