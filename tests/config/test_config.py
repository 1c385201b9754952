"""Configurations: to a file and back, and names that do not exist."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml

from offramp.config import (
    Config,
    ResolvedConfig,
    build_data,
    build_method,
    build_net,
    check_key,
    flat,
    keys,
    prepare_objective,
    read_yaml,
    resolve,
    unflat,
)
from offramp.config.files import LATER
from offramp.hyperparameters import arguments, defaults
from offramp.lookup import ParameterError
from offramp.net import MultiExitNet
from offramp.train.run_dir import comparable

TINY = Config(method="muse", width=4, method_options={"alpha": "0.25"}, precision="32", device="cpu")


def test_a_configuration_survives_its_file() -> None:
    for config in (
        Config(),
        TINY,
        Config(data_dir=Path("/some/where"), holdout=0.0, per_class=150, milestones=(), mixup=0.2),
        resolve(TINY),
    ):
        text = yaml.safe_dump(flat(config))
        stored = unflat(yaml.safe_load(text), "config.yaml")
        assert (resolve(stored) if isinstance(config, ResolvedConfig) else stored) == config


def test_flat_names_are_those_of_the_command_line() -> None:
    values = flat(resolve(TINY))
    assert {*keys(), "net.parts"} - set(values) == set(LATER)  # as configurations were before
    later = {"deterministic": True, "graph": True, "pretrained": True, "skip_damaged": True}
    processes = {"accumulate": 2, "strategy": "fsdp", "sync_batch_norm": True}
    steps = {"memory_format": "contiguous", "threads": 1}
    changed = dataclasses.replace(TINY, **later, **processes, **steps, balanced=True, patience=1)
    assert set(keys()) <= set(flat(changed))
    parts = dataclasses.replace(TINY, net_options={"parts": "1,2,1,1"})
    assert flat(resolve(parts))["net.parts"] == [1, 2, 1, 1]
    assert unflat(values, "c.yaml").deterministic is False
    assert (values["batch-size"], values["net.width"], values["method.alpha"]) == (128, 4, 0.25)
    assert all("_" not in key.partition(".")[0] for key in values)


def test_resolving_fills_in_every_parameter_and_what_auto_means() -> None:
    result = resolve(TINY)
    assert result.options["net"]["form"] == "cifar" and result.options["method"]["temperature"] == 3.0
    assert result.options["branch"] == {"sbc_extra": 0}
    assert (result.device, result.precision) == ("cpu", "32")
    assert resolve(Config()).precision in ("32", "bf16")
    assert resolve(result) == result


def test_width_is_short_for_the_nets_own() -> None:
    assert resolve(Config(net_options={"width": "8"})).options["net"]["width"] == 8
    both = Config(width=8, net_options={"width": "8"})
    assert resolve(both).options["net"]["width"] == 8
    with pytest.raises(ValueError, match=r"width=8 and net\.width=4 contradict each other"):
        resolve(dataclasses.replace(both, net_options={"width": "4"}))


def test_width_reaches_networks_of_others_too() -> None:
    result = resolve(Config(net="python:my_nets:small", width=8, exits=2, exits_after=("1",)))
    assert result.options["net"] == {"width": 8}
    with pytest.raises(ValueError, match=r"width=8 and net\.width=4 contradict each other"):
        resolve(Config(net="timm:resnet18", width=8, net_options={"width": "4"}))


@pytest.mark.parametrize("net", ["timm:resnet18", "resnet18,timm:resnet10t"])
def test_parameters_of_others_are_yaml(net: str) -> None:
    key = "depths" if "," not in net else "timm:resnet10t.depths"
    with pytest.raises(ParameterError, match=rf"^net\.{key} takes a value as in YAML .*, got '\[1, 2'$"):
        resolve(Config(net=net, method="dml", net_options={key: "[1, 2"}))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (Config(net="resnet81"), "unknown net 'resnet81'; the nearest is 'resnet18'"),
        (Config(branch="sketchy"), "unknown branch 'sketchy'; the nearest is 'sketch'"),
        (Config(method="muze"), "unknown method 'muze'; the nearest is 'muse'"),
        (
            Config(method="muse", method_options={"alhpa": 1}),
            "unknown parameter of method muse 'alhpa'; the nearest is 'alpha'",
        ),
        (Config(net_options={"classes": 3}), "unknown parameter of net resnet18 'classes'"),
    ],
)
def test_names_that_do_not_exist(config: Config, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolve(config)
    assert says in str(caught.value)


@pytest.mark.parametrize("holdout", [-0.1, 1.0, float("nan")])
def test_a_holdout_that_is_no_share(holdout: float) -> None:
    with pytest.raises(ValueError, match="holdout must be a share in"):
        Config(holdout=holdout)


def build(
    *,
    whole: int = 1,
    real: float = 0.5,
    flag: bool = False,
    word: str = "a",
    one: Literal["x", "y", "3"] = "x",
    maybe: int | None = None,
    many: Sequence[float] = (),
    exits: tuple[int, ...] = (1,),
    classes: int = 10,
) -> None:
    """A build with a parameter of every kind."""


@pytest.mark.parametrize(
    ("key", "typed", "value"),
    [
        ("whole", "3", 3),
        ("whole", 3, 3),
        ("real", "1e-6", 1e-6),
        ("real", "2", 2.0),
        ("real", 2, 2.0),
        ("flag", "true", True),
        ("flag", False, False),
        ("word", "12", "12"),
        ("one", "y", "y"),
        ("one", 3, "3"),
        ("maybe", "null", None),
        ("maybe", None, None),
        ("maybe", "7", 7),
        ("many", "1,2.5", (1.0, 2.5)),
        ("many", [1, 2.5], (1.0, 2.5)),
        ("many", 3, (3.0,)),
        ("exits", "1,-1", (1, -1)),
    ],
)
def test_values_become_what_build_declares(key: str, typed: Any, value: Any) -> None:
    result = arguments("method", "m", build, {key: typed})[key]
    assert (result, type(result)) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "typed", "says"),
    [
        ("whole", "1.5", "method.whole takes a whole number, got '1.5'"),
        ("whole", "true", "method.whole takes a whole number, got 'true'"),
        ("real", "fast", "method.real takes a number, got 'fast'"),
        ("real", True, "method.real takes a number, got True"),
        ("flag", "1", "method.flag takes true or false, got '1'"),
        ("word", 12, "method.word takes text, got 12"),
        ("one", "z", "method.one takes one of x, y, 3, got 'z'"),
        ("maybe", "x", "method.maybe takes a whole number, got 'x'"),
        ("many", "1,x", "method.many takes"),
        ("exits", "1.5", "method.exits takes"),
        ("whole", "[1", "method.whole takes a whole number, got '[1'"),
        ("clases", "3", "unknown parameter of method m 'clases'"),
    ],
)
def test_values_of_another_type(key: str, typed: Any, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        arguments("method", "m", build, {key: typed})
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_dashes_and_underscores_are_the_same() -> None:
    def source(*, beta_begin: float = 0.0) -> None: ...

    assert arguments("method", "m", source, {"beta-begin": "1"}) == {"beta_begin": 1.0}
    assert defaults(build)["exits"] == (1,) and "classes" not in defaults(build)


def test_a_config_file_nests_or_not(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("net: {name: resnet34, width: 16}\nmethod.alpha: .5\nbatch_size: 32\n")
    assert read_yaml(path) == {"net": "resnet34", "net.width": 16, "method.alpha": 0.5, "batch_size": 32}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1\n", "x.yaml is not YAML"),
        ("- a\n", "x.yaml contains no options"),
        ("", "x.yaml contains no options"),
        ("nett: a\n", "unknown key 'nett'; the nearest is 'net' (see `offramp train --help`)"),
        ("data: {nmae: digits, kind.x: 1}\nlrr: 1\n", "unknown key 'lrr'; the nearest is 'lr'"),
        ("recipe: {lr: 1}\n", "unknown key 'recipe.lr'"),
        ("1: 2\n", "unknown key '1'"),
    ],
)
def test_config_files_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_yaml(path)
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config file .*nowhere\.yaml does not exist"):
        read_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match=r"x\.yaml is damaged: it is not text"):
        read_yaml(tmp_path / "x.yaml")


def test_keys_are_checked_in_both_spellings() -> None:
    check_key("batch-size", "x")
    check_key("batch_size", "x")
    check_key("method.anything", "x")
    with pytest.raises(ValueError, match="x: unknown key 'batchsize'; the nearest is 'batch-size'"):
        check_key("batchsize", "x")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"lr": "fast"}, "c.yaml: lr takes a number, got 'fast'"),
        ({"epochs": None}, "c.yaml: epochs takes a whole number, got None"),
        ({"precision": "bf61"}, "c.yaml: precision takes one of auto, 32, tf32, bf16, bf16-dense, 16, got 'bf61'"),
        ({"lr": -1}, "c.yaml: lr must be positive"),
        ({"net": 3}, "c.yaml: net takes text, got 3"),
        ({"data-dir": 3}, "c.yaml: data-dir takes"),
        ({"netz": "a"}, "c.yaml: unknown key 'netz'"),
    ],
)
def test_a_stored_configuration_that_was_changed_by_hand(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        unflat({**flat(Config()), **values}, "c.yaml")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_objects_are_built_from_a_configuration() -> None:
    data = build_data(Config(holdout=0.2))
    assert set(data.splits) == {"train", "val", "cal", "test"} and data.shape == (1, 8, 8)
    config = resolve(TINY)
    method = build_method(config)
    net = build_net(config, method, classes=10, shape=data.shape)
    assert isinstance(net, MultiExitNet) and net.exits == 4
    assert net(torch.zeros(2, 1, 8, 8)).logits.shape == (4, 2, 10)
    assert prepare_objective(method, net, data.shape) == ()


def test_a_method_sees_the_exits_that_it_will_train() -> None:
    byot = resolve(dataclasses.replace(TINY, method="byot", method_options={"adapt": "all"}))
    method = build_method(byot)
    net = build_net(byot, method, classes=10, shape=(1, 8, 8))
    prepare_objective(method, net, (1, 8, 8))
    assert len(list(method.objective.parameters())) == 2 * 3
    assert not any(parameter.is_meta for parameter in method.objective.parameters())


@pytest.mark.parametrize("tap", ["equilibrium", "equilibrium-all"])
def test_a_tap_goes_on_top_of_any_method(tap: Any) -> None:
    """The coarsest scale of two is rescaled, or both; without the option the method keeps its own way."""
    fine, coarse = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    for method in ("muse", "hdkd"):
        config = resolve(dataclasses.replace(TINY, method=method, tap=tap, method_options={}))
        entering, onward = build_method(config).tap((fine, coarse), 0, 4)
        result = [torch.autograd.grad(part.sum(), leaf)[0].item() for part, leaf in zip(entering, (fine, coarse))]
        assert result == pytest.approx([0.25 if tap == "equilibrium-all" else 1.0, 0.25])
        assert torch.equal(onward[0], fine) and torch.equal(onward[1], coarse)
    ours = build_method(resolve(dataclasses.replace(TINY, method="impr", method_options={}))).tap(coarse, 0, 4)[0]
    assert torch.autograd.grad(ours, coarse)[0].item() == pytest.approx(0.25)
    assert build_method(resolve(TINY)).tap(coarse, 0, 4)[0] is coarse


def test_an_unknown_tap_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run.yaml: tap takes one of method, equilibrium, .*, got 'balance'"):
        unflat({"tap": "balance"}, "run.yaml")


def test_values_that_were_renamed_are_read_as_those_of_now(tmp_path: Path) -> None:
    now = {"method": "hdkd", "tap": "method", "method.look_ahead": "optimizer"}
    before = {"method": "hdkd", "tap": "own", "method.look_ahead": "own"}
    assert unflat(before, "run.yaml") == unflat(now, "run.yaml")
    assert comparable(before) == comparable(now)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(before))
    assert read_yaml(tmp_path / "run.yaml") == now
