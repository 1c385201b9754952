"""What a docstring says of parameters: each one's explanation, and the values that papers give on other data."""

import inspect
import re
from collections.abc import Callable
from typing import Any

_ENTRY = re.compile(r"^ {4}(\S[^:\n]*): (.*)$")


def explained(build: Callable[..., Any]) -> dict[str, str]:
    """{parameter: what it is} of the section `Args`."""
    return _section(build, "Args")


def described(owner: type[Any]) -> dict[str, str]:
    """{field: what it is} of the section `Attributes` of a dataclass."""
    return _section(owner, "Attributes")


def elsewhere(build: Callable[..., Any]) -> dict[str, dict[str, str]]:
    """{data set: {parameter: value}} of the section `Data sets`, where defaults differ from those of the signature.

    Its lines are `ImageNet: alpha .1, temperature 20`.
    """
    return {
        data: dict(pair.split(maxsplit=1) for pair in values.rstrip(".").split(", "))
        for data, values in _section(build, "Data sets").items()
    }


def summary(build: Callable[..., Any]) -> str:
    """The text before the first section."""
    text = inspect.getdoc(build) or ""
    return re.split(r"\n\n(?=[A-Z][\w ]*:\n )", text, maxsplit=1)[0]


def _section(build: Callable[..., Any], title: str) -> dict[str, str]:
    descriptions: dict[str, str] = {}
    lines = (inspect.getdoc(build) or "").splitlines()
    start = lines.index(f"{title}:") + 1 if f"{title}:" in lines else len(lines)
    key = ""
    for line in lines[start:]:
        if line and not line.startswith("    "):
            break
        entry = _ENTRY.match(line)
        if entry:
            key, text = entry.groups()
            descriptions[key] = text
        elif key and line.strip():
            descriptions[key] += f" {line.strip()}"
    return descriptions
