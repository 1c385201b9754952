"""Structured logs: one JSON object per line on standard error. Runs without torch."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from offramp import finite
from offramp.text import unicode_only


def write(event: str, level: str = "info", **fields: Any) -> None:
    """Log one event; a log that cannot be written stops nothing."""
    values: Mapping[str, Any] = {"time": round(time.time(), 3), "level": level, "event": event, **fields}
    try:
        print(finite.dumps(unicode_only(values)), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


class Log:
    """A log that keeps what its level asks for: `all`, `errors` or `none`."""

    def __init__(self, level: str) -> None:
        self.level = level

    def writes(self, failure: bool) -> bool:
        """Whether it keeps what is as it should be, or a failure."""
        return self.level == "all" or (failure and self.level != "none")

    def info(self, event: str, **fields: Any) -> None:
        """Log what is as it should be."""
        if self.writes(failure=False):
            write(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log what is not."""
        if self.writes(failure=True):
            write(event, "error", **fields)


class _Forward(logging.Handler):
    """Passes on what a library logs; `Handler` is the interface that `logging` asks for."""

    def __init__(self, log: Log, level: int) -> None:
        super().__init__(level)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One event."""
        if self.log.writes(failure=True):
            trace = "" if record.exc_info is None else logging.Formatter().formatException(record.exc_info)
            more = {"traceback": trace} if trace else {}
            write("server", record.levelname.lower(), source=record.name, message=record.getMessage().strip(), **more)


def uvicorn_logger(log: Log) -> logging.Logger:
    """For what uvicorn reports about a connection, as lines of our log; not one of the process's loggers."""
    logger = logging.Logger("uvicorn", logging.ERROR)
    logger.addHandler(_Forward(log, logging.ERROR))
    return logger


@contextmanager
def forwarded(log: Log, name: str) -> Iterator[None]:
    """While the context is open, warnings and errors of a logger are lines of our log, unless the program handles them.

    Args:
        name: of the logger; "" for those of all libraries.
    """
    logger, handler = logging.getLogger(name), _Forward(log, logging.WARNING)
    if logger.hasHandlers():
        yield
        return
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
