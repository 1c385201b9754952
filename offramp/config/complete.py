"""What a configuration leaves to the network and the data: inputs as weights expect them, forms by image size."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from offramp.config import multi_net
from offramp.config.build import build_data
from offramp.config.plan import planned
from offramp.config.resolve import ResolvedConfig, open_forms, resolve
from offramp.models import form_of
from offramp.progress import Progress, no_progress

if TYPE_CHECKING:
    from offramp.data.splits import DataSet

NORMALISATION, CROP = ("mean", "std"), ("interpolation", "crop")


class Completed(NamedTuple):
    """A configuration that depends on nothing else any more, its data set, and notes for the user."""

    config: ResolvedConfig
    data: "DataSet"
    notes: tuple[str, ...]


def keep_choices(config: ResolvedConfig, recorded: Mapping[str, Any]) -> ResolvedConfig:
    """What `complete` chose when the run began is kept when it is resumed, whatever would be chosen now.

    Args:
        config: The configuration of the run.
        recorded: The same as the run's config.yaml holds it.
    """
    if config.exits == "auto":
        places = {key: tuple(recorded[key.replace("_", "-")]) for key in ("exits_at", "exits_after")}
        options = config.branch_options if recorded["branch"] == config.branch else {}
        chosen: dict[str, Any] = {**places, "branch": recorded["branch"], "branch_options": options}
        config = resolve(dataclasses.replace(config, exits=None, goal_macs=None, **chosen))
    explicit = {key.replace("-", "_") for key in config.data_options}
    inputs = {
        key: recorded[f"data.{key}"]
        for key in (*NORMALISATION, *CROP)
        if f"data.{key}" in recorded and key not in explicit
    }
    forms = {key: recorded[f"net.{key}"] for key in open_forms(config.net_options) if f"net.{key}" in recorded}
    data_options, net_options = {**config.data_options, **inputs}, {**config.net_options, **forms}
    return dataclasses.replace(config, data_options=data_options, net_options=net_options)


def complete(config: ResolvedConfig, *, resumed: bool = False, progress: Progress = no_progress) -> Completed:
    """Reads the data and fills in what depends on them and on the network.

    - `timm:` and `torchvision:` networks: mean, std, interpolation and crop are those of the network's own
      configuration, if they are not given. CIFAR and digits keep theirs, unless weights are loaded.
    - `exits=auto` becomes places and a structure, see `offramp.config.plan`.
    - `net.form=auto` becomes `cifar` or `imagenet`, by the size of the images.

    Args:
        config: The configuration.
        resumed: The run has begun: its inputs are as they were recorded, see `keep_choices`.
        progress: Called while images are decoded; see `offramp.progress`.

    Returns:
        The configuration, the data set, and notes: what was filled in, and values that a paper gives for these data.
    """
    expected, note = ({}, "") if resumed else _expected(config)
    explicit = {key.replace("-", "_") for key in config.data_options}
    missing = {key: value for key, value in expected.items() if key not in explicit}
    config = dataclasses.replace(config, data_options={**config.data_options, **missing})
    data = build_data(config, progress=progress)
    config, placed = planned(config, len(data.classes), data.shape)
    forms = dict.fromkeys(open_forms(config.net_options), form_of(data.shape[1]))
    config = dataclasses.replace(config, net_options={**config.net_options, **forms})
    notes = [_described(config.net, missing, note)] if missing else []
    if "imagenet" in forms.values():
        keys = " and ".join(f"net.{key}" for key in forms)
        notes.append(f"{keys} is imagenet for images of {data.shape[1]} pixels; cifar is for images below 64 pixels")
    return Completed(config, data, (*placed, *notes, *_paper_values(config, data)))


def _expected(config: ResolvedConfig) -> tuple[dict[str, Any], str]:
    """Options of the data source that the network expects, and a note on what cannot be done."""
    from offramp import data, models

    if not models.is_external(config.net) or len(multi_net.names(config.net)) > 1:
        return {}, ""
    from offramp.split.input_contract import input_contract

    contract = input_contract(config.net)
    resizes = "crop" in inspect.signature(data.find(config.data).build).parameters
    if contract is None or not (
        resizes or ((config.weights or config.pretrained) and config.data in ("cifar10", "cifar100"))
    ):
        return {}, ""
    explicit = {key.replace("-", "_") for key in config.data_options}
    values = {"mean": list(contract.mean), "std": list(contract.std)}
    expected: dict[str, Any] = {} if "normalise" in explicit else values
    if resizes:
        expected["interpolation"] = contract.interpolation
        expected |= {} if "resize" in explicit else {"crop": contract.crop}
    return expected, contract.note


def _described(net: str, values: Mapping[str, Any], note: str) -> str:
    def written(value: Any) -> str:
        return ",".join(f"{part:.4g}" for part in value) if isinstance(value, list) else str(value)

    listed = ", ".join(f"{key} {f'{value:.4g}' if key == 'crop' else written(value)}" for key, value in values.items())
    return f"images are prepared as {net} expects them: {listed}" + (f"; {note}" if note else "")


def _paper_values(config: ResolvedConfig, data: "DataSet") -> tuple[str, ...]:
    """Values of the method that its paper gives for these data and this network, where the defaults are others."""
    from offramp import methods
    from offramp.docstrings import elsewhere
    from offramp.hyperparameters import arguments, defaults

    build = methods.find(config.method).build
    usual = defaults(build)
    known = {place: values for place, values in elsewhere(build).items() if _is_place(place, config, data)}
    if not known:
        return ()
    place = max(known, key=len)  # the most specific
    values = arguments("method", config.method, build, known[place])
    open_values = {
        key: known[place][key]
        for key, value in values.items()
        if value != usual[key] and config.method_options[key] == usual[key]
    }
    if not open_values:
        return ()
    options = " ".join(f"method.{key}={value}" for key, value in open_values.items())
    return (f"{config.method} on {place}: the paper uses other values than the defaults; add {options}",)


def _is_place(place: str, config: ResolvedConfig, data: "DataSet") -> bool:
    """Whether data and network are those of an entry such as `CIFAR-100, ResNet152`."""
    where, _, net = place.partition(", ")
    size = data.shape[1]
    same_data = {
        "ImageNet": len(data.classes) == 1000 and size >= 64,
        "CIFAR-100": config.data == "cifar100",
        "CIFAR-10": config.data == "cifar10",
    }
    begins = {"": "", "ResNet152": "resnet152", "wide ResNets": "wrn", "MSDNet": "msdnet"}
    return same_data.get(where, False) and config.net.startswith(begins.get(net, "\0"))
