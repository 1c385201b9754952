"""What happens to every request: who may send it, how it is counted and logged. Runs without torch."""

import asyncio
import hmac
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from offramp.serve.errors import CLOSE
from offramp.serve.logs import Log
from offramp.serve.metrics import Requests
from offramp.serve.options import ServeOptions

OPEN = ("/", "/v2/health/live", "/v2/health/ready")
"""Paths that need no token: the page, which holds no data, and what orchestrators ask for."""
STOPPING = "the server has stopped before it could answer: send the request again"
"""Uvicorn cancels the requests that are still in progress after `drain_timeout`."""


class Guard:
    """Checks the token and the origin, counts and logs."""

    def __init__(self, app: ASGIApp, options: ServeOptions, requests: Requests, log: Log) -> None:
        self.app, self.options, self.requests, self.log = app, options, requests, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, method = time.perf_counter(), None, scope["method"]
        if method == "HEAD":  # answered as GET; the server that runs the application sends no body
            scope = {**scope, "method": "GET"}

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refused = self._refusal(scope)
            await (self.app if refused is None else refused)(scope, receive, counted)
        except asyncio.CancelledError:
            if status is not None:  # it is being answered: the connection is closed
                raise
            await _refused(503, STOPPING, {"Retry-After": "1"})(scope, receive, counted)
        finally:
            self._record(scope, method, status or 500, time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = dict(scope["headers"])
        if self.options.token is not None and scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            wanted = self.options.token.strip().encode()
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), wanted):
                return _refused(401, "this server wants a bearer token", {"WWW-Authenticate": "Bearer"})
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not self._same_origin(headers):
            return _refused(403, "requests from pages of other origins are refused")
        return None

    def _same_origin(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request comes from no page, from a page of this server or of an origin that is allowed.

        A page of any site may send simple requests to a server on its reader's machine, whatever CORS says.
        """
        origin = headers.get(b"origin")
        if origin is None:
            return headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin")
        text = origin.decode("latin-1")
        host = headers.get(b"host", b"").decode("latin-1")
        return (host != "" and text.partition("://")[2] == host) or text in self.options.cors

    def _record(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        route: Any = scope.get("route")
        path = getattr(route, "path", "other")  # never the path as it was sent: labels would grow without bound
        self.requests.served[path, str(status)] += 1
        if status in (401, 403):
            self.requests.refuse("forbidden")
        if not self.log.writes(failure=status >= 400):
            return
        fields = {
            "method": method,
            "path": scope["path"],
            "status": status,
            "ms": round(1000 * seconds, 3),
            "client": (scope.get("client") or ("",))[0],
            **_noted(scope),
        }
        if status >= 400:
            self.log.error("request", **fields)
        else:
            self.log.info("request", **fields)


def _noted(scope: MutableMapping[str, Any]) -> dict[str, Any]:
    """What the endpoint noted about the request: model, version, images, the reason of a refusal."""
    noted: dict[str, Any] = scope.get("state", {}).get("noted", {})
    return noted


def _refused(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, {**CLOSE, **(headers or {})})
