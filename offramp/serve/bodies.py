"""Reads bodies of requests within bounds of size, time and memory; takes multipart apart. Runs without torch."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from offramp.serve.errors import CLOSE, RequestError, busy, malformed, natural, too_large
from offramp.text import quoted

MOST_PARTS = 4
"""Parts of a multipart body per image that it may have, and some more."""
SKIPPED = 1 << 15
"""Bytes of a body that nobody reads for which a connection is kept."""


class Budget:
    """Bytes that the bodies of all requests may hold together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def check(self, size: int) -> None:
        """Refuse a request of this many bytes that does not fit now.

        Raises:
            RequestError: 429, if it does not.
        """
        if self.taken + size > self.limit:
            raise busy("too many requests are being read: their bodies fill the memory that they may have", 1)

    def take(self, size: int) -> None:
        """Count bytes of a request that have arrived: one that only announces them keeps nobody out.

        Raises:
            RequestError: as `check`.
        """
        self.check(size)
        self.taken += size

    def give(self, size: int) -> None:
        """Return bytes that were taken."""
        self.taken -= size


def unread(request: Request) -> Mapping[str, str]:
    """Headers of an early response: the connection is closed if much of a body that nobody reads would follow."""
    if getattr(request.state, "read", False):
        return {}
    size = natural(request.headers.get("content-length", "0"))
    return CLOSE if "transfer-encoding" in request.headers or size is None or size > SKIPPED else {}


def declared(request: Request, limit: int) -> int:
    """The length that a request declares; 0 if it declares none.

    Raises:
        RequestError: 413, if it is above the limit; 415, if the body is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise RequestError(415, "malformed", f"Content-Encoding {quoted(encoding)} is not read: send the bytes")
    length = request.headers.get("content-length")
    if length is None:
        return 0
    size = natural(length)
    if size is None:
        raise malformed(f"Content-Length must be a number, got {quoted(length)}")
    if size > limit:
        raise too_large(f"the body has {size:,} bytes, more than the {limit:,} allowed")
    return size


async def read_body(
    request: Request, limit: int, seconds: int | float, arrived: Callable[[int], None] = lambda size: None
) -> bytes:
    """The whole body.

    Args:
        arrived: called with the number of bytes whenever some have arrived; may raise.
    Raises:
        RequestError: 413, if it is longer than the limit; 408, if it does not arrive in time.
        ClientDisconnect: if the client goes away.
    """
    parts, size, more = list[bytes](), 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > limit:
                    raise too_large(f"the body has more than the {limit:,} bytes allowed")
                arrived(len(parts[-1]))
    except TimeoutError:
        raise RequestError(408, "slow", f"the body did not arrive within {seconds:g} seconds", CLOSE) from None
    request.state.read = True
    return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass
class FormPart:
    """One part of a multipart body."""

    name: str = ""
    filename: str = ""
    content: list[bytes] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        """Its content."""
        return b"".join(self.content)

    @property
    def text(self) -> str:
        """Its content as text."""
        return self.data.decode("utf-8", "replace")


class _Collector:
    """Collects the parts that the parser reports."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.parts: list[FormPart] = []
        self.ended = False
        self._name, self._value = bytearray(), bytearray()

    def begin(self) -> None:
        if len(self.parts) == self.most:
            raise too_large(f"the body has more than {self.most} parts")
        self.parts.append(FormPart())

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if bytes(self._name).lower() == b"content-disposition":
            options = parse_options_header(bytes(self._value))[1]
            part = self.parts[-1]
            part.name = options.get(b"name", b"").decode("utf-8", "replace")
            part.filename = options.get(b"filename", b"").decode("utf-8", "replace")
        self._name, self._value = bytearray(), bytearray()

    def data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].content.append(data[start:end])

    def end(self) -> None:
        self.ended = True


def multipart(content_type: str, body: bytes, images: int) -> list[FormPart]:
    """The parts of a multipart/form-data body that may hold this many images.

    Raises:
        RequestError: 415 or 400, if it is none; 413, if it has too many parts.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise RequestError(415, "malformed", "send multipart/form-data with one or several files in the field `images`")
    collector = _Collector(MOST_PARTS * images)
    callbacks = {
        "on_part_begin": collector.begin,
        "on_header_field": collector.header_field,
        "on_header_value": collector.header_value,
        "on_header_end": collector.header_end,
        "on_part_data": collector.data,
        "on_end": collector.end,
    }
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise malformed(f"the body is no multipart/form-data: {error}") from None
    if not collector.ended:
        raise malformed("the body is no multipart/form-data: it ends before its last boundary")
    return collector.parts
