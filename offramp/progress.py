"""Progress of work that counts samples, as a callback: nothing is shown unless the caller asks for it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Advance = Callable[[int], None]
"""Called with the number of samples that were finished since the last call."""

Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""(what is being done, how many samples in all) -> a context manager; it gives the function to call after each part of
the work."""


def no_progress(text: str, total: int) -> AbstractContextManager[Advance]:
    """The default: shows nothing."""
    return nullcontext(lambda samples: None)
