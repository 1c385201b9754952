"""Reads bodies of requests within bounds of size, time and memory; takes multipart apart. Runs without torch."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from offramp.serve.errors import CLOSE, RequestError, busy, malformed, natural, too_large
from offramp.text import quoted

MOST_PARTS = 4
"""Parts of a multipart body per image that it may have, and some more."""
LARGEST_PART_HEAD = 1 << 13
"""Bytes of the headers of a part."""


class Budget:
    """Bytes that the bodies of all requests may hold together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def take(self, size: int) -> None:
        """Reserve bytes for a request.

        Raises:
            RequestError: 429, if there are not that many.
        """
        if self.taken + size > self.limit:
            raise busy("too many requests are being read: their bodies fill the memory that they may have", 1)
        self.taken += size

    def give(self, size: int) -> None:
        """Return bytes that were reserved."""
        self.taken -= size


def declared(request: Request, limit: int) -> int:
    """The length that a request declares; the limit itself if it declares none.

    Raises:
        RequestError: 413, if it is above the limit; 415, if the body is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise RequestError(415, "malformed", f"Content-Encoding {quoted(encoding)} is not read: send the bytes", CLOSE)
    length = request.headers.get("content-length")
    if length is None:
        return limit
    size = natural(length)
    if size is None:
        raise malformed(f"Content-Length must be a number, got {quoted(length)}")
    if size > limit:
        raise too_large(f"the body has {size:,} bytes, more than the {limit:,} allowed")
    return size


async def read_body(request: Request, limit: int, seconds: int | float) -> bytes:
    """The whole body.

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
    except TimeoutError:
        raise RequestError(408, "slow", f"the body did not arrive within {seconds:g} seconds", CLOSE) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


class FormPart(NamedTuple):
    """One part of a multipart body."""

    name: str
    filename: str
    data: bytes

    @property
    def text(self) -> str:
        """Its content as text."""
        return self.data.decode("utf-8", "replace")


def multipart(content_type: str, body: bytes, images: int) -> list[FormPart]:
    """The parts of a multipart/form-data body (RFC 2046 and RFC 7578) that may hold this many images.

    The body is in memory as a whole, so that it is divided at its boundaries; a parser of streams takes longer.

    Raises:
        RequestError: 415 or 400, if it is none; 413, if it has too many parts.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise RequestError(415, "malformed", "send multipart/form-data with one or several files in the field `images`")
    most = MOST_PARTS * images
    begin, *pieces = body.split(b"\r\n--" + boundary, most + 2)
    if begin.startswith(b"--" + boundary):  # else it is a preamble, which means nothing
        pieces.insert(0, begin.removeprefix(b"--" + boundary))
    parts = list[FormPart]()
    for piece in pieces:
        if piece.startswith(b"--"):
            return parts
        if len(parts) == most:
            raise too_large(f"the body has more than {most} parts")
        parts.append(_part(piece))
    raise _no_form("it ends before its last boundary")


def _part(piece: bytes) -> FormPart:
    """A part: what follows its boundary."""
    head, blank, data = piece.partition(b"\r\n\r\n")
    if not blank or len(head) > LARGEST_PART_HEAD:
        raise _no_form(f"headers of a part do not end within {LARGEST_PART_HEAD:,} bytes")
    padding, *lines = head.split(b"\r\n")
    if padding.strip(b" \t"):
        raise _no_form("a boundary is followed by no line end")
    options: Mapping[bytes, bytes] = {}
    for line in lines:
        header, colon, value = line.partition(b":")
        if not colon:
            raise _no_form("a header of a part has no colon")
        if header.lower() == b"content-disposition":
            options = parse_options_header(value)[1]
    name, file = (options.get(key, b"").decode("utf-8", "replace") for key in (b"name", b"filename"))
    return FormPart(name, file, data)


def _no_form(reason: str) -> RequestError:
    return malformed(f"the body is no multipart/form-data: {reason}")
