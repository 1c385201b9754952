"""The frequent requests, past the framework's layers, routing and validation, which take long. Without torch.

The same endpoints are routes of the application, which documents them and serves what is not frequent.
"""

import re
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from offramp.serve.errors import RequestError
from offramp.serve.infer import infer
from offramp.serve.middleware import Guard
from offramp.serve.predict import predict_files
from offramp.serve.receive import mistake, refusal

INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
ROUTES = {
    path: SimpleNamespace(path=path)
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer", "/predict")
}
"""What the metrics call them; the same as without this."""


class Direct:
    """Calls the endpoint of a frequent request itself; all others are passed to the application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        endpoint = _endpoint(scope)
        if endpoint is None:
            await self.app(scope, receive, send)
            return
        scope.setdefault("app", self.app)
        request = Request(scope, receive)
        try:
            response = await endpoint(request)
        except (RequestError, ClientDisconnect) as error:
            response = refusal(request, error)
        except Exception as error:
            await mistake(request, error)(scope, receive, send)
            raise  # as the framework does: the server prints where it happened
        await response(scope, receive, send)


class Shortcut:
    """The application as a server runs it: frequent requests do not enter the framework.

    Args:
        app: of `offramp.serve.app.build`; it answers all others, and all if pages of other origins may send requests.
    """

    def __init__(self, app: FastAPI) -> None:
        context = app.state.context
        self.app, self.cors = app, bool(context.options.cors)
        self.guarded = Guard(Direct(app), context.options, context.requests, context.log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        frequent = not self.cors and _endpoint(scope) is not None
        await (self.guarded if frequent else self.app)(scope, receive, send)


def _endpoint(scope: Scope) -> Callable[[Request], Awaitable[Response]] | None:
    """What answers a frequent request; None for others."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"]
    match = INFER.fullmatch(path)
    if match is None:
        if path != "/predict" or scope["query_string"]:
            return None
        scope["route"] = ROUTES[path]
        return predict_files
    model, version = match.groups()
    versioned = "/v2/models/{model}/versions/{version}/infer"
    scope["route"] = ROUTES["/v2/models/{model}/infer" if version is None else versioned]

    def call(request: Request) -> Any:
        return infer(request, model, version)

    return call
