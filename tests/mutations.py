"""Damage to files: bytes flipped, cut and deleted, fields of JSON and YAML of other types. Seeded, and endless."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

VALUES: tuple[Any, ...] = (
    *(None, True, 0, 7, -1, 1.5, 10**30, 1e308, float("nan"), "", "x\x1b[31m\n", "a" * 5000),
    *([], [None], {}, {"a": []}, [[[]]]),
)


def damage(content: bytes, name: str, random: random.Random) -> tuple[str, bytes | None]:
    """What was done to the content of a file, and the content then; None deletes the file."""
    ways = [_flip, _cut, _remove, _repeat, *([_field] * 4 if name.endswith((".json", ".jsonl", ".yaml")) else [])]
    if random.random() < 0.02:
        return "deleted", None
    way = random.choice(ways)
    return way(content, name, random)


def _flip(content: bytes, name: str, random: random.Random) -> tuple[str, bytes]:
    place = random.randrange(min(len(content), random.choice((300, len(content)))))  # headers are at the beginning
    changed = bytearray(content)
    changed[place] ^= random.randrange(1, 256)
    return f"byte {place} flipped", bytes(changed)


def _cut(content: bytes, name: str, random: random.Random) -> tuple[str, bytes]:
    length = random.randrange(len(content))
    return f"cut to {length} bytes", content[:length]


def _remove(content: bytes, name: str, random: random.Random) -> tuple[str, bytes]:
    begin = random.randrange(len(content))
    end = begin + random.randrange(1, 60)
    return f"bytes {begin} to {end} removed", content[:begin] + content[end:]


def _repeat(content: bytes, name: str, random: random.Random) -> tuple[str, bytes]:
    begin = random.randrange(len(content))
    return f"from byte {begin} twice", content + content[begin:]


def _field(content: bytes, name: str, random: random.Random) -> tuple[str, bytes]:
    if name.endswith(".jsonl"):
        lines = content.split(b"\n")
        number = random.randrange(len(lines) - 1)
        said, lines[number] = _field(lines[number], ".json", random)
        return f"line {number + 1}: {said}", b"\n".join(lines)
    values = yaml.safe_load(content) if name.endswith(".yaml") else json.loads(content)
    said = change_field(values, random)
    text = yaml.safe_dump(values, sort_keys=False) if name.endswith(".yaml") else json.dumps(values, indent=2)
    return said, text.encode()


def change_field(values: Any, random: random.Random) -> str:
    """Change or delete one field of nested objects and lists, in place."""
    owner, key = random.choice(list(_fields(values)))
    if random.random() < 0.2:
        del owner[key]
        return f"{key!r} deleted"
    owner[key] = copy.deepcopy(random.choice(VALUES))
    return f"{key!r} becomes {str(owner[key])[:40]!r}"


def _fields(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _fields(value[key])


def outcome(read: Callable[[], Any], right: Any, file: Path, same: Callable[[Any, Any], bool]) -> str:
    """How reading ends: `right` (the same answer) or `refused` (one line that names the file).

    Raises:
        AssertionError: if it ends otherwise.
    """
    from offramp.cli._failure import explain

    try:
        answer = read()
    except Exception as error:
        message, _ = explain(error)
        assert not message.startswith("unexpected "), message
        assert str(file) in message or file.name in message or str(file.parent) in message, message
        assert "\n" not in message and len(message) < 1500 and message.isprintable(), message
        return "refused"
    assert same(answer, right), "another answer"
    return "right"
