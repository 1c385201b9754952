"""Several networks in one `net="a,b"`: their names, and which parameters each of them takes."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from offramp import models
from offramp.hyperparameters import arguments, defaults
from offramp.lookup import ParameterError
from offramp.text import quoted


def names(net: str) -> tuple[str, ...]:
    """The networks that `net` names, comma-separated; a comma in the path of an external model belongs to it."""
    parts = tuple(net.split(","))
    known = models.available() if models.is_external(net) else {}
    if known and not all(models.is_external(part) or part in known for part in parts):
        return (net,)
    return parts


def parameters(nets: Sequence[str], options: Mapping[str, Any], short: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of every network, as `NAME.KEY`, defaults filled in.

    Args:
        options: `KEY` for all networks of this package that have it, `NAME.KEY` for one; the latter wins.
        short: `width` and the like, as `KEY`.
    Raises:
        ParameterError: naming a parameter that no network takes, or whose value is of the wrong type.
    """
    shared = {key: value for key, value in options.items() if not any(key.startswith(f"{net}.") for net in nets)}
    shared = {key.replace("-", "_"): value for key, value in {**short, **shared}.items()}
    values: dict[str, Any] = {}
    used: set[str] = set()
    for net in nets:
        parameters = of_one(net, options)
        if models.is_external(net):
            named = {f"{net}.{key.replace('-', '_')}": value for key, value in parameters.items()}
            values |= {key: typed(value, f"net.{key}") for key, value in named.items()}
            continue
        build = models.find(net).build
        fitting = {key: value for key, value in shared.items() if key in inspect.signature(build).parameters}
        used |= set(fitting)
        complete = defaults(build) | arguments("net", net, build, fitting) | arguments("net", net, build, parameters)
        values |= {f"{net}.{key}": value for key, value in complete.items()}
    for key in shared.keys() - used:
        example = f"net.{nets[0]}.KEY"
        raise ParameterError(
            f"net.{key}: none of the networks {', '.join(nets)} takes it; a parameter of one of them is {example} "
            f"(see `offramp nets {nets[0]}`)",
            f"net.{key}",
            example,
        )
    return values


def of_one(net: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of one network, as `KEY`, among those of several."""
    return {key.removeprefix(f"{net}."): value for key, value in options.items() if key.startswith(f"{net}.")}


def typed(value: Any, parameter: str) -> Any:
    """A text as YAML reads it; every other value as it is.

    Raises:
        ParameterError: naming the parameter, if it is no YAML.
    """
    import yaml

    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        raise ParameterError(
            f"{parameter} takes a value as in YAML (a word, a number, [1, 2]), got {quoted(value)}", parameter
        ) from None
