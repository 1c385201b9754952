"""The command line: one file per verb; torch is imported inside the verbs, so that --help answers at once."""

import json
import os
import sys
import traceback
from typing import Any

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from offramp import __version__


def app() -> App:
    """The program with all its verbs."""
    from offramp.cli import (
        bench,
        calibrate,
        compare,
        curves,
        deploy,
        evaluate,
        export,
        info,
        lists,
        predict,
        report,
        train,
    )

    made = App(
        name="offramp",
        help="Vision networks with several exits that teach each other, and leave early for real.",
        version=__version__,
        result_action="return_value",
    )
    for verb in (
        train.train,
        evaluate.evaluate,
        calibrate.calibrate,
        compare.compare,
        curves.curves,
        deploy.deploy,
        bench.bench,
        report.report,
        export.export,
        predict.predict,
        info.info,
        lists.nets,
        lists.branches,
        lists.methods,
        lists.data,
    ):
        made.command(verb)
    return made


def main(argv: list[str] | None = None) -> None:
    """Run one command; exit status 0 if it did what was asked, 1 if it could not, 2 if it was not understood."""
    words = sys.argv[1:] if argv is None else argv
    try:
        status = _run(words)
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        sys.stderr.close()
        status = 1
    sys.exit(status)


def _run(words: list[str]) -> int:
    from offramp.cli._argv import prepare

    try:
        app()(prepare(words), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _fail(words, " ".join(str(error).split()), 2)
    except ValueError as error:
        return _fail(words, str(error), 2 if "--config" in str(error) else 1)
    except (OSError, ImportError, RuntimeError) as error:
        if not _expected(error):
            raise
        return _fail(words, str(error), getattr(error, "status", 1))
    return 0


def _expected(error: Exception) -> bool:
    """Whether this is something that went wrong in the user's world rather than in our code."""
    missing_extra = (
        isinstance(error, ImportError) and error.name is None
    )  # raised by us, with the command that installs
    return isinstance(error, OSError) or missing_extra or type(error).__module__.startswith("offramp.")


def _fail(words: list[str], message: str, status: int) -> int:
    """Say what went wrong in one line; with OFFRAMP_DEBUG set, where as well."""
    if os.environ.get("OFFRAMP_DEBUG"):
        traceback.print_exc()
    if "--json" in words:
        print(json.dumps({"error": message}))
    print(f"offramp: {message}", file=sys.stderr)
    return status


def emit(value: dict[str, Any]) -> None:
    """Print one JSON object as one line."""
    print(json.dumps(value))
