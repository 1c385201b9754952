"""Bodies of requests and responses, as `/openapi.json` describes them. Runs without torch."""

from typing import Any

Schema = dict[str, Any]


def _object(required: list[str] | None = None, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _or_null(kind: str) -> Schema:
    return {"type": [kind, "null"]}


TEXT, WHOLE, NUMBER, FLAG = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))
ERROR = _object(error=TEXT)
SERVER = _object(name=TEXT, version=TEXT, extensions=_list(TEXT))
MODEL: Schema = {"type": "object"}
LOADED = _object(name=TEXT, versions=_list(TEXT))
INDEX = _list(_object(name=TEXT, version=TEXT, state=TEXT, reason=TEXT))
EXIT = "Number of the exit, counted from 1."
DRIFT = {
    **_object(["model", "version", "tested"], model=TEXT, version=TEXT, tested=FLAG),
    "description": "Lists have an entry for each exit of the network, from shallow to deep.",
}
RECALIBRATED = _object(model=TEXT, version=TEXT, file=TEXT, samples=WHOLE, accuracy=NUMBER, cost=NUMBER)
ENABLED = _list({**WHOLE, "description": EXIT}, description="The enabled exits; other lists have an entry for each.")
STATUS = _list(_object(model=TEXT, version=TEXT, exits=ENABLED, answered=_list(WHOLE), waiting=_list(WHOLE)))
FEEDBACK = _object(model=TEXT, version=TEXT, accepted=WHOLE, right=WHOLE, kept=WHOLE, errors=_list({"type": "object"}))
PREDICTION = {
    "type": "object",
    "properties": {
        "image": TEXT,
        "label": _or_null("string"),
        "class": _or_null("integer"),
        "probability": _or_null("number"),
        "exit": {**_or_null("integer"), "description": EXIT},
        "final": {**_or_null("boolean"), "description": "Whether `exit` is the final exit."},
        "ms": _or_null("number"),
        "error": _or_null("string"),
        "at_deadline": FLAG,
        "rejected": FLAG,
        "top": _list({"type": "object"}),
        "exits": _list({"type": "object", "properties": {"exit": {**WHOLE, "description": EXIT}}}),
    },
    "required": ["image", "label", "class", "probability", "exit", "final", "ms", "error", "at_deadline"],
}
PREDICTIONS = _object(model=TEXT, version=TEXT, predictions=_list(PREDICTION))

FILE = {"type": "string", "contentMediaType": "application/octet-stream"}


def _form(schema: Schema) -> Schema:
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


FORM = _form(_object(images=_list(FILE, minItems=1)))
FEEDBACK_FORM = _form(_object(images=_list(FILE, minItems=1), labels=_list(TEXT, minItems=1)))
TENSOR = _object(
    ["name", "shape", "datatype"],
    name={"const": "image"},
    shape=_list(WHOLE),
    datatype={"enum": ["FP32", "UINT8", "BYTES"]},
    data={"type": "array"},
    parameters={"type": "object"},
)
INFER = {
    "requestBody": {
        "required": True,
        "description": "JSON; with the header Inference-Header-Content-Length, followed by binary data.",
        "content": {
            "application/json": {
                "schema": _object(
                    ["inputs"],
                    id=TEXT,
                    inputs=_list(TENSOR, minItems=1, maxItems=1),
                    outputs=_list(_object(["name"], name=TEXT, parameters={"type": "object"})),
                    parameters={"type": "object"},
                )
            },
        },
    }
}
ARGUMENTS = {"requestBody": {"required": False, "content": {"application/json": {"schema": {"type": "object"}}}}}
STATUSES = {
    400: "The request is invalid; the error names the field.",
    401: "The token is missing or wrong.",
    403: "The request comes from a page of another origin.",
    404: "There is no such model or version.",
    408: "The body did not arrive in time.",
    413: "The body, the images or the batch are too large.",
    415: "The body has another media type.",
    429: "The queue is full; Retry-After says after how many seconds to try again.",
    500: "A segment of the network failed.",
    503: "The server is not ready, stops, or has too many connections.",
}


def responses(schema: Schema | None, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented responses of an endpoint: its own, these statuses, and those of all."""
    response: dict[str, Any] = {"description": "The result."}
    if schema is not None:
        response["content"] = {"application/json": {"schema": schema}}
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": STATUSES[status], "content": {"application/json": {"schema": ERROR}}}
        for status in (*statuses, 401, 403, 500, 503)
    }
    return {200: response, **errors, 422: {"description": "Not used."}}
