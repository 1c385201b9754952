"""Servers under load on this machine: early exit with and without new batches at every exit, and the plain network.

All servers are measured in one run, over loopback. The plain network also runs in LitServe and Ray Serve. Every server
of `serve_servers.py` receives open-loop Poisson load (`serve_load.py`): requests of one image file, of four, and, for
the servers of offramp, of one tensor, which needs no decoding. Measured are the highest rate at which the 99th
percentile of the latency (`steady_p99_ms`) stays below a bound (`serve_search.py`), the latency at half of that rate,
and the rate of a closed loop. Servers are measured in turn, with the same requests at the same times, while the other
servers are paused (SIGSTOP). The same server is some percent faster or slower from one start to the next: --starts N
starts all servers N times, each time another one first and with other requests. Loads should last 10 s at least
(`seconds` in the lines): give enough --minutes for the --probes, --rounds and --starts. Ray Serve, which cannot be
paused, is measured last. Requests use the Open Inference Protocol: files (--files) are in base64 in JSON, tensors are
binary.

The load generator is a process of its own on a core of its own, the last one; servers get all other cores. On a machine
with one core, they share it, and the numbers mean little. Every line records this under `cores`.

Also measured:

- the server's own overhead per request at batch 1 on the network `tiny`, with one client and one request after the
  other: CPU time of the server process, and mean latency, each minus the time of its segments, for binary tensors and
  for image files, which it decodes (`decode_ms`: CPU time of decoding alone); for comparison, the same of an empty ASGI
  application in uvicorn, which is the share of HTTP;
- the memory of the server before its load and after each kind of requests; with --cases soak, after each of --minutes
  minutes of a load of 25 images a second;
- the time that one more segment costs on Ray Serve; with four cores or more, the rates of one and of two replicas.

One JSON line per case; the last one compares them with the targets. Networks are those of `serve_networks.py`; with
--run, a trained and calibrated run and its test images.

    python benchmarks/serve.py --minutes 9.5 --out results/serve.jsonl
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import serve_networks
from serve_processes import HERE, Machine, Served, cpu, load, memory, segment_seconds, serving
from serve_search import highest_rates, loads_per_server
from serve_targets import compare

CASES = {
    "rebatched": "(a) early exit, re-batched",
    "whole": "(b) early exit, whole batches",
    "plain": "(c) plain network, this server",
    "litserve": "(d) plain network, LitServe",
    "ray": "(d) plain network, Ray Serve",
}
OWN = ("rebatched", "whole", "plain")
PACKAGES = {"litserve": ("litserve", "litserve"), "ray": ("ray", "'ray[serve]'"), "hop": ("ray", "'ray[serve]'")}
"""Requirements of a case in addition to the extra `serve`: the module and the package to install."""


def check_packages(kinds: Sequence[str]) -> None:
    """Check the required packages before anything runs."""
    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        if find_spec(module) is None:
            raise SystemExit(f"{module} is missing: pip install 'offramp[serve]'")
    missing = [kind for kind in kinds if kind in PACKAGES and find_spec(PACKAGES[kind][0]) is None]
    if missing:
        words = " ".join(dict.fromkeys(PACKAGES[kind][1] for kind in missing))
        left = ",".join(kind for kind in kinds if kind not in missing)
        raise SystemExit(f"{', '.join(missing)}: pip install {words}, or leave it out with --cases {left}")


def per_request(machine: Machine, port: int, process: int, bodies: Path, seconds: float, ours: bool) -> dict[str, Any]:
    """CPU time and latency per request, one after the other, and both minus the time of the segments."""
    load(machine, port, bodies, clients=1, seconds=1)
    before, computed = cpu(process), segment_seconds(port) if ours else 0.0
    result = load(machine, port, bodies, clients=1, seconds=seconds)
    used, computed = cpu(process) - before, (segment_seconds(port) if ours else 0.0) - computed
    each, segments = 1000 * used / result["answered"], 1000 * computed / result["answered"]
    return {
        "count": result["answered"],
        "cpu_ms": each,
        "segments_ms": segments,
        "cpu_overhead_ms": each - segments,
        "mean_latency_ms": result["mean_ms"],
        "latency_overhead_ms": result["mean_ms"] - segments,
    }


def overhead(machine: Machine, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Overhead of the server and of an empty application, without and with decoding an image."""
    tiny = argparse.Namespace(run=None, network="tiny", width=options.width, files=options.files)
    about = serve_networks.write(folder / "tiny", tiny)
    for kind in ("echo", "plain"):
        with serving(machine, kind, folder / "tiny") as (port, process):
            for name in ("tensors", "bodies-1"):
                bodies = folder / "tiny" / f"{name}.json"
                result = per_request(machine, port, process, bodies, 4.0, kind == "plain")
                if name != "tensors":
                    result["decode_ms"] = about["decode_ms"]
                case = {"case": f"overhead per request: {kind}", "requests": name, **result}
                yield {**case, "network": about["network"]}


def hop(machine: Machine, folder: Path) -> dict[str, Any]:
    """Time of a segment on Ray Serve in addition to its computation."""
    words = ("--early", folder / "early", "--bodies", folder / "bodies-1.json")
    process = machine.start(
        machine.server, HERE / "serve_servers.py", "hop", 0, *words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        result = json.loads(process.communicate(timeout=240)[0].splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        result = {"error": f"it did not end well: {type(error).__name__}"}
    return {"case": "cost of a hop on Ray Serve", **result}


def replicas(machine: Machine, folder: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """The rate of one and of two replicas on Ray Serve, if there are enough cores."""
    if len(machine.server) < 3:
        yield {"case": "Ray Serve, two replicas", "skipped": f"{len(machine.server)} cores for servers"}
        return
    for count in (1, 2):
        with serving(machine, "ray", folder, "--replicas", str(count)) as (port, _):
            result = load(machine, port, folder / "bodies-1.json", clients=32, seconds=seconds)
            yield {"case": f"Ray Serve, {count} replicas", **result}


def soak(machine: Machine, folder: Path, minutes: float) -> dict[str, Any]:
    """Memory of the server with new batches at every exit after each minute of a steady load of all kinds."""
    mib = []
    with serving(machine, "rebatched", folder) as (port, process):
        for minute in range(max(1, int(minutes))):
            for name, images in serve_networks.REQUESTS.items():
                load(machine, port, folder / f"{name}.json", rate=25 / images, seconds=20, seed=minute)
            mib.append(memory(process))
    return {"case": "soak", "mib_after_each_minute": mib, "growth": mib[-1] / mib[0]}


def takers(name: str, servers: Mapping[str, Served]) -> dict[str, Served]:
    """The servers that take requests of this kind: binary tensors are sent to those of offramp only."""
    return {kind: server for kind, server in servers.items() if kind in OWN or name != "tensors"}


def loads(
    machine: Machine,
    folder: Path,
    kinds: Sequence[str],
    options: argparse.Namespace,
    end: float,
    start: int = 0,
) -> Iterator[dict[str, Any]]:
    """The highest rates of some servers, measured in turn until about `end`; every start has requests of its own."""
    with ExitStack() as stack:
        servers, held = {}, {}
        for kind in kinds:
            try:
                servers[kind] = stack.enter_context(serving(machine, kind, folder))
            except SystemExit as error:  # the others are still worth measuring
                yield {"case": CASES[kind], "error": str(error)}
                continue
            load(machine, servers[kind].port, folder / "bodies-1.json", clients=8, seconds=1)
            held[kind] = [memory(servers[kind].process)]
            servers[kind].pause()
        names = [name for name in options.requests.split(",") if takers(name, servers)]
        count = sum(len(takers(name, servers)) for name in names) * loads_per_server(options.probes, options.rounds)
        seconds = max(0.5, (end - time.monotonic()) / max(1, count) - 0.5)
        for name in names:
            about = {"requests": name, "images": serve_networks.REQUESTS[name], "bound_ms": options.bound_ms}
            bodies, some = folder / f"{name}.json", takers(name, servers)
            more = (options.bound_ms, seconds, options.probes, options.rounds, 1000 * start)
            for kind, result in highest_rates(machine, some, bodies, *more):
                yield {"case": CASES[kind], **about, "seconds": seconds, **result}
            for kind in servers:
                held[kind].append(memory(servers[kind].process))
        for kind in [kind for kind in servers if kind in OWN]:  # the others consist of several processes
            yield {"case": f"memory of {kind}", "mib": held[kind]}


def cases(machine: Machine, folder: Path, options: argparse.Namespace, end: float) -> Iterator[dict[str, Any]]:
    """All results, one after the other; the loads use the time that the other parts leave."""
    kinds = options.cases.split(",")
    if "overhead" in kinds:
        yield from overhead(machine, folder, options)
    if "hop" in kinds:
        yield hop(machine, folder)
        yield from replicas(machine, folder, 5.0)
    if "soak" in kinds:
        yield soak(machine, folder, options.minutes)
    together = [kind for kind in CASES if kind in kinds and kind != "ray"]
    alone = ["ray"] if "ray" in kinds else []
    left = end - time.monotonic() - 15 * len(alone)
    first_end = time.monotonic() + left * len(together) / max(1, len(together + alone))
    for start in range(options.starts if together else 0):
        begins, shift = time.monotonic(), start % len(together)
        until = begins + (first_end - begins) / (options.starts - start)
        for result in loads(machine, folder, together[shift:] + together[:shift], options, until, start):
            yield {**result, "start": start}
    if alone:
        yield from loads(machine, folder, alone, options, end)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.5, help="approximate total minutes")
    parser.add_argument("--bound-ms", type=float, default=100.0, help="bound of the 99th percentile")
    parser.add_argument(
        "--network", choices=("lite0", "tiny"), default="lite0", help="name of a network in serve_networks.py"
    )
    parser.add_argument("--run", help="a trained and calibrated run instead of a network")
    parser.add_argument("--width", type=int, default=64, help="of the network tiny")
    parser.add_argument("--cases", default=",".join([*CASES, "overhead", "hop"]), help="comma-separated")
    parser.add_argument("--requests", default=",".join(serve_networks.REQUESTS), help="comma-separated")
    parser.add_argument(
        "--files", choices=("png", "jpeg"), default="png", help="kind of the image files; jpeg has a quality of 90"
    )
    parser.add_argument("--probes", type=int, default=3, help="rates that are tried to find the range of the loads")
    parser.add_argument("--rounds", type=int, default=1, help="of loads at three rates and of a closed loop")
    parser.add_argument("--starts", type=int, default=1, help="of the servers, in another order each time")
    parser.add_argument("--out", type=Path, help="file to which the lines are appended, in addition to standard output")
    parser.add_argument("--json", action="store_true", help="as always")
    options = parser.parse_args(words)
    end = time.monotonic() + 60 * options.minutes
    check_packages(options.cases.split(","))
    if unknown := set(options.requests.split(",")) - set(serve_networks.REQUESTS):
        parser.error(f"unknown requests {min(unknown)}: there are {', '.join(serve_networks.REQUESTS)}")
    for name in ("probes", "rounds", "starts"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    machine, results = Machine(), list[dict[str, Any]]()
    with TemporaryDirectory() as temporary:
        with machine.on_server_cores():  # it measures the segments
            about = serve_networks.write(Path(temporary), options)
        from offramp.measure.provenance import provenance

        about |= {"cores": machine.about, **provenance()}

        def keep(result: dict[str, Any]) -> None:
            results.append(result)
            line = json.dumps({**result, "about": about})
            print(line, flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(line + "\n")

        for result in cases(machine, Path(temporary), options, end):
            keep(result)
        keep(compare(results, about))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers end, too
    main()
