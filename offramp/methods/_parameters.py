"""Parameters that several methods share, or that fill a settings class, written once: name, type, default, meaning."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection
from typing import Any, TypeVar, get_type_hints

Build = TypeVar("Build", bound=Callable[..., Any])
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
_ENTRY = re.compile(r"^ {4}(\w+): ")


def parameters_of(settings: type[Any], *, omit: Collection[str] = ()) -> Callable[[Build], Build]:
    """Give a `build(..., **parameters)` the fields of a settings class as keyword parameters, documentation included.

    Parameters that the function has itself come first; a field of the same name is left out. Only signature and
    docstring are completed: the function passes `parameters` to the settings class.

    Args:
        settings: a dataclass whose docstring explains its fields in a section `Attributes`.
        omit: fields that are no parameters; so are fields without a default.
    """

    def complete(build: Build) -> Build:
        keywords = [spec for spec in inspect.signature(build).parameters.values() if spec.kind is KEYWORD_ONLY]
        left_out = {*omit, *(spec.name for spec in keywords)}
        hints = get_type_hints(settings)
        shared = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in dataclasses.fields(settings)
            if field.name not in left_out and field.default is not dataclasses.MISSING
        ]
        returned = build.__annotations__.get("return")
        signature: Any = inspect.Signature([*keywords, *shared], return_annotation=returned)
        build.__signature__ = signature  # type: ignore[attr-defined]
        build.__annotations__ = {spec.name: spec.annotation for spec in (*keywords, *shared)} | {"return": returned}
        meaning = _explained(settings)
        build.__doc__ = _with_arguments(inspect.getdoc(build) or "", [meaning.get(spec.name, "") for spec in shared])
        return build

    return complete


def _explained(settings: type[Any]) -> dict[str, str]:
    """{field: its lines in the section `Attributes`}."""
    lines = (inspect.getdoc(settings) or "").partition("Attributes:\n")[2].splitlines()
    entries: dict[str, str] = {}
    name = ""
    for line in lines:
        if not line.startswith("    "):
            break
        entry = _ENTRY.match(line)
        name = entry.group(1) if entry else name
        entries[name] = f"{entries[name]}\n{line}" if name in entries else line
    return entries


def _with_arguments(text: str, entries: list[str]) -> str:
    """A docstring with more entries at the end of its section `Args`, which is created before later sections."""
    added = "\n".join(entry for entry in entries if entry)
    if "\nArgs:\n" in text:
        head, _, rest = text.partition("\nArgs:\n")
        summary, blank, rest = rest.partition("\n\n")
        return f"{head}\nArgs:\n{summary}\n{added}{blank}{rest}"
    section = re.search(r"\n\n(Data sets|Raises):\n", text)
    place = section.start() if section else len(text)
    return f"{text[:place]}\n\nArgs:\n{added}{text[place:]}"
