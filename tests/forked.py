"""The program in a process of its own, forked from one that has already imported torch: 0.1 s instead of 3.3.

For tests in which a process must be killed, interrupted or run beside another. Where starting Python is itself what is
tested (imports, options of the interpreter, launchers), use `subprocess`.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOAD = ["torch", "torch._dynamo", "lightning.fabric", "safetensors.torch", "yaml", "rich.progress", "forked"]


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _enter(words: Sequence[str], cwd: str, env: Mapping[str, str], out: str, err: str, path: Sequence[str]) -> None:
    """In the child: become `offramp WORDS` in `cwd`, with standard output and error appended to files."""
    for number, file in ((1, out), (2, err)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:] = path
    sys.argv = ["offramp", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from offramp.cli import main

    main(list(words))


class Program:
    """A running `offramp`, with the part of `subprocess.Popen` that tests need."""

    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        assert process.pid is not None
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal, None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """Wait for its end and return the exit status."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s"
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def start(
    *words: object, out: Path, err: Path | None = None, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Program:
    """Start `offramp WORDS`.

    Args:
        out: file that standard output is appended to; err: the same for standard error, default `out`.
        cwd: working directory, default the present one.
        env: the whole environment, default this one with one thread.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if env is None else dict(env)
    here = str(cwd or Path.cwd())
    arguments = ([str(word) for word in words], here, environment, str(out), str(err or out), list(sys.path))
    process = _context().Process(target=_enter, args=arguments)
    process.start()
    return Program(process)
