"""One training on several machines: launchers that do not fit, preemption, and two network namespaces as hosts."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import two_hosts
from cli_nets import NET
from namespaces import ADDRESSES, two_namespaces
from safetensors.torch import load_file
from slurm_cluster import documented_script
from slurm_variables import batch, task

from offramp.methods import available
from offramp.train import log

Offramp = Callable[..., Any]
NETS = Path(__file__).parents[1] / "nets"
TINY = ["train", *NET, "--data", "digits", "--precision", "32", "--device", "cpu"]
SMALL = [*TINY, "--batch-size", "64"]
BY_HAND = {"MASTER_ADDR": "127.0.0.1", "NODE_RANK": "0"}


@pytest.mark.parametrize(
    ("words", "variables", "says"),
    [
        ("--nodes 0", {}, "--nodes must be at least 1, got 0"),
        ("--nodes 2", {}, "--nodes 2 needs a launcher (torchrun, srun), or the variables MASTER_ADDR, MASTER_PORT"),
        (
            "--nodes 2 --devices 2",
            {"WORLD_SIZE": "2", "LOCAL_RANK": "0"},
            "the launcher says WORLD_SIZE=2, but the run is for 4 (2 machines, 2 processes on each): correct the "
            "launcher's options, or --nodes and --devices\n",
        ),
        (
            "--nodes 2 --devices 2",
            {"WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1"},
            "the launcher says LOCAL_WORLD_SIZE=4, but the run is for 2 (2 machines, 2 processes on each)",
        ),
        ("--devices 2", {"SLURM_STEP_NUM_TASKS": "2"}, "add --ntasks-per-node=2 to it"),
        ("--devices 2", batch(1, 2, each_known=False), "put `srun --ntasks-per-node=2` before the command"),
        (
            "--nodes 2 --devices 2",
            task(2, 2, SLURM_STEP_TASKS_PER_NODE="3,1"),
            "SLURM_STEP_TASKS_PER_NODE=3,1, but the run is for --devices 2 on each machine: add --ntasks-per-node=2 to",
        ),
        (
            "--devices 2",
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "bash"},
            "SLURM_JOB_NAME=bash: tasks of an interactive job are not joined; add --job-name=NAME to srun",
        ),
        *(
            ("--nodes 2", {**BY_HAND, "MASTER_PORT": port}, f"MASTER_PORT={port} must be a free port of the first")
            for port in ("0", "65536", "29400x")
        ),
        (
            "--nodes 2",
            {"SLURM_NTASKS_PER_NODE": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"},
            "SLURM_STEP_NUM_NODES=1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    offramp: Offramp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, variables: dict[str, str], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ran = offramp(*SMALL, *words.split(), "--out", tmp_path / "run")
    assert ran.status in (1, 2) and says in ran.err and ran.err.count("\n") == 1, ran.err
    assert not (tmp_path / "run").exists()


def test_a_preempted_run_is_saved_and_its_status_says_so(tmp_path: Path) -> None:
    run, said = tmp_path / "run", tmp_path / "said"
    words = [*SMALL, "--epochs", "400", "--checkpoint-every", "3", "--out", run, "--resume"]
    process = forked.start(*words, out=said)
    end = time.monotonic() + 100
    while not list(run.glob("checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < end, said.read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 75, said.read_text()
    assert "SIGUSR1: saving after this step" in said.read_text() and "--resume continues" in said.read_text()


def test_a_run_that_is_preempted_before_its_first_step_says_so_too(
    offramp: Offramp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Slurm sends the signal as soon as a job starts if its time limit is short; the program ended with status 138."""
    (tmp_path / "preempted_net.py").write_text(
        "import os, signal, cli_nets\n"
        "def net(classes):\n    os.kill(os.getpid(), signal.SIGUSR1)\n    return cli_nets.tiny(classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--net", "python:preempted_net:net", "--branch", "linear", "--data", "digits", "--device", "cpu"]
    ran = offramp("train", *words, "--precision", "32", "--out", tmp_path / "run", "--resume")
    assert ran.status == 75, ran.err
    assert "SIGUSR1: ended before" in ran.err and "the same command with --resume continues" in ran.err


@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=pytest.mark.full)])
def test_srun_starts_the_processes(tmp_path: Path, nodes: int) -> None:
    """With the variables that srun sets for two tasks on one or two machines, and with a wrong number of them."""
    words = [*TINY, "--method", "joint", "--epochs", "1", "--batch-size", "256", "--out", tmp_path / "run"]
    port = str(forked.free_port())
    tasks = [task(nodes, 2 // nodes, rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for rank in range(2)]
    refused = forked.run_offramp(*words, environments=tasks)
    counted, option = ("TASKS=2", "--devices 2") if nodes == 1 else ("NODES=2", "--nodes 2")
    for ran in refused:
        assert ran.returncode == 1 and f"SLURM_STEP_NUM_{counted}" in ran.stderr and option in ran.stderr
    assert not (tmp_path / "run").exists()
    fitting = ["--nodes", nodes, "--devices", 2 // nodes]
    first, second = forked.run_offramp(*words, *fitting, environments=tasks)
    assert (first.returncode, second.returncode) == (0, 0), (first, second)
    assert "done: 1 epoch" in first.stderr and "done" not in second.stderr


@pytest.mark.parametrize("status", [0, 1, 75])
def test_the_job_script_of_the_documents_requeues_a_preempted_run(tmp_path: Path, status: int) -> None:
    script = documented_script()
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $@" >> {tmp_path}/called\nexit {status}\n')
        (tmp_path / name).chmod(0o755)
    subprocess.run(
        ["bash", "-c", script], env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}, check=False
    )
    started, *requeued = (tmp_path / "called").read_text().splitlines()
    assert requeued == (["scontrol requeue 4711"] if status == 75 else [])
    nodes, each = (re.search(rf"#SBATCH.*--{name}=(\d+)", script) for name in ("nodes", "ntasks-per-node"))
    assert nodes and each
    assert f"--ntasks-per-node {each[1]} offramp train --nodes {nodes[1]} --devices {each[1]}" in started
    assert "--resume" in started


def machine(rank: int, words: list[Any], out: Path, port: int) -> forked.Program:
    """`offramp WORDS` as on one of two machines, both of which are this one."""
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    return forked.start(*words, "--nodes", "2", out=out, env={**os.environ, **here})


def test_a_machine_is_lost_the_other_one_says_so_in_one_line_and_both_continue(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*TINY, "--batch-size", "32", "--method", "joint", "--epochs", "4", "--checkpoint-every", "8"]
    words += ["--out", run, "--resume"]
    logs = [tmp_path / "said0", tmp_path / "said1"]
    port = forked.free_port()
    both = [machine(rank, words, out, port) for rank, out in enumerate(logs)]
    end = time.monotonic() + 100
    while not list(run.glob("checkpoints/step-*")):
        assert both[0].poll() is None and time.monotonic() < end, logs[0].read_text()
        time.sleep(0.02)
    both[1].kill()
    assert both[0].wait(60) == 1, logs[0].read_text()
    *_, last = logs[0].read_text().splitlines()
    assert last.startswith("offramp: the connection to another process was lost")
    assert last.endswith("start the command again on every machine, with --resume")
    assert "Traceback" not in logs[0].read_text()
    again = [machine(rank, words, out, port) for rank, out in enumerate(logs)]
    assert [each.wait(100) for each in again] == [0, 0], logs[0].read_text()
    assert "continuing at epoch" in logs[0].read_text() and "done: 4 epochs" in logs[0].read_text()
    assert [record["step"] for record in log.read(run / "metrics.jsonl", "step")] == list(range(164))


FEWER_DIGITS = """
import dataclasses, os
from offramp.data import digits
def build(request):
    data = digits.build(dataclasses.replace(request, path=""))
    rows = data.parts["train"]
    return dataclasses.replace(data, parts={**data.parts, "train": rows[40 * int(os.environ["NODE_RANK"]) :]})
"""


def test_machines_that_were_started_differently_refuse_and_none_waits_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another learning rate, they trained weights that differed; with other images, they waited for each other."""
    (tmp_path / "fewer_digits.py").write_text(FEWER_DIGITS)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["train", *NET, "--method", "joint", "--precision", "32", "--device", "cpu", "--batch-size", "64"]
    words += ["--epochs", "1", "--out", tmp_path / "run"]
    logs = [tmp_path / "said0", tmp_path / "said1"]

    def started(data: str, *different: list[str]) -> list[int]:
        port = forked.free_port()
        for said in logs:
            said.unlink(missing_ok=True)
        both = [machine(rank, [*words, "--data", data, *more], logs[rank], port) for rank, more in enumerate(different)]
        return [each.wait(100) for each in both]

    def refused(says: str) -> bool:
        last = [said.read_text().splitlines()[-1] for said in logs]
        return all(says in line for line in last)

    assert started("digits", ["--lr", "0.1"], ["--lr", "0.05"]) == [1, 1]
    assert refused(
        "offramp: process 1 has --lr 0.05, but process 0 has 0.1: start the same command, with the same data,"
    )
    assert started("python:fewer_digits", [], []) == [1, 1]
    assert refused("process 1 has the splits train 1,258, val 70, cal 70, test 359 (")
    assert started("digits", [], []) == [0, 0]
    assert started("digits", ["--lr", "0.05"], ["--lr", "0.05"]) == [1, 1]
    assert refused("contains a run with another configuration: lr is 0.1 there, not 0.05")


@pytest.fixture
def hosts() -> Iterator[list[list[str]]]:
    """Two network namespaces that a cable joins; how to run a command in each."""
    with two_namespaces() as names:
        yield [["ip", "netns", "exec", name] for name in names]


SLOW = """
import dataclasses, os, pathlib, time
from offramp.data import digits
def build(request):
    if os.environ["NODE_RANK"] == "0":
        time.sleep(600)
    pathlib.Path("waiting").touch()
    return digits.build(dataclasses.replace(request, path=""))
"""
PROGRAM = "from offramp.cli import main\nmain()\n"


def on_both(
    hosts: list[list[str]], folder: Path, words: list[str], program: str = PROGRAM
) -> list[subprocess.Popen[bytes]]:
    """`offramp WORDS`, or another program, on both hosts, as a user starts it on each."""
    (folder / "program.py").write_text(program)
    path = os.pathsep.join([str(Path.cwd()), str(Path.cwd() / "tests"), str(NETS), os.environ.get("PYTHONPATH", "")])
    common = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29400", "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank, host in enumerate(hosts):
        environment = {**os.environ, **common, "PYTHONPATH": path, "NODE_RANK": str(rank)}
        with (folder / f"said{rank}").open("ab") as said:
            command = [*host, sys.executable, "program.py", *words]
            processes.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said))
    return processes


@pytest.mark.full
@pytest.mark.parametrize("method", ["joint", "muse"])
def test_two_hosts_train_as_one_process_and_one_process_goes_on(
    tmp_path: Path, hosts: list[list[str]], my_nets: str, method: str
) -> None:
    net = ["train", "--net", "python:my_nets:faulty", "--exits-after", "1,3", "--branch", "linear", "--data", "digits"]
    words = [*net, "--method", method, "--precision", "32", "--device", "cpu", "--lr", "0.01", "--epochs", "2"]
    words += ["--batch-size", "128", "--holdout", "0.2", "--checkpoint-every", "4"]
    for process in on_both(hosts, tmp_path, [*words, "--out", "two", "--nodes", "2"]):
        assert process.wait(250) == 0, (tmp_path / "said0").read_text()
    assert re.search("done: 2 epochs", (tmp_path / "said0").read_text())
    assert "done" not in (tmp_path / "said1").read_text()
    ran = forked.run_offramp(*words, "--out", "one", cwd=tmp_path)
    assert ran[0].returncode == 0, ran
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    for path in ("result.json", "last.safetensors"):  # as if it had been stopped before the end
        (tmp_path / "two" / path).unlink()
    shutil.rmtree(max((tmp_path / "two/checkpoints").glob("step-*")))
    ran = forked.run_offramp(*words, "--out", "two", "--resume", cwd=tmp_path)
    assert ran[0].returncode == 0 and "continuing at epoch" in ran[0].stderr, ran
    torch.testing.assert_close(load_file(tmp_path / "two/last.safetensors"), one, rtol=0, atol=1e-5)


@pytest.mark.full
def test_a_first_host_that_is_cut_off_before_the_first_step_is_missed(tmp_path: Path, hosts: list[list[str]]) -> None:
    """No packet says that it is gone; it would read its data for ten minutes."""
    (tmp_path / "slow_digits.py").write_text(SLOW)
    words = ["train", *NET, "--data", "python:slow_digits", "--method", "joint", "--device", "cpu", "--nodes", "2"]
    first, other = on_both(hosts, tmp_path, [*words, "--out", "run"])
    try:
        for _ in range(600):
            if (tmp_path / "waiting").exists():
                break
            time.sleep(0.1)
        subprocess.run([*hosts[0], "ip", "link", "set", "eth0", "down"], check=True)
        assert other.wait(180) == 1
    finally:
        for process in (first, other):
            process.kill()
            process.wait()
    said = (tmp_path / "said1").read_text().splitlines()
    assert said[-1].startswith("offramp: the first process of this run ended"), said


@pytest.mark.full
def test_every_method_on_two_hosts_is_that_of_one_process(tmp_path: Path, hosts: list[list[str]], my_nets: str) -> None:
    for process in on_both(hosts, tmp_path, ["2", "2"], "import two_hosts\ntwo_hosts.main()\n"):
        assert process.wait(570) == 0, (tmp_path / "said0").read_text()
    two_hosts.train_all(tmp_path, 1, 1)
    wrong = [name for name in available() if not two_hosts.same(tmp_path / f"{name}-1", tmp_path / f"{name}-2")]
    assert not wrong
