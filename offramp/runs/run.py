"""A trained run, opened for use: its network, its configuration, its policy and its data."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from offramp import trust
from offramp.argument_types import check_arguments
from offramp.config import Config, ResolvedConfig, build_method, build_net, resolve, unflat
from offramp.runs.reporting import Reporter
from offramp.text import one_line, shell_word

if TYPE_CHECKING:
    from torch import Tensor

    from offramp.early_exit.policy import ExitPolicy
    from offramp.measure.cost import Pieces
    from offramp.methods._method import Method
    from offramp.multi_net import MultiNet
    from offramp.net import MultiExitNet
    from offramp.runs.trace_data import TraceData

Weights = Literal["last", "best"]
"""Those of the last epoch, or of the epoch with the highest validation accuracy."""

Device = Literal["auto", "cpu", "cuda"]
"""What to compute on; `auto` is a GPU if there is one."""


@runtime_checkable
class HasFolder(Protocol):
    """An object with the folder of a run: what `train`, `load_run` and other functions return."""

    @property
    def folder(self) -> Path:
        """Folder of the run."""


RunLike = Annotated[Path | str | HasFolder, "a path or a run that `train` or `load_run` returned"]
"""A run: its folder, or what `train`, `load_run` or another task returned."""


def folder_of(run: RunLike) -> Path:
    """The folder of a run."""
    return run.folder if isinstance(run, HasFolder) else Path(run)


def trace_of_run(
    run: RunLike,
    split: str = "test",
    *,
    weights: Weights | None = None,
    features: bool = False,
    data_dir: Path | str | None = None,
    device: Device = "auto",
    reporter: Reporter | None = None,
) -> "TraceData":
    """The logits of every exit on a split as numpy arrays; the method `trace` of runs.

    Args:
        weights: `last` or `best`; default: the weights that `load_run` opened. The other arguments, and errors, are as
            in `offramp.load_trace`.
    """
    from offramp.runs.trace_data import load_trace

    if weights is None:
        weights = run.weights if isinstance(run, LoadedRun | MultiNetRun) else "last"
    return load_trace(
        run, split, weights=weights, features=features, data_dir=data_dir, device=device, reporter=reporter
    )


@dataclass(frozen=True)
class LoadedRun:
    """A trained run: its configuration, its network in eval mode, and what its weights' header says.

    `policy` is None until the run was calibrated, `fitted` where it says that it comes from. `weights` are the `last`
    or the `best` ones.
    """

    folder: Path
    config: ResolvedConfig
    net: "MultiExitNet"
    about: dict[str, Any]
    policy: "ExitPolicy | None"
    fitted: Mapping[str, Any]
    weights: Weights = "last"

    @cached_property
    def inference_net(self) -> "MultiExitNet":
        """The network as it is run where samples exit: it shares all weights with `net`; see `offramp.split.lazy`."""
        from offramp.split.lazy import lazy

        return lazy(self.net, tuple(self.about["shape"]))

    @cached_property
    def pieces(self) -> "Pieces":
        """Multiply-adds of every stage and branch of `inference_net` for one sample."""
        from offramp.measure.cost import measure

        return measure(self.inference_net, tuple(self.about["shape"]))

    trace = trace_of_run


@dataclass(frozen=True)
class MultiNetRun:
    """A trained run of a method that trains several networks; as `LoadedRun`, without a policy."""

    folder: Path
    config: ResolvedConfig
    net: "MultiNet"
    about: dict[str, Any]
    weights: Weights = "last"

    trace = trace_of_run


@check_arguments
def load_run(
    folder: RunLike, weights: Weights = "last", *, with_policy: bool = True, device: Device = "auto"
) -> LoadedRun:
    """Open a run for use.

    Args:
        folder: folder of a trained run, or an object that has one.
        weights: `last` or `best` (on val).
        with_policy: also read the policy of the run, if it has one.
        device: device that the run is used on, independent of the one that it was trained on.
    Raises:
        ValueError: if the folder is not a run, has no such weights yet, they or the policy do not fit its network, or
            it has several networks.
        offramp.trust.NotTrusted: if its configuration names code to import, and it was neither trained here nor trusted
        (`offramp trust RUN`).
    """
    folder = folder_of(folder)
    opened = open_run(folder, weights, with_policy=with_policy, device=device)
    if isinstance(opened, MultiNetRun):
        raise ValueError(
            f"{folder} was trained with {opened.config.method}: its networks are not ordered by depth, so there are no "
            f"early exits; `offramp deploy {shell_word(folder)} --out DIR` extracts one of them as a run"
        )
    return opened


def open_run(
    folder: Path | str, weights: Weights = "last", *, with_policy: bool = True, device: Device = "auto"
) -> LoadedRun | MultiNetRun:
    """Open a run of any method; arguments and errors as in `load_run`."""
    from offramp.multi_net import Cohort, GatedFan
    from offramp.net import MultiExitNet
    from offramp.train import checkpoint
    from offramp.train.depthwise import keep_float32
    from offramp.train.device import device_of
    from offramp.train.run_dir import check_config, no_weights, read_config

    folder = Path(folder)
    _refuse_comparison(folder)
    values = read_config(folder)
    trust.check(values, folder)
    config = unflat(values, str(folder / "config.yaml"))
    here = device_of(device)
    with config_errors(folder):
        config = resolve(_on(config, here))
    path = folder / f"{weights}.safetensors"
    if not path.is_file():
        raise no_weights(folder, path.name)
    tensors, about = checkpoint.load_weights(path)
    shape = tuple(about["shape"])
    with config_errors(folder):
        method = build_method(config)
        if not trust.code_names(values):  # trusted code is not limited
            _check_size(config, method, tensors, about, path)
        net = build_net(config, method, classes=len(about["classes"]), shape=shape, check=False)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the network of {folder}: {' '.join(str(error).split())[:300]}") from None
    check_config(folder, values)
    if config.precision == "bf16-dense":
        keep_float32(net)
    if isinstance(net, Cohort | GatedFan):
        return MultiNetRun(folder, config, net.eval(), about, weights)
    assert isinstance(net, MultiExitNet)
    policy, fitted = _policy_of(folder, net.exits, weights) if with_policy else (None, {})
    return LoadedRun(folder, config, net.eval(), about, policy, fitted, weights)


def _refuse_comparison(folder: Path) -> None:
    """Name a run of a comparison where its folder is given for a run."""
    from offramp.runs.comparison_folder import COMPARISON, runs_of

    if (folder / COMPARISON).is_file():
        example = shell_word(runs_of([folder])[0])
        raise ValueError(f"{folder} is a comparison, but this takes one run: name one of its runs, such as {example}")


def _policy_of(folder: Path, exits: int, weights: str) -> "tuple[ExitPolicy | None, Mapping[str, Any]]":
    """The policy of a run and its provenance; None if the run was not calibrated.

    Raises:
        ValueError: if it is for another number of exits.
    """
    from offramp.early_exit.policy_file import load_with_origin
    from offramp.early_exit.policy_origin import fitting_command
    from offramp.train.run_dir import POLICY

    if not (folder / POLICY).is_file():
        return None, {}
    policy, fitted = load_with_origin(folder / POLICY)
    if policy.exits != exits:
        raise ValueError(
            f"{folder / POLICY} is for {policy.exits} exits, but this network has {exits}: fit it again with "
            f"`{fitting_command(fitted, folder, weights)}`"
        )
    return policy, fitted


def _on(config: Config, device: str) -> Config:
    """The configuration for one device here; it may have been trained on another kind, in a precision of that one."""
    from offramp.train.device import ELSEWHERE

    here: Any = device
    precision: Any = config.precision
    if here != config.device:
        precision = ELSEWHERE[here].get(precision, precision)
    return dataclasses.replace(config, device=here, devices=1, precision=precision)


def as_trained(run: LoadedRun | MultiNetRun) -> ResolvedConfig:
    """The configuration with the device and the precision of the training: `run.config` has those of this machine."""
    from offramp.train.run_dir import read_config

    stored = read_config(run.folder)
    kept: dict[str, Any] = {name: stored[name] for name in ("device", "devices", "precision") if name in stored}
    return dataclasses.replace(run.config, **kept)


LARGEST_RATIO = 4
"""How many times as many parameters as its weights have a network may register while it is built."""


def _check_size(
    config: ResolvedConfig, method: "Method", tensors: Mapping[str, "Tensor"], about: dict[str, Any], path: Path
) -> None:
    """Refuse a configuration that asks for a much larger network than the weights are of, before it takes memory.

    Raises:
        ValueError: naming the weights.
    """
    from offramp.config.build import assemble_net
    from offramp.meta_device import TooLarge, at_most
    from offramp.models import is_external
    from offramp.split.model_sources import construct

    classes, (channels, *size) = len(about["classes"]), about["shape"]
    values = sum(tensor.numel() for tensor in tensors.values())
    for key, count in config.net_options.items():
        if isinstance(count, int) and count > values:  # of blocks, say, which are listed before they are built
            raise ValueError(f"net.{key} is {count}, but there are only {values:,} values in {path.name}")
    try:
        with at_most(LARGEST_RATIO * values, LARGEST_RATIO * len(tensors)):
            if is_external(config.net):  # to cut it takes longer, and memory in proportion to it
                construct(config.net, classes=classes, channels=channels, size=tuple(size), **config.net_options)
            else:
                assemble_net(config, method, classes=classes, shape=tuple(about["shape"]), check=False)
    except TooLarge:
        raise ValueError(
            f"it asks for a network of more than {LARGEST_RATIO} times the {values:,} values in {path.name}"
        ) from None
    except Exception:
        return  # it fails again, with its message, when the network is built


@contextmanager
def config_errors(folder: Path, kinds: type[Exception] = Exception) -> Iterator[None]:
    """Raises errors of these kinds (all by default) that a run's configuration causes with the name of its file.

    A file is believed to be what training wrote; one that was changed makes the packages of networks fail in many ways.
    """
    try:
        yield
    except kinds as error:
        kind = "" if isinstance(error, ValueError | ImportError) else f"{type(error).__name__}: "
        raise ValueError(f"{folder / 'config.yaml'}: {kind}{one_line(str(error), 500)}") from error


def warn_if_stale(run: LoadedRun | MultiNetRun, weights: str, reporter: "Reporter") -> None:
    """Warn if a run's policy was fitted on other weights than the opened ones."""
    from offramp.early_exit.policy_origin import stale

    if isinstance(run, LoadedRun) and run.policy:
        about = run.about
        if text := stale(run.fitted, run.folder, weights, about["epoch"], about["digest"]):
            reporter.warn(text)
