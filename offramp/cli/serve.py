"""offramp serve: bundles over HTTP, with early exits under load; torch is not needed."""

import os
import signal
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from offramp.lookup import ParameterError

if TYPE_CHECKING:
    from offramp.serve.models import Opener

TOKEN = "OFFRAMP_TOKEN"


def serve(
    *bundles: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    runtime: Literal["onnx", "onnx-cuda", "onnx-tensorrt", "openvino"] = "onnx",
    deadline_ms: float | None = None,
    max_batch: int = 32,
    queue: int = 1024,
    workers: int = 1,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    replicas: int | None = None,
    max_images: int = 64,
    max_body: int = 32 << 20,
    connections: int = 512,
    body_timeout: float = 30.0,
    drain_timeout: float = 30.0,
    token_file: Path | None = None,
    cors: Annotated[str, Parameter(show_default=False)] = "",
    log: Literal["all", "errors", "none"] = "all",
    false_alarm: float = 0.01,
) -> None:
    """Serve bundles over HTTP; after every exit, the remaining images of all requests are combined into new batches.

    Ends with Ctrl-C or SIGTERM, after all requests in progress are answered.

    Args:
        bundles: Folders that `offramp export` wrote, or NAME=FOLDER; a folder of bundles with numbers as names holds
            the versions of a model.
        host: Address to listen on; 0.0.0.0: all addresses of the machine.
        port: Port to listen on; 0 selects a free one.
        runtime: Runtime, in float32: onnx and openvino on the CPU, onnx-cuda and onnx-tensorrt on a GPU.
        deadline_ms: Milliseconds after which an image gets the prediction of the deepest exit that it has passed.
            Default: never.
        max_batch: Maximum number of images in a batch.
        queue: Maximum number of waiting images; further requests get HTTP status 429.
        workers: Number of batches that run at the same time, with --engine local.
        engine: Where segments run. `local`: in this process; `ray`: in replicas of each segment on a Ray cluster, whose
            nodes must see the bundles under the same path.
        address: HOST:PORT of the Ray cluster's head. Default: $RAY_ADDRESS, a cluster of this machine, or a new one.
        replicas: Maximum number of replicas of a segment, with --engine ray. Default: 8.
        max_images: Maximum number of images in a request.
        max_body: Maximum number of bytes in the body of a request.
        connections: Maximum number of open connections; further ones get HTTP status 503.
        body_timeout: Seconds within which the body of a request must arrive and its response be taken.
        drain_timeout: Seconds to wait for the requests in progress when the server stops.
        token_file: File with a bearer token that requests must carry; or set OFFRAMP_TOKEN.
        cors: Allowed CORS origins, comma-separated. Default: none.
        log: Requests to log as JSON lines on standard error.
        false_alarm: Probability that the drift test ever raises an alarm although nothing has changed.
    """
    from offramp.serve.models import named
    from offramp.serve.options import REPLICAS, ServeOptions
    from offramp.serve.server import Server, leave

    _check_engine(engine, address, replicas, workers, runtime)
    options = ServeOptions(
        host=host,
        port=port,
        runtime=runtime,
        deadline_ms=deadline_ms,
        max_batch=max_batch,
        queue=queue,
        workers=workers,
        replicas=REPLICAS if replicas is None else replicas,
        max_images=max_images,
        max_body=max_body,
        connections=connections,
        body_timeout=body_timeout,
        drain_timeout=drain_timeout,
        token=_token(token_file),
        cors=tuple(origin for origin in cors.split(",") if origin),
        log=log,
        false_alarm=false_alarm,
    )
    named(list(bundles))  # what is wrong is said before Ray starts
    if engine == "ray":
        signal.signal(signal.SIGTERM, leave)  # while Serve starts as well
    with _engine(engine, address) as opener:
        server = Server(*bundles, opener=opener, **vars(options))
        text = f"serving {', '.join(server.models.folders)} at {server.url}"
        try:
            server.run(lambda: print(text, file=sys.stderr, flush=True))
        finally:
            if engine == "ray":
                _bound_the_end(opener)


def _check_engine(engine: str, address: str | None, replicas: int | None, workers: int, runtime: str) -> None:
    """Refuse options that the engine would ignore."""
    from offramp.bundle.gpu_sessions import PROVIDERS

    if engine == "local" and address is not None:
        raise ParameterError(f"address={address} is that of a Ray cluster: add engine=ray", "address", "engine")
    if engine == "local" and replicas is not None:
        raise ParameterError("replicas is for engine=ray: --engine local has --workers", "replicas", "engine")
    if engine == "ray" and workers != 1:
        raise ParameterError(
            "workers is for engine=local: with engine=ray, each segment has replicas", "workers", "engine"
        )
    if engine == "ray" and runtime in PROVIDERS:
        raise ParameterError(
            f"runtime={runtime} is for engine=local: replicas of a Ray cluster compute on the CPU", "runtime", "engine"
        )


def _engine(name: str, address: str | None) -> AbstractContextManager["Opener | None"]:
    """What opens the models: replicas of a cluster, or nothing but this process."""
    if name == "ray":
        from offramp.serve.ray_app import opened

        return opened(address)
    return nullcontext()


def _bound_the_end(opener: "Opener | None") -> None:
    """End this process after some time even if Ray does not: its calls wait for a lost cluster without a bound.

    At once if it is known that the cluster is lost: `ray.shutdown` would make a call that waits start another cluster.
    """
    from offramp.serve.ray_deployments import ENDING, RayOpener

    def end() -> None:
        says = "its cluster is lost, or `serve status` shows there what is left"
        print(f"offramp: Ray did not end within {ENDING:g} s: {says}", file=sys.stderr, flush=True)
        os._exit(1)

    if isinstance(opener, RayOpener) and opener.lost:
        end()
    timer = threading.Timer(ENDING, end)
    timer.daemon = True
    timer.start()


def _token(file: Path | None) -> str | None:
    """The token of a file or of the environment; never an option, which every user of the machine can read."""
    from offramp.serve.options import check_token

    if file is None:
        token = os.environ.get(TOKEN) or None
        return None if token is None else check_token(token, f"${TOKEN}")
    if not file.exists() or file.is_dir():  # it may be a pipe, such as <(…) of a shell
        raise ParameterError(f"there is no file {file}", "token_file")
    token = file.read_text(errors="replace").strip()
    if not token:
        raise ParameterError(f"{file} holds no token", "token_file")
    return check_token(token, f"the token in {file}")
