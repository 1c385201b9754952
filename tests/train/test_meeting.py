"""A first process whose other processes are never started; tests/cli/test_meeting.py has real ones."""

import forked
import pytest

from offramp.train import meeting
from offramp.train.launcher import Place
from offramp.train.liveness import connect
from offramp.train.lost import ConnectionLost


def test_the_first_process_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "COME", 0.5)
    port = forked.free_port()
    here = meeting.Meeting(Place(0, 0, 3, "127.0.0.1", port, keeps_store=True, beside=(1, 2)), print)
    here.join()
    with pytest.raises(ConnectionLost, match=f"2 of 3 processes of this run did not come to 127.0.0.1:{port}: start"):
        here.agree({}, check=print)
    here.connection.close()
    here.liveness.close()


def test_a_stranger_that_connects_is_not_taken_for_a_process_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "COME", 1.5)
    here = meeting.Meeting(Place(0, 0, 2, "127.0.0.1", forked.free_port(), keeps_store=True, beside=(1,)), print)
    here.join()
    connect("127.0.0.1", here.liveness.port, int.from_bytes(b"GET ")).close()
    with pytest.raises(ConnectionLost, match="process 1 of this run did not come to"):
        here.agree({}, check=print)
    here.connection.close()
    here.liveness.close()
