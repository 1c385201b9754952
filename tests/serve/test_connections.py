"""Connections whose clients take no answers: they are closed, and hold nothing that others need."""

import json
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from offramp.serve.connections import Watch
from offramp.serve.server import Server

pytestmark = pytest.mark.usefixtures("quick")
ASK = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"


def unread(server: Server) -> list[Any]:
    """Connections of which a part of an answer waits in the server's memory."""
    return [each for each in list(server._server.server_state.connections) if each.transport.get_write_buffer_size()]


def until(condition: Any) -> None:
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come to that")


def ask_without_reading(server: Server) -> socket.socket:
    """A connection that sends requests until the system takes no more of the answers."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.options.port))
    connection.setblocking(False)
    for _ in range(4000):
        if unread(server):
            return connection
        with suppress(BlockingIOError):
            connection.send(ASK)
        time.sleep(0.005)
    raise AssertionError("the system takes all answers")


def test_answers_that_nobody_takes(folder: Path, images: list[bytes], capfd: pytest.CaptureFixture[str]) -> None:
    with Server(folder, port=0, body_timeout=1.0, connections=2, log="errors") as server:
        context = server.app.state.context
        with ask_without_reading(server):
            assert context.budget.taken == 0 and server.models.get()._uses == 0
            files = {"images": images[0]}
            assert httpx.post(f"{server.url}/predict", files=files, trust_env=False).status_code == 200
            until(lambda: not server._server.server_state.connections)
        metrics = httpx.get(f"{server.url}/metrics", trust_env=False).text
    assert 'offramp_refused_total{reason="unread"} 1.0' in metrics
    logged = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["event"], line["reason"], line["client"]) for line in logged] == [
        ("connection", "unread", "127.0.0.1")
    ]


def test_slow_clients_get_their_answer(folder: Path) -> None:
    """A client that reads slowly, but within the time, gets all of it."""
    with Server(folder, port=0, body_timeout=60.0, log="none") as server, ask_without_reading(server) as connection:
        connection.setblocking(True)
        connection.settimeout(20)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        while unread(server):
            assert connection.recv(1 << 16)
        assert httpx.get(f"{server.url}/v2/health/live", trust_env=False).status_code == 200


class Connection:
    """What `Watch` looks at."""

    cycle, on = 1, True


def test_how_long_a_connection_is_in_a_state() -> None:
    """The time begins again with the next request, and if the state ends in between."""
    first, second = Connection(), Connection()
    watch = Watch(lambda each: each.on, 2.0)
    assert watch.overdue([first], 0.0) == []
    assert watch.overdue([first, second], 2.0) == []
    assert watch.overdue([first, second], 2.5) == [first]
    second.cycle = 2
    assert watch.overdue([second], 4.5) == []
    second.on = False
    assert watch.overdue([second], 6.0) == []
    second.on = True
    assert watch.overdue([second], 7.0) == [] and watch.overdue([second], 9.5) == [second]
