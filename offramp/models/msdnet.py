"""MSDNet: dense layers at several scales, with exits (Huang et al., ICLR 2018); all options of its code."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from offramp.lookup import unknown
from offramp.models._msdnet_layers import Classifier, FirstLayer, Layer, Transition
from offramp.models._options import check
from offramp.net import Backbone

NETS = ("msdnet",)


class Setting(NamedTuple):
    """The flags in which published MSDNets differ."""

    exits: int
    base: int
    step: int
    mode: str
    form: str


SETTINGS = {
    "hdkd-cifar-8": Setting(8, 1, 1, "lin_grow", "cifar"),
    "hdkd-cifar-4": Setting(4, 1, 1, "lin_grow", "cifar"),
    "hdkd-cifar-5": Setting(5, 1, 1, "lin_grow", "cifar"),
    "hdkd-cifar-6": Setting(6, 1, 1, "lin_grow", "cifar"),
    "hdkd-imagenet-23": Setting(5, 4, 4, "even", "imagenet"),
    "hdkd-imagenet-33": Setting(5, 6, 6, "even", "imagenet"),
    "hdkd-imagenet-38": Setting(5, 7, 7, "even", "imagenet"),
    "muse-1": Setting(5, 1, 1, "lin_grow", "cifar"),
    "muse-2": Setting(5, 3, 3, "even", "cifar"),
    "muse-3": Setting(5, 4, 4, "even", "cifar"),
    "muse-3-deep": Setting(5, 1, 2, "lin_grow", "cifar"),
    "muse-4": Setting(5, 4, 4, "even", "imagenet"),
    "anytime": Setting(7, 4, 2, "even", "cifar"),
    "anytime-11": Setting(11, 4, 2, "even", "cifar"),
    "beed-4": Setting(4, 1, 1, "lin_grow", "cifar"),
}
"""Rows of the papers. HDKD names ImageNet depths after the last layer's index in the MSDNet paper (5k + 3): they are
base = step = 4, 6, 7, which its table of costs proves. MUSE does not print the flags of its third CIFAR network: the
two candidates are here. BEED's supplement prints none for its four exits."""

_SIZE = {"cifar": 32, "imagenet": 224}


class _Flags(NamedTuple):
    """What the layers are made of: channels before scale factors, growth, and factors per scale (finest first)."""

    width: int
    growth: int
    factors: tuple[int, ...]
    bottlenecks: tuple[int, ...]
    reduction: float
    he: bool


class _Plan(NamedTuple):
    """One dense layer: live scales that enter and leave it, and whether a transition follows."""

    enters: int
    leaves: int
    narrows: bool


def _plan(layers: int, scales: int, prune: str, reduction: float) -> list[_Plan]:
    """Which scales live where. `max` drops the finest after each of `scales` equal parts; `min` as late as it can."""
    plans = []
    interval = -(-layers // scales)
    for layer in range(1, layers + 1):
        if prune == "max":
            enters, leaves = scales - max(0, layer - 2) // interval, scales - (layer - 1) // interval
            narrows = leaves < enters
        else:
            enters, leaves = min(scales, layers - layer + 2), min(scales, layers - layer + 1)
            narrows = layer in (layers // 3, 2 * layers // 3)
        plans.append(_Plan(enters, leaves, narrows and reduction > 0))
    return plans


def _stages(
    first: FirstLayer, sizes: Sequence[int], plan: Sequence[_Plan], flags: _Flags
) -> tuple[list[nn.Sequential], int]:
    """The stages, `sizes[k]` dense layers each, and the width of the coarsest map at the end."""

    def per_scale(base: int, live: int) -> tuple[int, ...]:
        return tuple(base * factor for factor in flags.factors[-live:])

    width, layer = flags.width, 0
    stages: list[nn.Sequential] = []
    for size in sizes:
        parts: list[nn.Module] = [] if stages else [first]
        for enters, leaves, narrows in plan[layer : layer + size]:
            gains, inner = per_scale(flags.growth, enters), flags.bottlenecks[-enters:]
            parts.append(Layer(per_scale(width, enters), gains, inner, leaves < enters, flags.he))
            width += flags.growth
            if narrows:
                narrow = int(flags.reduction * width)
                parts.append(Transition(per_scale(width, leaves), per_scale(narrow, leaves), flags.he))
                width = narrow
        layer += size
        stages.append(nn.Sequential(*parts))
    return stages, width * flags.factors[-1]


def build(
    name: str,
    *,
    classes: int,
    channels: int = 3,
    setting: str = "hdkd-cifar-8",
    exits: int | None = None,
    base: int | None = None,
    step: int | None = None,
    mode: str | None = None,
    form: str | None = None,
    width: int | None = None,
    growth: int | None = None,
    factors: Sequence[int] | None = None,
    bottlenecks: Sequence[int] | None = None,
    reduction: float = 0.5,
    prune: str = "max",
    init: str = "torch",
    image_size: int | None = None,
) -> Backbone:
    """An MSDNet with one stage per exit; its exits are the branch `own`.

    A state is a tuple of maps, one per scale that is still in use, finest first; exits use the last, the coarsest.

    Args:
        name: `msdnet`.
        classes: number of classes C.
        channels: channels of the images.
        setting: a configuration of the papers: hdkd-cifar-4, -5, -6 or -8, hdkd-imagenet-23, -33 or -38, muse-1, -2,
            -3, -3-deep or -4, anytime, anytime-11 or beed-4; it sets the next five options unless they are given.
        exits: number of exits K, the final one included (nBlocks).
        base: dense layers before the first exit.
        step: dense layers between exits.
        mode: layers between exits: `even` (always `step`) or `lin_grow` (step × k + 1 before exit k + 1,
            exits counted from 1).
        form: `cifar` (3×3 on the image) or `imagenet` (7×7 with stride 2, max pooling).
        width: channels of the finest scale after the first layer, before its factor; default 16 or 32 by `form`.
        growth: channels that each layer adds to a scale of factor 1, an even number; default 6 or 16.
        factors: widths of the scales, finest first; default 1, 2, 4 or 1, 2, 4, 4.
        bottlenecks: widths inside layers over what they add, per scale; default as `factors`.
        reduction: part of the channels that is kept where a scale is dropped; 0 for no transitions.
        prune: `max` drops scales after equal parts of the network, `min` as late as the last layers allow.
        init: `torch` (the effect of the released code) or `he` (its intention).
        image_size: height and width of the images, for costs and shapes only; default 32 or 224 by `form`.

    Raises:
        ValueError: for an unknown name, setting, mode, form, prune or init, or a number that cannot be.
    """
    _check_words(setting=(setting, SETTINGS), prune=(prune, ("max", "min")), init=(init, ("torch", "he")))
    parameters: dict[str, Any] = {"exits": exits, "base": base, "step": step, "mode": mode, "form": form}
    chosen = SETTINGS[setting]._replace(**{key: value for key, value in parameters.items() if value is not None})
    _check_words(mode=(chosen.mode, ("even", "lin_grow")), form=(chosen.form, _SIZE))
    large = chosen.form == "imagenet"
    usual = (1, 2, 4, 4) if large else (1, 2, 4)
    flags = _Flags(
        width=(32 if large else 16) if width is None else width,
        growth=(16 if large else 6) if growth is None else growth,
        factors=tuple(usual if factors is None else factors),
        bottlenecks=tuple((usual if factors is None else factors) if bottlenecks is None else bottlenecks),
        reduction=reduction,
        he=init == "he",
    )
    size = _SIZE[chosen.form] if image_size is None else image_size
    counts = {"exits": chosen.exits, "base": chosen.base, "step": chosen.step, "image_size": size}
    check(name, NETS, classes=classes, channels=channels, width=flags.width, growth=flags.growth, **counts)
    _check_flags(flags)
    grows = chosen.mode == "lin_grow"
    sizes = [chosen.base, *(chosen.step * k + 1 if grows else chosen.step for k in range(1, chosen.exits))]
    plan = _plan(sum(sizes), len(flags.factors), prune, reduction)
    first = FirstLayer(channels, tuple(flags.width * factor for factor in flags.factors), large, flags.he)
    stages, coarsest = _stages(first, sizes, plan, flags)
    head = Classifier(coarsest, classes, None if large else 128, flags.he)
    return Backbone(tuple(stages), head, (channels, size, size))


def _check_words(**options: tuple[str, object]) -> None:
    for option, (value, words) in options.items():
        choice = list(words)  # type: ignore[call-overload]
        if value not in choice:
            raise unknown(option, value, choice, listing="")


def _check_flags(flags: _Flags) -> None:
    factors, inner = list(flags.factors), list(flags.bottlenecks)
    if len(factors) != len(inner) or min(factors, default=0) < 1 or min(inner, default=0) < 1:
        raise ValueError(f"msdnet needs as many bottlenecks as factors, all at least 1, got {inner} and {factors}")
    if flags.growth % 2:
        raise ValueError(f"msdnet needs an even growth, half comes from the next finer scale, got {flags.growth}")
    if not 0 <= flags.reduction <= 1:
        raise ValueError(f"msdnet needs a reduction in [0, 1], got {flags.reduction}")
