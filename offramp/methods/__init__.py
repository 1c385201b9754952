"""Training methods: one file each, named as on the command line."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from offramp.lookup import discover, docstrings, load

COSTS = Path(__file__).parent / "_costs.json"
"""What a step of each method takes, relative to `joint`; measured and written by `benchmarks/methods.py`."""


class About(NamedTuple):
    """What a list says of a method, from its file's docstring and from measurements.

    `time` and `memory` are those of a training step relative to `joint`; None where nothing was measured.
    """

    line: str
    family: str
    fits: str
    time: float | None
    memory: float | None


def available() -> dict[str, str]:
    """{name: what it is, in one sentence} of all methods, without importing any."""
    return discover("offramp.methods")


def about() -> dict[str, About]:
    """What there is to say of every method, by family and name, without importing any."""
    costs = json.loads(COSTS.read_text(encoding="utf-8"))["methods"]
    found = {name: _about(text, costs.get(name, {})) for name, text in docstrings("offramp.methods").items()}
    return dict(sorted(found.items(), key=lambda item: (item[1].family, item[0])))


def _about(text: str, cost: dict[str, float]) -> About:
    """Read `Family: WORDS. Fits: WORDS.`, a paragraph of a method's docstring."""
    words = " ".join(text.split())
    said = re.search(r"Family: (.+?)\. Fits: (.+?)\.(?= |$)", words)
    family, fits = said.groups() if said else ("other", "not said")
    return About(text.split("\n", 1)[0], family, fits, cost.get("time"), cost.get("memory"))


def find(name: str) -> ModuleType:
    """The method's module; its `build(**hyper)` makes the `Method`.

    Raises:
        ValueError: if there is no such method, with the nearest name.
    """
    return load("method", "offramp.methods", name)
