"""Trainings as factors (data x network x exits x method), and the configuration of each in a protocol."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from offramp.config import Config, read_yaml, unflat
from offramp.config.recipes import available as recipes
from offramp.config.recipes import find as recipe_named
from offramp.files import parse_yaml, read_text
from offramp.lookup import ParameterError, unknown, with_parameters

FOLDER = Path(__file__).parent
QUICK = "quick-cifar100-resnet18"
"""The recipe of the reduced protocol."""
SHARED = ("net", "branch", "method", "seed", "width")
"""Keys of a reduced protocol's file that the trainings set, or that are read as the width to reduce to."""


@dataclass(frozen=True)
class Training:
    """One training: a point of data x network x exits x method; `name` is that point, and the name of its runs."""

    name: str
    data: str
    network: str
    exits: str
    method: str


@dataclass(frozen=True)
class Protocol:
    """How trainings are trained: as the papers do, or reduced.

    Attributes:
        name: `full`, `quick` or that of a file.
        values: options that take the place of the papers' recipes; None for those.
        width: width of a reduced ResNet; other networks are reduced in proportion.
        source: where the values are from.
    """

    name: str
    values: Mapping[str, Any] | None = None
    width: int | None = None
    source: str = ""

    @property
    def reduced(self) -> bool:
        """Whether it is not the papers' own."""
        return self.values is not None

    @property
    def recipe(self) -> dict[str, Any]:
        """What a reduced protocol sets, its width included; nothing for the papers' own."""
        return {**(self.values or {}), **({"width": self.width} if self.width else {})}


FULL = Protocol("full")


def quick() -> Protocol:
    """The reduced protocol that the package documents."""
    return protocol_from(QUICK, "quick")


def protocol_from(source: Path | str, name: str | None = None) -> Protocol:
    """A reduced protocol from a recipe's name or a YAML file: its options replace the papers' recipes.

    `width` is that of a ResNet; net, branch, method and seed are not used.

    Raises:
        ParameterError: if there is neither such a recipe nor such a file.
    """
    path = Path(source)
    if str(source) in recipes():
        path = recipe_named(str(source))
    elif not path.is_file():
        raise with_parameters(
            ParameterError(f"protocol {source} is neither a file nor a recipe of `offramp recipes`"), "protocol"
        )
    values = read_yaml(path)
    kept = {
        key: value for key, value in values.items() if key not in SHARED and not key.startswith(("net.", "method."))
    }
    return Protocol(name or path.stem, kept, values.get("width"), str(source))


@cache
def factors() -> dict[str, Any]:
    """The content of trainings.yaml."""
    return load("trainings.yaml")


def load(name: str) -> dict[str, Any]:
    """The mapping in a YAML file of this package."""
    values: dict[str, Any] = parse_yaml(read_text(FOLDER / name))
    return values


@cache
def trainings() -> dict[str, Training]:
    """All trainings by name: first those of the tables, then those of figures and claims alone."""
    return {one.name: one for group in ("trainings", "further") for one in expanded(group)}


def expanded(group: str) -> Iterator[Training]:
    """The trainings of one list of trainings.yaml."""
    for entry in factors()[group]:
        axes = (_listed(entry[axis]) for axis in ("data", "networks", "exits", "methods"))
        for point in product(*axes):
            yield Training(".".join(point), *point)


def training(name: str) -> Training:
    """The training of this name.

    Raises:
        ParameterError: naming the nearest.
    """
    if name not in trainings():
        raise unknown("training", name, list(trainings()))
    return trainings()[name]


def runnable(one: Training, protocol: Protocol) -> bool:
    """Whether the protocol has data for the training: a reduced one has no ImageNet."""
    return not (protocol.reduced and one.data in factors()["full-scale-only"])


def config_of(one: Training, protocol: Protocol, runs: Path = Path(), device: str = "auto") -> Config:
    """What `offramp train` takes for this training: seed 0, no data directory.

    Args:
        runs: folder of runs, for trainings that take the loss weights from another run.
        device: where to train; `auto` leaves it to the protocol.
    """
    values = values_of(one, protocol, runs)
    return unflat(values if device == "auto" else {**values, "device": device}, f"training {one.name}")


def values_of(one: Training, protocol: Protocol, runs: Path = Path()) -> dict[str, Any]:
    """The same as a flat mapping, as in a config file."""
    known = factors()
    parts = [
        known["data"][one.data],
        known["networks"][one.network],
        known["exits"][one.exits],
        known["methods"][one.method],
        *(entry["set"] for entry in known["adjust"] if _fits(entry, one)),
    ]
    recipe = known["recipes"][[part["recipe"] for part in parts if "recipe" in part][-1]]
    merged = {key: value for part in parts for key, value in part.items()}
    merged.pop("recipe")
    reduced = merged.pop("reduced", {})
    other = merged.pop("weights-of", None)
    if other is not None:
        source = ".".join((one.data, one.network, one.exits, other["method"]))
        merged["method.fixed"] = str(runs / folder_of(source, other["seed"]))
    if protocol.values is None:
        return {**recipe, **merged}
    width = protocol.width
    sizes = {key: max(1, round(factor * width)) for key, factor in reduced.items()} if width else {}
    return {**merged, **protocol.values, **sizes}


def needs_run(one: Training) -> tuple[str, int] | None:
    """The training and seed whose final loss weights this one takes; None if it takes none."""
    other = factors()["methods"][one.method].get("weights-of")
    if other is None:
        return None
    return ".".join((one.data, one.network, one.exits, other["method"])), int(other["seed"])


def folder_of(name: str, seed: int) -> str:
    """The folder of a run in the folder of a reproduction."""
    return f"{name}-seed-{seed}"


def _fits(entry: Mapping[str, Any], one: Training) -> bool:
    places = {"data": one.data, "networks": one.network, "exits": one.exits, "methods": one.method}
    return all(value in entry[axis] for axis, value in places.items() if axis in entry)


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]
