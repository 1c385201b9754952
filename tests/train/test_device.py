"""Device and precision: what `auto` means here, and what is not here."""

import logging
import re

import pytest
import torch

from offramp.train.device import check_launcher, device_of, fixed_shapes, make_fabric, precision_of, set_up, writes
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
    assert [precision_of(wish, "cpu") for wish in ("32", "bf16")] == ["32", "bf16"]


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
    ],
)
def test_a_launcher_with_another_number_of_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], devices: int, says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(says)):
        check_launcher(devices)


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


def test_settings_of_the_process_stay_as_they_are() -> None:
    before = torch.backends.cudnn.benchmark
    make_fabric(Recipe(device="cpu", precision="32"))
    assert torch.backends.cudnn.benchmark == before
    with fixed_shapes():
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == before
