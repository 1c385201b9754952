"""Endpoints of the Open Inference Protocol, version 2. Runs without torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from offramp import __version__
from offramp.images import BadImage
from offramp.serve.answers import probabilities
from offramp.serve.documents import INFER, MODEL, SERVER, responses
from offramp.serve.errors import malformed
from offramp.serve.large_json import NUMBER, effort
from offramp.serve.models import Version
from offramp.serve.protocol import EXTENSIONS, LENGTH, InferRequest, metadata, parse, render
from offramp.serve.receive import Received, context_of, converted, decoded, full, outcomes, stacked
from offramp.serve.requests import SampleResult
from offramp.serve.scheduler import QueueFull
from offramp.text import quoted

router = APIRouter(tags=["Open Inference Protocol"])  # routes are tried in order: the frequent one comes first


@router.post("/v2/models/{model}/infer", openapi_extra=INFER, responses=responses(MODEL, 400, 404, 408, 413, 415, 429))
@router.post(
    "/v2/models/{model}/versions/{version}/infer",
    openapi_extra=INFER,
    responses=responses(MODEL, 400, 404, 408, 413, 415, 429),
)
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Predict images: inputs of the network (FP32), pixels (UINT8) or encoded images (BYTES)."""
    context = context_of(request)
    if query := request.scope["query_string"]:
        raise malformed(f"infer has no query, got {quoted(query.decode('latin-1'))}: send `parameters` in the body")
    async with Received(request, model, version) as (served, body):
        length = request.headers.get(LENGTH)
        request_body, inputs = await converted(
            context, effort(body), _parsed, served, body, length, context.options.max_images
        )
        errors = [""] * len(inputs)
        if isinstance(request_body.inputs, list):
            inputs, errors = await _read(served, request_body.inputs)
        request.state.noted["images"] = len(errors)
        try:
            results = await served.predictor.infer(inputs, deadline_ms=request_body.deadline_ms)
        except QueueFull as error:
            raise full(error) from None
        columns = _columns(served, request_body, outcomes(results), errors)
        size = NUMBER * len(errors) * len(served.bundle.manifest.classes)
        content, headers = await converted(context, size, render, served.model, served.version, request_body, columns)
        return Response(content, headers=headers)


@router.get("/v2", responses=responses(SERVER))
async def server() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {"name": "offramp", "version": __version__, "extensions": list(EXTENSIONS)}


@router.get("/v2/health/live", responses=responses(None))
async def live(request: Request) -> Response:
    """Whether the server works; if not, restart it."""
    alive = all(version.predictor.alive for version in context_of(request).models.all())
    return Response(status_code=200 if alive else 503)


@router.get("/v2/health/ready", responses=responses(None, 503))
async def ready(request: Request) -> Response:
    """Whether the server answers requests."""
    context = context_of(request)
    answering = bool(context.models.open) and all(version.predictor.ready for version in context.models.all())
    return Response(status_code=200 if context.ready and answering else 503)


@router.get("/v2/models/{model}/ready", responses=responses(MODEL, 404, 503))
@router.get("/v2/models/{model}/versions/{version}/ready", responses=responses(MODEL, 404, 503))
async def model_ready(request: Request, response: Response, model: str, version: str | None = None) -> dict[str, Any]:
    """Whether a model answers requests."""
    answering = context_of(request).models.get(model, version).predictor.ready
    response.status_code = 200 if answering else 503
    return {"name": model, "ready": answering}


@router.get("/v2/models/{model}", responses=responses(MODEL, 404))
@router.get("/v2/models/{model}/versions/{version}", responses=responses(MODEL, 404))
async def model_metadata(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Inputs and outputs of a model."""
    models = context_of(request).models
    return metadata(model, list(models.open.get(model, ())), models.get(model, version).bundle)


def _parsed(
    served: Version, body: bytes, header_length: str | None, most: int
) -> tuple[InferRequest, NDArray[np.float32]]:
    """A request, and the inputs of the network, if it does not hold encoded images."""
    preprocessing = served.bundle.manifest.preprocessing
    infer_request = parse(body, header_length, preprocessing.shape, most)
    if isinstance(infer_request.inputs, list):
        return infer_request, np.zeros((0, *preprocessing.shape), np.float32)
    if infer_request.inputs.dtype == np.uint8:
        return infer_request, preprocessing.normalise(infer_request.inputs)
    return infer_request, infer_request.inputs.astype(np.float32)


async def _read(served: Version, images: Sequence[bytes]) -> tuple[NDArray[np.float32], list[str]]:
    """Inputs of the network of all images that could be read, and per image what was wrong with it, or nothing."""
    inputs = await decoded(served, images)
    return stacked(served, inputs), [str(each) if isinstance(each, BadImage) else "" for each in inputs]


def _columns(
    served: Version, infer_request: InferRequest, results: Sequence[SampleResult], errors: Sequence[str]
) -> Mapping[str, Sequence[Any] | NDArray[Any]]:
    """The requested outputs; images that could not be read have class -1 and exit 0."""
    outcome = iter(results)
    rows = [None if error else next(outcome) for error in errors]
    return {name: COLUMNS[name](served.bundle.manifest.classes, rows, errors) for name in infer_request.outputs}


Rows = Sequence[SampleResult | None]
Column = Callable[[Sequence[str], Rows, Sequence[str]], Sequence[Any] | NDArray[Any]]
"""(classes, results, errors) -> an output of N images."""


def _logits(classes: Sequence[str], rows: Rows, errors: Sequence[str]) -> NDArray[np.float32]:
    return np.array([np.zeros(len(classes), np.float32) if row is None else row.logits for row in rows])


def _indices(classes: Sequence[str], rows: Rows, errors: Sequence[str]) -> list[int]:
    return [-1 if row is None else int(row.logits.argmax()) for row in rows]


def _labels(classes: Sequence[str], rows: Rows, errors: Sequence[str]) -> list[str]:
    return ["" if index < 0 else classes[index] for index in _indices(classes, rows, errors)]


def _probability(classes: Sequence[str], rows: Rows, errors: Sequence[str]) -> list[float]:
    return [0.0 if row is None else float(probabilities(row.logits).max()) for row in rows]


COLUMNS: Mapping[str, Column] = {
    "logits": _logits,
    "probability": _probability,
    "class": _indices,
    "label": _labels,
    "exit": lambda classes, rows, errors: [0 if row is None else row.exit + 1 for row in rows],
    "score": lambda classes, rows, errors: [0.0 if row is None else row.score for row in rows],
    "ms": lambda classes, rows, errors: [0.0 if row is None else row.ms for row in rows],
    "at_deadline": lambda classes, rows, errors: [row is not None and row.late for row in rows],
    "error": lambda classes, rows, errors: list(errors),
}
"""How each output of `offramp.serve.protocol.OUTPUTS` is computed."""
