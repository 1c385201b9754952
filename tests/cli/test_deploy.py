"""Several networks on the command line: trained, evaluated, refused where exits are needed, deployed as plain runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_nets import NET

from offramp.train.checkpoint import load_weights, save_weights

Offramp = Callable[..., Any]
HOW = "--data digits --holdout 0.2 --epochs 1 --batch-size 256 --schedule constant --lr 0.05 --precision 32"
RUNS = {
    "dml": ["--method", "dml", "--net", "resnet18,wrn16-4", "--width", "2", "--net.wrn16-4.blocks", "1"],
    "one": ["--method", "one", "--net", "wrn16-4", "--width", "2", "--net.blocks", "1"],
    "joint": ["--method", "joint", *NET],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, succeed: Callable[..., None]) -> Path:
    folder = tmp_path_factory.mktemp("several")
    for name, words in RUNS.items():
        succeed("train", *words, *HOW.split(), "--json", "--out", folder / name)
    return folder


@pytest.fixture(scope="module")
def evaluated() -> dict[str, Any]:
    """What `evaluate` prints of each run, once it was asked."""
    return {}


@pytest.fixture
def evaluate(offramp: Offramp, runs: Path, evaluated: dict[str, Any]) -> Callable[[str], Any]:
    def run(name: str) -> Any:
        if name not in evaluated:
            evaluated[name] = offramp("evaluate", runs / name, "--json").json
        return evaluated[name]

    return run


@pytest.mark.parametrize(("name", "outputs"), [("dml", 2), ("one", 4)])
def test_every_network_and_the_ensemble_are_evaluated(
    offramp: Offramp, evaluate: Callable[[str], Any], runs: Path, name: str, outputs: int
) -> None:
    actual = evaluate(name)
    assert [len(actual[key]) for key in ("outputs", "accuracy", "macs", "macs_cumulative")] == [outputs] * 4
    trained = actual["training"]["cost"]
    assert trained == {"macs": actual["macs_cumulative"][-1], "parameters": actual["parameters"]}
    if name == "dml":
        assert trained["macs"] == sum(actual["macs"])
    else:
        assert actual["ensemble"] == actual["accuracy"][-1]
        assert trained["macs"] == actual["macs"][-1] < sum(actual["macs"][:-1])
        assert actual["macs"][0] < actual["macs_cumulative"][1] < actual["macs"][-1]
    shown = offramp("evaluate", runs / name).out
    assert all(output in shown for output in actual["outputs"]) and "ensemble" in shown
    assert "trained: " in shown and "offramp deploy" in shown


@pytest.mark.parametrize(("name", "keep", "output"), [("dml", "2", 1), ("one", "1", 0), ("one", "ensemble", 3)])
def test_what_is_deployed_answers_as_it_did(
    offramp: Offramp,
    evaluate: Callable[[str], Any],
    runs: Path,
    name: str,
    keep: str,
    output: int,
    tmp_path: Path,
) -> None:
    whole = evaluate(name)
    result = offramp("deploy", runs / name, "--keep", keep, "--out", tmp_path / "plain", "--json").json
    assert result["kept"] == whole["outputs"][output]
    assert result["deployed"]["macs"] == whole["macs"][output] and result["cost"] == whole["training"]["cost"]
    plain = offramp("evaluate", tmp_path / "plain", "--json").json
    assert plain["accuracy"] == [whole["accuracy"][output]] and plain["macs"] == [whole["macs"][output]]
    assert plain["training"]["last"]["val_accuracy"] == [whole["training"]["last"]["val_accuracy"][output]]
    if keep == "ensemble":
        assert offramp("evaluate", tmp_path / "plain", "--weights", "best", "--json").status == 0
        assert offramp("calibrate", tmp_path / "plain", "--macs", "1").status == 0


def test_the_configuration_of_a_deployed_network_is_its_own(offramp: Offramp, runs: Path, tmp_path: Path) -> None:
    assert offramp("deploy", runs / "dml", "--keep", "2", "--out", tmp_path / "plain").status == 0
    config = yaml.safe_load((tmp_path / "plain" / "config.yaml").read_text())
    assert (config["net"], config["method"], config["net.width"]) == ("wrn16-4", "vanilla", 2)
    assert not [key for key in config if key.startswith(("net.resnet18", "net.wrn", "method."))]


def test_the_best_on_val_is_kept(offramp: Offramp, runs: Path, tmp_path: Path) -> None:
    accuracy = json.loads((runs / "dml" / "result.json").read_text())["last"]["val_accuracy"]
    kept = offramp("deploy", runs / "dml", "--keep", "best", "--out", tmp_path / "plain", "--json").json["kept"]
    assert kept == f"network {accuracy.index(max(accuracy)) + 1}"
    kept = offramp("deploy", runs / "one", "--keep", "best", "--out", tmp_path / "branch", "--json").json["kept"]
    accuracy = json.loads((runs / "one" / "result.json").read_text())["last"]["val_accuracy"][:3]
    assert kept == f"branch {accuracy.index(max(accuracy)) + 1}"


def test_both_weights_are_deployed_and_where_they_come_from_is_kept(
    offramp: Offramp, runs: Path, tmp_path: Path
) -> None:
    copy, plain = Path(shutil.copytree(runs / "dml", tmp_path / "copy")), tmp_path / "plain"
    tensors, about = load_weights(copy / "best.safetensors")
    save_weights(copy / "best.safetensors", {name: tensor + 1 for name, tensor in tensors.items()}, about)
    result = offramp("deploy", copy, "--keep", "2", "--out", plain, "--json").json
    for name, more in (("last", 0), ("best", 1)):
        whole, _ = load_weights(runs / "dml" / f"{name}.safetensors")
        actual, about = load_weights(plain / f"{name}.safetensors")
        assert all(torch.equal(tensor, whole[f"members.1.{key}"] + more) for key, tensor in actual.items())
        assert len(about["val_accuracy"]) == 1 and result[name]["val_accuracy"] == about["val_accuracy"]
    assert (plain / "split.safetensors").read_bytes() == (copy / "split.safetensors").read_bytes()
    assert result["run"] == str(plain) and result["source"]["run"] == str(copy)
    assert result["source"]["config"]["method"] == "dml"


def test_nothing_held_out_tells_no_best(offramp: Offramp, runs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs / "dml", tmp_path / "copy"))
    tensors, about = load_weights(copy / "last.safetensors")
    save_weights(copy / "last.safetensors", tensors, {**about, "val_accuracy": None})
    ran = offramp("deploy", copy, "--keep", "best", "--out", tmp_path / "plain")
    assert ran.status == 1 and f"--keep best: {copy} held nothing out (holdout 0); name one by its number" in ran.err


@pytest.mark.parametrize("words", [["calibrate", "--macs", "0.5"], ["curves"], ["export", "--out", "nowhere"]])
@pytest.mark.parametrize("name", ["dml", "one"])
def test_verbs_that_need_exits_refuse(offramp: Offramp, runs: Path, name: str, words: list[str]) -> None:
    ran = offramp(words[0], runs / name, *words[1:])
    says = f"{runs / name} was trained with {name}: its networks are not ordered by depth, so there are no "
    assert ran.status == 1 and ran.err.startswith(f"offramp: {says}") and ran.err.count("\n") == 1
    assert f"`offramp deploy {runs / name} --out DIR` extracts one of them as a run" in ran.err


def test_predict_wants_a_bundle(offramp: Offramp, runs: Path) -> None:
    ran = offramp("predict", runs / "one", "image.png")
    says = f"{runs / 'one'} is a run, not a bundle: `offramp export {runs / 'one'} --out DIR` creates one from it"
    assert (ran.status, ran.err) == (1, f"offramp: {says}\n")


@pytest.mark.parametrize(
    ("name", "keep", "says"),
    [
        ("joint", "1", "was trained with joint, one network: there is nothing to extract"),
        ("dml", "3", "has network 1 to 2; take a number, best\n"),
        ("dml", "0", "has network 1 to 2; take a number, best\n"),
        ("dml", "ensemble", "has network 1 to 2; take a number, best\n"),
        ("one", "4", "has branch 1 to 3; take a number, best, ensemble\n"),
    ],
)
def test_what_cannot_be_deployed(offramp: Offramp, runs: Path, name: str, keep: str, says: str, tmp_path: Path) -> None:
    ran = offramp("deploy", runs / name, "--keep", keep, "--out", tmp_path / "plain")
    assert ran.status == 1 and says in ran.err and not (tmp_path / "plain").exists()


def test_nothing_is_overwritten_and_nothing_half_trained_is_deployed(
    offramp: Offramp, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ran = offramp("deploy", runs / "dml", "--out", tmp_path)
    assert ran.status == 1 and "is not empty and does not contain an offramp run" in ran.err
    half = tmp_path / "half"
    half.mkdir()
    for name in ("config.yaml", "last.safetensors"):
        (half / name).write_bytes((runs / "dml" / name).read_bytes())
    ran = offramp("deploy", half, "--out", tmp_path / "plain")
    assert ran.status == 1 and f"{half} is not finished: `offramp train --out {half} --resume` continues it" in ran.err


def test_info_counts_all_that_is_trained(offramp: Offramp) -> None:
    two = offramp("info", "--net", "resnet18,wrn16-4", "--width", "4", "--method", "dml", "--json").json
    each = [offramp("info", "--net", net, "--width", "4", "--json").json for net in ("resnet18", "wrn16-4")]
    assert two["macs"] == [one["macs"][-1] for one in each]
    assert two["macs_cumulative"][-1] == sum(two["macs"])
    assert two["parameters"] == {
        "outputs": [one["parameters"]["main"] for one in each],
        "total": sum(one["parameters"]["main"] for one in each),
    }
    shown = offramp("info", "--net", "resnet18", "--width", "4", "--method", "one", "--method.branches", "2").out
    assert "branch 2" in shown and "gated ensemble" in shown and "everything that is trained" in shown
