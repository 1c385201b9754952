"""Recipes are read as the program reads them, resolved, built; options that docs/fidelity.md names are really there."""

import inspect
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from offramp import branches, data, methods, models
from offramp.cli import app
from offramp.cli._argv import rewrite
from offramp.cli._options import config_of
from offramp.config import Config, build_method, build_net, flat, keys, prepare_objective, resolve
from offramp.data.load import AUGMENTATIONS, NORMALISE
from offramp.hyperparameters import arguments
from offramp.multi_net import Cohort
from offramp.net import MultiExitNet
from offramp.train.optim import rate

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "offramp" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
SHAPES = {
    "digits": ((1, 8, 8), 10),
    "cifar100": ((3, 32, 32), 100),
    "folder:imagenet": ((3, 224, 224), 1000),
    "parquet:cifar100": ((3, 96, 96), 20),
}
every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@cache
def program() -> Any:
    return app("train")


@cache
def parsed(path: Path, *words: str) -> Config:
    """The configuration that `offramp train --config PATH` would train, before names are looked up."""
    _, bound, *_ = program().parse_args(
        rewrite(["train", "--config", str(path), "--out", "nowhere", *words]), exit_on_error=False, print_error=False
    )
    config: Config = bound.arguments.get("config", Config())
    return config_of(config, bound.arguments.get("option"))


def header(path: Path) -> dict[str, str]:
    """What the comment at the top says under `command:`, `time:`, `result:` and `source:`; the first line as `what`."""
    first, *lines = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    result, key = {"what": first}, "what"
    for line in lines:
        word, colon, rest = line.partition(":")
        if colon and word in ("command", "time", "result", "source"):
            key, line = word, rest.strip()
        result[key] = f"{result.get(key, '')} {line}".strip()
    return result


def test_there_are_recipes() -> None:
    assert len(RECIPES) > 10


@every_recipe
def test_the_header_says_command_time_result_and_source(path: Path) -> None:
    said = header(path)
    assert set(said) == {"what", "command", "time", "result", "source"}
    assert all(len(text) > 5 for text in said.values())
    assert re.search(rf"offramp (train|compare) --recipe {re.escape(path.stem)} ", said["command"])
    assert "--out runs/" in said["command"]


@every_recipe
def test_every_key_arrives_in_the_resolved_configuration(path: Path) -> None:
    arrived = flat(resolve(parsed(path)))
    for key, value in yaml.safe_load(path.read_text()).items():
        assert arrived[key] == value, key


EXITS = {
    "finetune-cifar100-coarse": 5,
    "msd-cifar100-msdnet": 5,
    "hdkd-cifar150-msdnet": 8,
    "eed-cifar100-pyramidnet110-270": 3,
}


@every_recipe
def test_the_network_is_built_and_the_method_can_train_it(path: Path) -> None:
    config = resolve(parsed(path))
    shape, classes = SHAPES[config.data]
    method = build_method(config)
    with torch.device("meta"):
        net = build_net(config, method, classes=classes, shape=shape)
    if path.stem.startswith("dml-"):
        assert isinstance(net, Cohort) and len(net.names) == 2
        return
    assert isinstance(net, MultiExitNet)
    assert net.exits == EXITS.get(path.stem, 4)
    assert prepare_objective(method, net, shape) == ()


@every_recipe
def test_data_options_are_known(path: Path) -> None:
    config = parsed(path)
    assert config.data.partition(":")[0] in dict(data.available())
    shared = set(inspect.signature(data.load).parameters)
    ours = {key: value for key, value in config.data_options.items() if key not in shared}
    assert arguments("data", config.data, data.find(config.data).build, ours).keys() == ours.keys()
    loading = {key: value for key, value in config.data_options.items() if key in shared}
    values: dict[str, Any] = arguments("data", config.data, data.load, loading)
    assert values.get("augmentation", "none") in AUGMENTATIONS
    assert values.get("normalise", "imagenet") in NORMALISE


CUTS = {
    (200, (0.375, 0.65, 0.9)): [75, 130, 180],
    (10, (0.375, 0.65, 0.9)): [4, 7, 9],
    (5, (0.375, 0.65, 0.9)): [2, 4],
    (30, (0.375, 0.65, 0.9)): [12, 20, 27],
    (300, (0.5, 0.75)): [150, 225],
    (200, (0.3, 0.6, 0.9)): [60, 120, 180],
    (90, (0.3333333, 0.6666666)): [30, 60],
}


@every_recipe
def test_the_rate_is_cut_where_the_papers_cut_it(path: Path) -> None:
    recipe = parsed(path)
    if recipe.schedule != "step":
        pytest.skip("has no milestones")
    rates = [rate(recipe, epoch, epoch / recipe.epochs) for epoch in range(recipe.epochs)]
    cuts = [epoch for epoch in range(1, recipe.epochs) if rates[epoch] < rates[epoch - 1]]
    assert cuts == CUTS[recipe.epochs, recipe.milestones]
    assert rates[-1] == pytest.approx(recipe.lr * 0.1 ** len(cuts))


@every_recipe
def test_what_is_typed_wins_over_the_recipe(path: Path) -> None:
    config = parsed(path, "--epochs", "3", "--holdout", "0.5", "--branch.sbc_extra", "3")
    assert (config.epochs, config.holdout, config.branch_options) == (3, 0.5, {"sbc_extra": "3"})


def test_a_key_that_does_not_exist_is_named_with_its_file(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("net: resnet18\nepoch: 3\n")
    with pytest.raises(ValueError, match=r"wrong\.yaml: unknown key 'epoch'; the nearest is 'epochs'"):
        parsed(wrong)


def fidelity() -> list[Any]:
    """Command lines with every option in docs/fidelity.md, and the method, branch or net of its section."""
    result, kind, name = [], "", ""
    for line in (ROOT / "docs/fidelity.md").read_text().splitlines():
        if line.startswith("## "):
            kind = {"Methods": "method", "Exit structures": "branch", "Networks": "net"}.get(line[3:], "")
            name = ""
        if line.startswith("### "):
            name = line.split("`")[1]
        for span in re.findall(r"`(--[^`]+)`", line):
            words = shlex.split(span)
            where = [f"--{kind}", name] if kind and name and f"--{kind}" not in words else []
            result.append(pytest.param([*where, *words], id=f"{name}{span}"))
    return list({tuple(each.values[0]): each for each in result}.values())


@pytest.mark.parametrize("words", fidelity())
def test_every_option_in_the_fidelity_document_exists(words: list[str], tmp_path: Path) -> None:
    if len(words) == 1:
        assert words[0][2:] in [*keys(), "json"]
        return
    empty = tmp_path / "empty.yaml"
    empty.write_text("width: 4\n")
    config = resolve(parsed(empty, *words))
    objective = build_method(config).objective
    if hasattr(objective, "prepare_for_exits"):
        assert objective.prepare_for_exits(exits=4, widths=(8,) * 4) == ()
    arguments("data", config.data, data.load, config.data_options)
    if {"--branch", "--net"} & set(words):
        with torch.device("meta"):
            build_net(config, build_method(config), classes=5, shape=(3, 32, 32))


def test_every_method_branch_and_net_is_in_the_fidelity_document() -> None:
    text = (ROOT / "docs/fidelity.md").read_text()
    sections = set(re.findall(r"`(\w+)`", "".join(line for line in text.splitlines() if line.startswith("### "))))
    assert set(methods.available()) | set(branches.available()) <= sections
    assert set(models.available()) <= set(re.findall(r"`([\w-]+)`", text))
