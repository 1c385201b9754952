"""Another process of a run that is gone: what the processes that are left say."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from offramp.lookup import with_parameters

_EXCHANGE = re.compile(
    "gloo|nccl|process ?group|rendezvous|tcpstore|socket|connection (reset|closed|refused)|broken pipe|timed? ?out",
    re.IGNORECASE,
)
"""Words in the errors of exchanges between processes; PyTorch raises most of them as plain RuntimeError."""


class ConnectionLost(Exception):
    """Another process of this run ended, or did not come."""


@contextmanager
def naming_lost_processes(fabric: Any, processes: int) -> Iterator[None]:
    """In this context a failed exchange with another process is a `ConnectionLost`, in the first process of a machine.

    Its other processes end with status 1.

    Args:
        processes: how many train together; one alone exchanges nothing.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).partition("\n")[0]
        if processes == 1 or not _EXCHANGE.search(text):
            raise
        if fabric.local_rank:
            raise SystemExit(1) from None
        reason = re.sub(r"^\[[^]]*\] ?", "", text).partition(". ")[0]
        raise with_parameters(
            ConnectionLost(
                f"the connection to another process was lost ({reason[:200]}): see what that one said, then start the "
                "command again on every machine, with resume"
            ),
            "resume",
        ) from error
