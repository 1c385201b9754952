"""Names such as `python:my_methods`: modules of the user's, from the working directory or among what is installed."""

import ast
import importlib
import importlib.machinery
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from offramp.lookup import ParameterError, nearest
from offramp.text import one_line, quoted

PREFIX = "python:"
"""Names that begin so import a module of the user's."""

_folders: set[str] = set()
"""The source files of imported modules; see `failing_line`."""


class Builder(NamedTuple):
    """Code from outside the package.

    Attributes:
        build: as the `build` of a file of this package; its errors name the module and the line.
        text: the docstring of its module.
    """

    build: Callable[..., Any]
    text: str


def is_python(name: str) -> bool:
    """Whether a name is `python:MODULE` or `python:MODULE:FUNCTION`."""
    return name.startswith(PREFIX)


def load(name: str) -> Builder:
    """Import `python:package.module`, whose `build` is taken, or `python:package.module:function`.

    Raises:
        ParameterError: if the name has another form, or the module cannot be imported or lacks the function.
    """
    module_name, colon, function = name.removeprefix(PREFIX).partition(":")
    if not module_name or ":" in function or (colon and not function):
        raise ParameterError(f"{name} must be python:package.module or python:package.module:function")
    with working_directory(name):
        module = import_module(module_name)
    return builder(module, function or "build", name, lambda: working_directory(name))


def import_module(name: str) -> ModuleType:
    """Import a module of the user's.

    Raises:
        ParameterError: with the reason, if it cannot be imported.
    """
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # code of the user's fails in many ways
        advice = ": name the module, without .py" if name.endswith(".py") else ""
        raise ParameterError(f"python:{name} cannot be imported: {reason(error)}{advice}") from error
    _remember(module)
    return module


def builder(
    module: ModuleType,
    function: str,
    owner: str,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Builder:
    """A function of a module as a `Builder`.

    Args:
        owner: begins the sentences about its errors.
        within: gives the context in which the function is called.
    Raises:
        ParameterError: if the module has no such function, with the nearest name.
    """
    _remember(module)
    build = getattr(module, function, None)
    if not callable(build):
        names = [name for name in dir(module) if not name.startswith("_")]
        raise ParameterError(f"{owner}: {module.__name__} has no function {function!r}; {nearest(function, names)}")
    return Builder(_with_place(build, owner, within), module.__doc__ or "")


def _with_place(
    build: Callable[..., Any], owner: str, within: Callable[[], AbstractContextManager[None]]
) -> Callable[..., Any]:
    """The function, whose unexpected errors say where they were raised; refusals (ValueError, OSError) pass."""

    @wraps(build)
    def call(*values: Any, **options: Any) -> Any:
        try:
            with within():
                return build(*values, **options)
        except (ValueError, OSError, MemoryError):
            raise
        except Exception as error:
            line = failing_line(error)
            raise ValueError(f"{owner} failed: {f'{line}: ' if line else ''}{reason(error)}") from error

    return call


def reason(error: BaseException) -> str:
    """What an exception says, in one line; with its type, unless it comes from importing."""
    text = one_line(str(error), 300)
    if isinstance(error, ImportError | SyntaxError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _remember(module: ModuleType) -> None:
    file = getattr(module, "__file__", None)  # modules that are built into Python have none
    if file:
        _folders.add(str(Path(file).parent))


def failing_line(error: BaseException) -> str | None:
    """The deepest line of code from outside that an error passed: `my_methods.py, line 12: ...`; None if it did not."""
    calls = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in calls if str(Path(frame.filename).parent) in _folders]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: `{frames[-1].line}`" if frames else None


@contextmanager
def working_directory(name: str) -> Iterator[None]:
    """Within, modules are looked for in the working directory too, if that of `python:MODULE` is there.

    `sys.path` is as before afterwards.
    """
    here = str(Path.cwd())
    top = name.removeprefix(PREFIX).partition(":")[0].partition(".")[0]
    find_spec = importlib.machinery.PathFinder.find_spec
    added = is_python(name) and here not in sys.path and find_spec(top, [here]) is not None
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def source(name: str, *, installed: bool = False) -> Path | str:
    """The file that a module would be imported from, or is: nothing is imported to find it.

    Args:
        name: `package.module`, also as `python:package.module:function`.
        installed: do not look in the working directory.
    Returns:
        The file; the module's name if it has none.
    Raises:
        ValueError: if there is no such module.
    """
    module = name.removeprefix(PREFIX).partition(":")[0]
    loaded = sys.modules.get(module)
    if loaded is not None:
        return Path(getattr(loaded, "__file__", None) or module).resolve()
    here = str(Path.cwd())
    places: list[str] | None = sys.path if installed or here in sys.path else [here, *sys.path]
    where = "" if installed else f"in {Path.cwd()} or "
    spec, full = None, ""
    for part in module.split("."):
        full = f"{full}.{part}".lstrip(".")
        spec = _find(full, places)
        if spec is None:
            raise ValueError(f"{name}: there is no module {quoted(full)} {where}among what is installed")
        places = list(spec.submodule_search_locations or ())
    assert spec is not None
    return Path(spec.origin).resolve() if spec.has_location and spec.origin else module


def _find(module: str, places: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    """Where a module is: on these paths, else where an installed package says (as editable ones do)."""
    spec = importlib.machinery.PathFinder.find_spec(module, places)
    finders = () if spec is not None else sys.meta_path
    return spec or next((spec_found for finder in finders if (spec_found := finder.find_spec(module, places))), None)


def parsed(file: Path) -> ast.Module:
    """The syntax tree of a source file.

    Raises:
        ValueError: if it cannot be read as Python.
    """
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name} cannot be read: {reason(error)}") from None
