"""A run's folder has one writer, whatever the environment says and whoever comes second; lost records are noticed."""

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked
import pytest
from cli_nets import NET

from offramp.digests import of_file
from offramp.train import log
from offramp.train.run_lock import writing

HOW = ["--data", "digits", "--method", "joint", "--batch-size", "128", "--precision", "32", "--device", "cpu"]
WORDS = [*NET, *HOW]


def start(folder: Path, epochs: int, log: Path, *words: str) -> forked.Program:
    """`offramp train` in a process of its own; what it says on standard error goes into `log`."""
    values = ["train", *WORDS, "--epochs", epochs, "--out", folder, *words]
    return forked.start(*values, out=Path(os.devnull), err=log)


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=() if seed < 2 else pytest.mark.full) for seed in range(20)])
def test_of_two_that_start_at_once_one_trains_and_nothing_is_doubled(tmp_path: Path, seed: int) -> None:
    folder, epochs = tmp_path / "run", 2
    logs = [tmp_path / "first", tmp_path / "second"]
    first = start(folder, epochs, logs[0], "--resume", "--checkpoint-every", "7")
    time.sleep(random.Random(seed).uniform(0, 1) if seed else 0)
    second = start(folder, epochs, logs[1], "--resume", "--checkpoint-every", "7")
    for process in (first, second):
        process.wait(200)
    said = [path.read_text() for path in logs]
    assert not any("Traceback" in text for text in said), said
    statuses = [first.returncode, second.returncode]
    assert 0 in statuses, said
    for status, text in zip(statuses, said, strict=True):
        if status:
            assert "is being written to by process" in text and text.count("offramp:") == 1
    records = log.read(folder / "metrics.jsonl")
    assert [one["epoch"] for one in records if one["kind"] == "epoch"] == list(range(epochs))
    assert [one["step"] for one in records if one["kind"] == "step"] == list(range(epochs * 11))
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "1"}, {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "1"}])
def test_variables_of_launchers_do_not_open_anothers_folder(
    run: Path, offramp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    before = of_file(run / "last.safetensors")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ran = offramp("train", *WORDS, "--epochs", 1, "--seed", 7, "--out", run)
    assert ran.status == 1 and "contains a run with another configuration" in ran.err
    assert of_file(run / "last.safetensors") == before


def test_more_processes_than_devices_are_refused(
    tmp_path: Path, offramp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = offramp("train", *WORDS, "--out", tmp_path / "a")
    assert ran.status != 0 and "WORLD_SIZE=2" in ran.err and "--devices 2" in ran.err
    assert not (tmp_path / "a").exists()


def test_verbs_that_write_are_refused_while_another_writes_and_others_work(
    run: Path, tmp_path: Path, offramp: Callable[..., Any]
) -> None:
    program = (
        "import sys; from pathlib import Path; from offramp.train.run_lock import writing\n"
        "with writing(Path(sys.argv[1])): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for words in (["calibrate", run, "--macs", "0.7"], ["curves", run], ["report", run, "--images", "0"]):
            ran = offramp(*words)
            assert ran.status == 1 and f"is being written to by process {holder.pid} on" in ran.err, words
        ran = offramp("evaluate", run)
        assert ran.status == 0 and "the trace of test is not stored" in ran.err
        assert offramp("curves", run, "--out", tmp_path / "elsewhere").status == 0
        holder.communicate("\n")
    assert not (run / "traces").exists() and not (run / "policy.json").exists()
    assert offramp("calibrate", run, "--macs", "0.7").status == 0


def interrupted(folder: Path, offramp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped in its third epoch, with a checkpoint after every epoch."""
    from offramp.train.loop import Loop

    whole = Loop._finish_epoch

    def stopped(loop: Loop) -> None:
        whole(loop)
        if loop.position.epoch == 2:
            raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_finish_epoch", stopped)
        assert offramp("train", *WORDS, "--epochs", 4, "--checkpoint-every", 11, "--out", folder).status == 1


@pytest.mark.parametrize("left", [pytest.param(0, marks=pytest.mark.full), 1000])
def test_lost_records_are_said_and_the_run_ends_well(
    tmp_path: Path, offramp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    folder = tmp_path / "run"
    interrupted(folder, offramp, monkeypatch)
    metrics = folder / "metrics.jsonl"
    text = metrics.read_bytes()[:left]
    metrics.write_bytes(text) if left else metrics.unlink()
    (folder / "checkpoints" / "step-notes.txt").write_text("mine")
    (folder / "checkpoints" / "step-old").mkdir()
    (folder / "checkpoints" / ".part-notes").write_text("mine")
    ran = offramp("train", *WORDS, "--epochs", 4, "--checkpoint-every", 11, "--out", folder, "--resume")
    assert ran.status == 0, ran.err
    assert (
        "was shortened: " if left else "is gone: "
    ) in ran.err and "of 22 steps and 2 of 2 epochs are lost" in ran.err
    kept = text[: text.rfind(b"\n") + 1]
    assert metrics.read_bytes().startswith(kept) and b"\0" not in metrics.read_bytes()
    records = log.read(metrics)
    assert [one["epoch"] for one in records if one["kind"] == "epoch"] == [2, 3]
    assert (folder / "result.json").is_file()


def test_a_damaged_record_stops_a_resumed_run_before_it_trains(
    tmp_path: Path, offramp: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    interrupted(folder, offramp, monkeypatch)
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b"}", b"]", 1))
    ran = offramp("train", *WORDS, "--epochs", 4, "--checkpoint-every", 11, "--out", folder, "--resume")
    assert ran.status == 1 and "metrics.jsonl, line 1, is damaged" in ran.err


def test_a_copy_of_a_locked_run_is_free(run: Path, tmp_path: Path, offramp: Callable[..., Any]) -> None:
    with writing(run):
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        assert offramp("calibrate", copy, "--macs", "0.7").status == 0


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk with no space left: no file can grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_results_are_shown_and_files_are_named(run: Path, offramp: Callable[..., Any]) -> None:
    shown = offramp("evaluate", run, "--json").json
    shutil.rmtree(run / "traces")
    with files_of_at_most(1000):
        full = offramp("evaluate", run)
        calibrated = offramp("calibrate", run, "--macs", "60%")
    assert full.status == 0 and f"{100 * shown['accuracy'][-1]:.2f}" in full.out
    assert "last-test.safetensors" in full.err and full.err.endswith("; the trace of test is not stored\n")
    assert calibrated.status == 1 and f"{run / 'policy.json'} cannot be written: File too large" in calibrated.err
    assert not [*(run / "traces").glob("*")] and not (run / ".lock").exists()
    with files_of_at_most(10):
        ran = offramp("calibrate", run, "--macs", "60%")
    assert ran.status == 1 and f"{run / '.lock'} cannot be written" in ran.err and ran.err.count("\n") == 1
    assert not offramp("calibrate", run, "--macs", "60%").status
