"""What a request can end with instead of an answer: a status, one sentence, and headers. Runs without torch."""

from collections.abc import Mapping


class RequestError(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        reason: one word, for the metrics.
        headers: to send.
    """

    def __init__(self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


def natural(text: str) -> int | None:
    """The number that a header says; None if it is none, or of absurd length."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


CLOSE = {"Connection": "close"}
"""For a request whose body will not be read."""


def malformed(message: str) -> RequestError:
    """The request is invalid; the message names the field."""
    return RequestError(400, "malformed", message)


def too_large(message: str) -> RequestError:
    """The body is larger than it may be."""
    return RequestError(413, "too_large", message)


def busy(message: str, seconds: int | float) -> RequestError:
    """The server is full: retry in some seconds."""
    return RequestError(429, "queue_full", message, {"Retry-After": str(max(1, round(seconds)))})


def unknown(message: str) -> RequestError:
    """There is no such model or version."""
    return RequestError(404, "unknown", message)
