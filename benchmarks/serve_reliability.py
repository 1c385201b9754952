"""Sends random requests to `offramp serve` while it is reloaded, killed and restarted, and checks every answer.

Clients send tensors and images of digits at a bounded rate to 127.0.0.1. Some are slow, some disconnect within a
request or do not read the answer, some send requests that schemathesis generates from the server's own OpenAPI
document, valid requests with changed bytes, or more than is allowed. Models are reloaded throughout. In the first half,
the server is killed (SIGKILL) and started again several times; clients whose connection breaks send their request
again.

The script fails if a request has no answer; if an answer differs from that of `Bundle.answer` on the same images, has
another request's id or is followed by a second answer; if the server returns a status of 500 or more (except 503 for
too many connections); or if the server of the second half, which is not killed, holds too much memory or too many files
or threads at its end, or still has images in its queues.

    python benchmarks/serve_reliability.py --requests 100000
    python benchmarks/serve_reliability.py --minutes 10
"""

import argparse
import asyncio
import json
import signal
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from reliability_clients import Clients
from reliability_generated import generate
from reliability_server import Server

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
GROWTH = 24.0
"""MiB by which the server's memory may grow after its first requests: allocators keep some freed memory."""


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
    """The server's memory, files and threads after its clients have ended, and its exit status."""
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
    parser.add_argument("--rate", type=float, default=200.0, help="largest number of requests per second")
    parser.add_argument("--clients", type=int, default=16, help="largest number of requests at the same time")
    parser.add_argument("--examples", type=int, default=15, help="requests of schemathesis per operation")
    parser.add_argument("--bundle", type=Path, help="bundle of a network on digits; default: one with random weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="file for the server's log")
    parser.add_argument("--out", type=Path, help="file to which the result is also appended, as one line")
    parser.add_argument("--json", action="store_true", help="as always")
    options = parser.parse_args(words)
    with TemporaryDirectory() as temporary:
        result = measure(Path(temporary), options)
    print(json.dumps(result, indent=2))
    if options.out:
        from offramp.measure.provenance import provenance

        with options.out.open("a") as file:
            file.write(json.dumps({**result, **provenance()}) + "\n")
    return result


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run all parts; see the module."""
    from shutil import copytree

    from offramp.bundle.read import open_bundle

    bundle = folder / "digits"
    if options.bundle:
        copytree(options.bundle, bundle)  # policies may be written into it
    else:
        from serve_networks import tiny

        tiny(bundle, folder / "plain", 8)
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
