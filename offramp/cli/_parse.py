"""Values of options that several verbs write alike: methods with parameters, seeds, grids."""

import re
from collections.abc import Sequence

from offramp.lookup import ParameterError


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` as numbers.

    Raises:
        ValueError: if a part is no number from 0 on.
    """
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal()]
    if wrong:
        raise ParameterError(f"--seeds takes comma-separated whole numbers from 0, such as 0,1,2, got {text!r}")
    return [int(part) for part in parts]


def parse_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """`["net=resnet18,resnet34", "lr=0.1,0.05"]` as values by option.

    Raises:
        ValueError: if a word is not OPTION=VALUE,VALUE, or an option is there twice.
    """
    grid: dict[str, list[str]] = {}
    for word in words:
        key, equals, values = word.removeprefix("--").partition("=")
        if not (key and equals and values):
            raise ParameterError(f"--grid takes an option with its values, such as net=resnet18,resnet34, got {word!r}")
        if key in grid:
            raise ParameterError(f"--grid names {key} twice: write all its values in one list, such as lr=0.05,0.1")
        grid[key] = [value.strip() for value in values.split(",")]
    return grid


def split_methods(text: str) -> list[str]:
    """The comma-separated methods, each with its parentheses: `joint,eed(teachers=0,-1)`."""
    return [word.strip() for word in re.split(r",(?![^()]*\))", text)]


def parse_methods(text: str) -> list[tuple[str, dict[str, str]]]:
    """`joint,muse(alpha=0.1,temperature=4)` as names with parameters; a value may contain commas: `eed(teachers=0,-1)`.

    Raises:
        ValueError: if a parenthesis is not closed, or its content is not KEY=VALUE.
    """
    methods = []
    for word in split_methods(text):
        matched = re.fullmatch(r"([^()\s]+?)\s*(?:\(([^()]*)\))?", word)
        if matched is None:
            raise ParameterError(f"--methods takes names such as joint,muse(alpha=0.1), got {word!r} in {text!r}")
        parameters: dict[str, str] = {}
        for part in re.split(r",(?=[^,=]*=)", matched[2] or ""):
            key, equals, value = part.partition("=")
            if part.strip() and not (equals and key.strip() and value.strip()):
                raise ParameterError(
                    f"--methods {word.strip()}: {part.strip()!r} is not KEY=VALUE, as in muse(alpha=0.1)"
                )
            if part.strip():
                parameters[key.strip()] = value.strip()
        methods.append((matched[1], parameters))
    return methods
