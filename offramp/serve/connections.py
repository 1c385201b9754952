"""Connections that send headers slowly or without end; uvicorn would keep both. Runs without torch."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

LARGEST_HEAD = 1 << 16
"""Bytes of a request's first line and headers."""


def bounded(**options: Any) -> Any:
    """The protocol of one connection, which is closed when the head of a request is larger than `LARGEST_HEAD`."""
    protocol: Any = AutoHTTPProtocol(**options)
    take, size = protocol.data_received, 0

    def data_received(data: bytes) -> None:
        nonlocal size
        take(data)
        size = size + len(data) if between_requests(protocol) else 0
        if size > LARGEST_HEAD:
            protocol.transport.close()

    protocol.data_received = data_received
    return protocol


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
