"""Ctrl-C while a network trains: the first one asks for the state to be saved, a second one stops at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopping_on_interrupt(stop: threading.Event, note: Callable[[str], None], when: str) -> Iterator[None]:
    """Let Ctrl-C set `stop`, and a second one raise KeyboardInterrupt; in other threads than the main one, nothing.

    Args:
        note: shows a line to the user.
        when: the state will be saved, as words.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        note(f"Ctrl-C: saving {when} (again: stop at once)")

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGINT, previous)
