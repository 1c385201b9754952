"""The HTTP application: Open Inference Protocol, images, health, metrics, drift. Runs without torch."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from offramp import __version__
from offramp.serve import infer, manage, predict
from offramp.serve.bodies import Budget, unread
from offramp.serve.direct import Direct
from offramp.serve.errors import RequestError, malformed
from offramp.serve.logs import Log
from offramp.serve.metrics import Requests
from offramp.serve.middleware import Guard
from offramp.serve.models import Models
from offramp.serve.options import ServeOptions
from offramp.serve.page import PAGE, POLICY
from offramp.serve.receive import mistake, refusal
from offramp.text import quoted

BODIES = 8
"""Largest bodies that all requests being read may hold together."""


class Context:
    """What the endpoints share."""

    def __init__(self, models: Models, options: ServeOptions) -> None:
        self.models, self.options = models, options
        self.requests, self.log = Requests(), Log(options.log)
        self.budget = Budget(BODIES * options.max_body)
        self.alone = asyncio.Semaphore(1)
        """For work beside the scheduler, such as every exit of an image: one at a time."""
        self.converting = asyncio.Semaphore(1)
        """For large bodies and answers: one at a time, because of the memory that they take."""
        self.ready = False


def build(models: Models, options: ServeOptions) -> FastAPI:
    """The application of a server; it opens the models when it starts and closes them when it ends."""
    context = Context(models, options)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for name in models.folders:
            if name not in models.open:
                await models.load(name)
        context.ready = True
        yield
        context.ready = False
        await models.close()
        context.log.info("stopped")

    app = FastAPI(
        title="offramp",
        version=__version__,
        description="Image classification with early exits.",
        lifespan=lifespan,
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.context = context
    _errors(app, context)
    for router in (predict.router, infer.router, manage.router):  # tried in order
        app.include_router(router)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(PAGE, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": POLICY})

    app.add_middleware(Direct)  # the last one added sees a request first
    if options.cors:
        app.add_middleware(CORSMiddleware, allow_origins=options.cors, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Guard, options=options, requests=context.requests, log=context.log)
    return app


def _errors(app: FastAPI, context: Context) -> None:
    """Every error is a JSON object with one sentence, as the Open Inference Protocol has it."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return refusal(request, error)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return refusal(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first: Any = error.errors()[0]
        field = ".".join(map(str, first["loc"][1:]))
        return refusal(request, malformed(f"{field}: {first['msg']}"))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return mistake(request, error)

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> Response:
        path = quoted(request.url.path)
        says = f"there is no address {path}: /openapi.json lists them all"
        if error.status_code == 405:
            says = f"{path} does not accept {request.method}, but {(error.headers or {}).get('Allow', 'other methods')}"
        return JSONResponse({"error": says}, error.status_code, {**unread(request), **(error.headers or {})})
