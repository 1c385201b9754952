"""A configuration with every parameter, the device and the precision filled in: what builders require."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offramp.config import multi_net
from offramp.config.config import Config
from offramp.hyperparameters import arguments, defaults
from offramp.lookup import ParameterError

SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32}
"""Sides in pixels of the images of data sets that have one size."""


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(Config):
    """A `Config` from `resolve`: all names exist, every parameter has its value and type, nothing is `auto`.

    On a GPU `graph` may be None, if the run is not deterministic: it decides by its first steps.
    """


def resolve(config: Config) -> ResolvedConfig:
    """The same configuration with every parameter, the device and the precision filled in, as they will be used.

    Raises:
        ValueError: naming what is unknown or of the wrong type, and the nearest valid name.
    """
    from offramp.train.device import device_of, precision_of

    _check_pretrained(config)
    device: Any = device_of(config.device)
    precision: Any = precision_of(config.precision, device)
    values = {spec.name: getattr(config, spec.name) for spec in dataclasses.fields(Config)}
    graph = False if config.graph is None and (device == "cpu" or config.deterministic) else config.graph
    chosen = {"device": device, "precision": precision, "graph": graph}
    return ResolvedConfig(**{**values, **_options(config), **chosen})


def _check_pretrained(config: Config) -> None:
    """Refuse pretrained weights of networks that have none, or beside a file of weights."""
    if not config.pretrained:
        return
    if config.weights is not None:
        raise ParameterError("pretrained and weights cannot be combined: give one of them", "pretrained", "weights")
    for name in multi_net.names(config.net):
        if not name.startswith(("timm:", "torchvision:")):
            raise ParameterError(
                f"pretrained is for networks of timm and torchvision, got net={name}; take weights=FILE",
                "pretrained",
                "weights",
            )


def _options(config: Config) -> dict[str, dict[str, Any]]:
    """The parameters of network, branch and method, complete and converted, by the field that holds them."""
    from offramp import branches, methods

    branch, method = branches.find(config.branch).build, methods.find(config.method).build
    return {
        "net_options": _with_forms(_net_options(config), SIZES.get(config.data) if config.image_size is None else None),
        "branch_options": defaults(branch) | arguments("branch", config.branch, branch, config.branch_options),
        "method_options": defaults(method) | arguments("method", config.method, method, config.method_options),
    }


def open_forms(net_options: Mapping[str, Any]) -> list[str]:
    """The parameters `form`, of one network or several, that the size of the images has to decide."""
    return [key for key, value in net_options.items() if key.rpartition(".")[2] == "form" and value == "auto"]


def _with_forms(net_options: dict[str, Any], size: int | None) -> dict[str, Any]:
    """Forms that are `auto` by the size of the images in pixels; None: it shows when the data are read."""
    from offramp.models import form_of

    return net_options | dict.fromkeys(open_forms(net_options), form_of(size)) if size else net_options


def _net_options(config: Config) -> dict[str, Any]:
    """The parameters of the network; of several, as `NAME.KEY`."""
    from offramp import models

    names = multi_net.names(config.net)
    short = _short_options(config)
    if len(names) > 1:
        return multi_net.parameters(names, config.net_options, short)
    net_parameters = {**config.net_options, **short}
    if models.is_external(config.net):
        named = {key.replace("-", "_"): value for key, value in net_parameters.items()}
        return {key: multi_net.typed(value, f"net.{key}") for key, value in named.items()}
    build = models.find(config.net).build
    return defaults(build) | arguments("net", config.net, build, net_parameters)


def _short_options(config: Config) -> dict[str, Any]:
    """Parameters of a network that have an option of their own: width, and the exits of networks of this package."""
    from offramp import models

    external = len(multi_net.names(config.net)) == 1 and models.is_external(config.net)
    if config.exits_after and not external:
        raise ParameterError(
            f"exits_after is for external models (timm:NAME and the like); {config.net} has its own stages",
            "exits_after",
        )
    values = {"width": config.width, "exits": None if external or config.exits == "auto" else config.exits}
    short = {key: value for key, value in values.items() if value is not None}
    _refuse_contradiction(short, config.net_options)
    return short


def _refuse_contradiction(short: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    for key, value in short.items():
        if str(options.get(key, value)) != str(value):
            raise ParameterError(f"{key}={value} and net.{key}={options[key]} contradict each other", key, f"net.{key}")
