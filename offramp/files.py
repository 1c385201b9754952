"""Reading and writing the files of runs and bundles: every error names the file, and sizes are bounded."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offramp.schema import Spec, check
from offramp.text import one_line, quoted

LARGEST_TEXT = 64 << 20
"""Bytes of a text file of a run or bundle that is read at once."""
DRAFT = ".part-"
"""Beginning of the names of files and folders that are being written."""
MOST_VALUES = 100_000
"""Values in a YAML file: a reference may be expanded many times."""


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """The text of a file.

    Raises:
        ValueError: naming the file, if it cannot be read, is too large or is not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > largest:
            raise ValueError(f"{path} is damaged: it has {size:,} bytes, more than the {largest:,} that it may have")
        return path.read_bytes().decode()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is not text (byte {error.start})") from None


def read_json(path: Path, spec: Spec = {str: object}) -> Any:  # noqa: B006 (never changed)
    """The content of a JSON file, checked against `spec`; see `offramp.schema`.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    return parse_json(read_text(path), str(path), spec)


def parse_json(text: str | bytes, source: str, spec: Spec = {str: object}) -> Any:  # noqa: B006
    """JSON text, checked; `source` names it in errors. Errors as in `read_json`."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is damaged: it is not JSON ({one_line(str(error), 200)})") from None
    check(value, spec, f"{source} is damaged")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):  # readers differ in which of two values they take
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {quoted(next(name for name in names if names.count(name) > 1))} appears there twice")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def read_yaml(path: Path) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        ValueError: naming the file, if it cannot be read, is not YAML or contains no options.
    """
    try:
        value = parse_yaml(read_text(path))
    except YAMLProblem as problem:
        raise ValueError(f"{path} is damaged: it is {problem}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it contains no options")
    return {str(key): part for key, part in value.items()}


class YAMLProblem(ValueError):
    """A text that is not YAML, or too much of it."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, in plain types.

    Raises:
        YAMLProblem: saying where it stops being YAML, or that its references expand to too many values.
    """
    import yaml  # here, because --help does without it

    try:
        value = yaml.safe_load(text)
    except Exception as error:  # YAML's own errors, and those of the values that it builds, such as dates
        raise YAMLProblem(f"not YAML: {_yaml_reason(error)}") from None
    if _values(value, MOST_VALUES) > MOST_VALUES:
        raise YAMLProblem(f"more than {MOST_VALUES:,} values")
    return value


def _yaml_reason(error: Exception) -> str:
    """Where a text stops being YAML, and why, in a few words."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', '')}"
    return one_line(f"{type(error).__name__}: {error}", 200)


def _values(value: Any, most: int) -> int:
    """How many values there are, references counted each time; stops soon after `most`."""
    waiting, count = [value], 0
    while waiting and count <= most:
        part = waiting.pop()
        count += 1
        if isinstance(part, dict | list):
            waiting.extend(list(part.values() if isinstance(part, dict) else part)[: most + 1 - count])
    return count


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Errors of writing a file, also those of other libraries, as one `OSError` that names it and the free space."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        _raise_named(path, error)
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        _raise_named(path, error)


@contextmanager
def replacing(path: Path, *, sync: bool = False, shared: bool = False) -> Iterator[Path]:
    """Write a file whole or not at all: what is written to the path that this yields replaces `path` at the end.

    Args:
        sync: wait until the content is on the disk, so that it survives a loss of power.
        shared: several processes may write the file at the same time.
    """
    draft = path.with_name(f"{DRAFT}{path.name}" + (f"-{os.getpid()}" if shared else ""))
    try:
        yield draft
        if sync:
            sync_to_disk(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)  # it exists only if this was interrupted


@contextmanager
def usual_permissions(path: Path) -> Iterator[None]:
    """For a library that makes a new file readable by its owner only: it gets the permissions of any new file."""
    path.touch()
    usual = path.stat().st_mode & 0o777
    yield
    path.chmod(usual)


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(descriptor: int, size: int) -> None:
    """Make an open file this long and take its space: a disk that fills up under a mapping kills the process.

    Raises:
        OSError: if the disk has not that much space.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _raise_named(path: Path, error: BaseException) -> None:
    if isinstance(error, OSError) and error.filename is not None:
        raise error
    reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(str(error), 200)
    try:
        free = f"; {shutil.disk_usage(path.parent).free / 1e6:,.1f} MB are free there"
    except OSError:
        free = ""
    raise OSError(f"{path} cannot be written: {reason}{free}") from error


def user_folder(variable: str, standard: str, below_home: str) -> Path:
    """A folder of this user's: `$VARIABLE`, else `$STANDARD/offramp` (as `XDG_STATE_HOME`), else below the home folder.

    Raises:
        ValueError: if there is no home folder, naming the variable to set.
    """
    if chosen := os.environ.get(variable):
        return _expanded(Path(chosen), variable)
    if base := os.environ.get(standard):
        return _expanded(Path(base), variable) / "offramp"
    return _expanded(Path("~"), variable) / below_home / "offramp"


def _expanded(path: Path, variable: str) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"this user has no home folder: set {variable} to a folder that can be written to") from None
