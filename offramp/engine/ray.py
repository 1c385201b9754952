"""Trainings as tasks of a Ray cluster: Ray places them and retries what a lost node takes with it.

Each task does on its node what `offramp.engine.local` does for one job. The runs are in a folder that all nodes see,
so that a task which is retried elsewhere resumes from the run's newest checkpoint; or they are fetched (`fetched`).
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from offramp import __version__
from offramp.engine import fetched, local
from offramp.engine.local import Job, Watcher
from offramp.engine.ray_address import check_address
from offramp.engine.ray_output import logged
from offramp.lookup import ParameterError

AUTHENTICATION = "RAY_AUTH_MODE"
"""Environment variable that decides whether Ray identifies itself by a token."""
ANSWER = 60.0
"""Seconds in which every node must answer, before anything is trained."""


class Stopped(Exception):
    """A run was stopped because its node is shut down: it was saved and continues on another node."""


RETRY: dict[str, Any] = {"max_retries": 20, "retry_exceptions": [Stopped]}
"""Number of lost nodes after which a run is still continued."""


@dataclass(frozen=True)
class StartedFrom:
    """What a task takes over from the process that started it: folder, module search path, OFFRAMP_ variables."""

    folder: str
    path: list[str]
    environment: dict[str, str]

    @classmethod
    def here(cls) -> "StartedFrom":
        """That of this process."""
        variables = {name: value for name, value in os.environ.items() if name.startswith("OFFRAMP_")}
        return cls(str(Path.cwd()), [str(Path(entry).absolute()) for entry in sys.path], variables)

    def enter(self) -> None:
        """Work as that process does; its folder is left out where the node does not have it."""
        sys.path += [entry for entry in self.path if entry not in sys.path]
        os.environ.update(self.environment)
        if Path(self.folder).is_dir():
            os.chdir(self.folder)


class Cluster:
    """A Ray cluster that this process is connected to; an `offramp.engine.choice.Engine`.

    Args:
        fetch: whether runs are trained in a folder of their node and fetched, instead of in a folder that all see.
    """

    def __init__(self, ray: Any, fetch: bool = False) -> None:
        self.ray, self.fetch = ray, fetch
        self.receiver: Any = None
        self.origin = StartedFrom.here()
        self.nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if not self.nodes:
            raise ParameterError("engine=ray: no node of the cluster offers a CPU", "engine")

    def check(self, folder: Path, gpus: bool) -> None:
        """Refuse another version of offramp, GPUs that no node has, or a folder that a node does not see.

        If runs are fetched, only this machine needs to see the folder.

        Raises:
            ValueError: naming the node.
        """
        if gpus and not any(node["Resources"].get("GPU", 0) >= 1 for node in self.nodes):
            raise ParameterError("device=cuda: no node of the Ray cluster offers a GPU", "device")
        with NamedTemporaryFile("w", dir=folder, prefix=".seen-") as file:
            file.write(file.name)
            file.flush()
            os.fsync(file.fileno())
            answers = []
            for node in self.nodes:
                task = self.ray.remote(_seen).options(num_cpus=0, max_retries=0, **on_node(node["NodeID"]))
                answers.append(task.remote(file.name, self.origin))
            self.ray.wait(answers, num_returns=len(answers), timeout=ANSWER)
            here = self.ray.get_runtime_context().get_node_id()
            for node, answer in zip(self.nodes, answers, strict=True):
                name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
                shared = None if self.fetch and node["NodeID"] != here else file.name
                self._check_node(name, answer, folder, shared)

    def _check_node(self, node: str, answer: Any, folder: Path, expected: str | None) -> None:
        try:
            text, version = self.ray.get(answer, timeout=0)
        except self.ray.exceptions.GetTimeoutError:
            raise ValueError(f"node {node} of the Ray cluster does not answer within {ANSWER:.0f} s") from None
        except self.ray.exceptions.RayError as error:
            raise ValueError(f"node {node} of the Ray cluster cannot run offramp: {_reason(error)}") from None
        if version != __version__:
            raise ValueError(f"node {node} of the Ray cluster has offramp {version}, this machine has {__version__}")
        if expected not in (None, text):
            raise ParameterError(
                f"node {node} of the Ray cluster does not see {folder}: choose an out that all nodes share, or add "
                "fetch",
                "out",
                "fetch",
            )

    def share(self, at_once: int) -> int:
        """Cores of a job, if the smallest node runs this many at a time."""
        return max(1, int(min(node["Resources"]["CPU"] for node in self.nodes)) // at_once)

    def gpu_share(self, at_once: int) -> float:
        """GPUs of a job that needs one: a part of it if a node has fewer than it runs jobs at a time."""
        fewest = min((int(gpus) for node in self.nodes if (gpus := node["Resources"].get("GPU", 0)) >= 1), default=1)
        return 1 / -(-at_once // fewest)

    def run(self, jobs: Sequence[Job], at_once: int, watcher: Watcher, keep_open: int) -> bool:
        """Run every job as a task; one that fails does not stop the others.

        Ctrl-C is handed on, so that every run saves itself; a second one stops them at once.

        Args:
            at_once: jobs on one node at the same time: each needs this share of the cores of the smallest node.
            keep_open: not needed: each task holds a lock of its own (see `_work`).
        Returns:
            Whether all had their turn: False after Ctrl-C.
        """
        cores = self.share(at_once)
        for job in jobs:
            job.answer.unlink(missing_ok=True)
        self.start_receiver()
        tasks = {self._submit(job, cores, self.gpu_share(at_once)): job for job in jobs}
        started: set[str] = set()
        forwarded = 0
        with local.stopping(watcher) as stops:
            while tasks:
                if forwarded < len(stops):
                    forwarded = len(stops)
                    for task in tasks:
                        self.ray.cancel(task, force=forwarded > 1)
                ended, _ = self.ray.wait(list(tasks), timeout=0.2)
                for task, job in list(tasks.items()):
                    self._look(job, watcher, started)
                    if task in ended:
                        self._end(tasks.pop(task), task, watcher, started, bool(stops))
            return not stops

    def start_receiver(self) -> None:
        """If runs are fetched, start on this machine what receives them."""
        if self.fetch:
            here = on_node(self.ray.get_runtime_context().get_node_id())
            self.receiver = self.ray.remote(fetched.Receiver).options(num_cpus=0, **here).remote(self.origin.enter)

    def _submit(self, job: Job, cores: int, gpus: float) -> Any:
        options = {"num_cpus": cores, "num_gpus": gpus if job.needs_gpu else 0, "name": job.name, **RETRY}
        sent = replace(job, done=nothing)
        if not self.fetch:
            return self.ray.remote(_work).options(**options).remote(sent, self.origin)
        return self.ray.remote(_fetched).options(**options).remote(sent, self.origin, self.receiver)

    def _look(self, job: Job, watcher: Watcher, started: set[str]) -> None:
        """Report that the job began, once it has opened the file of its result, and that it is running."""
        if job.name not in started and job.answer.exists():
            started.add(job.name)
            watcher.started(job)
        if job.name in started:
            watcher.running(job)

    def _end(self, job: Job, task: Any, watcher: Watcher, started: set[str], stopped: bool) -> None:
        """Take the result of a task; a job that was stopped has not failed."""
        try:
            job.failure = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            if stopped:
                return
            job.failure = _reason(error)
        if job.name not in started:  # it failed before, or was so short that it was never seen running
            watcher.started(job)
        if job.failure is None:
            job.done()
        watcher.ended(job)


def on_node(node: str) -> dict[str, Any]:
    """Options of a task that runs on this node and no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


@contextmanager
def connected(address: str | None, fetch: bool = False) -> Iterator[Cluster]:
    """A connection to a Ray cluster; without an address to that of $RAY_ADDRESS or this machine, or to a new one.

    Args:
        fetch: as in `Cluster`.
    Raises:
        ValueError: if Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
    except ImportError:
        raise ParameterError("engine=ray needs the package ray: pip install 'offramp[ray]'", "engine") from None
    source = "RAY_ADDRESS" if not address and os.environ.get("RAY_ADDRESS") else "address"
    address = address or os.environ.get("RAY_ADDRESS")
    if address not in (None, "auto", "local"):
        check_address(address, source)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    joined = ray.is_initialized()
    try:
        if not joined:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise cannot_connect(source, address, error) from None
    try:
        with logged():
            yield Cluster(ray, fetch)
    finally:
        if not joined:
            ray.shutdown()


def cannot_connect(source: str, address: str | None, error: BaseException) -> ParameterError:
    """Why Ray cannot connect to the address that this source gave."""
    message = f"{source}={address or 'auto'}: Ray cannot connect: {_reason(error)}"
    if address and AUTHENTICATION not in os.environ:  # then Ray sends no token
        message += f"; if the cluster wants a token, as `ray start` says, set {AUTHENTICATION}=token"
    return ParameterError(message, "address")


def _seen(path: str, origin: StartedFrom) -> tuple[str | None, str]:
    """On a node: what a file contains there, None if it is absent, and the version of offramp."""
    origin.enter()
    return Path(path).read_text() if Path(path).is_file() else None, __version__


def _work(job: Job, origin: StartedFrom) -> str | None:
    """On a node: run the job's commands in a process of their own, as `local` does.

    The process holds a lock for as long as it lives: a task that is retried waits until one that a lost node left
    behind has saved itself.

    Returns:
        Why it failed, if it did.
    Raises:
        Stopped: if it was stopped by a signal.
    """
    origin.enter()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with local.locked_folder(job.log.with_suffix(".lock"), local.LONGEST_SAVING, _ignore) as lock:
        if not local.run([job], 1, local.Unwatched(), lock.fileno()):
            raise Stopped("it was stopped on its node; the same command continues")
    return job.failure


def _fetched(job: Job, origin: StartedFrom, receiver: Any) -> str | None:
    """On a node: as `_work`, in a folder of the node, from which all files are sent."""
    call = calling(receiver)
    origin.enter()
    with fetched.on_node(job, call) as there:
        if not fetched.work(job, there, call, local.Unwatched()):
            raise Stopped("it was stopped on its node; the same command continues")
    return job.failure


def calling(receiver: Any) -> fetched.Call:
    """Calls methods of a `fetched.Receiver` that is an actor, and waits for what they return."""
    import ray

    def call(method: str, *arguments: Any) -> Any:
        return ray.get(getattr(receiver, method).remote(*arguments))

    return call


def nothing() -> None:
    """What happens on the node when a job has succeeded: its line is added where it was started."""


def _ignore(text: str) -> None:
    """A note on the node."""


def _reason(error: BaseException) -> str:
    """The first line of an error, of the task's own one if there is one."""
    cause = getattr(error, "cause", None)
    lines = str(cause if isinstance(cause, Exception) else error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
