"""Configurations in files: YAML, and the flat mapping from option names to plain values that it holds."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offramp.config.config import Config
from offramp.files import YAMLProblem, parse_yaml, read_text
from offramp.hyperparameters import KINDS, convert
from offramp.lookup import ParameterError, unknown
from offramp.renamed import as_now
from offramp.train.recipe import Recipe

LATER = {
    "accumulate": 1,
    "deterministic": False,
    "graph": False,
    "pretrained": False,
    "skip-damaged": False,
    "balanced": False,
    "patience": 0,
    "strategy": "ddp",
    "sync-batch-norm": False,
    "memory-format": "auto",
    "threads": None,
    "net.parts": [1, 1, 1, 1],
}
"""Options that configurations did not have at first, with the value that was in effect then."""
OF_DEVICE = {"precision": "auto", "memory-format": "auto", "threads": None, "graph": None}
"""Options that a run may leave to its device, with the value that does so."""
_OPTIONS = tuple(f"{kind}_options" for kind in KINDS)


def fields() -> list[str]:
    """The fields of `Config` in the order of a config file, without the parameters of network, branch and so on."""
    recipe = [spec.name for spec in dataclasses.fields(Recipe)]
    names = [spec.name for spec in dataclasses.fields(Config)]
    return [name for name in names if name not in (*recipe, *_OPTIONS)] + recipe


def keys() -> list[str]:
    """The names of all options of a configuration, as in a config file."""
    return [name.replace("_", "-") for name in fields()]


def flat(config: Config) -> dict[str, Any]:
    """The configuration as a config file holds it: option names, then `net.KEY` and the like; plain values.

    Options of `LATER` are absent where they have their defaults, so that older configurations equal those of now.
    """
    plain = {name.replace("_", "-"): _plain(getattr(config, name)) for name in fields()}
    for kind, values in config.options.items():
        plain |= {f"{kind}.{key}": _plain(value) for key, value in values.items()}
    return {name: value for name, value in plain.items() if LATER.get(name, ...) != value}


def unflat(values: Mapping[str, Any], source: str) -> Config:
    """The configuration that `flat` wrote; `source` names it in errors.

    Raises:
        ValueError: naming the source, the key and the nearest valid one, or what its value must be.
    """
    hints = typing.get_type_hints(Config)
    converted: dict[str, Any] = {}
    for key, value in as_now(values).items():
        kind, dot, name = str(key).partition(".")
        if dot and kind in KINDS:
            converted.setdefault(f"{kind}_options", {})[name] = value
            continue
        check_key(str(key), source)
        field = key.replace("-", "_")
        try:
            converted[field] = convert(value, hints[field], f"{source}: {key}")
        except ParameterError as error:  # nobody typed it now
            raise ValueError(str(error)) from None
    try:
        return Config(**converted)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def check_key(key: str, source: str) -> None:
    """Raise ValueError, naming the file and the nearest valid key, if a config file cannot have this one."""
    kind, dot, _ = key.partition(".")
    if key.replace("_", "-") not in keys() and not (dot and kind in KINDS):
        message = unknown("key", key, [*keys(), *(f"{kind}.KEY" for kind in KINDS)], listing="offramp train --help")
        raise ValueError(f"{source}: {message}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file as a flat mapping; `net: {name: resnet18, width: 16}` is the same as `net` and `net.width`.

    Raises:
        ValueError: naming the file, if it is absent, no YAML, no mapping, or has an unknown key.
    """
    if not path.is_file():
        raise ValueError(f"config file {path} does not exist")
    try:
        mapping = parse_yaml(read_text(path))
    except YAMLProblem as problem:
        raise ValueError(f"{path} is {problem}") from None
    if not isinstance(mapping, dict):
        raise ValueError(f"{path} contains no options: it must be a mapping such as `net: resnet18`")
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            values |= {str(key) if name == "name" else f"{key}.{name}": part for name, part in value.items()}
        else:
            values[str(key)] = value
    for key in values:
        check_key(key, str(path))
    return as_now(values)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
