"""The only place where the names of a configuration become objects: data, method, network."""

import dataclasses
import inspect
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from offramp.config import multi_net
from offramp.config.config import Config
from offramp.config.resolve import ResolvedConfig
from offramp.hyperparameters import arguments
from offramp.lookup import ParameterError, with_parameters
from offramp.progress import Progress, no_progress

if TYPE_CHECKING:
    from torch import nn

    from offramp.data.splits import DataSet
    from offramp.methods._method import Method
    from offramp.net import Backbone


def build_data(config: Config, progress: Progress = no_progress) -> "DataSet":
    """Read the data set and split it; see `offramp.data.load`."""
    from offramp import data

    parameters = dict(config.data_options)
    shared = {key.replace("-", "_") for key in parameters} & set(inspect.signature(data.load).parameters)
    options = arguments(
        "data", config.data, data.load, {key: parameters.pop(key) for key in [*parameters] if key in shared}
    )
    return data.load(
        config.data,
        data_dir=config.data_dir,
        holdout=config.holdout,
        per_class=config.per_class,
        image_size=config.image_size,
        split_seed=config.split_seed,
        streaming=config.streaming,
        skip_damaged=config.skip_damaged,
        progress=progress,
        **options,
        **parameters,
    )


def _require_resolved(config: Config) -> None:
    """Parameters of a plain `Config` may still be texts, or absent: nothing is built from them."""
    if not isinstance(config, ResolvedConfig):
        raise TypeError("builders take a resolved configuration: offramp.config.resolve(config)")


def build_method(config: ResolvedConfig) -> "Method":
    """The training method with its parameters and the tap."""
    from offramp import methods
    from offramp.methods._method import Method
    from offramp.methods._taps import tap_named

    _require_resolved(config)
    try:
        method = methods.find(config.method).build(**config.method_options)
    except ParameterError:
        raise
    except ValueError as error:
        raise _naming_parameter(str(error), config) from None
    if not isinstance(method, Method):
        raise ValueError(f"{config.method}: build must return an offramp.Method, got {type(method).__name__}")
    return dataclasses.replace(method, tap=tap_named(config.tap, method.tap))


def _naming_parameter(message: str, config: ResolvedConfig) -> ParameterError:
    """The error of a method; `alpha must …` becomes `method.alpha must …`."""
    parameter = f"method.{message.split(' ')[0]}"
    if parameter.removeprefix("method.") not in config.method_options:
        return ParameterError(message)
    return ParameterError(f"method.{message}", parameter)


def build_net(
    config: ResolvedConfig, method: "Method", *, classes: int, shape: tuple[int, int, int], check: bool = True
) -> "nn.Module":
    """The network that the method trains, freshly initialised.

    Args:
        classes: C; shape: (channels, height, width) of the inputs.
        check: compare an external model with its cut form on the device of the run.
    Raises:
        ValueError: naming the nearest net, branch or parameter, or why they do not fit.
    """
    from offramp.meta_device import check_input, check_single

    net = assemble_net(config, method, classes=classes, shape=shape, check=check)
    check_input(net, shape)
    if config.batch_size == config.devices:
        check_single(net, shape)
    return net


def assemble_net(
    config: ResolvedConfig, method: "Method", *, classes: int, shape: tuple[int, int, int], check: bool = True
) -> "nn.Module":
    """The network of `build_net`, before it is tried whether it takes the inputs; arguments and errors as there."""
    from torch import nn

    from offramp import branches
    from offramp.net import only_behind

    _require_resolved(config)
    exits = branches.find(config.branch)

    def backbone(name: str) -> Any:
        single_config = of_kind(config, name)
        return build_backbone(single_config, classes=classes, channels=shape[0], size=shape[1:], check=check)

    def branch(trunk: Any, exit: int) -> Any:
        module = exits.build(trunk, exit, classes, **config.branch_options)
        if not isinstance(module, nn.Module | None):
            raise ValueError(f"{config.branch}: build must return a module or None, got {type(module).__name__}")
        return module

    names = multi_net.names(config.net)
    if len(names) == 1:
        exits_of = only_behind(config.exits_at, branch) if config.exits_at else branch
        try:
            net = method.network(partial(backbone, config.net), exits_of)
        except ValueError as error:
            raise with_parameters(error, "exits_at") if "exits_at" in str(error) else error from None
    elif method.cohort is not None:
        net = method.cohort([partial(backbone, name) for name in names])
    else:
        raise with_parameters(
            ValueError(
                f"net={config.net} names {len(names)} networks, but {config.method} trains one: name one of them, or "
                "take method=dml"
            ),
            "net",
            "method",
        )
    _check_tap(config, net)
    return net


def _check_tap(config: ResolvedConfig, net: "nn.Module") -> None:
    """Refuse to combine the gradients of exits where networks are trained side by side."""
    from offramp.net import MultiExitNet

    if config.tap != "method" and not isinstance(net, MultiExitNet):
        raise with_parameters(
            ValueError(
                f"tap={config.tap} is for exits along one network; {config.method} trains networks side by side: "
                "take tap=method"
            ),
            "tap",
        )


def of_kind(config: ResolvedConfig, name: str) -> ResolvedConfig:
    """The configuration of one network of those that `net` names: its own parameters, nothing of the others."""
    if len(multi_net.names(config.net)) == 1:
        return config
    parameters = multi_net.of_one(name, config.net_options)
    return dataclasses.replace(config, net=name, width=None, exits=None, net_options=parameters)


def build_backbone(
    config: ResolvedConfig, *, classes: int, channels: int, size: tuple[int, int] | None = None, check: bool = True
) -> "Backbone":
    """The network without its exits, freshly initialised.

    Args:
        size: (height, width) of the inputs, for external models that depend on it; default what they are made for.
        check: as in `build_net`.
    Raises:
        ValueError: naming the nearest net, layer or parameter, or why they do not fit.
    """
    from offramp import models
    from offramp.net import Backbone

    _require_resolved(config)
    options = config.net_options
    if models.is_external(config.net):
        from offramp.split import model_sources

        return model_sources.build(
            config.net,
            classes=classes,
            channels=channels,
            size=size,
            exits_after=list(config.exits_after),
            exits=None if config.exits == "auto" else config.exits,
            options=options,
            device=config.device,
            check=check,
        )
    if options.get("form") == "auto" and size and options.get("image_size") is None:
        options = {**options, "form": models.form_of(size[0])}
    backbone = models.find(config.net).build(config.net, classes=classes, channels=channels, **options)
    if not isinstance(backbone, Backbone):
        raise ValueError(f"{config.net}: build must return an offramp.Backbone, got {type(backbone).__name__}")
    return backbone


def load_weights(config: Config, net: "nn.Module", shape: tuple[int, int, int] | None = None) -> tuple[str, ...]:
    """Start the network, and every one of several, from `weights` or its pretrained ones; returns notes for the user.

    Args:
        shape: (channels, height, width) of the inputs, that pretrained weights are adapted to; default: the network's
            usual one.
    Raises:
        ValueError: if weights cannot be read or fetched, or do not fit, naming what is missing or of another shape.
    """
    from offramp.multi_net import single
    from offramp.split import weights

    if config.pretrained:
        return _load_pretrained(config, net, shape)
    if config.weights is None:
        return ()
    try:
        tensors = weights.read(config.weights)
        fresh = [weights.load_state(part, tensors, f"weights={config.weights}", classes=True) for part in single(net)]
    except ValueError as error:
        raise with_parameters(error, "weights") from None
    return _fresh_classifiers(fresh, config.weights.name)


def _load_pretrained(config: Config, net: "nn.Module", shape: tuple[int, int, int] | None) -> tuple[str, ...]:
    from offramp.multi_net import single
    from offramp.split.pretrained import pretrained_weights
    from offramp.split.weights import load_state

    names, fresh = multi_net.names(config.net), []
    channels, size = (shape[0], shape[1:]) if shape else (3, None)
    parts = single(net)
    for name, part in zip(names * (len(parts) // len(names)), parts, strict=True):
        options = config.net_options if len(names) == 1 else multi_net.of_one(name, config.net_options)
        tensors = pretrained_weights(name, channels=channels, size=size, options=options)
        fresh.append(load_state(part, tensors, f"the pretrained weights of {name}", classes=True))
    return _fresh_classifiers(fresh, "the pretrained network")


def _fresh_classifiers(fresh: Sequence[Sequence[str]], source: str) -> tuple[str, ...]:
    start = f"the classifier is initialised again: {source} has other classes"
    notes = [f"{start} ({', '.join(names)})" for names in fresh if names]
    return tuple(dict.fromkeys(notes))


def prepare_objective(method: "Method", net: "nn.Module", shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Let the method see the exits it will train; returns notes for the user (exits whose features are left out).

    Raises:
        ValueError: if the method cannot train this network, with the reason.
    """
    from offramp.train.prepare import prepare_objective

    return prepare_objective(method, net, shape)
