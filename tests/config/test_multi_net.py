"""Several networks in one `--net`: how the names are read, and which parameters go to which network."""

from typing import Any

import pytest
import torch

from offramp.config import (
    Config,
    ResolvedConfig,
    build_method,
    build_net,
    flat,
    load_weights,
    multi_net,
    of_kind,
    resolve,
    unflat,
)
from offramp.multi_net import Cohort

TWO = "resnet18,wrn16-4"


def config(net: str = TWO, method: str = "dml", **changes: Any) -> ResolvedConfig:
    return resolve(Config(net=net, method=method, **changes))


@pytest.mark.parametrize(
    ("net", "names"),
    [
        ("resnet18", ("resnet18",)),
        (TWO, ("resnet18", "wrn16-4")),
        ("resnet18,resnet81", ("resnet18", "resnet81")),
        ("timm:resnet10t,resnet18", ("timm:resnet10t", "resnet18")),
        ("transformers:models/a,b", ("transformers:models/a,b",)),
    ],
)
def test_names(net: str, names: tuple[str, ...]) -> None:
    assert multi_net.names(net) == names


def test_every_network_has_its_own_parameters() -> None:
    values = config(net_options={"stem-relu": "false", "wrn16-4.width": "8"}, width=4)
    net = values.options["net"]
    assert (net["resnet18.width"], net["wrn16-4.width"]) == (4, 8)
    assert net["resnet18.stem_relu"] is False and "wrn16-4.stem_relu" not in net
    alone = of_kind(values, "wrn16-4")
    assert (alone.net, alone.width, alone.options["net"]["width"]) == ("wrn16-4", None, 8)
    assert resolve(alone).options["net"] == alone.options["net"]
    assert of_kind(config("resnet18"), "resnet18") == config("resnet18")


def test_parameters_of_networks_of_others_are_given_by_name() -> None:
    values = config("timm:resnet10t,resnet18", net_options={"timm:resnet10t.drop-rate": "0.1"}, width=4)
    assert of_kind(values, "timm:resnet10t").options["net"] == {"drop_rate": 0.1}
    assert of_kind(values, "resnet18").options["net"]["width"] == 4
    assert resolve(unflat(flat(values), "config.yaml")) == values


def test_what_is_stored_builds_the_same() -> None:
    values = config(width=4)
    assert resolve(unflat(flat(values), "config.yaml")) == values
    with torch.device("meta"):
        net = build_net(values, build_method(values), classes=5, shape=(3, 32, 32))
    assert isinstance(net, Cohort)
    assert [part.branches[0].head.classifier.in_features for part in net.members] == [32, 64]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": "3"}, "net.depth: none of the networks resnet18, wrn16-4 takes it.*is net.resnet18.KEY"),
        ({"resnet18.widht": "3"}, "unknown parameter of net resnet18 'widht'; the nearest is 'width'"),
        ({"resnet34.width": "3"}, "net.resnet34.width: none of the networks"),
        ({"wrn16-4.width": "x"}, "net.width takes a whole number, got 'x'"),
    ],
)
def test_parameters_that_no_network_takes(options: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config(net_options=options)


@pytest.mark.parametrize(
    ("method", "changes", "says"),
    [
        ("muse", {}, "names 2 networks, but muse trains one: name one of them, or take method=dml"),
        ("one", {}, "net=resnet18,wrn16-4 names 2 networks, but one trains one"),
        ("dml", {"tap": "equilibrium"}, "tap=equilibrium is for exits along one network; dml trains networks side"),
        ("dml", {"method_options": {"networks": 3}}, "method.networks=3 contradicts net, which names 2"),
        ("dml", {"method_options": {"networks": 1}}, "dml lets networks teach each other.*at least 2.*got 1"),
    ],
)
def test_what_does_not_go_together_is_refused(method: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        values = config(method=method, **changes)
        with torch.device("meta"):
            build_net(values, build_method(values), classes=5, shape=(3, 32, 32))


def test_a_misspelt_network_and_layers_of_exits() -> None:
    with pytest.raises(ValueError, match="unknown net 'resnet81'; the nearest is 'resnet18'"):
        config("resnet18,resnet81")
    with pytest.raises(ValueError, match="exits_after is for external models"):
        config(exits_after=("layer1",))


def test_weights_start_every_network_and_every_branch(tmp_path: Any) -> None:
    from offramp.split.weights import state

    values = config("resnet18", "vanilla", width=2)
    alone = build_net(values, build_method(values), classes=5, shape=(1, 8, 8))
    torch.save({name: tensor.detach().clone() for name, tensor in state(alone).items()}, tmp_path / "given.pt")
    for method, copies in (("dml", 2), ("one", 3)):
        several = config("resnet18", method, width=2, weights=tmp_path / "given.pt")
        net = build_net(several, build_method(several), classes=5, shape=(1, 8, 8))
        assert load_weights(several, net) == ()
        result = [tensor for name, tensor in net.state_dict().items() if name.endswith("classifier.weight")]
        assert len(result) == copies
        assert all(torch.equal(tensor, alone.branches[0].head.classifier.weight) for tensor in result)
