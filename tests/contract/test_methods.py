"""Every training method on every network with every exit structure that fits it: built by name, two steps, finite.

A method, network or branch added later is tested by existing.
"""

from pathlib import Path

import pytest
import torch

from offramp import branches, methods, models
from offramp.config import Config, build_method, build_net, prepare_objective, resolve
from offramp.testing import SilentReporter, patterns
from offramp.train.device import make_fabric
from offramp.train.loop import Loop

CLASSES, SIDE = 5, 32
FITS_ALL = ("linear",)


def trains(net: str, branch: str, method: str, folder: Path) -> None:
    torch.manual_seed(0)
    options = {"net_options": {"exits": 4, "base": 1, "step": 1, "width": 4, "growth": 2}} if net == "msdnet" else {}
    width = None if net == "msdnet" else 4
    recipe = {"batch_size": 8, "lr": 0.01, "precision": "32", "device": "cpu"}
    config = resolve(Config(net=net, branch=branch, method=method, width=width, **options, **recipe))
    data, built = patterns(16, 8, CLASSES, SIDE), build_method(config)
    network = build_net(config, built, classes=CLASSES, shape=data.shape)
    prepare_objective(built, network, data.shape)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    loop = Loop(make_fabric(config), folder, config, network, built, data, SilentReporter())
    loop.context.net.train()
    for batch in loop.batches.train.epoch(0):
        loop.step(batch, 0.0)
    loop._write_pending()  # raises where a term is not finite
    changed = [not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)]
    assert any(changed) and all(torch.isfinite(parameter).all() for parameter in network.parameters())


@pytest.mark.full
@pytest.mark.parametrize("branch", branches.available())
@pytest.mark.parametrize("net", ["resnet18", "resnet50", "wrn16-4", "mobilenetv2", "msdnet"])
@pytest.mark.parametrize("method", methods.available())
def test_every_method_trains_every_kind_of_network_and_exit(net: str, branch: str, method: str, tmp_path: Path) -> None:
    try:
        trains(net, branch, method, tmp_path)
    except ValueError as refused:  # a combination that does not fit says so in one sentence
        assert str(refused) and "\n" not in str(refused)
        assert branch not in FITS_ALL or "compares features" in str(refused)


def test_every_name_is_listed_with_one_sentence() -> None:
    for offers in (methods.available(), branches.available(), models.available()):
        assert offers and all(line.endswith(".") and len(line) < 140 for line in offers.values()), offers
