"""Runs on nodes that do not see the folder of the runs: their files go to the node and come back through Ray.

A training works in a temporary folder of its node. The files that show its progress are sent while it runs, all files
after its first checkpoint, then after others at most once a minute, and when it ends or is stopped. If its node is
lost, it starts again from what was sent last.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from offramp.engine import local
from offramp.engine.local import Job, Unwatched, Watcher
from offramp.files import replacing
from offramp.train import checkpoint
from offramp.train.run_dir import CONFIG, METRICS, RESULT

EVERY = 1.0
"""Seconds between two looks at the files that show progress."""
SAVE_EVERY = 60.0
"""Seconds between two sendings of all files."""
FileContents = Mapping[str, bytes]
"""Contents by path."""
CHECKPOINTS = "checkpoints"
Call = Callable[..., Any]
"""(name of a method of `Receiver`, its arguments) -> what it returns, when it is done."""


class Receiver:
    """Writes what nodes send, on the machine of the command.

    Args:
        enter: works in the folder of the command from then on.
    """

    def __init__(self, enter: Callable[[], None]) -> None:
        enter()
        self.holders: dict[str, str] = {}

    def hold(self, folder: str, holder: str) -> bool:
        """Whether the holder has exclusive use of a run's folder: it is the first to ask since it was released."""
        return self.holders.setdefault(folder, holder) == holder

    def release(self, folder: str, holder: str) -> None:
        """Let others hold the folder, if the holder does."""
        if self.holders.get(folder) == holder:
            del self.holders[folder]

    def write(self, files: FileContents) -> None:
        """Write files, each in one step."""
        for path, content in files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replacing(Path(path)) as draft:
                draft.write_bytes(content)

    def read(self, folder: str, log: str) -> tuple[FileContents, bytes]:
        """The files of a run's folder and the content of its log."""
        return pack(Path(folder)), Path(log).read_bytes() if Path(log).is_file() else b""

    def put_run(self, folder: str, files: FileContents) -> None:
        """Replace the files of a run's folder by files from a node; at no time is the run incomplete.

        In the order in which a training writes them: records before the checkpoints that refer to them, each checkpoint
        as a whole, the result last. So what a kill leaves behind can be resumed.
        """
        there = Path(folder)
        if _content(there / RESULT) != files.get(RESULT):
            (there / RESULT).unlink(missing_ok=True)
        checkpoints, others = _checkpoints_and_others(files)
        for name in sorted(others.keys() - {RESULT}, key=lambda name: (name != CONFIG, name != METRICS, name)):
            self.write({str(there / name): others[name]})
        for step, content in sorted(checkpoints.items()):
            _put_checkpoint(there / CHECKPOINTS / step, content)
        _remove_others(there, files)
        if RESULT in files:
            self.write({str(there / RESULT): files[RESULT]})


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _checkpoints_and_others(files: FileContents) -> tuple[dict[str, dict[str, bytes]], FileContents]:
    """The files of every checkpoint, and all others."""
    checkpoints: dict[str, dict[str, bytes]] = {}
    for name, content in files.items():
        place = Path(name)
        if place.parts[0] == CHECKPOINTS and len(place.parts) == 3:
            checkpoints.setdefault(place.parts[1], {})[place.name] = content
    return checkpoints, {name: files[name] for name in files if Path(name).parent.name not in checkpoints}


def _put_checkpoint(path: Path, files: FileContents) -> None:
    """Write a checkpoint, unless it is there."""
    if path.is_dir() and pack(path) == files:
        return

    def write(draft: Path) -> None:
        unpack(draft, files)

    checkpoint.put(path, write)


def _remove_others(folder: Path, files: FileContents) -> None:
    """Remove the files that a run no longer has."""
    for name in _names(folder) - files.keys():
        (folder / name).unlink()
    for path in (folder / CHECKPOINTS).glob("*"):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def pack(folder: Path) -> FileContents:
    """All files of a run's folder, without its lock and what is being written."""
    return {name: (folder / name).read_bytes() for name in sorted(_names(folder))}


def _names(folder: Path) -> set[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in paths if not any(part.startswith(".") for part in path.parts)}


def unpack(folder: Path, files: FileContents) -> None:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def in_folder(job: Job, place: Path) -> Job:
    """The same job, in another folder."""
    folder = place / job.folder.name

    def word_there(word: str) -> str:
        return str(folder / Path(word).relative_to(job.folder)) if Path(word).is_relative_to(job.folder) else word

    commands = [[word_there(word) for word in words] for words in job.commands]
    return replace(job, commands=commands, folder=folder, log=place / job.log.name, answer=place / job.answer.name)


@contextmanager
def on_node(job: Job, call: Call) -> Iterator[Job]:
    """On a node: the same job in a temporary folder, with the files that the command's machine has of its run."""
    with TemporaryDirectory(prefix="offramp-") as name:
        there = in_folder(job, Path(name))
        run, log = call("read", str(job.folder), str(job.log))
        unpack(there.folder, run)
        there.log.write_bytes(log)
        yield there


def work(job: Job, there: Job, call: Call, watcher: Watcher) -> bool:
    """Run a job in its folder of the node and send its files; False if it was stopped.

    `job.failure` says why it failed, if it did.

    Args:
        job: as it was submitted; there: the same `on_node`.
        watcher: notified that it is running after the files with its progress were sent.
    """
    sender = Sender(job, there, call, watcher)
    with (there.folder.parent / "lock").open("wb") as lock:
        complete = local.run([there], 1, sender, lock.fileno())
    sender.changed()
    call("put_run", str(job.folder), pack(there.folder))
    job.failure = there.failure
    return complete


class Sender(Unwatched):
    """Sends checkpoints, and the files that show how a job goes: log, progress, what it printed.

    Args: see `work`.
    """

    def __init__(self, job: Job, there: Job, call: Call, watcher: Watcher) -> None:
        self.job, self.there, self.call, self.watcher = job, there, call, watcher
        self.sizes: dict[Path, int] = {}
        self.before = 0.0
        self.saved, self.checkpoints = time.monotonic() - SAVE_EVERY, self._checkpoints()

    def running(self, job: Job) -> None:
        """Send what has changed, once a second."""
        if time.monotonic() - self.before > EVERY:
            self.before = time.monotonic()
            self.changed()
            self._save()
            self.watcher.running(self.job)

    def _save(self) -> None:
        """Send all files if there is a new checkpoint: the first one at once, later ones once a minute."""
        if time.monotonic() - self.saved > SAVE_EVERY and self._checkpoints() != self.checkpoints:
            checkpoints = self._checkpoints()
            with suppress(FileNotFoundError):  # the training has just removed an old checkpoint: the next time
                self.call("put_run", str(self.job.folder), pack(self.there.folder))
                self.saved, self.checkpoints = time.monotonic(), checkpoints

    def _checkpoints(self) -> set[str]:
        return {path.name for path in (self.there.folder / CHECKPOINTS).glob("step-*")}

    def changed(self) -> None:
        """Send what has changed, with the paths that the command knows."""
        job, there = self.job, self.there
        pairs = {there.log: job.log, there.answer: job.answer, there.folder / METRICS: job.folder / METRICS}
        sizes = {path: path.stat().st_size for path in pairs if path.is_file()}
        changed = [path for path, size in sizes.items() if self.sizes.get(path) != size]
        if changed:
            self.sizes = sizes
            self.call("write", {str(pairs[path]): self._content(path) for path in changed})

    def _content(self, path: Path) -> bytes:
        return path.read_bytes().replace(str(self.there.folder).encode(), str(self.job.folder).encode())
