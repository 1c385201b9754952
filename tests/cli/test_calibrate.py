"""offramp calibrate: budgets as they are typed, the policy it leaves behind, and that the promise is kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.adapt.policy import load
from offramp.cli import main
from offramp.cli._goal import parse_macs
from offramp.config import build_data, load_run
from offramp.data.loading import Loader
from offramp.measure.adaptive import leave_early

Offramp = Callable[..., Any]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with four exits, trained for two epochs on digits."""
    folder = tmp_path_factory.mktemp("calibrate") / "run"
    words = "--net resnet18 --width 4 --data digits --holdout 0.3 --epochs 2 --batch-size 128 --precision 32 --json"
    with pytest.raises(SystemExit) as left:
        main(["train", *words.split(), "--out", str(folder)])
    assert not left.value.code
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize(
    ("typed", "budget"),
    [
        ("0.5", 500.0),
        ("1", 1000.0),
        ("1.0", 1000.0),
        ("1e-1", 100.0),
        ("2", 2.0),
        ("250", 250.0),
        ("250k", 250e3),
        ("250M", 250e6),
        ("0.5M", 0.5e6),
        ("1.5G", 1.5e9),
        ("3e8", 3e8),
    ],
)
def test_budgets_as_they_are_typed(typed: str, budget: float) -> None:
    assert parse_macs(typed, 1000.0) == pytest.approx(budget)


@pytest.mark.parametrize("typed", ["", "lots", "M", "250X", "250m", "0", "0M", "-1", "-2M", "nan", "inf", "1,5"])
def test_budgets_that_make_no_sense(typed: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_macs(typed, 1000.0)
    says = f"--macs takes a fraction of plain such as 0.5, or a count such as 250M, got {typed!r}"
    assert str(caught.value) == says


def test_the_policy_is_written_with_where_it_comes_from(offramp: Offramp, run: Path) -> None:
    ran = offramp("calibrate", run, "--macs", "0.8", "--json")
    assert ran.status == 0, ran.err
    found, policy = ran.json, load(run / "policy.json")
    assert tuple(found["thresholds"]) == policy.thresholds and tuple(found["enabled"]) == policy.enabled
    assert found["expected"]["macs"] <= found["goal"]["macs"] == pytest.approx(0.8 * found["plain"]["macs"])
    assert sum(found["expected"]["shares"]) == pytest.approx(1)
    assert (found["split"], found["weights"], found["epoch"]) == ("cal", "last", 2)
    stored = json.loads((run / "policy.json").read_text())["provenance"]
    assert {key: found[key] for key in stored} == stored
    assert {"goal", "rule", "expected", "plain", "command", "commit", "versions", "hardware"} <= set(stored)


@pytest.mark.parametrize("fraction", ["0.7", "0.85", "1"])
@torch.inference_mode()
def test_the_promise_is_kept_to_the_last_operation(offramp: Offramp, run: Path, fraction: str) -> None:
    promised = offramp("calibrate", run, "--macs", fraction, "--json").json
    loaded = load_run(run)
    assert loaded.policy is not None
    data = build_data(loaded.config, progress=False)
    for size in (16, 64):
        loader = Loader(data.splits["cal"], data, batch_size=size, augment=False, seed=0)
        # batches said to be larger than they are go untimed
        ran = leave_early(loaded.net, loaded.policy, loader.epoch(0), data.shape, 1000)
        assert ran["macs"] == promised["expected"]["macs"]
        assert ran["shares"] == pytest.approx(promised["expected"]["shares"])
        assert ran["accuracy"] == pytest.approx(promised["expected"]["accuracy"])
        assert ran["plain"]["accuracy"] == pytest.approx(promised["plain"]["accuracy"])


def test_the_old_policy_is_kept(offramp: Offramp, run: Path) -> None:
    offramp("calibrate", run, "--macs", "0.7")
    first = (run / "policy.json").read_text()
    assert not (run / "policy.json.old").exists()
    offramp("calibrate", run, "--macs", "1")
    assert (run / "policy.json.old").read_text() == first != (run / "policy.json").read_text()


def test_a_damaged_policy_is_no_hindrance(offramp: Offramp, run: Path) -> None:
    (run / "policy.json").write_text("{")
    assert offramp("calibrate", run, "--macs", "0.9").status == 0
    assert load(run / "policy.json").exits == 4 and (run / "policy.json.old").read_text() == "{"


def test_the_table_for_a_person(offramp: Offramp, run: Path) -> None:
    ran = offramp("calibrate", run, "--macs", "0.8")
    assert ran.status == 0, ran.err
    policy = load(run / "policy.json")
    lines = [line.split() for line in ran.out.splitlines() if line]
    rows = [line[2:] for line in lines if line[0] == "exit" and line[1].isdigit()]
    assert [row[0] == "off" for row in rows] == [not on for on in policy.enabled[:-1]]
    assert next(line for line in lines if line[0] == "final")[1] == "all"
    assert "expected: accuracy" in ran.out and "plain: " in ran.out


def test_a_budget_nobody_can_meet_leaves_the_old_policy(offramp: Offramp, run: Path) -> None:
    offramp("calibrate", run, "--macs", "0.9")
    before = (run / "policy.json").read_bytes()
    ran = offramp("calibrate", run, "--macs", "0.01")
    assert ran.status == 1
    assert "no policy is that cheap: the budget is 1378, the cheapest costs" in ran.err
    assert (run / "policy.json").read_bytes() == before


@pytest.mark.parametrize("typed", ["-1", "lots", "nan"])
def test_nonsense_is_refused_by_the_program_too(offramp: Offramp, run: Path, typed: str) -> None:
    ran = offramp("calibrate", run, "--macs", typed)
    assert ran.status == 1 and f"a count such as 250M, got '{typed}'" in ran.err
    assert not (run / "policy.json").exists()


def test_a_goal_is_needed(offramp: Offramp, run: Path) -> None:
    ran = offramp("calibrate", run)
    assert ran.status == 2 and "--macs" in ran.err and ran.err.count("\n") == 1


def test_the_best_weights_are_calibrated_if_asked_for(offramp: Offramp, run: Path) -> None:
    found = offramp("calibrate", run, "--macs", "1", "--weights", "best", "--json").json
    assert found["weights"] == "best"
    assert found["epoch"] == json.loads((run / "result.json").read_text())["best"]["epoch"]


def test_a_run_without_a_calibration_split_is_refused(offramp: Offramp, run: Path) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("holdout: 0.3", "holdout: 0"))
    ran = offramp("calibrate", run, "--macs", "0.9")
    assert ran.status == 1
    assert "was trained on everything (holdout 0): there is no split to calibrate on" in ran.err
