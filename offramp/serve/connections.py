"""Bounds on connections: how many, how large a head, how long without a request. Runs without torch.

uvicorn would keep any number of connections, and those that send headers slowly or without end.
"""

import asyncio
import json
from collections.abc import Callable
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


async def close_silent(state: Any, seconds: int | float) -> None:
    """Close connections that have sent no complete request for some seconds; uvicorn would keep them for ever.

    A connection between two requests is closed by uvicorn itself, unless the next one has begun and never ends.
    """
    since: dict[Any, tuple[Any, float]] = {}
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(min(1.0, seconds / 4))
        silent = [each for each in state.connections if between_requests(each)]
        since = {each: since.get(each, (each.cycle, loop.time())) for each in silent}
        for each, (cycle, begun) in since.items():
            if each.cycle is not cycle:
                since[each] = each.cycle, loop.time()
            elif loop.time() - begun > seconds and not each.transport.is_closing():
                each.transport.close()
