"""One writer per run: an exclusive lock on its folder that ends with the process that holds it."""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from offramp.files import write_errors

LOCK = ".lock"
_held: dict[Path, int] = {}
"""Folders that this process has locked, and the thread of each: the same thread may enter again."""


class InUse(ValueError):
    """Another process writes into the folder; the message names it."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the folder of a run for writing; the same thread may enter it again.

    The lock is the operating system's (`flock`), so that a process that is killed leaves none behind. The file shows
    the holder, and is removed at the end.

    Args:
        folder: an existing folder.
    Raises:
        InUse: if another process, or another thread, holds it.
        OSError: if the file system cannot lock files, or nothing may be written there.
    """
    place = folder.resolve()
    if _held.get(place) == threading.get_ident():
        yield
        return
    file = _locked(place / LOCK, folder)
    _held[place] = threading.get_ident()
    try:
        yield
    finally:
        del _held[place]
        (place / LOCK).unlink(missing_ok=True)  # while still locked
        file.close()


def _locked(path: Path, folder: Path) -> IO[str]:
    """The open lock file, locked, with this process's description in it."""
    import fcntl

    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with file:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise OSError(
                        f"{folder}: its file system cannot lock files ({error.strerror}); choose another folder"
                    ) from None
                raise InUse(f"{folder} is being written to by {_holder(file)}: wait for it, or stop it first") from None
        if _same(file, path):
            break
        file.close()  # the previous holder has just removed it
    file.truncate(0)
    _describe(file, path)
    return file


def _describe(file: IO[str], path: Path) -> None:
    """Write into the lock file who holds it; on a full disk it is given up."""
    started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    try:
        with write_errors(path):
            json.dump({"process": os.getpid(), "host": socket.gethostname(), "started": started}, file)
            file.flush()
    except OSError:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # closing tries once more to write
            file.close()
        raise


def _same(file: IO[str], path: Path) -> bool:
    """Whether the open file is still the file at that path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(file: IO[str]) -> str:
    """The holder of the lock, as the file says; it is written just after the lock was taken."""
    for _ in range(20):
        file.seek(0)
        try:
            holder = json.loads(file.read())
            return f"process {int(holder['process'])} on {holder['host']!s} (since {holder['started']!s})"
        except (ValueError, KeyError, TypeError):
            time.sleep(0.02)
    return "another process"
