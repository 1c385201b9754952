"""A trained run, opened for use: its network, its configuration and its policy."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.config import Config, build_method, build_net, unflat

if TYPE_CHECKING:
    from offramp.adapt.policy import ExitPolicy
    from offramp.net import MultiExitNet
    from offramp.several import Several


@dataclass(frozen=True)
class LoadedRun:
    """A trained run: its configuration, its network in eval mode, and what its weights' header says.

    `policy` is None until the run was calibrated.
    """

    folder: Path
    config: Config
    net: "MultiExitNet"
    about: dict[str, Any]
    policy: "ExitPolicy | None"


@dataclass(frozen=True)
class SeveralRun:
    """A trained run of a method that trains several networks; as `LoadedRun`, without a policy."""

    folder: Path
    config: Config
    net: "Several"
    about: dict[str, Any]


def load_run(folder: Path | str, weights: str = "last", *, with_policy: bool = True) -> LoadedRun:
    """Open a run for use.

    Args:
        weights: `last` or `best` (on val).
        with_policy: read its policy too, where it has one; fitting a new one must not need the old one.
    Raises:
        ValueError: if the folder is no run, has no such weights yet, they or the policy do not fit its network, or
            it has several networks.
    """
    opened = open_run(folder, weights, with_policy=with_policy)
    if isinstance(opened, SeveralRun):
        raise ValueError(
            f"{folder} was trained with {opened.config.method}: its networks are not a chain of depth, so there are no "
            f"exits to leave at; `offramp deploy {folder} --out DIR` makes a plain run of one of them"
        )
    return opened


def open_run(folder: Path | str, weights: str = "last", *, with_policy: bool = True) -> LoadedRun | SeveralRun:
    """Open a run of any method; arguments and errors as in `load_run`."""
    from offramp.adapt import policy
    from offramp.net import MultiExitNet
    from offramp.several import Cohort, GatedFan
    from offramp.train import checkpoint
    from offramp.train.folder import POLICY, read_config

    folder = Path(folder)
    config = unflat(read_config(folder), str(folder / "config.yaml"))
    here = dataclasses.replace(config.recipe, device="auto", devices=1)  # it may have been trained elsewhere
    config = dataclasses.replace(config, recipe=here)
    path = folder / f"{weights}.safetensors"
    if not path.is_file():
        raise ValueError(f"{folder} has no {path.name} yet: train it to the end (--resume), or take other --weights")
    tensors, about = checkpoint.load_weights(path)
    net = build_net(config, build_method(config), classes=len(about["classes"]), shape=tuple(about["shape"]))
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the network of {folder}: {' '.join(str(error).split())[:300]}") from None
    if isinstance(net, Cohort | GatedFan):
        return SeveralRun(folder, config, net.eval(), about)
    assert isinstance(net, MultiExitNet)
    found = policy.load(folder / POLICY) if with_policy and (folder / POLICY).is_file() else None
    if found is not None and found.exits != net.exits:
        raise ValueError(
            f"{folder / POLICY} is for {found.exits} exits, but this network has {net.exits}: fit it again with "
            "`offramp calibrate`"
        )
    return LoadedRun(folder, config, net.eval(), about, found)
