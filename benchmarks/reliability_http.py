"""HTTP without a client library, so that requests may be truncated or changed and connections closed at any point."""

import asyncio
import io

import numpy as np

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


class Connection:
    """One connection; sends requests and returns their answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 24))

    async def answer(self) -> Answer:
        """Status, headers and body of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        length = headers.get("content-length")
        body = await (self.reader.read() if length is None else self.reader.readexactly(int(length)))
        return int(head[0].split()[1]), headers, body

    async def nothing_more(self) -> bool:
        """Whether no second answer follows."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 0.002) == b""
        except TimeoutError:
            return True

    def close(self) -> None:
        self.writer.close()


def http(path: str, body: bytes = b"", kind: str = "application/json", method: str = "POST", **more: str) -> bytes:
    """A request."""
    headers = {"Host": "localhost", "Content-Type": kind, "Content-Length": str(len(body)), **more}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def png(image: np.ndarray) -> bytes:
    """A grey image (1, H, W) as a file."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image[0]).save(stream, "PNG")
    return stream.getvalue()


def multipart(files: list[tuple[str, bytes]]) -> bytes:
    """A request to classify files, by name and content."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files
    ]
    return http("/predict", b"".join(parts) + b"--x--\r\n", "multipart/form-data; boundary=x")


def parts(data: bytes, count: int) -> list[bytes]:
    """About as many parts as `count`."""
    size = max(1, len(data) // count)
    return [data[start : start + size] for start in range(0, len(data), size)]
