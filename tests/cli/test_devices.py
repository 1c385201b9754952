"""Two processes from the command line: fine-tuning with frozen parts, and an end that all of them agree on."""

import contextlib
import os
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

from offramp.train import log

NETS = Path(__file__).parents[1] / "nets"
WORDS = (
    "train --net python:my_nets:faulty --exits-after 1,3 --branch linear --method joint --data digits "
    "--precision 32 --device cpu --lr 0.01"
)


def start(folder: Path, words: str, devices: int, **environment: str) -> "subprocess.Popen[bytes]":
    """The program in a process of its own, from a script, as processes are started again from one."""
    (folder / "program.py").write_text("from offramp.cli import main\nmain()\n")
    command = [sys.executable, "program.py", *WORDS.split(), "--devices", str(devices), *words.split()]
    path = os.pathsep.join([str(Path.cwd()), str(NETS), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=said, stderr=said, start_new_session=True)


def finish(process: "subprocess.Popen[bytes]", folder: Path) -> tuple[int, str]:
    """Exit status and what was said, of all processes; none of them is left."""
    try:
        status = process.wait(timeout=250)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return status, (folder / "said").read_text()


def steps(run: Path) -> list[dict[str, Any]]:
    return log.read(run / "metrics.jsonl", "step")


@pytest.mark.parametrize(
    "tune",
    [pytest.param(tune, marks=() if tune == "exits" else pytest.mark.full) for tune in ("exits", "mixed", "all")],
)
def test_fine_tuning_by_two_processes_is_that_of_one(tmp_path: Path, my_nets: str, tune: str) -> None:
    """Frozen parts have no gradients, in one phase or in both; the last batch of 1,437 samples is uneven."""
    common = f"{WORDS} --tune {tune} --lr-backbone 0.005 --epochs 2 --batch-size 254 --holdout 0"
    for devices in (1, 2):
        words = f"{common} --devices {devices} --out run{devices}".split()
        processes = forked.run_offramp(*words, cwd=tmp_path, processes=devices)
        assert all(process.returncode == 0 for process in processes), processes
        assert sum(process.stderr.count("done: 2 epochs") for process in processes) == 1
    one, two = (load_file(tmp_path / f"run{devices}/last.safetensors") for devices in (1, 2))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    assert [record["loss"] for record in steps(tmp_path / "run2")] == pytest.approx(
        [record["loss"] for record in steps(tmp_path / "run1")], rel=1e-3
    )
    if tune == "mixed":
        assert [set(record["terms"]) for record in steps(tmp_path / "run2")][:: len(steps(tmp_path / "run2")) - 1] == [
            {"final"},
            {"ce"},
        ]


FAULTY = "--epochs 9 --batch-size 32 --checkpoint-every 5 --out run"


def _launched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setenv("FAULT", "20")
    ended = forked.run_offramp(*WORDS.split(), "--devices", 2, *FAULTY.split(), cwd=folder, processes=2)
    return ended[0].returncode, "".join(process.stderr for process in ended)


def _started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return finish(start(folder, FAULTY, 2, FAULT="20"), folder)


@pytest.mark.parametrize("run", [_launched, pytest.param(_started, marks=pytest.mark.full)])
def test_a_loss_that_is_no_number_in_one_process_ends_both(
    tmp_path: Path, my_nets: str, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str]]
) -> None:
    """At the last step before a look: the other process would go on and wait for ever."""
    status, said = run(tmp_path, monkeypatch)
    assert status == 1, said
    assert said.count("offramp: the loss term") == 1
    assert "'ce' is nan at step 19 (epoch 1); the last good checkpoint is kept in" in said
    assert "Traceback" not in said and "terminated with code" not in said
    newest = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1]
    assert newest.name == "step-000000015"
    assert [record["step"] for record in steps(tmp_path / "run")] == list(range(19))


@pytest.mark.full
def test_ctrl_c_to_one_process_saves_at_a_step_of_all(tmp_path: Path) -> None:
    process = start(tmp_path, "--epochs 400 --batch-size 64 --out run", 2)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/best.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    status, said = finish(process, tmp_path)
    assert status == 130, said
    assert "saving within 20 steps" in said and said.count("--resume continues") == 1
    newest = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1]
    assert newest.name == f"step-{len(steps(tmp_path / 'run')):09d}"
