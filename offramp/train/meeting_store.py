"""The store through which the processes of a run exchange messages before the first step."""

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore

from offramp.train.launcher import Place
from offramp.train.lost import ConnectionLost

PAUSE = 0.2
"""Seconds between two attempts."""


def opened(here: Place, note: Callable[[str], None], end: float) -> PrefixStore:
    """The launcher's store; the first process opens it, unless torchrun has.

    Args:
        here: the place of this process.
        note: shows a line to the user.
        end: when the first process must have started, by `time.monotonic`.
    Raises:
        ConnectionLost: if it has not.
        ValueError: if its address cannot be used.
    """
    options: dict[str, Any] = {"timeout": timedelta(seconds=30), "wait_for_workers": False}
    if here.keeps_store:
        _check_name(here)
        options["multi_tenant"] = True  # the process group, which is made later, uses the same one
    else:
        _await_store(here, later(note, 5.0), end)
    try:
        store = TCPStore(*here.address, is_master=here.keeps_store, **options)
    except RuntimeError as error:
        reason = "is in use" if "EADDRINUSE" in str(error) else "cannot be used"
        raise ValueError(
            f"{here}, where the processes of this run meet, {reason}: on every machine, set MASTER_ADDR to the first "
            "machine, MASTER_PORT to a free port of it and NODE_RANK to the machine's own number"
        ) from error
    return PrefixStore(f"offramp/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _check_name(here: Place) -> None:
    """Refuse an address that the first process does not know: it is its own."""
    try:
        socket.getaddrinfo(*here.address)
    except OSError as error:
        raise ValueError(
            f"MASTER_ADDR={here.host} is unknown here ({error.strerror}): set it to this machine"
        ) from error


def _await_store(here: Place, say: Callable[[str], None], end: float) -> None:
    """Wait until something listens at the address of the first process, whose name may become known only then."""
    while True:
        try:
            return socket.create_connection(here.address, 2).close()
        except OSError as error:
            reason = error.strerror or error
            if time.monotonic() > end:
                raise ConnectionLost(
                    f"the first process of this run did not come to {here} ({reason}): start the command on every "
                    "machine, with the MASTER_ADDR of the first one"
                ) from error
        say(f"waiting for the first process of this run at {here} ({reason})")
        time.sleep(PAUSE)


def later(note: Callable[[str], None], seconds: float) -> Callable[[str], None]:
    """Returns a function that shows one line: the first one that it is given after these seconds."""
    due = [time.monotonic() + seconds]

    def say(text: str) -> None:
        if due and time.monotonic() > due[0]:
            due.clear()
            note(text)

    return say
