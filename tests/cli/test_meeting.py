"""Processes of one run, of which one cannot train: whatever the reason is, the others say it and none waits for it."""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import forked
import pytest
from cli_nets import NET

from offramp.train.run_lock import writing

WORDS = ["train", *NET, "--method", "joint", "--precision", "32", "--device", "cpu", "--epochs", "1"]
FAULTY = """
import dataclasses, os, resource, signal, subprocess, time
from offramp.data import digits
def build(request):
    return digits.build(dataclasses.replace(request, path=""))
def error(request):
    raise RuntimeError("the server of the images does not answer")
def memory(request):
    raise MemoryError
def killed(request):
    time.sleep(1.5)
    os.kill(os.getpid(), signal.SIGKILL)
def stopped(request):
    subprocess.Popen(["sh", "-c", f"sleep 20; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    return build(request)
def preempted(request):
    os.kill(os.getpid(), signal.SIGUSR1)
def full(request):
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    return build(request)
def late(request):
    time.sleep(2)
    return build(request)
"""


class Ended(NamedTuple):
    """How a process ended, what it said, and the seconds after which both had ended."""

    status: int
    said: str
    seconds: float


Start = Callable[..., list[Ended]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """How `offramp train` ends in two processes with these further options, each started by hand or by a launcher."""
    (tmp_path / "faulty_digits.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("OFFRAMP_DATA", raising=False)

    def start(*more: dict[str, object], launched: bool = False, port: int = 0) -> list[Ended]:
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or forked.free_port()), "OMP_NUM_THREADS": "1"}
        processes, logs = [], []
        for rank, options in enumerate(more):
            here = {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} if launched else {"NODE_RANK": str(rank)}
            usual = {"devices" if launched else "nodes": 2, "batch-size": 256, "out": tmp_path / "run"}
            values = {"data": "python:faulty_digits", **usual, **options}
            here |= {"NODE_RANK": str(values.pop("rank"))} if "rank" in values else {}
            words = [word for name, value in values.items() for word in (f"--{name}", value) if word != ""]
            logs.append(tmp_path / f"said{rank}")
            logs[-1].unlink(missing_ok=True)
            processes.append(forked.start(*WORDS, *words, out=logs[-1], env={**os.environ, **common, **here}))
        began = time.monotonic()
        statuses = [process.wait(100) for process in processes]
        seconds = time.monotonic() - began
        return [Ended(status, log.read_text(), seconds) for status, log in zip(statuses, logs, strict=True)]

    return start


def one_line_each(ended: list[Ended], says: str) -> bool:
    """Whether both ended, each with an error of one line that says this."""
    return all(
        one.status in (1, 2) and one.said.count("\n") == 1 and re.search(f"^offramp: .*{says}", one.said)
        for one in ended
    )


KINDS: dict[str, tuple[dict[str, object], str]] = {
    "unknown option": ({"lrr": 1}, "Unknown option: --lrr"),
    "unknown parameter": ({"method.lrr": 1}, "unknown parameter of method joint 'lrr'"),
    "not a number": ({"lr": "x"}, "Invalid value for --lr: unable to convert"),
    "bad value": ({"patience": -1}, "--patience must not be negative"),
    "late": ({"data": "python:faulty_digits:late", "holdout": 2}, "--holdout must be a share"),
    "no data": ({"data": "folder:nowhere"}, "nowhere does not exist"),
    "error": ({"data": "python:faulty_digits:error"}, "RuntimeError: the server of the images does not answer"),
    "memory": ({"data": "python:faulty_digits:memory"}, "[Mm]emory"),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_if_one_process_cannot_train_the_other_one_ends_and_says_why(start: Start, kind: str, rank: int) -> None:
    options, says = KINDS[kind]
    ended = start(*(options if number == rank else {} for number in range(2)))
    assert one_line_each(ended, says), ended
    assert f"offramp: process {rank} on {socket.gethostname()} ended: " in ended[1 - rank].said


def test_if_all_are_wrong_each_says_so_and_none_waits(start: Start) -> None:
    says = "--batch-size 255 does not divide evenly over --nodes 2"
    assert one_line_each(start({"batch-size": 255}, {"batch-size": 255}), says)


def test_a_wrong_number_of_a_machine_is_refused(start: Start) -> None:
    first, other = start({}, {"rank": 2})  # the first one stays for a process 1 that may come
    assert (first.status, other.status) == (1, 1) and other.said.count("\n") == 1
    assert all("NODE_RANK=2 must be 0 to 1 for --nodes 2" in one.said for one in (first, other))


def test_two_machines_with_the_same_number_are_refused(start: Start) -> None:
    every = {"nodes": 3, "batch-size": 255}
    ended = start(every, every, {**every, "rank": 1}, {**every, "rank": 2})
    says = r"two processes came to 127\.0\.0\.1:\d+ as number 1: give every machine its own NODE_RANK"
    assert one_line_each(ended, says), ended


@pytest.mark.parametrize("rank", [0, 1])
def test_a_launcher_is_no_exception(start: Start, rank: int) -> None:
    """With torchrun and srun, a process after the first one of a machine leaves it to that one to say why."""
    ended = start(*({"lr": "x"} if number == rank else {} for number in range(2)), launched=True)
    assert [one.status for one in ended] == ([2, 0] if rank == 0 else [1, 2]), ended
    assert (
        "Invalid value for --lr: unable to convert" in ended[0].said and ("Invalid value" in ended[1].said) == rank
    ), ended


def test_the_folder_is_in_use_or_cannot_be_written(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with writing(tmp_path / "run"):
        ended = start({}, {})
    assert one_line_each(ended, f"run is being written to by process {os.getpid()} on "), ended
    ended = start({"out": "/dev/null/run"}, {})
    assert one_line_each(ended, "/dev/null/run"), ended
    ended = start({"data": "python:faulty_digits:full"}, {})
    assert one_line_each(ended, "cannot be written: File too large"), ended
    assert [one.status for one in start({}, {})] == [0, 0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_is_missed(start: Start, rank: int) -> None:
    """As by a system without memory."""
    ended = start(*({"data": "python:faulty_digits:killed"} if number == rank else {} for number in range(2)))
    status, said, _ = ended[1 - rank]
    says = "process 1 of this run ended without a word" if rank else "the first process of this run ended: see what"
    assert status == 1 and said.splitlines()[-1].startswith("offramp: ") and says in said, ended
    assert ended[rank].status == -signal.SIGKILL


@pytest.mark.full
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_stopped_for_a_while_is_waited_for(start: Start, rank: int) -> None:
    ended = start(*({"data": "python:faulty_digits:stopped"} if number == rank else {} for number in range(2)))
    assert [one.status for one in ended] == [0, 0] and ended[0].seconds > 20, ended


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_before_the_first_step_ends_both_so_that_the_run_is_started_again(start: Start, rank: int) -> None:
    ended = start(*({"data": "python:faulty_digits:preempted"} if number == rank else {} for number in range(2)))
    assert [one.status for one in ended] == [75, 75], ended
    assert all("SIGUSR1" in one.said and "the same command with --resume continues" in one.said for one in ended)


def test_processes_that_do_not_fit_together_are_refused(start: Start) -> None:
    assert one_line_each(
        start({"lr": 0.2}, {}), "process 1 has --lr 0.1, but process 0 has 0.2: start the same command, with the same"
    )
    says = "process 1 was started as one of 4, process 0 as one of 2: start all with the same --nodes and --devices"
    assert one_line_each(start({}, {"nodes": 4}), says)


def test_a_port_that_is_in_use_is_named(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        ended = start({}, port=(port := used.getsockname()[1]))
    assert (
        ended[0].status == 1
        and f"127.0.0.1:{port}, where the processes of this run meet, is in use: on" in ended[0].said
    )


def test_a_run_that_is_finished_where_the_first_process_is_ends_the_others(start: Start, tmp_path: Path) -> None:
    """On a machine that does not see the folder of the run, a process would wait for the first one."""
    assert [one.status for one in start({}, {})] == [0, 0]
    ended = start({"resume": ""}, {"resume": "", "out": tmp_path / "elsewhere"})
    assert [one.status for one in ended] == [0, 0] and all("run is finished" in one.said for one in ended), ended
    ended = start({"resume": "", "out": tmp_path / "elsewhere"}, {"resume": ""})
    assert "process 1 on" in ended[0].said and "choose an --out that all machines share" in ended[0].said, ended
    assert ended[0].status == 1


def alone(folder: Path, rank: int, host: str, port: int) -> forked.Program:
    """One of two processes, of which the other one is not started; it writes into the file `said`."""
    variables = {"MASTER_ADDR": host, "MASTER_PORT": str(port), "NODE_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    words = [*WORDS, "--data", "digits", "--nodes", "2", "--batch-size", "256", "--out", folder / "run"]
    return forked.start(*words, out=folder / "said", env={**os.environ, **variables})


def test_a_name_that_the_first_machine_does_not_know_is_refused(tmp_path: Path) -> None:
    assert alone(tmp_path, 0, "nowhere.invalid", 29400).wait(60) == 1
    says = r"offramp: MASTER_ADDR=nowhere\.invalid is unknown here \(.*\): set it to this machine\n"
    assert re.fullmatch(says, (tmp_path / "said").read_text())


def test_a_name_that_other_machines_do_not_know_yet_is_waited_for_with_a_word(tmp_path: Path) -> None:
    """In a cluster, the name of a machine may become known when it starts."""
    process = alone(tmp_path, 1, "nowhere.invalid", 29400)
    says = "waiting for the first process of this run at nowhere.invalid:29400 ("
    assert status_after_ctrl_c(process, tmp_path / "said", says) == 130


SILENT = "(timed out)"


@pytest.mark.parametrize("reason", ["(Connection refused)", SILENT])
def test_the_first_process_is_waited_for_with_a_word(tmp_path: Path, reason: str) -> None:
    """It may be started by hand, later; Ctrl-C ends the others meanwhile."""
    with contextlib.ExitStack() as opened:
        port = forked.free_port()
        if reason == SILENT:
            server = opened.enter_context(socket.create_server(("127.0.0.1", port), backlog=0))
            opened.enter_context(socket.create_connection(server.getsockname()))  # no other one is accepted
        process = alone(tmp_path, 1, "127.0.0.1", port)
        says = f"waiting for the first process of this run at 127.0.0.1:{port} {reason}"
        assert status_after_ctrl_c(process, tmp_path / "said", says) == 130


def test_a_process_that_was_not_started_is_waited_for_with_a_word(tmp_path: Path) -> None:
    port = forked.free_port()
    process = alone(tmp_path, 0, "127.0.0.1", port)
    says = f"waiting for process 1 of this run to come to 127.0.0.1:{port}"
    assert status_after_ctrl_c(process, tmp_path / "said", says, "Ctrl-C: end now") == 130


def status_after_ctrl_c(process: forked.Program, said: Path, *says: str) -> int:
    """The status of a process that is interrupted as soon as it has said each of these."""
    end = time.monotonic() + 60
    try:
        for words in says:
            while not said.exists() or words not in said.read_text():
                assert process.poll() is None and time.monotonic() < end, said.read_text()
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
        return process.wait(60)
    finally:
        if process.poll() is None:
            process.kill()
