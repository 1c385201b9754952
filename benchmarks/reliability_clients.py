"""Clients of `benchmarks/serve_reliability.py`: send requests of all kinds and check the answers."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from reliability_http import Answer, Connection, http, multipart, parts, png
from reliability_server import Server

PATIENCE = 120.0
"""Seconds within which a request must be answered, including restarts of the server."""


class Clients:
    """Sends requests of all kinds; `wrong` lists violations."""

    def __init__(self, server: Server, bundle: Any, pixels: np.ndarray, generated: list[bytes], seed: int) -> None:
        self.server, self.bundle, self.pixels, self.generated = server, bundle, pixels, generated
        wanted = bundle.answer(bundle.manifest.preprocessing.normalise(pixels))
        self.logits, self.exits = wanted.logits, wanted.exit + 1
        self.random = random.Random(seed)
        self.images = [png(image) for image in pixels]
        self.idle: list[Connection] = []
        self.done, self.statuses, self.again = Counter[str](), Counter[int](), 0
        self.wrong: list[str] = []

    async def one(self, kind: str, number: int) -> None:
        """One request from its beginning to its end."""
        tries: dict[str, Callable[[int], Awaitable[None]]] = {
            "tensor": self.tensor,
            "image": self.image,
            "slow": self.slow,
            "cut_off": self.cut_off,
            "unread": self.unread,
            "generated": self.arbitrary,
            "changed": self.changed,
            "oversized": self.oversized,
            "manage": self.manage,
            "reload": self.reload,
        }
        try:
            await asyncio.wait_for(tries[kind](number), PATIENCE)
        except TimeoutError:
            self.wrong.append(f"{kind} {number}: no answer")
        except Exception as error:  # what went wrong is the result
            self.wrong.append(f"{kind} {number}: {type(error).__name__}: {error}")
        self.done[kind] += 1

    async def ask(self, request: bytes, slow: bool = False) -> Answer:
        """The answer; sent again if the connection breaks or the server is full."""
        while True:
            connection = self.idle.pop() if self.idle and not slow else None
            try:
                connection = connection or await Connection.open(self.server.port)
                for part in parts(request, 12) if slow else [request]:
                    connection.writer.write(part)
                    await connection.writer.drain()
                    if slow:
                        await asyncio.sleep(0.04)
                status, headers, body = await connection.answer()
            except (OSError, EOFError):
                self.again += 1
                if connection is not None:
                    connection.close()
                await asyncio.sleep(0.05)
                continue
            if slow and not await connection.nothing_more():
                self.wrong.append("a second answer follows")
            if headers.get("connection") == "close":
                connection.close()
            else:
                self.idle.append(connection)
            self.statuses[status] += 1
            if status not in (429, 503):
                return status, headers, body
            self.again += 1
            await asyncio.sleep(0.2)

    def rows(self) -> list[int]:
        return [self.random.randrange(len(self.pixels)) for _ in range(self.random.choice((1, 1, 1, 2, 4)))]

    def tensor_request(self, number: int, rows: list[int]) -> bytes:
        pixels = self.pixels[rows]
        tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape)}
        if self.random.random() < 0.5:
            body = {"id": str(number), "inputs": [{**tensor, "data": pixels.ravel().tolist()}]}
            return http("/v2/models/digits/infer", json.dumps(body).encode())
        tensor["parameters"] = {"binary_data_size": pixels.nbytes}
        text = json.dumps({"id": str(number), "inputs": [tensor]}).encode()
        more = {"Inference_Header_Content_Length": str(len(text))}
        return http("/v2/models/digits/infer", text + pixels.tobytes(), "application/octet-stream", **more)

    async def tensor(self, number: int, slow: bool = False) -> None:
        rows = self.rows()
        status, _, body = await self.ask(self.tensor_request(number, rows), slow)
        if status != 200:
            raise ValueError(f"status {status}: {body[:200]!r}")
        answer = json.loads(body)
        if answer["id"] != str(number):
            raise ValueError(f"the answer of request {answer['id']}")
        outputs = {each["name"]: np.asarray(each["data"]) for each in answer["outputs"]}
        self.check(rows, outputs["exit"], outputs["logits"].reshape(len(rows), -1))

    def check(self, rows: list[int], exits: Any, logits: Any) -> None:
        """Compares logits to 1e-5 of the largest, and exits exactly: no score is close to a threshold."""
        if np.abs(logits - self.logits[rows]).max() > 1e-5 * np.abs(self.logits).max():
            raise ValueError(f"other logits for the images {rows}")
        if list(exits) != self.exits[rows].tolist():
            raise ValueError(f"other exits for the images {rows}: {list(exits)}, not {self.exits[rows].tolist()}")

    async def image(self, number: int) -> None:
        rows = self.rows()
        files = [(f"{number}-{row}.png", self.images[row]) for row in rows]
        status, _, body = await self.ask(multipart(files))
        if status != 200:
            raise ValueError(f"status {status}: {body[:200]!r}")
        predictions = json.loads(body)["predictions"]
        if [each["image"] for each in predictions] != [name for name, _ in files]:
            raise ValueError(f"answers for other images: {predictions}")
        classes = self.logits[rows].argmax(1).tolist()
        if [(each["class"], each["exit"]) for each in predictions] != list(zip(classes, self.exits[rows].tolist())):
            raise ValueError(f"other answers for the images {rows}: {predictions}")

    async def slow(self, number: int) -> None:
        await self.tensor(number, slow=True)

    async def lost(self, request: bytes, wait: float) -> None:
        """Send something, then close the connection."""
        try:
            connection = await Connection.open(self.server.port)
        except OSError:
            return
        connection.writer.write(request)
        await asyncio.sleep(wait)
        connection.close()

    async def cut_off(self, number: int) -> None:
        request = self.tensor_request(number, self.rows())
        await self.lost(request[: self.random.randrange(1, len(request))], self.random.choice((0.0, 0.02)))

    async def unread(self, number: int) -> None:
        await self.lost(self.tensor_request(number, self.rows()), self.random.choice((0.0, 0.002, 0.01)))

    async def refused(self, request: bytes, *statuses: int) -> None:
        """An answer that is no mistake of the server: one of these, or any below 500."""
        while True:
            try:
                connection = await Connection.open(self.server.port)
                connection.writer.write(request)
                status, _, body = await asyncio.wait_for(connection.answer(), 30)
                break
            except (OSError, EOFError):  # it was killed, or closed the connection after what is no HTTP
                if not statuses:
                    return
                await asyncio.sleep(0.05)
        connection.close()
        self.statuses[status] += 1
        if status != 503 and (status >= 500 or (statuses and status not in statuses)):
            raise ValueError(f"status {status} for {request[:300]!r}: {body[:300]!r}")

    async def arbitrary(self, number: int) -> None:
        await self.refused(self.random.choice(self.generated))

    async def changed(self, number: int) -> None:
        request = bytearray(self.tensor_request(number, self.rows()))
        for _ in range(self.random.randrange(1, 5)):
            request[self.random.randrange(len(request))] = self.random.randrange(256)
        await self.refused(bytes(request))

    async def oversized(self, number: int) -> None:
        many = self.tensor_request(number, [0] * 9)
        large = http("/predict", b"", "multipart/form-data; boundary=x").replace(b"Length: 0", b"Length: 999999999")
        await self.refused(self.random.choice((many, large)), 413, 429)

    async def manage(self, number: int) -> None:
        path = self.random.choice(("/metrics", "/status", "/drift", "/v2", "/v2/models/digits", "/", "/openapi.json"))
        status, _, body = await self.ask(http(path, method="GET"))
        if status != 200:
            raise ValueError(f"status {status} of {path}: {body[:200]!r}")

    async def reload(self, number: int) -> None:
        status, _, body = await self.ask(http("/v2/repository/models/digits/load"))
        if status != 200:
            raise ValueError(f"status {status}: {body[:200]!r}")
