"""What Ray prints about its cluster goes to the log: standard output belongs to this program's results."""

import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

THREADS = "ray_"
"""How the names of the threads begin in which Ray prints what a node reports, whatever its logging level is."""
COLOUR = re.compile(r"\x1b\[\d*m")
"""A terminal's colour."""


class _Output:
    """A stream that passes on what is written to it, except by threads of Ray: their lines are errors of `ray`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write or log; how many characters."""
        if not threading.current_thread().name.startswith(THREADS):
            return int(self._stream.write(text))
        if message := COLOUR.sub("", text).strip():
            logging.getLogger("ray").error("%s", message)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def logged() -> Iterator[None]:
    """While the context is open, Ray's threads print nothing."""
    output: Any = _Output(sys.stdout)
    with redirect_stdout(output):
        yield
