"""The server under load on this machine: early exits, re-batched or not, and plain networks, here and in other servers.

Everything runs in turn in one run, over loopback. For requests of one image and of a few, every server of
`serve_servers.py` gets open-loop Poisson load (`serve_load.py`) at several rates: the highest rate at which the 99th
percentile of the latency stays below a bound, and the latency at half of that rate. Requests are the same for all:
Open Inference Protocol, JSON, images as base64.

The load generator is a process of its own on a core of its own, the last one; servers get all other cores (with one
core in all, they share it, and the numbers mean little). Every line says so under `cores`.

Also: the server's own overhead per request at batch 1, one client, one request after the other: CPU time of the server
process minus what its segments took, and mean latency minus the same, for binary tensors and for PNG files, which it
decodes; beside it, the same numbers of a bare ASGI application in uvicorn, which is HTTP's share. Memory of the server
before and after its load. What one more segment costs on Ray Serve; one and two replicas if there are four cores.

One JSON line per case. Without --run, the network is one with random weights and thresholds that give certain shares
of the exits; with --run, a trained and calibrated run and its test images.

    python benchmarks/serve.py --minutes 9 --out results/serve.jsonl
"""

import argparse
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
PATH = "/v2/models/model/infer"
CASES = {
    "rebatched": "(a) early exit, re-batched",
    "whole": "(b) early exit, whole batches",
    "plain": "(c) plain network, this server",
    "litserve": "(d) plain network, LitServe",
    "ray": "(d) plain network, Ray Serve",
}
SHARES = (0.5, 0.25, 0.15, 0.1)
PROBES = 4


def networks(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write both bundles and the requests; what their costs promise."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from offramp.bundle.read import open_bundle

    early, plain = folder / "early", folder / "plain"
    pixels = _trained(options.run, early, plain) if options.run else random_network(early, plain, options.width)
    _requests(folder, pixels)
    (folder / "header").write_text(_tensors(folder, pixels))
    bundles = open_bundle(early), open_bundle(plain)
    return {"network": options.run or f"random weights, width {options.width}", **_promise(*bundles, pixels)}


def random_network(early: Path, plain: Path, width: int) -> Any:
    """A network of four exits on digits whose thresholds give `SHARES` on its test images."""
    import torch
    from torch import nn

    from offramp.bundle.write import write
    from offramp.data.augment import normalise
    from offramp.data.load import load
    from offramp.early_exit.policy import ExitPolicy
    from offramp.net import Branch, Head, MultiExitNet

    torch.manual_seed(0)

    def stage(first: bool) -> nn.Sequential:
        entry = nn.Conv2d(1 if first else width, width, 3, padding=1)
        return nn.Sequential(entry, nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())

    exits = len(SHARES)
    stages = [stage(number == 0) for number in range(exits)]
    net = MultiExitNet(stages, [Branch(nn.Identity(), Head(width, 10)) for _ in range(exits)])
    data = load("digits")
    test = data.splits["test"]
    pixels = test.source.batch(test.indices)
    with torch.inference_mode():
        logits = net.eval()(normalise(torch.from_numpy(pixels), data.mean, data.std)).logits.numpy()
    policy = ExitPolicy(thresholds=(0.0,) * exits, enabled=(True,) * exits)
    thresholds, remaining = [], logits
    for exit, share in enumerate(SHARES[:-1]):
        score = policy.step({}, remaining[exit], exit)[2]
        cut = sorted(score)[-max(1, round(share * logits.shape[1]))]
        thresholds.append(float(cut))
        remaining = remaining[:, score < cut]
    write(early, net, ExitPolicy(thresholds=(*thresholds, 0.0), enabled=(True,) * exits), data, images=100)
    only = ExitPolicy(thresholds=(0.0,) * exits, enabled=(*(False,) * (exits - 1), True))
    write(plain, net, only, data, images=100)
    return pixels[:300]


def _trained(run: str, early: Path, plain: Path) -> Any:
    """A run's bundle, the plain network of the same run as a bundle, and its test images."""
    import offramp
    from offramp.bundle.write import write
    from offramp.early_exit.policy import ExitPolicy
    from offramp.runs import load_data, load_run

    offramp.export(run, early)
    loaded = load_run(run)
    data, exits = load_data(loaded, None), loaded.inference_net.exits
    only = ExitPolicy(thresholds=(0.0,) * exits, enabled=(*(False,) * (exits - 1), True))
    write(plain, loaded.inference_net, only, data, images=100)
    test = data.splits["test"]
    return test.source.batch(test.indices[:300])


def _requests(folder: Path, pixels: Any) -> None:
    """Bodies with one image and with four; PNG, so that every server decodes the same pixels."""
    from PIL import Image

    texts = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(stream, "PNG")
        texts.append(base64.b64encode(stream.getvalue()).decode())
    for size in (1, 4):
        bodies = []
        for start in range(0, len(texts) - size + 1, size):
            tensor = {"name": "image", "datatype": "BYTES", "shape": [size], "data": texts[start : start + size]}
            wanted = [{"name": "logits"}]
            bodies.append(json.dumps({"inputs": [tensor], "outputs": wanted}))
        (folder / f"bodies-{size}.json").write_text(json.dumps(bodies))


def _tensors(folder: Path, pixels: Any) -> str:
    """Bodies with one image as a binary tensor of pixels, which need no decoding; the header that they need."""
    shape = [1, *pixels.shape[1:]]
    binary = {"binary_data_size": pixels[0].nbytes}
    tensor = {"name": "image", "datatype": "UINT8", "shape": shape, "parameters": binary}
    text = json.dumps({"inputs": [tensor], "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]})
    bodies = [text + image.tobytes().decode("latin-1") for image in pixels]
    (folder / "tensors.json").write_text(json.dumps(bodies))
    return f"Inference-Header-Content-Length: {len(text)}"


def _promise(early: Any, plain: Any, pixels: Any) -> dict[str, Any]:
    """How much less time the early exits take on these images, by the costs of the segments at batch 1."""
    from offramp.serve.measure import measure

    exits = early.answer(early.manifest.preprocessing.normalise(pixels)).exit.tolist()
    costs = [curve(1) for curve in measure(early, 1)]
    full = measure(plain, 1)[0](1)
    parts = [part.exit for part in early.manifest.parts]
    mean = sum(sum(costs[: parts.index(exit) + 1]) for exit in exits) / len(exits)
    shares = [exits.count(exit) / len(exits) for exit in parts]
    return {
        "exit_shares": shares,
        "segment_ms": [1000 * cost for cost in costs],
        "plain_ms": 1000 * full,
        "promised_speedup": full / mean,
    }


class Machine:
    """Which cores servers and load generator get."""

    def __init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.client, self.server = {cores[-1]}, set(cores[:-1] or cores)

    @property
    def about(self) -> dict[str, list[int]]:
        """For the results."""
        return {"server": sorted(self.server), "load": sorted(self.client)}

    def start(self, cores: set[int], *words: Any, **more: Any) -> "subprocess.Popen[str]":
        """A Python process on some cores, with all that it starts."""
        command = [sys.executable, *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(len(self.server)), "RAY_USAGE_STATS_ENABLED": "0"}
        environment["RAY_worker_niceness"] = "0"  # as all other servers
        pin: Callable[[], None] = lambda: os.sched_setaffinity(0, cores)  # noqa: E731
        return subprocess.Popen(
            command, text=True, env=environment, preexec_fn=pin, start_new_session=True, cwd=HERE.parent, **more
        )


@contextmanager
def serving(machine: Machine, kind: str, folder: Path, *words: str) -> Iterator[tuple[int, int]]:
    """A server's port and process, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bodies = folder / "bodies-1.json"
    given = ("--early", folder / "early", "--plain", folder / "plain", "--bodies", bodies, *words)
    with (folder / f"{kind}.log").open("a") as log:
        process = machine.start(machine.server, HERE / "serve_servers.py", kind, port, *given, stdout=log, stderr=log)
    try:
        _ready(process, port, json.loads(bodies.read_text())[0].encode(), folder / f"{kind}.log")
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ready(process: "subprocess.Popen[str]", port: int, body: bytes, log: Path) -> None:
    end = time.monotonic() + 180
    request = urllib.request.Request(f"http://127.0.0.1:{port}{PATH}", body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(request, timeout=10):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"a server did not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.2)


def load(machine: Machine, port: int, bodies: Path, **options: Any) -> dict[str, Any]:
    """What the load generator measured."""
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = machine.start(machine.client, HERE / "serve_load.py", port, PATH, bodies, *words, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(process.communicate()[0])
    return result


def highest(machine: Machine, port: int, bodies: Path, bound: float, seconds: float) -> dict[str, Any]:
    """The highest rate with p99 below the bound, by bisection below what a closed loop reaches; latency at half."""
    most = load(machine, port, bodies, clients=16, seconds=seconds)
    low, high, best = most["rate"] / 5, 1.05 * most["rate"], None
    for probe in range(PROBES):
        rate = (low * high) ** 0.5
        result = load(machine, port, bodies, rate=rate, seconds=seconds, seed=probe)
        if not result["failed"] and result["p99_ms"] is not None and result["p99_ms"] <= bound:
            low, best = rate, result
        else:
            high = rate
    half = load(machine, port, bodies, rate=low / 2, seconds=seconds, seed=99)
    return {"highest_rate": None if best is None else low, "closed_loop": most, "at_highest": best, "at_half": half}


def memory(process: int) -> float:
    """MiB that a process holds."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def cpu(process: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def segment_seconds(port: int) -> float:
    """Seconds that all segments have computed."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    text = opener.open(f"http://127.0.0.1:{port}/metrics").read().decode()
    lines = [line for line in text.splitlines() if line.startswith("offramp_segment_seconds_total")]
    return sum(float(line.split()[-1]) for line in lines)


def per_request(machine: Machine, port: int, process: int, bodies: Path, seconds: float, ours: bool) -> dict[str, Any]:
    """CPU and latency per request, one after the other, and what is left without the segments."""
    header = (bodies.parent / "header").read_text() if bodies.name == "tensors.json" else ""
    load(machine, port, bodies, clients=1, seconds=1, header=header)
    before, computed = cpu(process), segment_seconds(port) if ours else 0.0
    result = load(machine, port, bodies, clients=1, seconds=seconds, header=header)
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


def hop(machine: Machine, folder: Path) -> dict[str, Any]:
    """What a segment on Ray Serve costs beyond its computation."""
    words = ("--early", folder / "early", "--bodies", folder / "bodies-1.json")
    process = machine.start(
        machine.server, HERE / "serve_servers.py", "hop", 0, *words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    lines = process.communicate(timeout=240)[0].splitlines()
    return {"case": "cost of a hop on Ray Serve", **json.loads(lines[-1])}


def cases(machine: Machine, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All results, one after the other."""
    kinds = options.cases.split(",")
    reserved = 20 + (15 if "overhead" in kinds else 0) + (35 if "hop" in kinds else 0) + 12 * len(kinds)
    loads = 2 * (PROBES + 2) * len([kind for kind in kinds if kind in CASES])
    seconds = max(0.5, (60 * options.minutes - reserved) / max(1, loads) - 0.4)
    for kind, name in CASES.items():
        if kind not in kinds:
            continue
        with serving(machine, kind, folder) as (port, process):
            load(machine, port, folder / "bodies-1.json", clients=8, seconds=min(2.0, seconds))
            held = memory(process)
            for size in (1, 4):
                result = highest(machine, port, folder / f"bodies-{size}.json", options.bound_ms, seconds)
                yield {"case": name, "images": size, "bound_ms": options.bound_ms, "seconds": seconds, **result}
            if kind in ("rebatched", "whole", "plain"):  # the others consist of several processes
                yield {"case": f"memory of {kind}", "before_mib": held, "after_mib": memory(process)}
    if "overhead" in kinds:
        for kind in ("echo", "plain"):
            with serving(machine, kind, folder) as (port, process):
                for name in ("tensors", "bodies-1"):  # without and with decoding an image
                    bodies = folder / f"{name}.json"
                    result = per_request(machine, port, process, bodies, min(5.0, 2 * seconds), kind == "plain")
                    yield {"case": f"overhead per request: {kind}", "requests": name, **result}
    if "hop" in kinds:
        yield hop(machine, folder)
        yield from replicas(machine, folder, seconds)


def replicas(machine: Machine, folder: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """The rate of one and of two replicas on Ray Serve, where there are cores for them."""
    if len(machine.server) < 3:
        yield {"case": "Ray Serve, two replicas", "skipped": f"{len(machine.server)} cores for servers"}
        return
    for count in (1, 2):
        with serving(machine, "ray", folder, "--replicas", str(count)) as (port, _):
            result = load(machine, port, folder / "bodies-1.json", clients=32, seconds=seconds)
            yield {"case": f"Ray Serve, {count} replicas", **result}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together, about")
    parser.add_argument("--bound-ms", type=float, default=100.0, help="of the 99th percentile")
    parser.add_argument("--run", help="a trained and calibrated run; by default, a network with random weights")
    parser.add_argument("--width", type=int, default=64, help="of the network with random weights")
    parser.add_argument("--cases", default=",".join([*CASES, "overhead", "hop"]), help="comma-separated")
    parser.add_argument("--out", type=Path, help="a file to append the lines to, besides standard output")
    parser.add_argument("--json", action="store_true", help="as always")
    options = parser.parse_args(words)
    machine = Machine()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        about = networks(folder, options)
        from offramp.measure.provenance import provenance

        about |= {"cores": machine.about, **provenance()}
        for result in cases(machine, folder, options):
            line = json.dumps({**result, "about": about})
            print(line, flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers end, too
    main()
