"""Several kinds of network in one `--net a,b`: their names, and which parameters each of them takes."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from offramp import models
from offramp.hyperparameters import arguments, defaults
from offramp.lookup import NotUnderstood


def names(net: str) -> tuple[str, ...]:
    """The networks that `--net` names, commas between; a comma in the path of a network of others belongs to it."""
    parts = tuple(net.split(","))
    known = models.available() if models.is_door(net) else {}
    if known and not all(models.is_door(part) or part in known for part in parts):
        return (net,)
    return parts


def parameters(nets: Sequence[str], given: Mapping[str, Any], short: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of every network, as `NAME.KEY`, defaults filled in.

    Args:
        given: `KEY` for all networks of ours that have it, `NAME.KEY` for one; the latter wins.
        short: `--width` and the like, as `KEY`.
    Raises:
        ValueError: naming a parameter that no network takes, or whose value is of the wrong type.
    """
    shared = {key: value for key, value in given.items() if not any(key.startswith(f"{net}.") for net in nets)}
    shared = {key.replace("-", "_"): value for key, value in {**short, **shared}.items()}
    made: dict[str, Any] = {}
    taken: set[str] = set()
    for net in nets:
        own = of_one(net, given)
        if models.is_door(net):
            named = {f"{net}.{key.replace('-', '_')}": value for key, value in own.items()}
            made |= {key: typed(value, f"--net.{key}") for key, value in named.items()}
            continue
        build = models.find(net).build
        fitting = {key: value for key, value in shared.items() if key in inspect.signature(build).parameters}
        taken |= set(fitting)
        found = defaults(build) | arguments("net", net, build, fitting) | arguments("net", net, build, own)
        made |= {f"{net}.{key}": value for key, value in found.items()}
    for key in shared.keys() - taken:
        raise ValueError(
            f"--net.{key}: none of the networks {', '.join(nets)} takes it; a parameter of one of them is "
            f"--net.{nets[0]}.KEY (see `offramp nets {nets[0]}`)"
        )
    return made


def of_one(net: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of one network, as `KEY`, among those of several."""
    return {key.removeprefix(f"{net}."): value for key, value in given.items() if key.startswith(f"{net}.")}


def typed(value: Any, option: str) -> Any:
    """What was typed, as YAML would read it.

    Raises:
        NotUnderstood: naming the option, if it is no YAML.
    """
    import yaml

    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        raise NotUnderstood(f"{option} takes a value as in YAML (a word, a number, [1, 2]), got {value!r}") from None
