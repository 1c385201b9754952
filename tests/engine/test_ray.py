"""Trainings on a Ray cluster of two nodes on this machine: Ctrl-C, a killed node, a folder that one does not see."""

import json
import os
import shutil
import signal
import subprocess
import sys
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
    trained = forked.run_offramp("train", *RECIPE, "--method", "byot", "--out", tmp_path / "a")
    assert trained[0].returncode == 0, trained
    one, other = (load_file(run / "last.safetensors") for run in (tmp_path / "a", out / "byot-seed-0"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_a_folder_that_a_node_does_not_see_is_refused_or_its_run_is_fetched(cluster: Any, tmp_path: Path) -> None:
    out, said = tmp_path / "out", tmp_path / "said"
    ray_start = f"{sys.executable} -c 'from ray.scripts.scripts import main; main()' start --block --num-cpus 1"
    hidden = f"mount -t tmpfs none {tmp_path} && exec {ray_start}"
    with (tmp_path / "node").open("wb") as log:
        node = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f"{hidden} --address {cluster.address}"], stdout=log, stderr=log
        )
    try:
        cluster.connect()
        import ray

        end = time.monotonic() + 200
        while len(ray.nodes()) < 2:
            assert time.monotonic() < end, (tmp_path / "node").read_text()
            time.sleep(0.5)
        ray.shutdown()
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
        node.kill()
        assert process.wait(400) == 0, said.read_text()
        assert ledger(out) == ["byot", "joint"]
        logs = [(out / f"logs/{method}-seed-0.log").read_text() for method in reached]
        assert all("--resume continues" in log and "continuing at epoch" in log for log in logs)
        assert not [path for path in out.iterdir() if path.name.startswith((".fetched", ".replaced"))]
        assert str(out / "byot-seed-0") in (out / "results.jsonl").read_text()
    finally:
        node.kill()
        node.wait(60)


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
