"""Share of operations that lazy evaluation postpones or omits, per exit, on networks whose states are several maps.

    python benchmarks/lazy.py [--json]

Printed is 1 minus the operations up to each exit with `offramp.split.lazy.lazy`, divided by those without, for timm's
HRNet with exits on its coarsest maps, timm's DenseNet cut at equal shares of the operations, a feature pyramid with
exits on its maps, and two MSDNets of the papers. Operations are counted on the meta device, so that every machine
prints the same numbers. If the share is 0 for every exit, the network is unchanged, because each exit needs everything
that is computed before it.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import interpolate

from offramp import branches, models
from offramp.measure import cost
from offramp.measure.provenance import provenance
from offramp.net import Backbone, MultiExitNet, attach
from offramp.optional import vision
from offramp.split import split
from offramp.split.lazy import lazy


class FeaturePyramid(nn.Module):
    """Four maps of decreasing resolution with a lateral layer each, a path up that adds each to the finer one, and a
    path down to a classifier.
    """

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(channels))
        self.lateral = nn.ModuleList(nn.Conv2d(n, width, 3, 1, 1) for n in channels[1:])
        self.again = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(3))
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = []
        for layer, lateral in zip(self.down, self.lateral, strict=True):
            images = layer(images).relu()
            maps.append(lateral(images))
        merged = [maps[3]]
        for k in (2, 1, 0):
            merged.append(maps[k] + interpolate(merged[-1], scale_factor=2.0))
        result = merged[3]
        for k, layer in enumerate(self.again):
            result = layer(result).relu() + merged[2 - k]
        return self.classifier(result.mean((2, 3)))  # type: ignore[no-any-return]


def networks() -> Iterator[tuple[str, tuple[int, int, int], Callable[[], Backbone]]]:
    """(name, shape, function that builds the backbone)."""
    shape = 3, 64, 64
    places = ["stage2.0.branches.1", "stage3.0.branches.2", "stage4.0.branches.3"]
    yield "timm:hrnet_w18_small", shape, lambda: _cut(_timm("hrnet_w18_small"), shape, places)
    yield "timm:densenet121", shape, lambda: _cut(_timm("densenet121"), shape, 4)
    yield "feature pyramid", shape, lambda: _cut(FeaturePyramid(), shape, ["down.1", "down.2", "down.3"])
    for setting in ("hdkd-cifar-4", "hdkd-imagenet-23"):
        backbone = models.find("msdnet").build("msdnet", classes=10, setting=setting)
        yield f"msdnet {setting}", backbone.shape, lambda backbone=backbone: backbone  # type: ignore[misc]


def _timm(name: str) -> nn.Module:
    return vision("timm").create_model(name, num_classes=10).eval()  # type: ignore[no-any-return]


def _cut(model: nn.Module, shape: tuple[int, int, int], exits_after: int | list[str]) -> Backbone:
    with redirect_stderr(StringIO()):
        return split(model, exits_after, shape, check=False)


def savings(backbone: Backbone, shape: tuple[int, int, int], branch: str) -> list[float]:
    """Share of the operations up to each exit that is not computed there."""
    net: MultiExitNet = attach(backbone, lambda trunk, exit: branches.find(branch).build(trunk, exit, 10)).eval()
    pairs = zip(cost.macs(lazy(net, shape), shape), cost.macs(net, shape), strict=True)
    return [round(1 - new / old, 4) for new, old in pairs]


def main() -> None:
    """Print one table, or one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    saved = {}
    for name, shape, build in networks():
        saved[name] = savings(build(), shape, "own" if name.startswith("msdnet") else "linear")
        if not as_json:
            print(f"{name:24}" + "".join(f"{100 * share:7.1f} %" for share in saved[name]))
    if as_json:
        print(json.dumps({"benchmark": "lazy", "saved": saved, **provenance()}))


if __name__ == "__main__":
    main()
