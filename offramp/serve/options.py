"""Settings of a server. Runs without torch."""

import math
from dataclasses import dataclass

from offramp.argument_types import check_fields
from offramp.lookup import ParameterError

MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How bundles are served.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        runtime: Runtime, `onnx` or `openvino`, in float32 on the CPU.
        deadline_ms: Milliseconds after which an image is answered by the best exit so far, unless a request has its
            own deadline. None: never.
        max_batch: Images of the largest batch.
        queue: Images that may be accepted and not answered, for each version of a model; beyond, requests are refused
            with status 429.
        workers: Batches that run at the same time.
        replicas: On a Ray cluster, the most replicas of a segment.
        max_images: Images of one request; never more than fit into the queue.
        max_body: Bytes of one request's body; requests being read may hold eight times as much together.
        connections: Open connections; one more is answered with status 503.
        body_timeout: Seconds in which a request's body must arrive.
        header_timeout: Seconds in which a request's headers must arrive.
        drain_timeout: Seconds that requests in progress get after SIGTERM.
        token: Bearer token that requests must carry; None: none.
        cors: Origins whose pages may call the server.
        log: What is logged as JSON lines: `all`, `errors` or `none`.
        false_alarm: Probability that the drift test ever raises an alarm although nothing has changed.
        feedback: Labelled images that are kept for a new calibration.
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
    replicas: int = 8
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
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ParameterError("token must be printable ASCII text", "token")
