"""Text from elsewhere (file names, class names, values of files) in a form that is safe to print."""

import re
import shlex
from collections.abc import Mapping
from html import escape
from itertools import islice
from typing import Any

QUOTED = 200
"""Characters of a value that an error quotes at most."""
LINE = 1500
"""Characters of one error message at most."""
FORMULA = tuple("=+-@＝＋－＠")
"""First characters that make a spreadsheet take a cell for a formula."""

# C0 and C1 control characters, line and paragraph separators, marks that reverse the direction of text, surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LINES = re.compile("(?![\n\t])" + _CONTROL.pattern)


def printable(text: str, *, lines: bool = False) -> str:
    r"""The text with every control character replaced by its escape, such as `\x1b`.

    Args:
        lines: keep line ends and tabs, for text of several lines that is the program's own.
    """
    return (_LINES if lines else _CONTROL).sub(_escape, text)


def unicode_only(value: Any) -> Any:
    r"""Nested values with texts that every reader of JSON takes: bytes that are not UTF-8 are escaped, as `\xe9`."""
    if isinstance(value, str):
        return _SURROGATE.sub(_escape, value)
    if isinstance(value, Mapping):
        return {unicode_only(key): unicode_only(part) for key, part in value.items()}
    return [unicode_only(part) for part in value] if isinstance(value, list | tuple) else value


def quantity(number: int, noun: str) -> str:
    """A number of things: `1 epoch`, `2 epochs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def as_typed(value: Any) -> str:
    """The value of an option as it would be typed: the items of a sequence separated by commas."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def quoted(value: Any, limit: int = QUOTED) -> str:
    """`repr` of a value, at most `limit` characters of it; in little time, even if the value is large."""
    try:
        text = repr(_start(value, limit + 1))
    except RecursionError:
        text = f"a {type(value).__name__} of many levels"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _start(value: Any, length: int) -> Any:
    """A value of JSON with the first characters and items of everything in it: their `repr` begins as its own does."""
    if isinstance(value, str):
        return value[:length]
    if isinstance(value, list):
        return [_start(part, length) for part in value[:length]]
    if isinstance(value, dict):
        return {_start(name, length): _start(part, length) for name, part in islice(value.items(), length)}
    return value


def shell_word(path: Any) -> str:
    """A path as one word of a command that can be copied into a shell: quoted, and never taken for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def one_line(text: str, limit: int = LINE) -> str:
    """A message as one line: white space joined, control characters replaced, the middle left out if it is long."""
    line = printable(" ".join(text.split()))
    half = (limit - 5) // 2
    return line if len(line) <= limit else f"{line[:half]} ... {line[-half:]}"


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: in texts, control characters replaced, and what would be a formula quoted by `'`."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


def escaped(text: str) -> str:
    """A text for HTML and SVG, in elements and attributes."""
    return escape(printable(text))


def _escape(match: re.Match[str]) -> str:
    """The character's escape; of a byte that is not UTF-8, as file names may hold, that of the byte."""
    character = match[0]
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
