"""A line counts for a training if the run was trained alike; other protocols, versions and data are not mixed in."""

import dataclasses
from pathlib import Path

import pytest

from offramp.config import Config, flat, read_yaml, resolve, unflat
from offramp.config.recipes import find
from offramp.papers.catalog import FULL, quick, training, trainings, values_of
from offramp.papers.lines import identity, measured, short_version

FOUR = (0.4, 0.5, 0.6, 0.7)
COMPARISONS = {
    "sketch": {
        "joint": "c100.resnet18.sketch.joint",
        "muse": "c100.resnet18.sketch.muse",
        "vanilla": "c100.resnet18.plain.vanilla",
        "byot": "c100.resnet18.sketch.sd",
    },
    "byot": {"joint": "c100.resnet18.byot.joint", "muse": "c100.resnet18.byot.muse"},
    "beed": {
        "joint": "c100.resnet18.beed.joint",
        "beed mode=kd": "c100.resnet18.beed.beed-kd",
        "beed mode=eed": "c100.resnet18.beed.beed-eed",
        "beed": "c100.resnet18.beed.beed",
    },
}
"""By branch: the runs of `offramp compare --recipe quick-cifar100-resnet18`, and the trainings that they are."""


@pytest.mark.parametrize("branch", COMPARISONS)
def test_runs_of_compare_are_recognised(branch: str, line, write) -> None:
    shared = unflat({**read_yaml(find("quick-cifar100-resnet18")), "branch": branch}, "the recipe")
    names = COMPARISONS[branch].values()
    runs = [name.partition(" mode=") for name in COMPARISONS[branch]]
    configs = [
        dataclasses.replace(shared, method=name, method_options={"mode": mode} if mode else {})
        for name, _, mode in runs
    ]
    ledger = write([line(config, FOUR, seed=2) for config in configs])
    result = measured(ledger, trainings().values(), quick())
    assert sorted(result.lines) == sorted(names)
    assert all(result.seeds(name) == [2] for name in names)
    assert not result.left_out
    assert not measured(ledger, trainings().values(), FULL).lines


def test_where_and_how_fast_a_run_was_computed_does_not_matter(line, write) -> None:
    name = "c100.resnet18.sketch.muse"
    changes = {"device": "cuda", "precision": "32", "data-dir": "/elsewhere", "checkpoint-every": 7, "devices": 2}
    ledger = write([line(name, FOUR, **changes), line(name, FOUR, seed=1, **{"net.form": "cifar"})])
    assert measured(ledger, [training(name)], quick()).seeds(name) == [0, 1]


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu(line, write) -> None:
    name, hardware = "c100.resnet18.sketch.muse", {"cpu": "a CPU", "threads": 1, "gpu": "a GPU"}
    runs = [line(name, FOUR, seed, device=device) for seed, device in enumerate(("cpu", "cuda"))]
    for run in runs:
        run["training"]["provenance"] = {**run["provenance"], "hardware": hardware}
    cost = measured(write(runs), [training(name)], quick()).cost
    assert [cost[name, seed][1] for seed in (0, 1)] == ["a CPU, 1 thread", "a GPU"]


def test_a_line_of_before_an_option_existed_counts_with_its_default(line, write) -> None:
    name = "c100.resnet18.sketch.muse"
    old = line(name, FOUR)
    for key in ("clip", "method.adapt", "streaming"):
        del old["config"][key]
    assert measured(write([old]), [training(name)], quick()).seeds(name) == [0]


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 11},
        {"net.width": 32},
        {"holdout": 0.2},
        {"data": "cifar10"},
        {"method.alpha": 0.1},
        {"per-class": 150},
    ],
    ids=str,
)
def test_a_run_that_differs_in_anything_else_is_left_out(changes, line, write) -> None:
    name = "c100.resnet18.sketch.muse"
    result = measured(write([line(name, FOUR, **changes)]), trainings().values(), quick())
    assert not result.lines
    assert result.left_out == {"of other trainings or another protocol": 1}


def test_versions_and_test_sets_are_not_mixed(line, write) -> None:
    name = "c100.resnet18.sketch.muse"
    old, small = line(name, FOUR, 0, version="0.0.9"), line(name, FOUR, 1, samples=500)
    new = line(name, FOUR, 2, version="0.1.4")
    result = measured(write([old, small, new]), [training(name)], quick())
    assert (result.seeds(name), result.version) == ([2], "0.1")
    assert result.left_out == {
        "of version 0.0 on 10,000 test images, not 0.1 on 10,000": 1,
        "of version 0.1 on 500 test images, not 0.1 on 10,000": 1,
    }
    assert short_version("2.3.1") == "2.3"


def test_best_weights_are_another_measurement_and_the_last_line_of_a_seed_counts(line, write) -> None:
    name = "c100.resnet18.sketch.muse"
    best = line(name, (0.9,) * 4) | {"weights": "best"}
    result = measured(write([line(name, FOUR), line(name, (0.5,) * 4), best]), [training(name)], quick())
    assert result.lines[name][0].accuracy == (0.5,) * 4
    assert list(result.left_out.values()) == [1]


def test_code_from_elsewhere_is_not_imported_to_read_a_line(tmp_path: Path, monkeypatch, line) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    values = line("c100.resnet18.sketch.muse", FOUR)["config"]
    for kind in ("net", "branch", "method"):
        assert identity({**values, kind: "python:evil:build"}) is None
    assert identity({**values, "unheard-of": 1}) is None


def test_exits_do_not_matter_to_a_network_without_them(line) -> None:
    plain = flat(resolve(Config(method="vanilla", branch="beed", epochs=7)))
    assert identity(plain) == identity(flat(resolve(Config(method="vanilla", branch="sketch", epochs=7))))
    assert identity(plain) != identity({**plain, "epochs": 8})


def test_a_run_with_fixed_weights_is_known_by_the_run_that_gave_them() -> None:
    name = "c150.msdnet-cifar-5.own.hdkd-fixed-1"
    here, there = (values_of(training(name), quick(), Path(place)) for place in ("a", "/b/c"))
    assert identity(here) == identity(there) != identity({**here, "method.fixed": "a/other-seed-1"})


RECIPES = {
    "muse-cifar100-resnet18": "c100.resnet18.sketch.muse",
    "muse-cifar100-resnet50": "c100.resnet50.sketch.muse",
    "muse-cifar100-resnet152": "c100.resnet152.sketch.muse",
    "muse-cifar100-wrn20-8": "c100.wrn20-8.sketch.muse",
    "muse-cifar100-resnext29-8": "c100.resnext29-8.sketch.muse",
    "muse-imagenet-resnet50": "imagenet.resnet50.sketch.muse",
    "byot-cifar100-resnet18": "c100.resnet18.byot.sd",
    "eed-cifar100-resnet50": "c100.resnet50.eed.eed-mse-features",
    "eed-cifar100-pyramidnet110-270": "c100.pyramidnet.eed.eed-kl",
    "beed-cifar100-mobilenetv2": "c100.mobilenetv2.beed.beed",
    "beed-cifar100-efficientnetb0": "c100.efficientnetb0.beed.beed",
    "hdkd-cifar150-msdnet": "c150.msdnet-cifar-8.own.hdkd",
    "dml-cifar100-wrn22-10": "c100.wrn22-10.plain.dml",
}


@pytest.mark.parametrize(("recipe", "name"), RECIPES.items(), ids=list(RECIPES))
def test_a_run_of_a_recipe_is_a_run_of_its_training(recipe: str, name: str) -> None:
    assert identity(read_yaml(find(recipe))) == identity(values_of(training(name), FULL)) is not None
