"""Connections by which the first process notices that others have ended."""

import socket
import time

from offramp.train.liveness import Liveness, connect


def ended(liveness: Liveness) -> set[int]:
    """Which processes it says have ended, once it says so of one, or nothing after half a second."""
    end = time.monotonic() + 0.5
    while not (ranks := liveness.ended()) and time.monotonic() < end:
        time.sleep(0.01)
    return ranks


def test_a_process_that_ended_is_named_once_and_others_are_not() -> None:
    liveness = Liveness()
    first, second = (connect("127.0.0.1", liveness.port, rank) for rank in (1, 300))
    assert ended(liveness) == set()
    second.close()
    assert ended(liveness) == {300} and ended(liveness) == set()
    first.close()
    assert ended(liveness) == {1}
    liveness.close()


def test_what_connects_without_a_rank_is_ignored() -> None:
    liveness = Liveness()
    socket.create_connection(("127.0.0.1", liveness.port)).close()
    assert ended(liveness) == set()
    liveness.close()
