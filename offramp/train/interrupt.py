"""Signals while a network trains: the state is saved, and how the program ends says whether to start it again."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

PREEMPTING = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they take a machine away."""


class Preempted(KeyboardInterrupt):
    """SIGTERM or SIGUSR1: what was trained is saved; the same command with `resume` continues it.

    Attributes:
        status: exit status of the program, EX_TEMPFAIL of sysexits.h: a scheduler may start the command again.
    """

    status = 75


@contextmanager
def preemptible() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 raise `Preempted` while nothing is trained: a run that starts, or that ends.

    In other threads than the main one, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        raise Preempted(f"{signal.Signals(signum).name}: ended before or after the steps of training")

    previous = {number: signal.signal(number, handle) for number in PREEMPTING}
    try:
        yield
    finally:
        _restore(previous)


@contextmanager
def stopping_on_interrupt(stop: threading.Event, note: Callable[[str], None], when: str) -> Iterator[list[int]]:
    """Let Ctrl-C, SIGTERM and SIGUSR1 set `stop`, and a second Ctrl-C raise KeyboardInterrupt.

    In other threads than the main one, nothing happens.

    Args:
        note: shows a line to the user.
        when: the state will be saved, as words.
    Returns:
        The context gives the list of signals that came.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and signum in received:
            raise KeyboardInterrupt
        if signum not in received:
            interrupt = signum == signal.SIGINT
            name = "Ctrl-C" if interrupt else signal.Signals(signum).name
            note(f"{name}: saving {when}" + " (again: stop at once)" * interrupt)
        received.append(signum)
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, *PREEMPTING)}
    try:
        yield received
    finally:
        _restore(previous)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)


def end_of(signals: list[int], text: str) -> KeyboardInterrupt:
    """How a run ends that was saved after these signals: `Preempted`, unless Ctrl-C was one of them."""
    preempted = signals and signal.SIGINT not in signals
    return Preempted(text) if preempted else KeyboardInterrupt(text)
