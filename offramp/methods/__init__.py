"""Training methods: one file each, named as on the command line."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from offramp import plugins
from offramp.discovery import Offer, discover, docstrings, load, offers

COSTS = Path(__file__).parent / "_costs.json"
"""What a step of each method takes, relative to `joint`; measured and written by `benchmarks/methods.py`."""


class About(NamedTuple):
    """What a list says of a method, from its file's docstring and from measurements.

    `time` and `memory` are those of a training step relative to `joint`; None if nothing was measured. `package` is
    the installed package, with its version, that a plugin belongs to; None for methods of offramp.
    """

    line: str
    family: str
    fits: str
    time: float | None
    memory: float | None
    package: str | None = None


def available() -> dict[str, str]:
    """{name: what it is, in one sentence} of all methods, those of plugins too, without importing any."""
    return offers(__name__)


def built_in() -> dict[str, str]:
    """{name: first line of its file} of the methods of this package, without importing any of them."""
    return discover(__name__)


def about() -> dict[str, About]:
    """What there is to say of every method, by family and name, without importing any."""
    costs = json.loads(COSTS.read_text(encoding="utf-8"))["methods"]
    ours = docstrings(__name__)
    described = {name: _about(text, costs.get(name, {})) for name, text in ours.items()}
    for name, plugin in plugins.usable(__name__, ours).items():
        described[name] = _about(plugin.text, {})._replace(package=plugin.origin)
    return dict(sorted(described.items(), key=lambda item: (item[1].family, item[0])))


def _about(text: str, cost: dict[str, float]) -> About:
    """Read `Family: WORDS. Fits: WORDS.`, a paragraph of a method's docstring."""
    words = " ".join(text.split())
    match = re.search(r"Family: (.+?)\. Fits: (.+?)\.(?= |$)", words)
    family, fits = match.groups() if match else ("other", "not said")
    return About(text.split("\n", 1)[0], family, fits, cost.get("time"), cost.get("memory"))


def find(name: str) -> Offer:
    """The method's code; its `build(**parameters)` makes the `Method`.

    Args:
        name: as listed, or `python:package.module`, also `python:package.module:function`.
    Raises:
        ValueError: if there is no such method, with the nearest name; if code from outside cannot be imported.
    """
    return load("method", __name__, name)
