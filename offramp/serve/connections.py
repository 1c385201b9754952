"""Bounds on connections: how many, how large a head, how long without a request or with an answer that nobody takes.

uvicorn itself limits neither the number of connections nor the time in which a client sends headers or reads a
response. Runs without torch.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from offramp.serve.logs import Log, uvicorn_logger

LARGEST_HEAD = 1 << 16
"""Bytes of a request's first line and headers."""
LINGER = 1.0
"""Seconds in which the client of a connection too many can read why it is refused."""


def _response(status: str, error: str) -> bytes:
    body = json.dumps({"error": error})
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


TOO_MANY = _response(
    "503 Service Unavailable\r\nRetry-After: 1",
    "too many connections are open: come back later, or use one for several requests",
)
NO_HTTP = _response("400 Bad Request", "this is no valid HTTP request")


def bounded(most: int, refused: Callable[[str], None], log: Log) -> Callable[..., Any]:
    """What makes the protocol of one connection.

    A connection beyond the first `most` is answered with status 503 and closed; beyond twice as many, it is closed at
    once. A connection is closed if the head of a request is larger than `LARGEST_HEAD`, and, with status 400, if what
    it sends is not HTTP.

    Args:
        refused: called with the reason for every refused connection.
        log: what uvicorn has to say about single connections.
    """
    logger = uvicorn_logger(log)

    def build(**options: Any) -> Any:
        protocol: Any = AutoHTTPProtocol(**options)
        make, take, size, surplus = protocol.connection_made, protocol.data_received, 0, False

        def connection_made(transport: Any) -> None:
            nonlocal surplus
            make(transport)
            count = len(protocol.connections)
            surplus = count > most
            if surplus:
                refused("connections")
                _turn_away(transport, at_once=count > 2 * most)

        def data_received(data: bytes) -> None:
            nonlocal size
            if surplus:  # nothing that it sends is read
                return
            take(data)
            size = size + len(data) if between_requests(protocol) else 0
            if size > LARGEST_HEAD:
                protocol.transport.close()

        def send_400_response(message: str) -> None:
            refused("malformed")
            log.error("request", status=400, client=(protocol.client or ("",))[0], reason="malformed")
            protocol.transport.write(NO_HTTP)
            protocol.transport.close()

        protocol.connection_made, protocol.data_received = connection_made, data_received
        protocol.send_400_response, protocol.logger = send_400_response, logger
        return protocol

    return build


def _turn_away(transport: Any, at_once: bool) -> None:
    """Say why, then close; closed at once, what the client is sending would make it lose the answer."""
    if at_once:
        transport.abort()
        return
    transport.write(TOO_MANY)
    transport.write_eof()
    asyncio.get_running_loop().call_later(LINGER, transport.abort)


def between_requests(protocol: Any) -> bool:
    """Whether no request is being answered: none was read to the end of its headers, or the last one is answered."""
    return protocol.cycle is None or bool(protocol.cycle.response_complete)


def unread(protocol: Any) -> bool:
    """Whether a part of an answer waits to be taken by the client; the system's own buffers are full then."""
    return bool(protocol.transport.get_write_buffer_size())


class Watch:
    """For how long each connection has been in a state, while it is about one and the same request."""

    def __init__(self, holds: Callable[[Any], bool], seconds: int | float) -> None:
        self.holds, self.seconds = holds, seconds
        self._since: dict[Any, tuple[Any, float]] = {}

    def overdue(self, connections: Iterable[Any], now: float) -> list[Any]:
        """The connections that have been in that state for too long; to be called regularly."""
        current = [(each, each.cycle) for each in connections if self.holds(each)]
        before, self._since = self._since, {}
        for each, cycle in current:
            known, begun = before.get(each, (cycle, now))
            self._since[each] = cycle, begun if known is cycle else now
        return [each for each, (_, begun) in self._since.items() if now - begun > self.seconds]


async def close_idle(
    state: Any, header_timeout: int | float, body_timeout: int | float, refused: Callable[[str], None], log: Log
) -> None:
    """Close connections whose clients neither send a request nor take an answer; uvicorn would keep them for ever.

    A connection between two requests is closed by uvicorn itself, unless the next one has begun and never ends, or the
    answer to the last one is not taken: then it would wait for that.

    Args:
        header_timeout: seconds in which the headers of a request must arrive.
        body_timeout: seconds in which an answer must be taken.
        refused, log: as for `bounded`.
    """
    silent, slow = Watch(between_requests, header_timeout), Watch(unread, body_timeout)
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(min(1.0, header_timeout / 4, body_timeout / 4))
        for each in slow.overdue(state.connections, loop.time()):
            refused("unread")
            log.error("connection", reason="unread", client=(each.client or ("",))[0])
            each.transport.abort()  # `close` would wait until all is taken
        for each in silent.overdue(state.connections, loop.time()):
            if not each.transport.is_closing():
                each.transport.close()
