"""Processes that are forked from one that has already imported torch and offramp: 0.1 CPU seconds instead of 3.3.

For tests in which a process must be killed, interrupted or run beside another, or must run without the checks of shapes
that tests put around every function. Where starting Python is itself what is tested (imports, options of the
interpreter, launchers), use `subprocess`.
"""

import contextlib
import faulthandler
import fcntl
import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).parents[1]
PRELOAD = [
    *("torch", "torch._dynamo", "lightning_fabric", "safetensors.torch", "yaml", "rich.progress"),
    *("offramp.cli", "offramp.cli.train", "offramp.cli.evaluate", "offramp.cli.calibrate", "offramp.runs.train"),
    *("offramp.runs.evaluate", "offramp.runs.calibrate", "offramp.train.loop", "offramp.early_exit.runtime"),
    *("offramp.models.resnet", "offramp.branches.sketch", "offramp.branches.linear", "offramp.data.digits", "forked"),
    # what `train`, `evaluate` and `compare` import while they run
    *("cyclopts.help", "rich.markdown", "numpy.ma", "offramp.cli._argv", "offramp.cli._console", "offramp.cli.compare"),
    *("offramp.config.recipes", "offramp.data.split_record", "offramp.early_exit.curves", "offramp.measure.multi_net"),
    *("offramp.measure.provenance", "offramp.methods.joint", "offramp.runs.evaluate_bundle", "offramp.runs.latency"),
    *("offramp.split.input_contract", "offramp.split.lazy", "offramp.split.model_sources", "offramp.train.device"),
    *("offramp.train.more_epochs", "offramp.train.prepare"),
]
"""Python skips without a word what it cannot import here: tests/test_forked.py asks whether all are there."""
WHERE = signal.SIGUSR2
"""At which a process prints where its threads are."""
SHARED = "OFFRAMP_TESTS_FORKSERVER"
"""The variable with the address of the process that workers of pytest-xdist share."""


class Ran(NamedTuple):
    """How a process ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Program:
    """A running process, with the part of `subprocess.Popen` that tests need."""

    def __init__(self, process: BaseProcess, err: Path | None = None) -> None:
        self.process, self.err = process, err
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
        if self.process.exitcode is None:
            self.send_signal(WHERE)
            self.process.join(2)
            where = (self.err.read_text()[-5000:] if self.err else "") or "it says nothing"
            raise AssertionError(f"still running after {timeout} s: {where}")
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Origin(Program):
    """What `popen` started."""

    def __init__(self, process: BaseProcess, stdin: IO[bytes]) -> None:
        super().__init__(process)
        self.stdin = stdin

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            super().kill()


class _Descriptor:
    """An open file that a forked process is to have as well: there, it is the number of the file."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.number),)


def _received(duplicate: Any) -> int:
    return int(duplicate.detach())


def fork_origins() -> types.SimpleNamespace:
    """The `subprocess` for `offramp.engine.preloaded` with which the process that it forks jobs from is forked."""
    return types.SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)


def popen(command: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int], **pipes: Any) -> Origin:
    """As `subprocess.Popen` for `python -P -c CODE ARGUMENTS` as `offramp.engine.preloaded` starts it."""
    assert list(command[:3]) == [sys.executable, "-P", "-c"]
    assert pipes.pop("stdin") == subprocess.PIPE and pipes.pop("start_new_session")
    assert set(pipes.values()) == {subprocess.DEVNULL}
    reads, writes = os.pipe()
    files = {0: _Descriptor(reads), **{number: _Descriptor(number) for number in pass_fds}}
    arguments = (list(command[3:]), str(Path.cwd()), dict(env), files, list(sys.path))
    process = _context().Process(target=_enter_session, args=arguments)
    process.start()
    os.close(reads)
    return Origin(process, os.fdopen(writes, "wb"))


def _enter_session(
    words: Sequence[str], cwd: str, env: Mapping[str, str], files: Mapping[int, int], path: Sequence[str]
) -> None:
    """In the child of `popen`: run the code with its files at the numbers they have in the parent."""
    os.setsid()
    apart = {number: fcntl.fcntl(file, fcntl.F_DUPFD, 100) for number, file in files.items()}
    for number, file in apart.items():
        os.dup2(file, number)
    os.closerange(100, max(apart.values()) + 1)
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    _settle(cwd, env, path)
    _code(*words)


def start(
    *words: object, out: Path, err: Path | None = None, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Program:
    """Start `offramp WORDS`.

    Args:
        out: file that standard output is appended to; err: the same for standard error, default `out`.
        cwd: working directory, default the present one.
        env: the whole environment, default this one with one thread.
    """
    return _start(_offramp, words, out, err, cwd, env)


def run_code(code: str, *arguments: object, cwd: Path | None = None) -> Ran:
    """Run `python -c CODE ARGUMENTS`."""
    return _run([{}], _code, code, *arguments, cwd=cwd)[0]


def run_offramp(
    *words: object,
    cwd: Path | None = None,
    processes: int = 1,
    environments: Sequence[Mapping[str, str]] | None = None,
) -> list[Ran]:
    """Run `offramp WORDS`, in several processes as if started by a launcher, which may set these variables in each."""
    return _run(environments or _launched(processes), _offramp, *words, cwd=cwd)


def run_ranks(file: str, *arguments: object, processes: int = 2) -> None:
    """Run `python FILE ARGUMENTS` in several processes as if started by a launcher."""
    ended = _run(_launched(processes), _file, file, *arguments)
    said = "\n".join(f"{ran.returncode}: {ran.stderr[-3000:]}" for ran in ended)
    assert not any(ran.returncode for ran in ended), said


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _launched(processes: int) -> list[dict[str, str]]:
    """What a launcher adds to the environment of each, so that they find each other."""
    if processes == 1:
        return [{}]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    return [{**common, "LOCAL_RANK": str(rank), "RANK": str(rank)} for rank in range(processes)]


def _offramp(*words: str) -> None:
    from offramp.cli import main
    from offramp.engine import preloaded

    preloaded.subprocess = fork_origins()  # type: ignore[assignment]
    sys.argv = ["offramp", *words]
    main(list(words))


def _code(code: str, *arguments: str) -> None:
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<code of a test>", "exec"), {"__name__": "__main__"})


def _file(file: str, *arguments: str) -> None:
    sys.argv = [file, *arguments]
    runpy.run_path(file, run_name="__main__")


def _run(
    environments: Sequence[Mapping[str, str]],
    target: Callable[..., None],
    *words: object,
    cwd: Path | None = None,
    timeout: float = 280,
) -> list[Ran]:
    """One process with each of these additions to the environment; all are ended if one fails."""
    with tempfile.TemporaryDirectory(prefix="forked-") as name:
        files = [(Path(name) / f"{number}.out", Path(name) / f"{number}.err") for number in range(len(environments))]
        processes = [
            _start(target, words, out, err, cwd, {**os.environ, "OMP_NUM_THREADS": "1", **more})
            for (out, err), more in zip(files, environments, strict=True)
        ]
        try:
            return [
                Ran(process.wait(timeout), out.read_text(), err.read_text())
                for process, (out, err) in zip(processes, files, strict=True)
            ]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()


def _start(
    target: Callable[..., None],
    words: Sequence[object],
    out: Path,
    err: Path | None,
    cwd: Path | None,
    env: Mapping[str, str] | None,
) -> Program:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if env is None else dict(env)
    here = str(cwd or Path.cwd())
    values = ([str(word) for word in words], here, environment, str(out), str(err or out), list(sys.path))
    context = _context()
    server = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    process = context.Process(target=_enter, args=(target, *values, server))
    process.start()
    return Program(process, err or out)


def share() -> None:
    """Start the process that is forked for the workers of pytest-xdist, which this process starts after it."""
    _context()
    if not hasattr(forkserver._forkserver, "_forkserver_authkey"):  # of a later Python, which this process keeps
        os.environ[SHARED] = str(forkserver._forkserver._forkserver_address)  # type: ignore[attr-defined]


def _connect(server: str) -> None:
    """Processes of this one come from this server."""
    forkserver._forkserver._forkserver_address = server  # type: ignore[attr-defined]
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    if SHARED in os.environ:
        if forkserver._forkserver._forkserver_alive_fd is None:  # type: ignore[attr-defined]
            forkserver._forkserver._forkserver_alive_fd = os.pipe()[1]  # type: ignore[attr-defined]
            _connect(os.environ[SHARED])
        return context
    context.set_forkserver_preload(PRELOAD)
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _enter(
    target: Callable[..., None],
    words: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    out: str,
    err: str,
    path: Sequence[str],
    server: str,
) -> None:
    """In the child: run the target in `cwd`, with standard output and error appended to files.

    Processes that it forks itself come from the server that it came from.
    """
    _connect(server)
    for number, file in ((1, out), (2, err)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _settle(cwd, env, path)
    faulthandler.register(WHERE)
    target(*words)


def _settle(cwd: str, env: Mapping[str, str], path: Sequence[str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:] = path
    gc.freeze()  # collections leave out what was imported before the fork, and its pages shared
    signal.signal(signal.SIGINT, signal.default_int_handler)
