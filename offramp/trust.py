"""Which runs may import code: those trained here, and those that the user trusts by name.

The configuration of a run may name code (`net: python:my_nets:build`), and opening the run imports it. What may be
imported is recorded outside the run, below the user's state folder: one file per configuration, named by its digest,
with the source file of each module. A run that somebody else made is refused until `offramp trust RUN`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from offramp.files import read_json, replacing, user_folder, write_errors
from offramp.python_names import PREFIX, source
from offramp.text import quoted, shell_word


class NotTrusted(ValueError):
    """A run or bundle that names code which may not be imported."""


def code_names(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a configuration that import code, each once."""
    return tuple(dict.fromkeys(_code_names(dict(values))))


def remember(values: Mapping[str, Any]) -> None:
    """Record that this configuration may import the code that it names, from the files where its modules are now.

    Nothing is recorded for a configuration that names no code, or if there is no folder to write to: then the run has
    to be trusted when it is opened.
    """
    try:
        grant(values)
    except (OSError, ValueError):
        return


def grant(values: Mapping[str, Any]) -> dict[str, str]:
    """Record it as `remember` does.

    Returns:
        {name: the source file of its module}; empty if no code is named.
    Raises:
        ValueError: if a module does not exist, or there is no home folder to record it in.
        OSError: if it cannot be written.
    """
    sources = {name: str(source(name)) for name in code_names(values)}
    if sources:
        path = _record(values)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with write_errors(path), replacing(path, shared=True) as draft:
            draft.write_text(json.dumps({"modules": sources}, indent=2) + "\n", encoding="utf-8")
    return sources


def check(values: Mapping[str, Any], owner: Path) -> None:
    """Refuse a run whose configuration names code that may not be imported.

    Args:
        values: the flat configuration; owner: the folder of the run.
    Raises:
        NotTrusted: naming the code and the command that trusts the run.
    """
    names = code_names(values)
    if not names:
        return
    command = f"look at that code, then `offramp trust {shell_word(owner)}`"
    known = _known(values)
    if known is None:
        raise NotTrusted(
            f"{owner} was not trained here, and opening it would run code that it names ({quoted(', '.join(names))}): "
            f"{command}"
        )
    for name in names:
        file = str(source(name))
        if known.get(name) != file:
            raise NotTrusted(
                f"{owner} would import {quoted(name)} from {file}, but what is trusted is {known.get(name)}: {command}"
            )


def _code_names(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from (word.strip() for word in value.split(",") if word.strip().startswith(PREFIX))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _code_names(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _code_names(part)


def _known(values: Mapping[str, Any]) -> dict[str, str] | None:
    """The trusted modules of a configuration, None if nothing is recorded."""
    try:
        path = _record(values)
        record = read_json(path, {"modules": {str: str}}) if path.is_file() else None
    except ValueError:
        return None
    return record["modules"] if record else None


def _record(values: Mapping[str, Any]) -> Path:
    text = json.dumps(_plain(values), sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
    return user_folder("OFFRAMP_STATE", "XDG_STATE_HOME", ".local/state") / "trusted" / f"{digest}.json"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
