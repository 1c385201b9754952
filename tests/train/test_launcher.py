"""Launchers that do not fit a run, and where the processes of one that fits meet."""

import os
import re
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from slurm_variables import batch, task

from offramp.train.device import set_up
from offramp.train.launcher import check_launcher, cluster_environment
from offramp.train.recipe import Recipe


@pytest.mark.parametrize(
    ("variables", "devices", "says"),
    [
        (
            {"WORLD_SIZE": "2", "LOCAL_RANK": "0"},
            1,
            "a launcher started 2 processes (WORLD_SIZE=2), but the run is for 1",
        ),
        ({"SLURM_STEP_NUM_TASKS": "4"}, 2, "add devices=4 to train with all of them together, or start one process"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 1, "OMPI_COMM_WORLD_SIZE=3"),
        (
            {"WORLD_SIZE": "1", "LOCAL_RANK": "0"},
            2,
            "a launcher started 1 process (WORLD_SIZE=1), but the run is for 2",
        ),
        (
            {"WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"},
            4,
            "GROUP_WORLD_SIZE=2, but the run is for nodes=1: add nodes=2 with the devices of each",
        ),
    ],
)
def test_a_launcher_with_another_number_of_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], devices: int, says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(says)):
        check_launcher(devices)


@pytest.mark.parametrize(("count", "fits"), [("2", True), ("4", True), ("x", True), ("3", False), ("8", False)])
def test_by_hand_a_cluster_may_count_machines_or_processes(
    monkeypatch: pytest.MonkeyPatch, count: str, fits: bool
) -> None:
    variables = {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "0", "WORLD_SIZE": count}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    says = f"WORLD_SIZE={count}, but the run is for 2 machines with 2 processes on each: correct nodes and devices"
    with nullcontext() if fits else pytest.raises(ValueError, match=says):
        check_launcher(2, 2)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("variables", "nodes", "devices", "says"),
    [
        (task(2, 4), 2, 4, None),
        (task(1, 2), 1, 2, None),
        (task(2, 4), 1, 8, "SLURM_STEP_NUM_NODES=2, but the run is for nodes=1: add nodes=2 with the devices of each"),
        (task(2, 1), 1, 1, "SLURM_STEP_NUM_NODES=2, but the run is for nodes=1: add nodes=2 with the devices of each"),
        (task(2, 4), 4, 2, "SLURM_STEP_NUM_NODES=2, but the run is for 4 (4 machines, 2 processes on each)"),
        (task(2, 4), 2, 2, "SLURM_STEP_NUM_TASKS=8, but the run is for 4 (2 machines, 2 processes on each)"),
        (task(1, 4), 1, 2, "a launcher started 4 processes (SLURM_STEP_NUM_TASKS=4), but the run is for 2"),
        (
            task(2, 1, SLURM_NTASKS_PER_NODE="2"),  # srun --ntasks=2 in a job with two tasks on each machine
            2,
            1,
            "SLURM_NTASKS_PER_NODE=2, but the run is for devices=1: start it by `srun --ntasks-per-node=1`",
        ),
        (
            task(2, 2, SLURM_STEP_TASKS_PER_NODE="3,1"),  # srun --ntasks-per-node=2 in a job with --ntasks=4 alone
            2,
            2,
            "SLURM_STEP_TASKS_PER_NODE=3,1, but the run is for devices=2 on each machine: add --ntasks-per-node=2 to",
        ),
        (task(1, 1), 1, 2, "srun did not start the 2 processes of this run: put `srun --ntasks-per-node=2` before"),
        (batch(1, 2), 1, 2, "srun did not start the 2 processes of this run"),
        (batch(2, 1), 2, 1, "srun did not start the 2 processes of this run"),
        (
            batch(2, 2) | {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "0"},
            2,
            2,
            "srun did not start the 4",
        ),
        (batch(2, 2), 1, 1, None),
        (batch(1, 2, name="interactive"), 1, 2, None),
        (batch(1, 2) | TORCHRUN | {"WORLD_SIZE": "2"}, 1, 2, None),
        (task(1, 1) | TORCHRUN | {"WORLD_SIZE": "2"}, 1, 2, None),  # srun torchrun
        (task(2, 1) | TORCHRUN | {"WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"}, 2, 2, None),
        (
            task(2, 1) | TORCHRUN | {"WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"},
            2,
            1,
            "WORLD_SIZE=4, but the run is for 2 (2 machines, 1 process on each)",
        ),
    ],
)
def test_slurm(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], nodes: int, devices: int, says: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(says)) if says else nullcontext():
        check_launcher(devices, nodes)


@pytest.mark.parametrize(
    ("step", "address", "port"),
    [
        ({}, "node1", 19711),
        ({"SLURM_STEP_ID": "3", "SLURM_STEP_NODELIST": "node[2-3]"}, "node2", 20014),
        ({"SLURM_JOB_ID": "1234567"}, "node1", 19567),
        ({"MASTER_ADDR": "other", "MASTER_PORT": "1234"}, "other", 1234),
    ],
)
def test_tasks_of_srun_meet_on_the_first_machine_of_their_step(
    monkeypatch: pytest.MonkeyPatch, step: dict[str, str], address: str, port: int
) -> None:
    """A step may use some machines of its job, and steps that run together need two ports."""
    monkeypatch.setattr(os, "environ", {**os.environ, **task(1, 2), **step})
    assert cluster_environment(2) is None  # Fabric's choice
    environment = SLURMEnvironment()
    assert (environment.main_address, environment.main_port) == (address, port)


def test_fabric_does_not_recommend_srun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where Slurm is installed, it would do so in every run that needs none."""
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        set_up(Recipe(device="cpu", precision="32", devices=2))
    assert not raised
