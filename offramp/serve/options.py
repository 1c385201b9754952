"""Settings of a server. Runs without torch."""

import math
import re
from dataclasses import dataclass

from offramp.argument_types import check_fields
from offramp.lookup import ParameterError
from offramp.text import quoted

MEGABYTE = 1 << 20
REPLICAS = 8
ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]+")
"""What browsers send as `Origin`: no path, not even `/`."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How bundles are served.

    Attributes:
        host: Address to listen on; not empty, which would be all addresses of the machine.
        port: Port to listen on; 0 takes a free one.
        runtime: Runtime, in float32: `onnx` or `openvino` on the CPU, `onnx-cuda` or `onnx-tensorrt` on a GPU.
        deadline_ms: Milliseconds after which an image gets the prediction of the deepest exit that it has passed,
            unless a request has its own deadline. None: never.
        max_batch: Maximum number of images in a batch.
        queue: Maximum number of waiting images, for each version of a model; further requests get status 429.
        workers: Number of batches that run at the same time.
        replicas: On a Ray cluster, maximum number of replicas of a segment.
        max_images: Maximum number of images in a request, at most `queue`.
        max_body: Maximum number of bytes in the body of a request; all requests that are being read may have eight
            times as much together.
        connections: Maximum number of open connections; further ones get status 503.
        body_timeout: Seconds in which a request's body must arrive, and in which its response must be taken.
        header_timeout: Seconds in which a request's headers must arrive.
        drain_timeout: Seconds to wait for requests in progress after SIGTERM.
        token: Bearer token that requests must carry; None: no token is required.
        cors: Allowed CORS origins.
        log: Requests that are logged as JSON lines: `all`, `errors` or `none`.
        false_alarm: Probability that the drift test ever raises an alarm although nothing has changed.
        feedback: Maximum number of labelled images that are kept for a new calibration.
    Raises:
        ParameterError: if a value is invalid.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    runtime: str = "onnx"
    deadline_ms: int | float | None = None
    max_batch: int = 32
    queue: int = 1024
    workers: int = 1
    replicas: int = REPLICAS
    max_images: int = 64
    max_body: int = 32 * MEGABYTE
    connections: int = 512
    body_timeout: int | float = 30.0
    header_timeout: int | float = 10.0
    drain_timeout: int | float = 30.0
    token: str | None = None
    cors: tuple[str, ...] = ()
    log: str = "all"
    false_alarm: int | float = 0.01
    feedback: int = 2000

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.host:
            raise ParameterError("host must be an address of this machine; for all of them, 0.0.0.0", "host")
        for name in ("max_batch", "queue", "workers", "replicas", "max_images", "max_body", "connections", "feedback"):
            if getattr(self, name) < 1:
                raise ParameterError(f"{name} must be at least 1, got {getattr(self, name)}", name)
        object.__setattr__(self, "max_images", min(self.max_images, self.queue))
        for name in ("deadline_ms", "body_timeout", "header_timeout", "drain_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ParameterError(f"{name} must be a positive number, got {value}", name)
        if not 0 < self.false_alarm < 1:
            raise ParameterError(f"false_alarm must be a probability in (0, 1), got {self.false_alarm}", "false_alarm")
        if not 0 <= self.port < 1 << 16:
            raise ParameterError(f"port must be from 0 to 65535, got {self.port}", "port")
        if self.log not in ("all", "errors", "none"):
            raise ParameterError(f"log must be all, errors or none, got {self.log}", "log")
        if self.token is not None:
            check_token(self.token, "token")
        for origin in self.cors:
            if not ORIGIN.fullmatch(origin):
                raise ParameterError(
                    f"cors must be origins such as https://example.org or http://localhost:3000, got {quoted(origin)}",
                    "cors",
                )


def check_token(token: str, source: str) -> str:
    """The token itself.

    Raises:
        ParameterError: naming the source, if a header cannot hold it.
    """
    if not (token.isascii() and token.isprintable() and token.strip()):
        raise ParameterError(f"{source} must be printable ASCII text, in one line")
    return token
