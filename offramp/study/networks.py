"""docs/networks.md: every network with every exit structure that fits, its size, costs and printed numbers.

`python -m offramp.study.networks > docs/networks.md`
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from offramp import branches, models
from offramp.discovery import discover
from offramp.measure import cost
from offramp.models import msdnet
from offramp.net import MultiExitNet, attach, plain
from offramp.split.lazy import lazy
from offramp.study import external_models
from offramp.text import as_typed

ImageShape = tuple[int, int, int]


class Made(NamedTuple):
    """A network on the meta device and the shape of its inputs."""

    net: MultiExitNet
    shape: ImageShape


class PrintedNumber(NamedTuple):
    """Numbers as a paper prints them, and how offramp counts them, in the printed unit.

    If `printed` is empty, only offramp's numbers are listed, with three decimals.
    """

    source: str
    unit: str
    printed: str
    ours: Callable[[Made], Sequence[float]]


@dataclass(frozen=True)
class NetworkRow:
    """A line of the table: a network, its exits (None: without), the options of both, and a figure to compare with."""

    net: str
    branch: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    branch_options: Mapping[str, Any] = field(default_factory=dict)
    classes: int = 100
    figure: PrintedNumber | None = None


def _millions(built: Made) -> list[float]:
    return [cost.parameters(built.net).main / 1e6]


def _size_and_macs(built: Made) -> list[float]:
    return [cost.parameters(built.net).main / 1e6, cost.macs(built.net, built.shape)[-1] / 1e9]


def _flops(built: Made) -> list[float]:
    return cost.eed_flops(built.net, built.shape)


def _mops(built: Made) -> list[float]:
    return [count / 1e6 for count in cost.msdnet_ops(built.net, built.shape)]


def _gops(built: Made) -> list[float]:
    return [count / 1e9 for count in cost.msdnet_ops(built.net, built.shape)]


def _first_shares(built: Made) -> list[float]:
    first, second, *_, final = cost.macs(built.net, built.shape)
    return [100 * first / final, 100 * second / final]


def _eed(printed: str) -> PrintedNumber:
    return PrintedNumber("EED, Table III", "GFLOPs (`eed_flops`)", printed, _flops)


def _torchvision(printed: str) -> PrintedNumber:
    return PrintedNumber("torchvision's list", "M parameters, GMACs", printed, _size_and_macs)


_M_OPS, _G_OPS = "M operations (`msdnet_ops`)", "G operations (`msdnet_ops`)"
_MSDNET = {
    "hdkd-cifar-8": PrintedNumber("HDKD, Table 2", _M_OPS, "6.85 / 14.4 / 27.3 / 48.4 / 81.6 / 113 / 153 / 193", _mops),
    "hdkd-imagenet-23": PrintedNumber("HDKD, Table 1", _G_OPS, "0.34 / 0.69 / 1.01 / 1.25 / 1.36", _gops),
}
_SHARES = PrintedNumber("MUSE, text on Fig. 4", "% of the final exit's MACs", "18 / 31", _first_shares)

_FIGURES: Mapping[tuple[str, str | None], PrintedNumber] = {
    ("resnet18", "eed"): _eed("0.42 / 0.66 / 0.88 / 1.12"),
    ("resnet50", "eed"): _eed("0.78 / 1.42 / 2.68 / 2.60"),
    ("resnet101", "eed"): _eed("0.78 / 1.42 / 5.12 / 5.04"),
    ("vgg19", "eed"): _eed("0.14 / 0.24 / 0.50 / 0.80"),
    ("resnet152", "sketch"): _SHARES,
}
_IMAGENET = {
    "resnet18": _torchvision("11.69 / 1.81"),
    "resnet34": _torchvision("21.80 / 3.66"),
    "resnet50": _torchvision("25.56 / 4.09"),
    "resnet101": _torchvision("44.55 / 7.80"),
    "resnet152": _torchvision("60.19 / 11.51"),
}
_TEN_CLASSES = {
    "resnext29-8x64d": PrintedNumber("ResNeXt's paper", "M parameters", "34.4", _millions),
    "wrn28-10": PrintedNumber("Wide ResNet's paper", "M parameters", "36.5", _millions),
    "pyramidnet110-270": PrintedNumber("PyramidNet's authors' README", "M parameters", "28.3", _millions),
}


def rows() -> Iterator[NetworkRow]:
    """Every network in its default form with every exit structure that fits, then its published variants."""
    for net in models.built_in():
        if net in msdnet.NETS:
            continue
        yield NetworkRow(net, None)
        for branch in discover(branches.__name__):
            if branch != "own":
                yield NetworkRow(net, branch, figure=_FIGURES.get((net, branch)))
        yield from _variants(net)
    for setting, flags in msdnet.SETTINGS.items():
        large = flags.form == "imagenet"
        unprinted = PrintedNumber("", _G_OPS, "", _gops) if large else PrintedNumber("", _M_OPS, "", _mops)
        figure = _MSDNET.get(setting, unprinted)
        yield NetworkRow("msdnet", "own", {"setting": setting}, classes=1000 if large else 100, figure=figure)


def _variants(net: str) -> Iterator[NetworkRow]:
    if net in _TEN_CLASSES:
        yield NetworkRow(net, None, classes=10, figure=_TEN_CLASSES[net])
    if net in _IMAGENET:
        yield NetworkRow(net, None, {"form": "imagenet"}, classes=1000, figure=_IMAGENET[net])
        for branch in ("sketch", "eed"):
            yield NetworkRow(net, branch, {"form": "imagenet"}, classes=1000)
    if net == "resnet152":
        yield NetworkRow(net, "sketch", branch_options={"sbc_extra": 3}, figure=_SHARES)
    if net in ("wrn20-8", "wrn44-8"):
        yield NetworkRow(net, "sketch", {"blocks": 2 if net == "wrn20-8" else 6})
    if net == "efficientnetb0":
        yield NetworkRow(net, "beed", {"third": 60}, {"widths": (144, 240, 320)})
        yield NetworkRow(net, "beed", {"wide_head": True})


def make(row: NetworkRow) -> Made:
    """The network of a row, on the meta device: nothing is computed or allocated."""
    with torch.device("meta"):
        backbone = models.find(row.net).build(row.net, classes=row.classes, **row.options)
        if row.branch is None:
            return Made(plain(backbone), backbone.shape)
        build = branches.find(row.branch).build
        exits = attach(backbone, lambda trunk, exit: build(trunk, exit, row.classes, **row.branch_options))
        return Made(exits, backbone.shape)


def line(row: NetworkRow) -> str:
    """The row as a line of the table in Markdown."""
    built = make(row)
    size = cost.parameters(built.net)
    running = lazy(built.net.eval(), built.shape)
    macs = " / ".join(f"{count / 1e6:.1f}" for count in cost.macs(running, built.shape))
    options = [("net", *option) for option in row.options.items()]
    options += [("branch", *option) for option in row.branch_options.items()]
    words = " ".join(f"`--{kind}.{key} {as_typed(value).lower()}`" for kind, key, value in options)
    words += f"{' ' if words else ''}{row.classes} classes" if row.classes != 100 else ""
    name = f"`{row.branch}`" if row.branch else "none"
    cells = [
        f"`{row.net}`",
        name,
        words,
        f"{size.main / 1e6:.3f}",
        f"{size.total / 1e6:.3f}",
        macs,
        *_compare(row, built),
    ]
    return f"| {' | '.join(cells)} |"


def _compare(row: NetworkRow, built: Made) -> tuple[str, str, str]:
    """The columns printed, ours and difference, each number with the printed number of digits."""
    if row.figure is None:
        return "", "", ""
    source, unit, printed, count = row.figure
    counted = count(built)
    if not printed:
        return f"nothing; {unit}", " / ".join(f"{value:.3f}" for value in counted), ""
    numbers = printed.split(" / ")
    digits = [len(number.partition(".")[2]) for number in numbers]
    ours = [f"{value:.{places}f}" for value, places in zip(counted, digits, strict=True)]
    apart = [
        f"{float(counted_value) - float(printed_value):+.{places}f}" if counted_value != printed_value else "0"
        for counted_value, printed_value, places in zip(ours, numbers, digits, strict=True)
    ]
    return f"{source}, {unit}: {printed}", " / ".join(ours), " / ".join(apart)


HEADER = """# Networks and exits

Use this page to choose a network and an exit structure by their costs, and to see how these costs compare with the
numbers in papers. Networks are named as for `--net`, exit structures as for `--branch`; every structure that fits a
network is listed; `offramp branches` describes them. All numbers are counted from the shapes of the layers and do not
depend on the machine. The page is written by `python -m offramp.study.networks > docs/networks.md`.

- **M plain** and **M all**: million parameters without early exits, and with all of them.
- **MMACs of each exit**: million multiply-adds of convolutions and linear layers for one image, from the input to the
  exit: the backbone and the exit's own branch, without other branches (`macs` in `offramp info`). From shallow to deep,
  the final exit last.
- **printed**, **ours**, **difference**: a number from a paper, offramp's count by the paper's convention, and ours
  minus printed; "nothing" if the paper prints none.
- Classes and images: 100 classes and 32×32 images unless stated otherwise; 224×224 with `--net.form imagenet` and
  MSDNet's ImageNet settings.

On differences other than 0:

- MUSE prints 18 % and 31 % for ResNet152. Its text (one block per group) gives 16 % and 29 %; a second block of the
  third group, `--branch.sbc_extra 3`, gives the printed values.
- HDKD's first number is truncated, not rounded: the count is 6.860.
- PyramidNet's authors print 0.2 million parameters less, for the same widths.

Open points: BEED's supplement does not state the settings of its MSDNet with four exits, nor MUSE those of its third
CIFAR network; `beed-4`, `muse-3` and `muse-3-deep` are candidates. A wide ResNet has 6n + 4 layers, so the depths 20
and 44 that papers name do not exist: they are built with 3 and 7 blocks per group; `--net.blocks` sets another number.

| network | exits | options | M plain | M all | MMACs of each exit | printed | ours | difference |
|---|---|---|---:|---:|---|---|---|---|"""


def main() -> None:
    """Print the document."""
    print(HEADER)
    for row in rows():
        print(line(row), flush=True)
    for text in external_models.section():
        print(text)


if __name__ == "__main__":
    main()
