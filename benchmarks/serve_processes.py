"""Starts the servers that `benchmarks/serve.py` compares and its load generator, each on cores of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PATH = "/v2/models/model/infer"


class Machine:
    """Which cores servers and load generator get."""

    def __init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.client, self.server = {cores[-1]}, set(cores[:-1] or cores)

    @contextmanager
    def on_server_cores(self) -> Iterator[None]:
        """What is measured in this process has the cores of a server."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.server)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    @property
    def about(self) -> dict[str, list[int]]:
        """A description for the results."""
        return {"server": sorted(self.server), "load": sorted(self.client)}

    def start(self, cores: set[int], *words: Any, **more: Any) -> "subprocess.Popen[str]":
        """Start a Python process, and all processes that it starts, on some cores."""
        command = [sys.executable, *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(len(self.server)), "RAY_USAGE_STATS_ENABLED": "0"}
        environment["RAY_worker_niceness"] = "0"  # as all other servers
        pin: Callable[[], None] = lambda: os.sched_setaffinity(0, cores)  # noqa: E731
        return subprocess.Popen(
            command, text=True, env=environment, preexec_fn=pin, start_new_session=True, cwd=HERE.parent, **more
        )


class Served(NamedTuple):
    """A running server: its port and its first process."""

    port: int
    process: int

    def pause(self) -> None:
        """Stop it and all of its processes while another server is measured."""
        os.killpg(self.process, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again."""
        os.killpg(self.process, signal.SIGCONT)


@contextmanager
def serving(machine: Machine, kind: str, folder: Path, *words: str) -> Iterator[Served]:
    """A server while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bodies = folder / "bodies-1.json"
    options = ("--early", folder / "early", "--plain", folder / "plain", "--bodies", bodies, *words)
    with (folder / f"{kind}.log").open("a") as log:
        process = machine.start(machine.server, HERE / "serve_servers.py", kind, port, *options, stdout=log, stderr=log)
    try:
        _ready(process, port, json.loads(bodies.read_text())[0].encode(), folder / f"{kind}.log")
        yield Served(port, process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ready(process: "subprocess.Popen[str]", port: int, body: bytes, log: Path) -> None:
    end = time.monotonic() + 180
    request = urllib.request.Request(f"http://127.0.0.1:{port}{PATH}", body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(request, timeout=10):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"a server did not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.2)


def load(machine: Machine, port: int, bodies: Path, **options: Any) -> dict[str, Any]:
    """What the load generator measured. A header that all requests of a file need is in a file `.header` beside it."""
    header = bodies.with_suffix(".header")
    options["header"] = header.read_text() if header.is_file() else ""
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = machine.start(machine.client, HERE / "serve_load.py", port, PATH, bodies, *words, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(process.communicate()[0])
    return result


def memory(process: int) -> float:
    """Memory of a process in MiB."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def cpu(process: int) -> float:
    """CPU seconds that a process has used, by its own clock (Linux): /proc/PID/stat counts whole ticks only."""
    return time.clock_gettime((~process << 3) | 2)  # MAKE_PROCESS_CPUCLOCK(process, CPUCLOCK_SCHED)


def segment_seconds(port: int) -> float:
    """Seconds that all segments have computed."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    text = opener.open(f"http://127.0.0.1:{port}/metrics").read().decode()
    lines = [line for line in text.splitlines() if line.startswith("offramp_segment_seconds_total")]
    return sum(float(line.split()[-1]) for line in lines)
