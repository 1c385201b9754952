"""Device and precision: what `auto` means here, and what is not here."""

import logging
import os
from typing import Any

import pytest
import torch
from slurm_variables import batch

from offramp.train.device import check_devices, device_of, make_fabric, precision_of, set_up, writes
from offramp.train.launcher import check_launcher
from offramp.train.numerics import computing
from offramp.train.recipe import Recipe

GPU = torch.cuda.is_available()
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def test_auto_takes_a_gpu_if_there_is_one() -> None:
    assert device_of("auto") == ("cuda" if GPU else "cpu")
    assert device_of("cpu") == "cpu"


@pytest.mark.skipif(GPU, reason="there is a GPU here")
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, why in ((None, "PyTorch was installed without CUDA"), ("13.0", "PyTorch sees no CUDA GPU here")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(ValueError, match=f"device=cuda: {why}; take device=cpu or auto"):
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


ALONE = [{}, {"LOCAL_RANK": "1"}, {"WORLD_SIZE": "1"}, {"RANK": "3", "WORLD_SIZE": "x"}]


@pytest.mark.parametrize("variables", [*ALONE, batch(1, 2, each_known=False), batch(2, 2)])
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


def test_a_cpu_has_no_such_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS, raising=False)
    before = settings()
    with computing(Recipe(deterministic=True), torch.device("cpu"), training=True):
        assert settings() == before and CUBLAS not in os.environ


def test_a_deterministic_run_may_follow_another_one_in_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch reads the variable at its first product of the process, and never again."""
    monkeypatch.delenv(CUBLAS, raising=False)
    with computing(Recipe(), torch.device("cuda")):
        assert os.environ[CUBLAS] == ":4096:8"
    monkeypatch.setenv(CUBLAS, ":16:8")  # the user's own
    with computing(Recipe(deterministic=True), torch.device("cuda")):
        assert os.environ[CUBLAS] == ":16:8"


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
