"""Requests at random against `offramp serve`, while it is reloaded, killed and started again; every answer is checked.

Clients send tensors and images of digits at a bounded rate to 127.0.0.1. Some are slow, some go away in the middle or
do not read their answer, some send what schemathesis makes of the server's own OpenAPI document, valid requests with
changed bytes, or more than is allowed; models are loaded anew all the time. In the first half, the server is killed
(SIGKILL) and started again several times; clients whose connection breaks send their request again.

It fails if a request has no answer, an answer is not that of `Bundle.answer` on the same images, carries another
request's id or is followed by a second one, if a status of 500 or more comes from us, or if the server of the second
half, which is not killed, holds more memory, files or threads at its end than it should, or still has a queue.

    python benchmarks/serve_reliability.py --requests 100000
    python benchmarks/serve_reliability.py --minutes 10
"""

import argparse
import asyncio
import json
import random
import signal
import socket
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from subprocess import DEVNULL, Popen
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

WEIGHTS = {
    "tensor": 50,
    "image": 15,
    "slow": 3,
    "cut_off": 8,
    "unread": 3,
    "generated": 8,
    "changed": 5,
    "oversized": 3,
    "manage": 4,
    "reload": 0.5,
}
KILLS = 5
PATIENCE = 120.0
"""Seconds in which a request must have its answer, restarts of the server included."""
GROWTH = 24.0
"""MiB that the server may hold more at the end than after its first requests: allocators keep some."""
Answer = tuple[int, dict[str, str], bytes]


class Connection:
    """One connection, and what a request on it is answered with."""

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


class Server:
    """`offramp serve` in a process of its own, always on the same port."""

    def __init__(self, bundle: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.bundle, self.log, self.starts = bundle, log, 0
        self.process: Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        words = ["--body-timeout", "3", "--max-body", "200000", "--max-images", "8", "--log", "errors"]
        command = [sys.executable, "-m", "offramp", "serve", str(self.bundle), "--port", str(self.port), *words]
        with self.log.open("ab") as log:
            self.process = Popen(command, stdout=DEVNULL, stderr=log)
        self.starts += 1
        end = time.monotonic() + 120
        while True:
            try:
                self.get("/v2/health/ready")
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"the server did not start: {self.log.read_text()[-2000:]}") from None
                time.sleep(0.1)

    def get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        content: bytes = opener.open(f"http://127.0.0.1:{self.port}{path}", timeout=20).read()
        return content

    def end(self, number: int) -> int:
        """Send it a signal and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def holds(self) -> dict[str, float]:
        """Memory (MiB), open files and threads."""
        assert self.process is not None
        folder = Path(f"/proc/{self.process.pid}")
        status = (folder / "status").read_text()
        return {
            "mib": int(status.split("VmRSS:")[1].split()[0]) / 1024,
            "files": len(list((folder / "fd").iterdir())),
            "threads": int(status.split("Threads:")[1].split()[0]),
        }


class Clients:
    """Sends requests of all kinds; `wrong` says what should not have happened."""

    def __init__(self, server: Server, bundle: Any, pixels: np.ndarray, generated: list[bytes], seed: int) -> None:
        self.server, self.bundle, self.pixels, self.generated = server, bundle, pixels, generated
        wanted = bundle.answer(bundle.manifest.preprocessing.normalise(pixels))
        self.logits, self.exits = wanted.logits, wanted.exit + 1
        self.random = random.Random(seed)
        self.images = [_png(image) for image in pixels]
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
                for part in _parts(request, 12) if slow else [request]:
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
        """Logits to 1e-5 of the largest; exits exactly, which no score of these images is near enough to change."""
        if np.abs(logits - self.logits[rows]).max() > 1e-5 * np.abs(self.logits).max():
            raise ValueError(f"other logits for the images {rows}")
        if list(exits) != self.exits[rows].tolist():
            raise ValueError(f"other exits for the images {rows}: {list(exits)}, not {self.exits[rows].tolist()}")

    async def image(self, number: int) -> None:
        rows = self.rows()
        files = [(f"{number}-{row}.png", self.images[row]) for row in rows]
        status, _, body = await self.ask(_multipart(files))
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


def _png(image: np.ndarray) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image[0]).save(stream, "PNG")
    return stream.getvalue()


def _multipart(files: list[tuple[str, bytes]]) -> bytes:
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files
    ]
    return http("/predict", b"".join(parts) + b"--x--\r\n", "multipart/form-data; boundary=x")


def _parts(data: bytes, count: int) -> list[bytes]:
    size = max(1, len(data) // count)
    return [data[start : start + size] for start in range(0, len(data), size)]


def generate(server: Server, examples: int) -> list[bytes]:
    """Requests that schemathesis makes of the server's OpenAPI document; none unloads the model."""
    import requests
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    document = json.loads(server.get("/openapi.json"))
    for path in document["paths"].values():
        for operation in path.values():
            for each in operation.get("parameters", []):
                if each["name"] in ("model", "version"):  # names that exist, so that more than 404 is seen
                    each["schema"] = {"enum": ["digits" if each["name"] == "model" else "1", "none"]}
    result: list[bytes] = []

    def collect(operation: Any) -> None:
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(case=operation.as_strategy())
        def make(case: Any) -> None:
            words = case.as_transport_kwargs(base_url=f"http://127.0.0.1:{server.port}")
            words = {name: words[name] for name in words if name in requests.Request().__dict__}
            sent = requests.Request(**words).prepare()
            body = sent.body.encode() if isinstance(sent.body, str) else sent.body or b""
            if isinstance(body, bytes):
                lines = [f"{sent.method} {sent.path_url} HTTP/1.1", "Host: localhost"]
                headers = {**sent.headers, "Content-Length": str(len(body))}
                lines += [f"{name}: {_text(value)}" for name, value in headers.items()]
                result.append("\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body)

        make()

    for operation in schemathesis.openapi.from_dict(document).get_all_operations():
        if not operation.ok().path.endswith(("/unload", "/load", "/recalibrate")):
            collect(operation.ok())
    return result


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


async def drive(clients: Clients, server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Send everything at the rate; the server is killed in the first half. What it held at half time."""
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    begin, sent, running, half = time.perf_counter(), 0, set[asyncio.Task[None]](), dict[str, float]()
    total = options.requests if options.minutes is None else options.minutes * 60 * options.rate
    kills = [total / 2 * (number + 1) / (KILLS + 1) for number in range(KILLS)]
    while sent < total and (options.minutes is None or time.perf_counter() < begin + 60 * options.minutes):
        while len(running) >= options.clients:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(max(0.0, begin + sent / options.rate - time.perf_counter()))
        begin = max(
            begin, time.perf_counter() - (sent + options.rate) / options.rate
        )  # never more than a second's worth
        task = asyncio.create_task(clients.one(clients.random.choices(kinds, weights)[0], sent))
        running.add(task)
        task.add_done_callback(running.discard)
        sent += 1
        if kills and sent >= kills[0]:
            kills.pop(0)
            await asyncio.to_thread(server.end, signal.SIGKILL)
            await asyncio.to_thread(server.start)
        if not half and sent > 0.6 * total:
            half = server.holds()
    await asyncio.gather(*running)
    for connection in clients.idle:
        connection.writer.transport.abort()
    return half


def ended(server: Server, half: dict[str, float], wrong: list[str]) -> dict[str, Any]:
    """What the server holds when its clients are gone, and how it ends."""
    time.sleep(8)  # connections that wait for nothing are closed after five seconds
    end = server.holds()
    waiting = [number for each in json.loads(server.get("/status")) for number in each["waiting"]]
    if any(waiting):
        wrong.append(f"the queues are not empty: {waiting}")
    if end["mib"] > half["mib"] + GROWTH:
        wrong.append(f"the server grew from {half['mib']:.0f} to {end['mib']:.0f} MiB")
    if end["files"] > half["files"] + 4 or end["threads"] > half["threads"] + 6:
        wrong.append(f"files or threads were left: {half} at half time, {end} at the end")
    status = server.end(signal.SIGTERM)
    if status:
        wrong.append(f"the server ended with status {status} after SIGTERM")
    mistakes = [line for line in server.log.read_text("utf-8", "replace").splitlines() if '"mistake"' in line]
    if mistakes or "Traceback" in server.log.read_text("utf-8", "replace"):
        wrong.append(f"the server's log has a mistake: {(mistakes or ['a traceback'])[0][:500]}")
    return {"half": half, "end": end}


def main(words: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--minutes", type=float, help="instead of --requests")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second, at most")
    parser.add_argument("--clients", type=int, default=16, help="requests at the same time, at most")
    parser.add_argument("--examples", type=int, default=15, help="requests of schemathesis per operation")
    parser.add_argument("--bundle", type=Path, help="of a network on digits; by default, one with random weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="keeps what the server said")
    parser.add_argument("--json", action="store_true", help="as always")
    options = parser.parse_args(words)
    with TemporaryDirectory() as temporary:
        result = measure(Path(temporary), options)
    print(json.dumps(result, indent=2))
    return result


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything; see the module."""
    from shutil import copytree

    from offramp.bundle.read import open_bundle

    bundle = folder / "digits"
    if options.bundle:
        copytree(options.bundle, bundle)  # policies may be written into it
    else:
        sys.path.insert(0, str(Path(__file__).parent))
        from serve import random_network

        random_network(bundle, folder / "plain", 8)
    from offramp.data.load import load

    split = load("digits").splits["test"]
    server = Server(bundle, options.log or folder / "log")
    began = time.perf_counter()
    server.start()
    try:
        generated = generate(server, options.examples)
        pixels = np.asarray(split.source.batch(split.indices[:200]))
        clients = Clients(server, open_bundle(bundle), pixels, generated, options.seed)
        half = asyncio.run(drive(clients, server, options))
        held = ended(server, half, clients.wrong)
    finally:
        if server.process is not None and server.process.poll() is None:
            server.end(signal.SIGKILL)
    return {
        "requests": sum(clients.done.values()),
        "kinds": dict(clients.done),
        "statuses": {str(status): count for status, count in sorted(clients.statuses.items())},
        "sent_again": clients.again,
        "starts": server.starts,
        "generated": len(generated),
        "seconds": time.perf_counter() - began,
        "wrong": len(clients.wrong),
        "first_wrong": clients.wrong[:10],
        **held,
    }


if __name__ == "__main__":
    raise SystemExit(1 if main()["wrong"] else 0)
