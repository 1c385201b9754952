"""From a request to its body: refused before it is read, if it could not be answered. Runs without torch."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import Request

from offramp.serve.bodies import declared, read_body
from offramp.serve.engine import Failed, Outcome, Result
from offramp.serve.errors import RequestError, busy
from offramp.serve.models import Version
from offramp.serve.scheduler import QueueFull

if TYPE_CHECKING:
    from offramp.serve.app import Context


def context_of(request: Request) -> "Context":
    """What the endpoints share."""
    context: Context = request.app.state.context
    return context


@asynccontextmanager
async def received(request: Request, model: str | None, version: str | None) -> AsyncIterator[tuple[Version, bytes]]:
    """The version that a request is for, kept open, and the request's body.

    Raises:
        RequestError: 404, if there is no such version; 429 before anything is read, if its queue is full; or what
            `declared` and `read_body` raise.
    """
    context = context_of(request)
    options = context.options
    with context.models.get(model, version).use() as served:
        request.state.noted = {"model": served.model, "version": served.version}
        try:
            served.predictor.check(1)
        except QueueFull as error:
            raise full(error) from None
        with context.budget.take(declared(request, options.max_body)):
            yield served, await read_body(request, options.max_body, options.body_timeout)


def full(error: QueueFull) -> RequestError:
    """429 with the time after which there is room again."""
    return busy(str(error), error.retry_after)


def outcomes(results: list[Result]) -> list[Outcome]:
    """The outcomes of a request.

    Raises:
        RequestError: 500 with the reason, if a segment failed.
    """
    right = [result for result in results if isinstance(result, Outcome)]
    for result in results:
        if isinstance(result, Failed):
            raise RequestError(500, "failed", f"the network failed: {result}")
    return right
