"""Device and precision: what `auto` means here, and what is not here."""

import logging
import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from offramp.train.device import check_devices, check_launcher, device_of, make_fabric, precision_of, set_up, writes
from offramp.train.numerics import computing
from offramp.train.recipe import Recipe

GPU = torch.cuda.is_available()


def test_auto_takes_a_gpu_if_there_is_one() -> None:
    assert device_of("auto") == ("cuda" if GPU else "cpu")
    assert device_of("cpu") == "cpu"


@pytest.mark.skipif(GPU, reason="there is a GPU here")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="device=cuda: PyTorch sees no CUDA GPU here; take device=cpu or auto"):
        device_of("cuda")


def test_auto_takes_bf16_where_the_processor_computes_in_it() -> None:
    able = torch.cpu.get_capabilities()
    expected = "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "32"
    assert precision_of("auto", "cpu") == expected
    assert [precision_of(wish, "cpu") for wish in ("32", "bf16", "bf16-dense")] == ["32", "bf16", "bf16-dense"]


@pytest.mark.parametrize(("precision", "inside"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_fabric_computes_as_asked_and_keeps_weights_in_float32(precision: str, inside: torch.dtype) -> None:
    fabric = make_fabric(Recipe(device="cpu", precision=precision))
    assert (fabric.device.type, fabric.world_size, fabric.is_global_zero) == ("cpu", 1, True)
    with fabric.autocast():
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == inside
    net = fabric.setup_module(torch.nn.Linear(2, 2))
    assert net(torch.zeros(1, 2)).dtype == net.weight.dtype == torch.float32


def test_fabric_says_nothing_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    make_fabric(Recipe(device="cpu", precision="32"))
    assert not [record for record in caplog.records if record.levelno < logging.WARNING]


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


def srun(nodes: int, each: int, **others: str) -> dict[str, str]:
    """What srun says to a task of a step with so many tasks on each of some nodes."""
    tasks = str(nodes * each)
    step = {"SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_NTASKS_PER_NODE": str(each)}
    return {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train.sh", "SLURM_NTASKS": tasks, **step, **others}


BATCH = {"SLURM_JOB_NAME": "train.sh", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0"}
"""What the script of a job sees without srun."""


@pytest.mark.parametrize(
    ("variables", "nodes", "devices", "says"),
    [
        (srun(2, 4), 2, 4, None),
        (srun(1, 2), 1, 2, None),
        (srun(2, 4), 1, 8, "SLURM_STEP_NUM_NODES=2, but the run is for nodes=1: add nodes=2 with the devices of each"),
        (srun(2, 4), 4, 2, "the launcher says SLURM_STEP_NUM_NODES=2, but nodes=4 with devices=2 on each make it 4"),
        (srun(2, 4), 2, 2, "the launcher says SLURM_STEP_NUM_TASKS=8, but nodes=2 with devices=2 on each make it 4"),
        (srun(1, 4), 1, 2, "a launcher started 4 processes (SLURM_STEP_NUM_TASKS=4), but the run is for 2"),
        (
            srun(2, 2, SLURM_NTASKS_PER_NODE="4"),
            2,
            2,
            "SLURM_NTASKS_PER_NODE=4, but the run is for devices=2: start it",
        ),
        (srun(1, 1), 1, 2, "srun did not start the 2 processes of this run: put `srun --ntasks-per-node=2` before"),
        (BATCH, 1, 2, "srun did not start the 2 processes of this run"),
        ({**BATCH, "MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "0"}, 2, 2, "srun did not start the 4 process"),
        (BATCH, 1, 1, None),
        (BATCH | {"SLURM_JOB_NAME": "interactive"}, 1, 2, None),
        (BATCH | {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, 1, 2, None),
    ],
)
def test_slurm(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], nodes: int, devices: int, says: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(says)) if says else nullcontext():
        check_launcher(devices, nodes)


@pytest.mark.parametrize("variables", [{}, {"LOCAL_RANK": "1"}, {"WORLD_SIZE": "1"}, {"RANK": "3", "WORLD_SIZE": "x"}])
def test_one_process_writes_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_launcher(1)
    assert writes(set_up(Recipe(device="cpu", precision="32")))


@pytest.mark.parametrize(("rank", "expected"), [(None, True), ("0", True), ("1", False)])
def test_of_two_processes_the_first_writes(monkeypatch: pytest.MonkeyPatch, rank: str | None, expected: bool) -> None:
    if rank is not None:  # as Fabric sets it for the processes it starts
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
    check_launcher(2)
    assert writes(set_up(Recipe(device="cpu", precision="32", devices=2))) is expected


SETTINGS = (
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
)


def settings() -> list[object]:
    return [*(getattr(owner, name) for owner, name in SETTINGS), torch.are_deterministic_algorithms_enabled()]


@pytest.mark.parametrize(
    ("how", "training", "inside"),
    [
        ({"precision": "32"}, True, [False, False, True, False, False]),
        ({"precision": "bf16"}, False, [False, False, False, False, False]),
        ({"precision": "tf32"}, True, [True, True, True, False, False]),
        ({"precision": "tf32", "deterministic": True}, True, [True, True, False, True, True]),
    ],
)
def test_settings_of_a_gpu_hold_inside_alone(how: dict[str, Any], training: bool, inside: list[object]) -> None:
    before = settings()
    make_fabric(Recipe(device="cpu", precision="32"))
    with pytest.raises(KeyError), computing(Recipe(**how), torch.device("cuda"), training=training):
        assert settings() == inside
        assert torch.get_float32_matmul_precision() == ("high" if inside[0] else "highest")  # no contradiction
        raise KeyError
    assert settings() == before


def test_a_cpu_has_no_such_settings() -> None:
    before = settings()
    with computing(Recipe(deterministic=True), torch.device("cpu"), training=True):
        assert settings() == before


@pytest.mark.parametrize("precision", ["tf32", "16"])
def test_precisions_of_gpus_alone(precision: str) -> None:
    with pytest.raises(ValueError, match=f"precision={precision} is for GPUs; on a CPU take precision=32, bf16, "):
        precision_of(precision, "cpu")
    assert precision_of(precision, "cuda") == precision


def test_more_devices_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="devices=2: PyTorch sees 1 GPU here; take devices=1"):
        check_devices(Recipe(device="cuda", devices=2))
    check_devices(Recipe(device="cpu", devices=2))
