"""Images by multipart: predictions, labelled feedback. Runs without torch."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Query, Request, Response

from offramp.bundle.predict import Prediction
from offramp.images import BadImage
from offramp.lookup import nearest
from offramp.serve import large_json
from offramp.serve.answers import all_exits, prediction, probabilities, top
from offramp.serve.bodies import FormPart, multipart
from offramp.serve.documents import FEEDBACK, FEEDBACK_FORM, FORM, PREDICTIONS, responses
from offramp.serve.errors import malformed, too_large
from offramp.serve.models import Version
from offramp.serve.receive import Received, beside, context_of, converted, decoded, full, known_query, outcomes, stacked
from offramp.serve.requests import SampleResult
from offramp.serve.scheduler import QueueFull
from offramp.text import quoted, unicode_only

PREDICTED = 60
"""Characters of a class with its probability in JSON, about."""
router = APIRouter(tags=["images"])
Model = Annotated[str | None, Query(description="Name of the model; by default, the first.")]
VersionName = Annotated[str | None, Query(description="Version of the model; by default, the latest.")]
Top = Annotated[int, Query(ge=1, le=1000, description="Number of most probable classes to list.")]
Reject = Annotated[
    float, Query(ge=0, le=1, description="Smallest acceptable probability; below it, there is no label.")
]
Deadline = Annotated[
    float | None,
    Query(
        gt=0, lt=1e9, description="Milliseconds after which an image gets the prediction of its deepest exit so far."
    ),
]
Every = Annotated[bool, Query(description="Also return the predictions of all enabled exits; takes longer.")]


@router.post(
    "/predict",
    openapi_extra=FORM,
    responses=responses(PREDICTIONS, 400, 404, 408, 413, 415, 429),
    dependencies=[Depends(known_query)],
)
async def predict(
    request: Request,
    model: Model = None,
    version: VersionName = None,
    top: Top = 1,
    reject: Reject = 0.0,
    deadline_ms: Deadline = None,
    all_exits: Every = False,
) -> Response:
    """Predict images that are sent as files in the field `images`: JPEG, PNG, WebP and others."""
    async with Received(request, model, version) as (served, body):
        parts = _images(request, await _form(request, body, "images"))
        request.state.noted["images"] = len(parts)
        inputs = await decoded(served, [part.data for part in parts])
        try:
            results = await served.predictor.infer(stacked(served, inputs), deadline_ms=deadline_ms)
        except QueueFull as refused:
            raise full(refused) from None
        context, remaining, rows = context_of(request), iter(outcomes(results)), list[Callable[[], dict[str, Any]]]()
        for part, each in zip(parts, inputs, strict=True):
            if isinstance(each, BadImage):
                rows.append(partial(_unread, served, part, str(each)))
                continue
            more = {"exits": await beside(context, _every_exit, served, each)} if all_exits else {}
            rows.append(partial(_row, served, part, next(remaining), top, reject, more))
        content = await converted(context, PREDICTED * len(rows) * top, _answer, served, rows)
        return Response(content, media_type="application/json")


def _answer(served: Version, rows: list[Callable[[], dict[str, Any]]]) -> bytes:
    about = {"model": served.model, "version": served.version}
    return large_json.dumps(about, "predictions", (orjson.dumps(unicode_only(row())) for row in rows))


async def predict_files(request: Request) -> Response:
    """What `/predict` answers without a query."""
    return await predict(request)


@router.post(
    "/feedback",
    openapi_extra=FEEDBACK_FORM,
    responses=responses(FEEDBACK, 400, 404, 408, 413, 415, 429),
    dependencies=[Depends(known_query)],
)
async def feedback(request: Request, model: Model = None, version: VersionName = None) -> dict[str, Any]:
    """Keep labelled images, to calibrate again: files in `images`, and for each its class name in `labels`."""
    async with Received(request, model, version) as (served, body):
        context = context_of(request)
        sent = await _form(request, body, "images", "labels")
        parts, labels = _images(request, sent), [part.text for part in sent if part.name == "labels"]
        if len(labels) != len(parts):
            raise malformed(f"`labels` must be one class name per image, got {len(labels)} for {len(parts)} images")
        numbers = [_class(served, label) for label in labels]
        inputs = await decoded(served, [part.data for part in parts])
        right, errors = [], []
        for part, each, number in zip(parts, inputs, numbers, strict=True):
            if isinstance(each, BadImage):
                errors.append({"image": part.filename, "error": str(each)})
                continue
            right.append(await beside(context, served.feedback.add, each, number))
        return {
            "model": served.model,
            "version": served.version,
            "accepted": len(right),
            "right": sum(right),
            "kept": len(served.feedback),
            "errors": errors,
        }


async def _form(request: Request, body: bytes, *fields: str) -> list[FormPart]:
    """The parts of a form; refuses fields that would be ignored, as `known_query` does."""
    context, kind = context_of(request), request.headers.get("content-type", "")
    parts = await converted(context, len(body) // large_json.NUMBER, multipart, kind, body, context.options.max_images)
    for part in parts:
        if part.name not in fields:
            raise malformed(f"the form has the unknown field {quoted(part.name)}; {nearest(part.name, fields)}")
    return parts


def _images(request: Request, parts: list[FormPart]) -> list[FormPart]:
    """The files of the field `images`."""
    images, most = [part for part in parts if part.name == "images"], context_of(request).options.max_images
    if not images:
        raise malformed("send one or several files in the field `images`")
    if len(images) > most:
        raise too_large(f"the request has {len(images)} images, more than the {most} allowed")
    return images


def _unread(served: Version, part: FormPart, error: str) -> dict[str, Any]:
    return {**Prediction(part.filename, error=error).row(served.bundle.manifest.exits), "at_deadline": False}


def _row(
    served: Version, part: FormPart, outcome: SampleResult, count: int, reject: float, more: dict[str, Any]
) -> dict[str, Any]:
    """The keys of `predict --json`, and what was asked for."""
    manifest = served.bundle.manifest
    answer = prediction(manifest.classes, part.filename, outcome)
    row = {**answer.row(manifest.exits), "at_deadline": answer.at_deadline}
    if count > 1:
        row["top"] = top(manifest.classes, outcome.logits, count)
    if reject:
        rejected = not (answer.probability is not None and answer.probability >= reject)
        row |= {"rejected": rejected} | ({"label": None, "class": None} if rejected else {})
    return row | more


def _every_exit(served: Version, inputs: np.ndarray) -> list[dict[str, Any]]:
    """The prediction of every enabled exit for one image, and its cost as a share of that of the whole network."""
    classes = served.bundle.manifest.classes
    macs = served.bundle.manifest.measured.get("segment_macs")
    costs = (
        np.cumsum(macs) / np.sum(macs) if isinstance(macs, list) and len(macs) == len(served.bundle.segments) else None
    )
    rows = []
    for index, (exit, _, answer, score, leaves) in enumerate(all_exits(served.bundle, inputs)):
        shares = probabilities(answer[0])
        number = int(shares.argmax())
        rows.append(
            {
                "exit": exit + 1,
                "label": classes[number],
                "class": number,
                "probability": float(shares[number]),
                "score": float(score[0]),
                "leaves": bool(leaves[0]),
                "cost": None if costs is None else float(costs[index]),
            }
        )
    return rows


def _class(served: Version, label: str) -> int:
    classes = served.bundle.manifest.classes
    if label not in classes:
        raise malformed(f"labels holds {quoted(label)}, which is no class of {served.model}")
    return classes.index(label)
