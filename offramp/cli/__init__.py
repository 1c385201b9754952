"""The command line: one file per verb; torch is imported inside the verbs, so that --help is fast."""

import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from offramp import __version__, finite
from offramp.allocator import keep_freed_memory
from offramp.cli._failure import explain, fail, tell_processes
from offramp.cli._overview import ABOUT, ASKED, MODULES, overview
from offramp.lookup import ParameterError, nearest
from offramp.results import as_dict
from offramp.text import unicode_only

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.exceptions import CycloptsError


REQUIRED = ("torch", "numpy", "pyarrow")
"""Packages that pip installs with offramp; some verbs run without them."""


def verb(name: str) -> Callable[..., Any]:
    """The function of a verb; imports its file alone."""
    function: Callable[..., Any] = getattr(import_module(f"offramp.cli.{MODULES[name]}"), name)
    return function


def app(*names: str) -> "App":
    """The program with these verbs, or with all."""
    from cyclopts import App

    from offramp.cli._trust_option import OPENS, OPTION

    about: dict[str, Any] = {"help": ABOUT, "version": __version__, "result_action": "return_value"}
    program = App(name="offramp", suppress_keyboard_interrupt=False, **about)  # `main` says with which status
    for name in names or MODULES:
        more = {"help_epilogue": OPTION} if name in OPENS else {}
        program.command(verb(name), usage=_usage(verb(name)), **more)
    return program


def main(argv: list[str] | None = None) -> None:
    """Run one command; exit status 0 on success, 1 on failure, 2 if it was not understood."""
    words = sys.argv[1:] if argv is None else argv
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's; offramp refuses such images itself
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text that a terminal can show
    try:
        try:
            status = _run(words)
        finally:
            print(end="", flush=True)  # while a failure can still be reported
    except KeyboardInterrupt as end:
        status = getattr(end, "status", 130)
    except OSError as error:
        status = _unwritable(error)
    sys.exit(status)


def _unwritable(error: OSError) -> int:
    """Standard output cannot be written; if its reader has closed it, that is no error to report."""
    if not isinstance(error, BrokenPipeError):
        print(f"offramp: standard output cannot be written: {error.strerror}", file=sys.stderr)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more when it ends
    return 1


COMPUTING = {"train", "evaluate", "calibrate", "curves", "report", "bench", "analyse", "reproduce"}
"""Verbs that run networks with PyTorch in this process."""


def _run(words: list[str]) -> int:
    if words in ASKED:
        print(overview())
        return 0
    from cyclopts.exceptions import CycloptsError

    from offramp.cli._argv import check_whole, rewrite, with_config_file
    from offramp.cli._errors import as_typed
    from offramp.cli._trust_option import take_trust

    try:
        typed = rewrite(take_trust(words))
        named = [name for name in typed[:1] if name in MODULES]
        for name in named:
            check_whole(verb(name), typed)
    except ValueError as error:
        tell_processes(words, as_typed(error))
        return fail(words, as_typed(error), 2)
    except Exception as error:
        return fail(words, *explain(error))
    try:
        if set(named) & COMPUTING:
            keep_freed_memory()
        app(*named)(typed, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        tell_processes(words, _parser_message(error, typed))
        return fail(words, _parser_message(error, typed), 2)
    except ParameterError as error:
        return fail(words, with_config_file(words, as_typed(error)), 2)
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in REQUIRED:
            return fail(words, *explain(error, "".join(named)))
        return fail(words, f"`offramp {words[0]}` needs {package}, which is not installed: pip install {package}", 1)
    except Exception as error:
        return fail(words, *explain(error, "".join(named)))
    return 0


def _parser_message(error: "CycloptsError", typed: list[str]) -> str:
    """The parser's error, in one line."""
    from cyclopts.exceptions import MissingArgumentError, ValidationError

    argument, verb = error.argument, " ".join(error.command_chain or ())
    if isinstance(error, ValidationError) and error.exception_message:
        return " ".join(error.exception_message.split())
    if not isinstance(error, MissingArgumentError) or argument is None:
        return " ".join(str(error).split())
    if argument.field_info.is_positional:
        name = argument.field_info.name.upper()
        return f"{name} is missing: offramp {verb} {name}"
    if error.keyword or argument.tokens:
        return f"{error.keyword or argument.name} needs a value"
    if misspelt := _misspelt(typed):
        return misspelt
    return f"{argument.name} is missing: the folder to write, such as --out bundle"


def _misspelt(typed: list[str]) -> str:
    """An unknown option and the nearest one: a missing option may be there, misspelt."""
    known = [name for argument in app(typed[0])[typed[0]].assemble_argument_collection() for name in argument.names]
    for word in typed[1:]:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known and name.replace("--no-", "--", 1) not in known:
            return f"Unknown option: {name}; {nearest(name, [option for option in known if option.startswith('--')])}"
    return ""


NEEDED = {"train": "{--out PATH | --recipe NAME}", "compare": "{--methods STR --out PATH | --show LEDGER}"}
"""Usage of options of which one, or one group, is required."""


def _usage(verb: Callable[..., Any]) -> str:
    """The usage line of a verb."""
    needed, placed = [NEEDED[verb.__name__]] if verb.__name__ in NEEDED else [], []
    for name, spec in inspect.signature(verb).parameters.items():
        if spec.kind is spec.VAR_POSITIONAL:
            placed.append(f"{name.upper()}...")
        elif spec.kind is spec.KEYWORD_ONLY and spec.default is spec.empty:
            needed.append(f"--{name.replace('_', '-')} PATH")
        elif spec.kind is spec.POSITIONAL_ONLY:
            placed.append(name.upper() if spec.default is spec.empty else f"[{name.upper()}]")
        elif spec.kind is spec.POSITIONAL_OR_KEYWORD and spec.default is spec.empty:
            placed.append(name.upper())
    return " ".join(["Usage: offramp", verb.__name__, *needed, "[OPTIONS]", *placed])


def emit(value: dict[str, Any]) -> None:
    """Print one JSON object as one line; numbers that JSON lacks (NaN, infinity) are null; names may not be UTF-8."""
    print(finite.dumps(unicode_only(value)))


def emit_result(result: Any) -> None:
    """Print the result of a task as one JSON object."""
    emit(as_dict(result))


def show(result: Any, as_json: bool) -> None:
    """Print the result of a task, a dataclass: as one JSON object, or as its text."""
    if as_json:
        emit_result(result)
        return
    from offramp.cli._console import stdout

    stdout.print(str(result), highlight=False, markup=False, soft_wrap=True)
