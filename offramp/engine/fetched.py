"""Runs on nodes that do not see the folder of the runs: their files go to the node and come back through Ray.

A training works in a temporary folder of its node. The files that show its progress are sent while it runs, all files
when it ends or is stopped; if its node is lost, it starts again from what was sent when it was last stopped.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from offramp.engine import local
from offramp.engine.local import Job, Unwatched
from offramp.files import replacing
from offramp.train.run_dir import METRICS

EVERY = 1.0
"""Seconds between two looks at the files that show progress."""
FileContents = Mapping[str, bytes]
"""Contents by path."""
Send = Callable[..., None]
"""(name of a method of `Receiver`, its arguments) -> when it is done."""


class Receiver:
    """Writes what nodes send, on the machine of the command.

    Args:
        enter: works in the folder of the command from then on.
    """

    def __init__(self, enter: Callable[[], None]) -> None:
        enter()

    def write(self, files: FileContents) -> None:
        """Write files, each in one step."""
        for path, content in files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replacing(Path(path)) as draft:
                draft.write_bytes(content)

    def put_run(self, folder: str, files: FileContents) -> None:
        """Replace all files of a run's folder."""
        new, old = (Path(folder).with_name(f".{kind}-{Path(folder).name}") for kind in ("fetched", "replaced"))
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        unpack(new, files)
        Path(folder).rename(old)
        new.rename(folder)
        shutil.rmtree(old)


def pack(folder: Path) -> FileContents:
    """All files of a run's folder, without its lock and files that are being written."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def unpack(folder: Path, files: FileContents) -> None:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def moved(job: Job, place: Path) -> Job:
    """The same job, in another folder."""
    folder = place / job.folder.name

    def word_there(word: str) -> str:
        return str(folder / Path(word).relative_to(job.folder)) if Path(word).is_relative_to(job.folder) else word

    commands = [[word_there(word) for word in words] for words in job.commands]
    return replace(job, commands=commands, folder=folder, log=place / job.log.name, answer=place / job.answer.name)


def work(job: Job, run: FileContents, log: bytes, send: Send) -> bool:
    """On a node: run a job in a temporary folder and send its files; False if it was stopped.

    `job.failure` says why it failed, if it did.

    Args:
        run: the files of the run's folder; log: of its log, to which is added.
    """
    with TemporaryDirectory(prefix="offramp-") as name:
        there = moved(job, Path(name))
        unpack(there.folder, run)
        there.log.write_bytes(log)
        sender = Sender(job, there, send)
        with (Path(name) / "lock").open("wb") as lock:
            complete = local.run([there], 1, sender, lock.fileno())
        sender.changed()
        send("put_run", str(job.folder), pack(there.folder))
        job.failure = there.failure
    return complete


class Sender(Unwatched):
    """Sends the files that show how a job goes, when they have changed: log, progress, what it printed.

    Args:
        job: as it was submitted; there: the same in the folder of the node.
    """

    def __init__(self, job: Job, there: Job, send: Send) -> None:
        self.job, self.there, self.send = job, there, send
        self.sizes: dict[Path, int] = {}
        self.before = 0.0

    def running(self, job: Job) -> None:
        """Send what has changed, once a second."""
        if time.monotonic() - self.before > EVERY:
            self.before = time.monotonic()
            self.changed()

    def changed(self) -> None:
        """Send what has changed, with the paths that the command knows."""
        job, there = self.job, self.there
        pairs = {there.log: job.log, there.answer: job.answer, there.folder / METRICS: job.folder / METRICS}
        sizes = {path: path.stat().st_size for path in pairs if path.is_file()}
        changed = [path for path, size in sizes.items() if self.sizes.get(path) != size]
        if changed:
            self.sizes = sizes
            self.send("write", {str(pairs[path]): self._content(path) for path in changed})

    def _content(self, path: Path) -> bytes:
        return path.read_bytes().replace(str(self.there.folder).encode(), str(self.job.folder).encode())
