"""A process that imports slow packages once, and from which every job is forked: 0.1 CPU seconds instead of 5.

Only imports happen before the fork: no threads are started, no GPU is used, nothing is computed. What a job has later
(folder, environment, files, signals, its end) is its own. Standard library alone, so that it begins at once.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LENGTH = struct.Struct("!I")
"""Before every message: the number of its bytes."""
THREADS = "OMP_NUM_THREADS"
"""The variable that says how many threads a process computes with."""


@dataclass(frozen=True)
class Task:
    """What a forked process does.

    Attributes:
        call: `module:function`, which gets `argument`, a value that JSON can hold.
        folder: working directory.
        path: `sys.path`, to which that of the process it is forked from is added.
        environment: all variables.
        output: file that standard output is appended to; errors: the same for standard error.
    """

    call: str
    argument: Any
    folder: str
    path: list[str]
    environment: dict[str, str]
    output: str
    errors: str


class Preloaded:
    """The process that jobs are forked from; it ends with `close`, or when this process ends.

    Args:
        modules: what it imports first; what cannot be imported is left to the jobs.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = list(modules)
        self.server = ForkServer(self.modules)

    def load(self, modules: Sequence[str]) -> None:
        """Import further modules."""
        self.modules = list(dict.fromkeys([*self.modules, *modules]))
        self.server.ask("load", self.modules)

    def fork(self, task: Task, keep_open: int) -> "Forked":
        """Start a process; once more from a new origin if this one was killed.

        Args:
            keep_open: a file that it holds open as long as it lives.
        """
        pid = self.server.ask("fork", asdict(task), keep_open)
        if pid is None:
            self.close()
            self.server = ForkServer(self.modules)
            pid = self.server.ask("fork", asdict(task), keep_open)
        return Forked(self.server, pid)

    def close(self) -> None:
        """End it; jobs that are still running save themselves."""
        self.server.close()


class ForkServer:
    """A process that runs `serve`, and the connection to it."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.lock = threading.Lock()
        self.control, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, json.dumps([str(_ROOT), theirs.fileno(), list(modules)])],
                stdin=subprocess.PIPE,  # every job inherits it: its end tells them that this process has ended
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(os.environ),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def ask(self, what: str, about: Any, *files: int) -> Any:
        """Its result; None if it was killed."""
        with self.lock:
            try:
                _send(self.control, [what, about], *files)
                answer, _ = _receive(self.control)
            except OSError:
                return None
        return answer

    def close(self) -> None:
        """End it, even while it imports."""
        self.control.close()
        assert self.process.stdin
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()


class Forked:
    """A process of a job, with the part of `subprocess.Popen` that is needed."""

    def __init__(self, server: ForkServer, pid: int | None) -> None:
        self.server, self.pid = server, pid
        self.status: int | None = None

    def poll(self) -> int | None:
        """Exit status, negative for a signal, or None while it runs; killed if the process it was forked from was."""
        if self.status is None:
            answer = None if self.pid is None else self.server.ask("status", self.pid)
            if answer is None:
                self.kill()
                answer = [-signal.SIGKILL]
            self.status = answer[0]
        return self.status

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self.status is None and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


_ROOT = Path(__file__).parents[2]
_PROGRAM = (
    "import json, sys; root, *rest = json.loads(sys.argv.pop()); sys.path.insert(0, root); "
    "from offramp.engine.preloaded import serve; serve(*rest)"
)


def serve(descriptor: int, modules: Sequence[str]) -> None:
    """The process that jobs are forked from: it imports, forks and reports exit statuses, until the connection ends."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray's processes block it
    control = socket.socket(fileno=descriptor)
    _load(modules)
    while True:
        request, files = _receive(control)
        if request is None:
            return
        what, about = request
        if what == "load":
            _load(about)
            _send(control, True)
        elif what == "status":
            pid, status = os.waitpid(about, os.WNOHANG)
            _send(control, [os.waitstatus_to_exitcode(status) if pid else None])
        elif pid := os.fork():
            _send(control, pid)
            for file in files:
                os.close(file)
        else:
            control.close()
            _work(Task(**about))
            return


def _load(modules: Sequence[str]) -> None:
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that collections in a job leave the shared pages as they are


def _work(task: Task) -> None:
    """In the forked process: what a process of its own would have from the start; then the call."""
    os.setsid()
    for number, file in ((1, task.output), (2, task.errors)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(task.folder)
    os.environ.clear()
    os.environ.update(task.environment)
    sys.path[:] = dict.fromkeys([*task.path, *sys.path])
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules and task.environment.get(THREADS, "").isdecimal():
        sys.modules["torch"].set_num_threads(int(task.environment[THREADS]))
    module, _, function = task.call.partition(":")
    getattr(importlib.import_module(module), function)(task.argument)


def _send(connection: socket.socket, message: Any, *files: int) -> None:
    text = json.dumps(message).encode()
    socket.send_fds(connection, [LENGTH.pack(len(text))], files)
    connection.sendall(text)


def _receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """The next message, and the files that came with it; None at the end."""
    head, files, _, _ = socket.recv_fds(connection, LENGTH.size, 1)
    if len(head) < LENGTH.size:
        return None, files
    (size,) = LENGTH.unpack(head)
    return json.loads(connection.recv(size, socket.MSG_WAITALL)), files
