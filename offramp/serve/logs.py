"""Structured logs: one JSON object per line on standard error. Runs without torch."""

import logging
import sys
import time
from collections.abc import Mapping
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

    def __init__(self, log: Log) -> None:
        super().__init__(logging.ERROR)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One event."""
        trace = {} if record.exc_info is None else {"traceback": logging.Formatter().formatException(record.exc_info)}
        self.log.error("server", message=record.getMessage().strip(), **trace)


def uvicorn_logger(log: Log) -> logging.Logger:
    """For what uvicorn reports about a connection, as lines of our log; not one of the process's loggers."""
    logger = logging.Logger("offramp.serve", logging.ERROR)
    logger.addHandler(_Forward(log))
    return logger
