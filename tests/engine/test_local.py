"""Jobs in processes that are forked from one: how they end is reported as if each had been started by itself."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from offramp.engine import local
from offramp.engine.local import Job


def work(words: list[str]) -> None:
    """What the jobs of these tests run."""
    what, folder = words[0], Path(words[1])
    if what == "fails":
        print("offramp: there is nothing to train", file=sys.stderr)
        raise SystemExit(1)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "kills its origin":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if what == "raises":
        raise ValueError("a mistake")
    print(os.getpid(), os.getsid(0), os.environ["OMP_NUM_THREADS"], random.random(), sys.argv[1:])
    (folder / what).touch()


class Watching:
    def __init__(self) -> None:
        self.said: list[str] = []

    def started(self, job: Job) -> None:
        self.said.append(f"{job.name} began")

    def running(self, job: Job) -> None: ...

    def ended(self, job: Job) -> None:
        self.said.append(f"{job.name} ended")

    def note(self, text: str) -> None: ...


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Job]]:
    """Runs jobs that do these things, two at a time."""
    monkeypatch.syspath_prepend(Path(__file__).parent)

    def run(*names: str) -> list[Job]:
        jobs = [
            Job(
                name,
                "test_local:work",
                [[name, str(tmp_path)]],
                tmp_path,
                tmp_path / f"logs/{name}.log",
                tmp_path / f"logs/{name}.json",
                lambda name=name: None,  # type: ignore[misc]
                preload=("no_such_module",),
            )
            for name in names
        ]
        watching = Watching()
        with (tmp_path / "lock").open("ab") as lock:
            assert local.run(jobs, 2, watching, lock.fileno())
        assert sorted(watching.said) == sorted(f"{name} {what}" for name in names for what in ("began", "ended"))
        return jobs

    return run


def test_every_end_is_reported_and_stops_no_other(ended: Callable[..., list[Job]], tmp_path: Path) -> None:
    jobs = ended("fails", "killed", "raises", "a", "b")
    assert [job.failure for job in jobs] == [
        "there is nothing to train",
        "it was killed by signal 9",
        "ValueError: a mistake",
        None,
        None,
    ]
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()
    one, other = ((tmp_path / f"logs/{name}.json").read_text().split(maxsplit=4) for name in ("a", "b"))
    assert one[0] == one[1] != other[0], "each leads a session of its own: the terminal's Ctrl-C does not reach it"
    assert one[2] == "1" and one[3] != other[3], "they do not share random numbers"
    assert one[4] == f"['a', '{tmp_path}']\n"


def test_if_the_process_that_forks_is_killed_the_jobs_fail_and_end(ended: Callable[..., list[Job]]) -> None:
    (job,) = ended("kills its origin")
    assert job.failure == "it was killed by signal 9"
