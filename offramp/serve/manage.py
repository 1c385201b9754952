"""Models, drift, new calibrations, metrics. Runs without torch."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from offramp.serve.bodies import read_body
from offramp.serve.documents import ARGUMENTS, DRIFT, INDEX, LOADED, RECALIBRATED, STATUS, responses
from offramp.serve.errors import RequestError, malformed
from offramp.serve.fields import check
from offramp.serve.metrics import render
from offramp.serve.models import Version
from offramp.serve.predict import Model, VersionName
from offramp.serve.receive import context_of, known_query
from offramp.text import quoted

router = APIRouter(tags=["management"])
LARGEST = 1 << 16
"""Largest body of a request that has arguments in JSON."""


@router.post("/v2/repository/index", openapi_extra=ARGUMENTS, responses=responses(INDEX, 400, 408, 413))
async def index(request: Request) -> list[dict[str, Any]]:
    """List all models and their versions; with `{"ready": true}` in the body, only the loaded ones."""
    models, only_ready = context_of(request).models, (await _arguments(request, "ready")).get("ready", False)
    if not isinstance(only_ready, bool):
        raise malformed(f"ready must be true or false, got {quoted(only_ready)}")
    served = [{"name": each.model, "version": each.version, "state": "READY", "reason": ""} for each in models.all()]
    others = [] if only_ready else [name for name in models.folders if name not in models.open]
    return served + [{"name": name, "version": "", "state": "UNAVAILABLE", "reason": "unloaded"} for name in others]


@router.post(
    "/v2/repository/models/{model}/load", openapi_extra=ARGUMENTS, responses=responses(LOADED, 400, 404, 408, 413)
)
async def load(request: Request, model: str) -> dict[str, Any]:
    """Load a model from its folder again; requests in progress are answered by the old one."""
    context = context_of(request)
    parameters = (await _arguments(request, "parameters")).get("parameters")
    if parameters:
        raise malformed(f"parameters is {quoted(parameters)}, but a model is loaded as its folder is: send none")
    try:
        versions = await context.models.load(model)
    except (ValueError, OSError) as error:
        context.log.error("load", model=model, error=str(error))
        raise RequestError(400, "malformed", f"{model} was not loaded: {error}") from None
    context.log.info("load", model=model, versions=versions)
    return {"name": model, "versions": versions}


async def _arguments(request: Request, *known: str) -> dict[str, Any]:
    """The JSON object in the body of a request of the model repository extension; it may be empty."""
    options = context_of(request).options
    body = await read_body(request, min(LARGEST, options.max_body), options.body_timeout)
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise malformed("the body must be empty or a JSON object")
    check(value, "", known)
    return value


@router.post("/v2/repository/models/{model}/unload", responses=responses(LOADED, 404))
async def unload(request: Request, model: str) -> dict[str, Any]:
    """Stop serving a model; requests in progress are answered."""
    context = context_of(request)
    context.models.unload(model)
    context.log.info("unload", model=model)
    return {"name": model, "versions": []}


@router.get("/drift", responses=responses(DRIFT, 400, 404), dependencies=[Depends(known_query)])
async def drift(request: Request, model: Model = None, version: VersionName = None) -> dict[str, Any]:
    """Whether exits and scores still follow their distribution on cal: shares, scores and a sequential test."""
    served = context_of(request).models.get(model, version)
    return {"model": served.model, "version": served.version, **served.drift.report()}


@router.post("/feedback/recalibrate", responses=responses(RECALIBRATED, 400, 404), dependencies=[Depends(known_query)])
async def recalibrate(request: Request, model: Model = None, version: VersionName = None) -> dict[str, Any]:
    """Fit a policy to the bundle's goal on the labelled images; it is written as a new version, to be loaded."""
    context = context_of(request)
    with context.models.get(model, version).use() as served:
        async with context.alone:
            try:
                file, about = await asyncio.to_thread(served.feedback.recalibrate)
            except (ValueError, ImportError) as error:
                raise malformed(str(error)) from None
        base = served.version.partition(".")[0]
        new = f"{base}.{file.removeprefix('policy-').removesuffix('.json')}"
        context.log.info("recalibrated", model=served.model, version=new, **about)
        return {"model": served.model, "version": new, "file": file, **about}


@router.get("/status", responses=responses(STATUS))
async def status(request: Request) -> list[dict[str, Any]]:
    """Enabled exits (counted from 1), their shares, and lengths of the queues of every version, for the page."""
    return [_status(each) for each in context_of(request).models.all()]


def _status(served: Version) -> dict[str, Any]:
    counts, manifest = served.predictor.statistics, served.bundle.manifest
    answered = [counts.answered[part.exit] for part in manifest.parts]
    return {
        "model": served.model,
        "version": served.version,
        "classes": len(manifest.classes),
        "exits": [part.exit + 1 for part in manifest.parts],
        "answered": answered,
        "shares": [count / max(1, sum(answered)) for count in answered],
        "waiting": served.predictor.waiting,
        "drift_alarm": served.drift.alarm is not None,
    }


@router.get("/metrics", response_class=Response, responses=responses(None))
async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    context = context_of(request)
    return Response(render(context.models, context.requests), media_type=CONTENT_TYPE_LATEST)
