"""From a request to its body: refused before it is read, if it could not be answered. Runs without torch."""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from offramp.images import BadImage
from offramp.lookup import nearest
from offramp.serve.bodies import declared, read_body, unread
from offramp.serve.errors import RequestError, busy, malformed
from offramp.serve.large_json import LARGE
from offramp.serve.models import Version
from offramp.serve.requests import Failed, Result, SampleResult
from offramp.serve.scheduler import QueueFull
from offramp.text import quoted

if TYPE_CHECKING:
    from offramp.serve.app import Context

T = TypeVar("T")
CLOSED = 499
"""Status of a request whose client went away: nobody reads it but the log and the metrics (a convention of nginx)."""


def context_of(request: Request) -> "Context":
    """What the endpoints share."""
    context: Context = request.app.state.context
    return context


def known_query(request: Request) -> None:
    """Refuse a query that the endpoint would ignore: a misspelt `reject` or `deadline_ms` would change the answer.

    Raises:
        RequestError: 400, naming a parameter that the endpoint does not have, or that is sent twice.
    """
    route = request.scope["route"]
    names = [field.alias for field in route.dependant.query_params]
    for name in request.query_params:
        if name not in names:
            raise malformed(f"{route.path} has no query parameter {quoted(name)}; {nearest(name, names)}")
        if len(request.query_params.getlist(name)) > 1:
            raise malformed(f"{name}: send it once")


def refusal(request: Request, error: RequestError | ClientDisconnect) -> Response:
    """The response to a request that is not answered, counted and noted for the log."""
    if isinstance(error, ClientDisconnect):
        error = RequestError(CLOSED, "closed", "the client closed the connection before its request had arrived")
    context_of(request).requests.refuse(error.reason)
    request.state.noted = {**getattr(request.state, "noted", {}), "reason": error.reason}
    return JSONResponse({"error": str(error)}, error.status, {**unread(request), **error.headers})


def mistake(request: Request, error: Exception) -> Response:
    """The response to a request at which the server itself failed, which is logged."""
    context_of(request).log.error("mistake", path=request.url.path, error=f"{type(error).__name__}: {error}")
    return JSONResponse({"error": "the server made a mistake, which its log names"}, 500)


class Received:
    """A context: the version that a request is for, kept open, and the request's body.

    It is entered for every request, so it is a class: generators as contexts take three times as long.

    Raises:
        RequestError: 404, if there is no such version; 429 before anything is read, if its queue is full or the bodies
            of all requests would become too large; or what `declared` and `read_body` raise.
    """

    def __init__(self, request: Request, model: str | None, version: str | None) -> None:
        self.request, self.context = request, context_of(request)
        self.served = self.context.models.get(model, version)
        self.taken = 0

    async def __aenter__(self) -> tuple[Version, bytes]:
        request, options, served = self.request, self.context.options, self.served
        served.begin()
        try:
            request.state.noted = {"model": served.model, "version": served.version}
            served.check(1)
            self.context.budget.check(declared(request, options.max_body))
            return served, await read_body(request, options.max_body, options.body_timeout, self._arrived)
        except BaseException as error:
            self._leave()
            if isinstance(error, QueueFull):
                raise full(error) from None
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    def _arrived(self, size: int) -> None:
        self.context.budget.take(size)
        self.taken += size

    def _leave(self) -> None:
        self.context.budget.give(self.taken)
        self.served.end()


async def decoded(served: Version, images: Sequence[bytes]) -> list[NDArray[np.float32] | BadImage]:
    """The inputs (1, channels, size, size) of every image, or what is wrong with it.

    Raises:
        RequestError: 429 before anything is decoded, if the queue has no place for all of them.
    """
    try:
        served.check(len(images))
    except QueueFull as error:
        raise full(error) from None
    served.decoding += len(images)
    try:
        if len(images) == 1:  # no task
            return [await _decoded(served, images[0])]
        return await asyncio.gather(*(_decoded(served, image) for image in images))
    finally:
        served.decoding -= len(images)


async def _decoded(served: Version, image: bytes) -> NDArray[np.float32] | BadImage:
    try:
        return await served.predictor.decode(image)
    except BadImage as error:
        return error


def stacked(served: Version, inputs: Sequence[NDArray[np.float32] | BadImage]) -> NDArray[np.float32]:
    """The inputs of all images that could be read, as one array."""
    arrays = [each for each in inputs if not isinstance(each, BadImage)]
    if not arrays:
        return np.zeros((0, *served.bundle.manifest.preprocessing.shape), np.float32)
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


async def converted(context: "Context", size: int, function: Callable[..., T], *arguments: Any) -> T:
    """The result of a function that reads a body or writes an answer; in a thread if it is large, one at a time.

    Args:
        size: of what it reads or writes, in bytes of numbers in JSON; other bytes count less, see `large_json.effort`.
    """
    if size <= LARGE:  # handing it to a thread would take longer
        return function(*arguments)
    async with context.converting:
        return await asyncio.to_thread(function, *arguments)


async def beside(context: "Context", function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function that computes beside the scheduler, in a thread; one at a time.

    Raises:
        RequestError: 500 with the reason, if a segment failed.
    """
    async with context.alone:
        try:
            return await asyncio.to_thread(function, *arguments)
        except ValueError as error:
            raise RequestError(500, "failed", f"the network failed: {error}") from None


def full(error: QueueFull) -> RequestError:
    """429 with the time after which a retry may succeed."""
    return busy(str(error), error.retry_after)


def outcomes(results: list[Result]) -> list[SampleResult]:
    """The outcomes of a request.

    Raises:
        RequestError: 500 with the reason, if a segment failed; 400, if the inputs overflow in the network.
    """
    right = [result for result in results if isinstance(result, SampleResult)]
    for number, result in enumerate(results, 1):
        if isinstance(result, Failed):
            raise RequestError(500, "failed", f"the network failed: {result}")
        if not np.isfinite(result.logits).all():
            raise malformed(
                f"the logits of image {number} are not finite: send inputs that are normalised as the bundle's "
                "manifest.json states, or pixels (UINT8)"
            )
    return right
