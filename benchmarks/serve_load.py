"""Open-loop Poisson load of HTTP requests, in a process of its own: latencies are measured from the planned send time.

Every request is sent at its planned time, on an idle connection or on a new one, however many requests wait for their
answers; so the load does not decrease if a server falls behind. With the same seed, the requests and the order and
proportions of their times are the same at every rate.

`p99_ms` is the 99th percentile of the latency of all requests, `steady_p99_ms` that of the requests planned after the
first fifth of the load, during which the queues of the server fill.

Started by `benchmarks/serve.py`, on a core of its own.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

MOST = 400
"""Largest number of open connections; a request beyond it counts as refused."""


class Client:
    """Sends requests to one port and records their results."""

    def __init__(self, port: int, path: str, bodies: list[bytes], header: str = "") -> None:
        self.port, self.idle, self.open = port, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]](), 0
        more = f"{header}\r\n" if header else ""
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}Content-Length: "
        self.requests = [head.encode() + f"{len(body)}\r\n\r\n".encode() + body for body in bodies]
        self.latencies: list[float] = []
        self.due: list[float] = []
        self.late: list[float] = []
        self.failed = 0

    async def ask(self, number: int, due: float) -> None:
        """Send one request that was due at this time, and wait for its answer."""
        self.late.append(time.perf_counter() - due)
        connection = self.idle.pop() if self.idle else None
        try:
            if connection is None:
                if self.open >= MOST:
                    raise ConnectionError("too many requests wait")
                self.open += 1
                connection = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = connection
            writer.write(self.requests[number % len(self.requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_length(head))
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise ConnectionError(head.split(b"\r\n", 1)[0].decode())
        except (OSError, EOFError, asyncio.IncompleteReadError, ValueError):
            self.failed += 1
            if connection is not None:
                connection[1].close()
                self.open -= 1
            return
        self.latencies.append(time.perf_counter() - due)
        self.due.append(due)
        self.idle.append(connection)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError("an answer without Content-Length")


async def poisson(client: Client, rate: float, seconds: float, seed: int) -> None:
    """Requests that are due at random times, `rate` per second on average."""
    generator, tasks = random.Random(seed), set[asyncio.Task[None]]()
    begin = due = time.perf_counter()
    number = generator.randrange(1 << 20)
    while due < begin + seconds:
        due += generator.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(client.ask(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    if tasks:
        await asyncio.wait(tasks, timeout=10)
    client.failed += len(tasks)


async def closed(client: Client, clients: int, seconds: float) -> None:
    """Some clients that each send the next request when the last one is answered."""
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        while time.perf_counter() < end and client.failed < 100:
            await client.ask(number, time.perf_counter())
            number += clients

    await asyncio.gather(*map(one, range(clients)))


def percentile(values: list[float], share: float) -> float | None:
    """Milliseconds below which this share of the values lies."""
    return 1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def steady_p99(client: Client, seconds: float) -> float | None:
    """Milliseconds; see the module."""
    begin = min(client.due, default=0.0) + seconds / 5
    return percentile([latency for due, latency in zip(client.due, client.latencies) if due >= begin], 0.99)


def run(work: Coroutine[Any, Any, None]) -> None:
    """In uvloop's event loop, which takes less time per request, if it is installed."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("bodies", type=Path, help="JSON list of bodies, bytes as Latin-1")
    parser.add_argument("--header", default="", help="a further header")
    parser.add_argument("--rate", type=float, default=0.0, help="per second; 0: closed loop of --clients")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="as always")
    options = parser.parse_args()
    bodies = [body.encode("latin-1") for body in json.loads(options.bodies.read_text())]
    client = Client(options.port, options.path, bodies, options.header)
    begin = time.perf_counter()
    if options.rate:
        run(poisson(client, options.rate, options.seconds, options.seed))
    else:
        run(closed(client, options.clients, options.seconds))
    answer = {
        "sent": len(client.late),
        "answered": len(client.latencies),
        "failed": client.failed,
        "rate": len(client.latencies) / (time.perf_counter() - begin),
        "p50_ms": percentile(client.latencies, 0.5),
        "p99_ms": percentile(client.latencies, 0.99),
        "steady_p99_ms": steady_p99(client, options.seconds),
        "mean_ms": 1000 * sum(client.latencies) / max(1, len(client.latencies)),
        "sent_late_p99_ms": percentile(client.late, 0.99),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
