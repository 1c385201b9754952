"""What a run is made of, as plain values; the only place where names become objects."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from offramp.config import multi_net
from offramp.hyperparameters import KINDS, arguments, convert, defaults
from offramp.lookup import NotUnderstood, unknown
from offramp.train.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from offramp.data.splits import DataSet
    from offramp.methods._method import Method
    from offramp.net import Backbone


def _layers(kind: Any, tokens: Sequence[Any]) -> tuple[str, ...]:
    """Names with commas between, the option repeated, or both; an empty word is none."""
    return tuple(word for token in tokens for word in token.value.split(",") if word)


Layers = Annotated[tuple[str, ...], Parameter(negative="", show_default=False, converter=_layers)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Network, exits, method, data and recipe of a run.

    Attributes:
        net: The network (`offramp nets`), also timm:NAME, torchvision:NAME, transformers:TYPE, python:MODULE:FUNCTION;
            for methods that train several of them, names with commas between.
        branch: The structure of the exits (`offramp branches`).
        method: How the exits are trained (`offramp methods`).
        tap: How gradients meet at the exits: the method's `own` way, or gradient equilibrium on top of any method (in
            networks of several scales at the coarsest scale, or at all).
        data: The data set (`offramp data`), folder:PATH, parquet:PATH or hub:OWNER/NAME.
        data_dir: The data set's own folder or its parent; else $OFFRAMP_DATA.
        width: Base channels of the network, short for --net.width.
        exits_after: Layers after which exits stand, such as layer1,layer2 (`timm:`, `torchvision:`, `transformers:`,
            `python:`).
        exits: How many exits, the final one included; in those networks placed at equal shares of the operations.
        weights: Start from these weights: safetensors, a PyTorch checkpoint, or those of a run.
        image_size: Side of the images in pixels, where the data set has no size of its own.
        per_class: Take only this many training images of each class, CIFAR(X) of DBT and HDKD.
        holdout: Share of the training images held out, half for val and half for cal; 0 trains on all.
        split_seed: Seed of the held-out split.
        streaming: Decode images anew in every epoch, in bounded memory.
    """

    net: str = "resnet18"
    branch: str = "sketch"
    method: str = "muse"
    tap: Literal["own", "equilibrium", "equilibrium-all"] = "own"
    data: str = "digits"
    data_dir: Path | None = None
    width: int | None = None
    exits_after: Layers = ()
    exits: int | None = None
    weights: Path | None = None
    image_size: int | None = None
    per_class: int | None = None
    holdout: float = 0.1
    split_seed: int = 0
    streaming: bool = False
    options: Annotated[dict[str, dict[str, Any]], Parameter(parse=False)] = field(default_factory=dict)
    recipe: Annotated[Recipe, Parameter(name="*")] = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise NotUnderstood(f"--holdout is a share of the training images in [0, 1), got {self.holdout}")


def flat(config: Config) -> dict[str, Any]:
    """The configuration as a config file holds it: option names, then `net.KEY` and the like; plain values."""
    values = {**dataclasses.asdict(config), **dataclasses.asdict(config.recipe)}
    del values["recipe"], values["options"]
    plain = {name.replace("_", "-"): _plain(value) for name, value in values.items()}
    for kind in KINDS:
        plain |= {f"{kind}.{key}": _plain(value) for key, value in config.options.get(kind, {}).items()}
    return plain


def unflat(values: Mapping[str, Any], source: str) -> Config:
    """The configuration that `flat` wrote; `source` names it in errors.

    Raises:
        ValueError: naming the source, the key and the nearest valid one, or what its value must be.
    """
    hints = typing.get_type_hints(Config) | typing.get_type_hints(Recipe)
    recipe_names = {spec.name for spec in dataclasses.fields(Recipe)}
    own: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        kind, dot, name = str(key).partition(".")
        if dot and kind in KINDS:
            options.setdefault(kind, {})[name] = value
            continue
        check_key(str(key), source)
        field_name = key.replace("-", "_")
        try:
            converted = convert(value, hints[field_name], f"{source}: {key}")
        except NotUnderstood as error:  # nobody typed it now
            raise ValueError(str(error)) from None
        (recipe if field_name in recipe_names else own)[field_name] = converted
    try:
        return Config(**own, options=options, recipe=Recipe(**recipe))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def keys() -> list[str]:
    """The names of all options of a configuration, as in a config file."""
    names = [spec.name for kind in (Config, Recipe) for spec in dataclasses.fields(kind)]
    return [name.replace("_", "-") for name in names if name not in ("options", "recipe")]


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
    import yaml  # here, because --help does without it

    if not path.is_file():
        raise ValueError(f"there is no config file {path}")
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {_place(error)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no options: it must be a mapping such as `net: resnet18`")
    values: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, dict):
            values |= {str(key) if name == "name" else f"{key}.{name}": part for name, part in value.items()}
        else:
            values[str(key)] = value
    for key in values:
        check_key(key, str(path))
    return values


def _place(error: Exception) -> str:
    """Where a text stops being YAML, and why, in a few words."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return "it is no text"  # other encodings, or characters that text does not have
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', '')}"


def build_data(config: Config, progress: bool = True) -> "DataSet":
    """Read the data set and split it; see `offramp.data.load`."""
    from offramp import data

    given = dict(config.options.get("data", {}))
    general = {key.replace("-", "_") for key in given} & set(inspect.signature(data.load).parameters)
    options = arguments("data", config.data, data.load, {key: given.pop(key) for key in [*given] if key in general})
    return data.load(
        config.data,
        data_dir=config.data_dir,
        holdout=config.holdout,
        per_class=config.per_class,
        image_size=config.image_size,
        split_seed=config.split_seed,
        streaming=config.streaming,
        progress=progress,
        **options,
        **given,
    )


def build_method(config: Config) -> "Method":
    """The training method with its parameters and the tap."""
    from offramp import methods
    from offramp.methods._taps import tap_named

    values = resolve(config).options.get("method", {})
    try:
        method: Method = methods.find(config.method).build(**values)
    except ValueError as error:
        raise NotUnderstood(str(error)) from None
    return dataclasses.replace(method, tap=tap_named(config.tap, method.tap))


def build_net(config: Config, method: "Method", *, classes: int, shape: tuple[int, int, int]) -> "nn.Module":
    """The network that the method trains, freshly initialised.

    Args:
        classes: C; shape: (channels, height, width) of the inputs.
    Raises:
        ValueError: naming the nearest net, branch or parameter, or why they do not fit.
    """
    from offramp import branches
    from offramp.meta_device import check_input, check_single
    from offramp.net import MultiExitNet

    exits = branches.find(config.branch)
    of = resolve(config).options

    def backbone(name: str) -> Any:
        return build_backbone(of_kind(config, name), classes=classes, channels=shape[0], size=shape[1:])

    def branch(trunk: Any, exit: int) -> Any:
        return exits.build(trunk, exit, classes, **of.get("branch", {}))

    names = multi_net.names(config.net)
    if len(names) == 1:
        net = method.network(partial(backbone, config.net), branch)
    elif method.cohort is not None:
        net = method.cohort([partial(backbone, name) for name in names])
    else:
        raise ValueError(
            f"--net names {len(names)} networks, but {config.method} trains one: name one of them, or take --method dml"
        )
    if config.tap != "own" and not isinstance(net, MultiExitNet):
        raise ValueError(
            f"--tap {config.tap} is for exits along one network; {config.method} trains networks side by side: "
            "take --tap own"
        )
    check_input(net, shape)
    if config.recipe.batch_size == config.recipe.devices:
        check_single(net, shape)
    return net


def of_kind(config: Config, name: str) -> Config:
    """The configuration of one network of those that `net` names: its own parameters, nothing of the others."""
    if len(multi_net.names(config.net)) == 1:
        return config
    resolved = resolve(config)
    own = multi_net.of_one(name, resolved.options.get("net", {}))
    return dataclasses.replace(resolved, net=name, width=None, exits=None, options={**resolved.options, "net": own})


def build_backbone(config: Config, *, classes: int, channels: int, size: tuple[int, int] | None = None) -> "Backbone":
    """The network without its exits, freshly initialised.

    Args:
        size: (height, width) of the inputs, for networks of others that depend on it; default what they are made for.
    Raises:
        ValueError: naming the nearest net, layer or parameter, or why they do not fit.
    """
    from offramp import models

    options = resolve(config).options.get("net", {})
    if models.is_door(config.net):
        after = list(config.exits_after)
        from offramp.split import model_sources

        return model_sources.build(
            config.net, classes=classes, channels=channels, size=size, after=after, exits=config.exits, options=options
        )
    built: Backbone = models.find(config.net).build(config.net, classes=classes, channels=channels, **options)
    return built


def load_weights(config: Config, net: "nn.Module") -> tuple[str, ...]:
    """Start the network, and every one of several, from `--weights`; answers notes for the user.

    Raises:
        ValueError: if the file cannot be read as weights, or does not fit, naming what is missing or of another shape.
    """
    from offramp.multi_net import single
    from offramp.split import weights

    if config.weights is None:
        return ()
    given = weights.read(config.weights)
    notes: list[str] = []
    for part in single(net):
        kept = weights.load_state(part, given, f"--weights {config.weights}", classes=True)
        notes += (
            [f"the classifier starts anew: {config.weights.name} has other classes ({', '.join(kept)})"] if kept else []
        )
    return tuple(dict.fromkeys(notes))


def prepare(method: "Method", net: "nn.Module", shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Let the method see the exits it will train; answers notes for the user (exits whose features are left out).

    Raises:
        ValueError: if the method cannot train this network, with the reason.
    """
    from offramp.meta_device import blank, run_on_meta

    ready: Callable[..., tuple[str, ...]] | None = getattr(method.objective, "prepare", None)
    if ready is None:
        return ()
    outputs = run_on_meta(net, blank(net, shape))
    widths = tuple(feature.shape[1] for feature in outputs.features)
    notes = ready(exits=len(widths), widths=widths)
    check: Callable[..., None] | None = getattr(method.objective, "check_maps", None)
    if check is not None:
        check(tuple(tuple(features.shape[1:]) for features in outputs.maps))
    return notes


def resolve(config: Config) -> Config:
    """The same configuration with every parameter, the device and the precision filled in, as they will be used.

    Raises:
        ValueError: naming what is unknown or of the wrong type, and the nearest valid name.
    """
    from offramp import branches, methods, models
    from offramp.train.device import device_of, precision_of

    names = multi_net.names(config.net)
    several = len(names) > 1
    builds = {
        "net": (config.net, None if several or models.is_door(config.net) else models.find(config.net).build),
        "branch": (config.branch, branches.find(config.branch).build),
        "method": (config.method, methods.find(config.method).build),
    }
    options = {"data": dict(config.options.get("data", {}))}
    for kind, (name, build) in builds.items():
        given = dict(config.options.get(kind, {}))
        if kind == "net" and several:
            options[kind] = multi_net.parameters(names, given, _short_options(config, given))
            continue
        if kind == "net":
            given |= _short_options(config, given)
        if build is None:
            named = {key.replace("-", "_"): value for key, value in given.items()}
            options[kind] = {key: multi_net.typed(value, f"--net.{key}") for key, value in named.items()}
            continue
        options[kind] = defaults(build) | arguments(kind, name, build, given)
    device: Any = device_of(config.recipe.device)
    precision: Any = precision_of(config.recipe.precision, device)
    recipe = dataclasses.replace(config.recipe, device=device, precision=precision)
    return dataclasses.replace(config, recipe=recipe, options={kind: given for kind, given in options.items() if given})


def _short_options(config: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a network that have an option of their own: its width, and in networks of ours its exits."""
    from offramp import models

    door = len(multi_net.names(config.net)) == 1 and models.is_door(config.net)
    if config.exits_after and not door:
        raise ValueError(
            f"--exits-after is for networks of others (timm:NAME and the like); {config.net} has its own stages"
        )
    own = {"width": config.width, "exits": None if door else config.exits}
    short = {key: value for key, value in own.items() if value is not None}
    for key, value in short.items():
        if str(given.get(key, value)) != str(value):
            raise ValueError(f"--{key} {value} and --net.{key} {given[key]} contradict each other")
    return short


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
