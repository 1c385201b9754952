"""The servers that `benchmarks/serve.py` compares, each in a process of its own: `python serve_servers.py KIND PORT`.

rebatched  early exit in offramp's server: the images that continue form new batches at every exit
whole      early exit, in which a batch is answered when its last image exits; the same server, the loop as one segment
plain      the plain network with dynamic batching; the same server, one segment
litserve   the plain network in LitServe, with its batching
ray        the plain network in Ray Serve, with its batching
echo       an empty ASGI application in uvicorn: the cost of HTTP itself
hop        not a server: measures what one more segment costs on Ray Serve, and ends
"""

import argparse
import asyncio
import base64
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from serve_networks import MOST

from offramp.bundle.read import Bundle, open_bundle
from offramp.serve.costs import CostCurve, powers
from offramp.serve.options import ServeOptions
from offramp.serve.predictor import AsyncPredictor

KINDS = ("rebatched", "whole", "plain", "litserve", "ray", "echo", "hop")
PATH = "/v2/models/model/infer"
WAIT = 0.0
"""Seconds that LitServe and Ray Serve wait for a batch to fill."""


class Whole:
    """The policy for a loop that decides itself: every sample of a batch leaves when the loop ends."""

    enabled, exits = (True,), 1

    def step(self, carry: Any, logits: Any, exit: int) -> Any:
        """As `ExitPolicy.step`."""
        return carry, logits, logits.max(1), np.ones(len(logits), bool)


def whole(folder: Path, inputs: np.ndarray) -> AsyncPredictor:
    """A predictor whose only segment is the loop of all exits; its costs are measured on these inputs."""
    bundle = open_bundle(folder)

    def segment(state: Any, carry: Any) -> Any:
        return (), (), bundle.answer(state).logits

    policy: Any = Whole()
    curve = cost(bundle, inputs)
    return AsyncPredictor(Bundle(bundle.folder, bundle.manifest, policy, (segment,)), max_batch=MOST, costs=[curve])


def cost(bundle: Bundle, inputs: np.ndarray) -> CostCurve:
    """Seconds of the whole loop on a batch of real images: of several passes over all sizes, the shortest."""
    inputs = inputs[: 2 * MOST]

    def round_of(size: int) -> float:
        starts = range(0, len(inputs) - size + 1, size)
        began = time.perf_counter()
        for start in starts:
            bundle.answer(inputs[start : start + size])
        return (time.perf_counter() - began) / len(starts)

    sizes = powers(min(MOST, len(inputs)))
    passes = [[round_of(size) for size in sizes] for _ in range(3)]
    return CostCurve(sizes, tuple(map(min, *passes)))


def offramp(port: int, folder: Path, images: Sequence[bytes], whole_batches: bool) -> None:
    """The server of `offramp serve`."""
    import offramp

    def opener(path: Path, options: ServeOptions) -> dict[str, Any]:
        return {"1": whole(path, decode(open_bundle(path), images))}

    more = {"opener": opener} if whole_batches else {}
    offramp.Server(f"model={folder}", port=port, max_batch=MOST, log="none", **more).run()


def decode(bundle: Bundle, images: Sequence[bytes]) -> np.ndarray:
    """The inputs of the network (N, channels, size, size)."""
    preprocessing = bundle.manifest.preprocessing
    return np.stack([preprocessing.normalise(preprocessing.read(image)[None])[0] for image in images])


def texts(body: Any) -> list[bytes]:
    """The images of a request, which is the same for every server: Open Inference Protocol, base64."""
    return [base64.b64decode(text) for text in body["inputs"][0]["data"]]


def answers(bundle: Bundle, requests: Sequence[np.ndarray]) -> list[Any]:
    """The logits of several requests, in one batch."""
    logits = bundle.answer(np.concatenate(requests)).logits
    ends = np.cumsum([len(each) for each in requests])
    return [part.tolist() for part in np.split(logits, ends[:-1])]


def litserve(port: int, folder: Path) -> None:
    """The plain network in LitServe."""
    import litserve
    from serve_litserve import Plain

    api = Plain(max_batch_size=MOST, batch_timeout=WAIT, api_path=PATH)
    api.folder = folder
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


def ray(port: int, folder: Path, replicas: int = 1) -> None:
    """The plain network in Ray Serve."""
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    @serve.deployment(num_replicas=replicas, max_ongoing_requests=4 * MOST, ray_actor_options={"num_cpus": 0.1})
    class Plain:
        def __init__(self) -> None:
            self.bundle = open_bundle(folder)

        @serve.batch(max_batch_size=MOST, batch_wait_timeout_s=WAIT)
        async def batch(self, inputs: list[Any]) -> list[Any]:
            return answers(self.bundle, inputs)

        async def __call__(self, request: Request) -> Any:
            logits = await self.batch(decode(self.bundle, texts(await request.json())))
            return JSONResponse({"logits": logits})  # with its length: a mere object would come in chunks

    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=4)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    serve.run(Plain.bind(), route_prefix=PATH, logging_config=quiet)
    while True:
        time.sleep(60)


def echo(port: int) -> None:
    """An application that answers every request with as many bytes as a real answer."""
    import uvicorn

    answer = json.dumps({"model_name": "model", "outputs": ["x" * 600]}).encode()
    length = str(len(answer)).encode()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    config = uvicorn.Config(application, port=port, log_config=None, access_log=False, lifespan="off")
    asyncio.run(uvicorn.Server(config).serve())


def hop(folder: Path, images: Sequence[bytes], rounds: int = 150) -> dict[str, Any]:
    """Milliseconds, without computation, of requests that pass one segment and all segments on Ray Serve."""
    from offramp.serve.ray_app import opened

    bundle = open_bundle(folder)
    inputs = decode(bundle, images)
    exits = bundle.answer(inputs).exit.tolist()
    rows = {exit: exits.index(exit) for exit in (min(exits), max(exits))}

    async def beyond(predictor: Any, row: int) -> float:
        spent = []
        for _ in range(rounds):
            began = time.perf_counter()
            outcome = (await predictor.infer(inputs[row : row + 1]))[0]
            spent.append(1000 * (time.perf_counter() - began) - outcome.ms)
        return median(spent)

    with opened("local") as opener:
        predictor: Any = opener(folder, ServeOptions(log="none"))["1"]
        asyncio.run(beyond(predictor, 0))  # warm-up
        first, last = (asyncio.run(beyond(predictor, row)) for row in rows.values())
        predictor.close()
    return {
        "first_segment_ms": first,
        "hop_ms": (last - first) / max(1, max(exits) - min(exits)),
        "segments": len(bundle.segments),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("port", type=int)
    parser.add_argument("--early", type=Path, help="bundle with early exits")
    parser.add_argument("--plain", type=Path, help="bundle of the plain network")
    parser.add_argument("--bodies", type=Path, help="file of requests that benchmarks/serve.py wrote")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="as always")
    options = parser.parse_args()
    images: list[bytes] = []
    if options.kind in ("rebatched", "whole", "hop"):
        images = [image for body in json.loads(options.bodies.read_text()) for image in texts(json.loads(body))]
    if options.kind == "hop":
        print(json.dumps(hop(options.early, images)))
    elif options.kind in ("rebatched", "whole"):
        offramp(options.port, options.early, images, options.kind == "whole")
    elif options.kind == "plain":
        offramp(options.port, options.plain, (), False)
    elif options.kind == "litserve":
        litserve(options.port, options.plain.absolute())
    elif options.kind == "ray":
        ray(options.port, options.plain.absolute(), options.replicas)
    else:
        echo(options.port)


if __name__ == "__main__":
    main()
