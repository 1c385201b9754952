"""Trainings on a Ray cluster of two nodes on this machine: Ctrl-C, a killed node, a folder that one does not see."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
RECIPE = ["--width", "4", "--data", "digits", "--epochs", "8", "--batch-size", "64", "--precision", "32"]
RECIPE += ["--device", "cpu", "--checkpoint-every", "5"]


def wait_for(what: Callable[[], Any], process: forked.Program, said: Path) -> None:
    end = time.monotonic() + 400
    while not what():
        assert process.poll() is None and time.monotonic() < end, said.read_text()
        time.sleep(0.05)


def checkpoints(out: Path, method: str) -> list[str]:
    return sorted(path.name for path in out.glob(f"{method}-seed-0/checkpoints/step-*"))


def start(cluster: Any, out: Path, said: Path, *more: str) -> forked.Program:
    words = ["compare", *RECIPE, "--methods", "joint,byot", "--out", out, *more]
    return forked.start(*words, "--engine", "ray", "--address", cluster.address, out=said)


def ledger(out: Path) -> list[str]:
    return sorted(json.loads(line)["config"]["method"] for line in (out / "results.jsonl").read_text().splitlines())


def equals_train(out: Path, method: str, place: Path) -> None:
    """A run of `compare` has the weights of `train`, to the bit."""
    (trained,) = forked.run_offramp("train", *RECIPE, "--method", method, "--out", place)
    assert trained.returncode == 0, trained
    one, other = (load_file(run / "last.safetensors") for run in (place, out / f"{method}-seed-0"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_stopped_continued_and_a_node_killed_the_runs_equal_train_to_the_bit(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    out, said = tmp_path / "out", tmp_path / "said"
    process = start(cluster, out, said)
    wait_for(lambda: checkpoints(out, "joint") and checkpoints(out, "byot"), process, said)
    process.send_signal(signal.SIGINT)
    assert process.wait(200) == 130, said.read_text()
    assert f"saved in {out}; the same command continues" in said.read_text()
    reached = {method: checkpoints(out, method)[-1] for method in ("joint", "byot")}
    process = start(cluster, out, said)
    wait_for(lambda: all(checkpoints(out, method)[-1] > step for method, step in reached.items()), process, said)
    cluster.remove_node(node, allow_graceful=False)
    assert process.wait(400) == 0, said.read_text()
    assert ledger(out) == ["byot", "joint"]
    logs = [(out / f"logs/{method}-seed-0.log").read_text() for method in reached]
    assert all("--resume continues" in log for log in logs), "Ctrl-C reached every run"
    assert sorted(log.count("continuing at epoch") for log in logs) == [1, 2], "one run lost its node"
    equals_train(out, "byot", tmp_path / "a")


def test_a_folder_that_a_node_does_not_see_is_refused_or_its_run_is_fetched(
    hidden_node: Any, cluster: Any, tmp_path: Path
) -> None:
    out, said = tmp_path / "out", tmp_path / "said"
    process = start(cluster, out, said)
    assert process.wait(300) == 2, said.read_text()
    assert f"does not see {out}: choose an --out that all nodes share" in said.read_text()
    assert not list(out.iterdir())
    process = start(cluster, out, said, "--fetch")
    wait_for(lambda: len(list(out.glob("*/metrics.jsonl"))) == 2, process, said)
    process.send_signal(signal.SIGINT)
    assert process.wait(200) == 130, said.read_text()
    reached = {method: checkpoints(out, method)[-1] for method in ("joint", "byot")}
    metrics = {method: (out / f"{method}-seed-0/metrics.jsonl") for method in reached}
    sizes = {method: path.stat().st_size for method, path in metrics.items()}
    process = start(cluster, out, said, "--fetch")
    wait_for(lambda: all(path.stat().st_size > sizes[method] for method, path in metrics.items()), process, said)
    hidden_node.kill()
    assert process.wait(400) == 0, said.read_text()
    assert ledger(out) == ["byot", "joint"]
    logs = [(out / f"logs/{method}-seed-0.log").read_text() for method in reached]
    assert all("--resume continues" in log and "continuing at epoch" in log for log in logs)
    assert str(out / "byot-seed-0") in (out / "results.jsonl").read_text()
    for method in reached:
        equals_train(out, method, tmp_path / method)


def test_reproduce_trains_what_a_table_needs(cluster: Any, tmp_path: Path) -> None:
    protocol = tmp_path / "tiny.yaml"
    protocol.write_text(
        "data: digits\nholdout: 0.3\nepochs: 1\nbatch-size: 256\nschedule: constant\nprecision: '32'\nwidth: 4\n"
    )
    words = ["reproduce", "muse-table-4", "--rows", "resnet18 l_s", "--protocol", protocol, "--out", tmp_path / "out"]
    (ran,) = forked.run_offramp(*words, "--engine", "ray", "--address", cluster.address, "--format", "json")
    assert ran.returncode == 0, ran.stderr
    (table,) = json.loads(ran.stdout)["tables"]
    assert [row["state"] for row in table["rows"]] == ["measured", "measured"]
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == 2
