"""One writer per folder: others are refused by name, and a lock dies with its holder."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from offramp.train.run_lock import LOCK, InUse, writing

HOLDER = """
import sys, time
from pathlib import Path
from offramp.train.run_lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock of the folder, and is killed in the end."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_another_process_is_refused_by_name_and_its_lock_dies_with_it(tmp_path: Path) -> None:
    with holder(tmp_path) as process, pytest.raises(InUse) as caught, writing(tmp_path):
        pass
    wanted = (
        rf"{re.escape(str(tmp_path))} is being written to by process {process.pid} on \S+ "
        r"\(since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\): wait for it, or stop it first"
    )
    assert re.fullmatch(wanted, str(caught.value))
    assert (tmp_path / LOCK).is_file()  # what the killed process left locks nothing
    with writing(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_the_same_thread_enters_again_and_another_does_not(tmp_path: Path) -> None:
    refused: list[str] = []

    def enter() -> None:
        try:
            with writing(tmp_path):
                pass
        except InUse as error:
            refused.append(str(error))

    with writing(tmp_path), writing(tmp_path / "."):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert (tmp_path / LOCK).is_file()
    assert len(refused) == 1 and f"process {os.getpid()} on" in refused[0]
    enter()
    assert len(refused) == 1 and not list(tmp_path.iterdir())


def test_the_lock_is_released_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing(tmp_path):
        raise KeyboardInterrupt
    with writing(tmp_path):
        pass


def test_a_file_without_a_description_still_locks(tmp_path: Path) -> None:
    with holder(tmp_path):
        (tmp_path / LOCK).write_text("{")
        with pytest.raises(InUse, match="is being written to by another process: wait"), writing(tmp_path):
            pass
