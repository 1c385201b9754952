"""Where exceptions become one line: what went wrong, and the exit status."""

import json
import os
import re
import sys
import traceback
from pathlib import Path

from offramp.cli._errors import as_typed
from offramp.lookup import ParameterError
from offramp.python_names import failing_line
from offramp.text import one_line

_ALLOCATOR = re.compile("can't allocate memory|Failed to allocate memory|out of memory", re.IGNORECASE)
DEBUG = "OFFRAMP_DEBUG"
"""Set this variable to see tracebacks."""


def fail(words: list[str], message: str, status: int) -> int:
    """Print what went wrong as one line, with `--json` as an object too; with OFFRAMP_DEBUG set, where as well.

    Returns:
        The exit status.
    """
    if os.environ.get(DEBUG):
        traceback.print_exc()
    line = one_line(message)
    if "--json" in words:
        print(json.dumps({"error": line}))
    print(f"offramp: {line}", file=sys.stderr)
    return status


def explain(error: Exception) -> tuple[str, int]:
    """(what went wrong, the exit status): 2 if a word of the command was not understood, else 1.

    Errors of the user's files and machine are shown as they are. Unexpected ones, mistakes of offramp or of a library,
    are shown with their type and the line that raised them; errors in code from outside with the line there.
    """
    if isinstance(error, ParameterError):
        return as_typed(error), 2
    if isinstance(error, OSError) and error.strerror:
        named = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
        return named + error.strerror, 1
    if _out_of_memory(error):
        said = one_line(str(error), 300)
        return f"there is not enough memory{f': {said}' if said else ''}", 1
    if _expected(error):
        return as_typed(error), getattr(error, "status", 1)
    line = failing_line(error)
    if line:
        return f"{type(error).__name__}: {one_line(str(error), 300)} ({line}; {DEBUG}=1 shows the calls)", 1
    return (
        f"unexpected {type(error).__name__}: {one_line(str(error), 300)} (raised at {_place(error)}; {DEBUG}=1 shows "
        "the calls; please report it)",
        1,
    )


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's, that of PyTorch's allocator for CPUs or GPUs, or of ONNX Runtime."""
    named = isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "_ArrayMemoryError")
    return named or (isinstance(error, RuntimeError) and bool(_ALLOCATOR.search(str(error))))


def _expected(error: Exception) -> bool:
    """Whether this is an error of the user's input or machine rather than of the code."""
    # Raised by us, with the command that installs.
    missing_extra = isinstance(error, ImportError) and error.name is None
    ours = type(error).__module__.startswith("offramp.")
    return missing_extra or ours or (isinstance(error, ValueError | OSError) and bool(str(error)))


def _place(error: Exception) -> str:
    """The deepest line of ours that the error passed, or where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(__file__).parents[1])
    ours = [frame for frame in frames if frame.filename.startswith(package)]
    frame = (ours or frames)[-1] if frames else None
    return f"{Path(frame.filename).name}:{frame.lineno}" if frame else "an unknown place"
