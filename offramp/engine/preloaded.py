"""A process that imports slow packages once, and from which every job is forked: 0.1 CPU seconds instead of 5.

Only imports happen before the fork: no threads are started, no GPU is used, nothing is computed. What a job does later
(its environment, its files, signals, its end) stays its own. Standard library alone, so that it begins at once.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LENGTH = struct.Struct("!I")
"""Before every message: the number of its bytes."""


class Preloaded:
    """The process that jobs are forked from; it ends with `close`, or when this process ends.

    Args:
        modules: what it imports first; what cannot be imported is left to the jobs.
        environment: of it and of every job.
        keep_open: a file that it and every job hold open as long as they live.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str], keep_open: int) -> None:
        self.control, theirs = socket.socketpair()
        program = "from offramp.engine.preloaded import serve; serve()"
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, json.dumps([theirs.fileno(), list(modules)])],
                stdin=subprocess.PIPE,  # every job inherits it: its end tells them that this process has ended
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                pass_fds=(theirs.fileno(), keep_open),
                start_new_session=True,
            )

    def fork(self, call: str, argument: Any, environment: Mapping[str, str], output: Path, errors: Path) -> "Forked":
        """Start a process that calls a function.

        Args:
            call: `module:function`, which gets `argument`, a value that JSON can hold.
            environment: variables to change.
            output: file that standard output is appended to; errors: the same for standard error.
        """
        request = [call, argument, dict(environment), str(output.absolute()), str(errors.absolute())]
        return Forked(self, self.ask(request))

    def ask(self, request: Any) -> Any:
        """The answer of the process; None if it was killed."""
        try:
            _send(self.control, request)
            return _receive(self.control)
        except OSError:
            return None

    def close(self) -> None:
        """End it; jobs that are still at work save themselves."""
        self.control.close()
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


class Forked:
    """A process of a job, with the part of `subprocess.Popen` that is needed."""

    def __init__(self, origin: Preloaded, pid: int | None) -> None:
        self.origin, self.pid = origin, pid
        self.status: int | None = None

    def poll(self) -> int | None:
        """Exit status, negative for a signal, or None while it runs; killed if the process it was forked from was."""
        if self.status is None:
            answer = None if self.pid is None else self.origin.ask(self.pid)
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


def serve() -> None:
    """The process that jobs are forked from: import, then fork or report an exit status when asked, until the end."""
    descriptor, modules = json.loads(sys.argv.pop())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray's processes block it
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that collections in a job leave the shared pages as they are
    control = socket.socket(fileno=descriptor)
    while (request := _receive(control)) is not None:
        if isinstance(request, int):
            pid, status = os.waitpid(request, os.WNOHANG)
            _send(control, [os.waitstatus_to_exitcode(status) if pid else None])
        elif pid := os.fork():
            _send(control, pid)
        else:
            control.close()
            _work(*request)
            return


def _work(call: str, argument: Any, environment: Mapping[str, str], output: str, errors: str) -> None:
    """In the forked process: what a process of its own would have from the start; then the call."""
    os.setsid()
    for number, file in ((1, output), (2, errors)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.update(environment)
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    module, _, function = call.partition(":")
    getattr(importlib.import_module(module), function)(argument)


def _send(connection: socket.socket, message: Any) -> None:
    text = json.dumps(message).encode()
    connection.sendall(LENGTH.pack(len(text)) + text)


def _receive(connection: socket.socket) -> Any:
    """The next message; None at the end."""
    head = connection.recv(LENGTH.size, socket.MSG_WAITALL)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    return json.loads(connection.recv(size, socket.MSG_WAITALL))
