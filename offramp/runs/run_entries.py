"""What `offramp compare` trains: every method with every seed, checked and given its folder before anything starts."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from offramp.config import (
    Config,
    ResolvedConfig,
    build_method,
    build_net,
    complete,
    flat,
    load_weights,
    prepare_objective,
    resolve,
)
from offramp.lookup import ParameterError, with_parameters
from offramp.progress import Progress, no_progress
from offramp.runs.grid import NO_GRID, Grid, variants

if TYPE_CHECKING:
    from offramp.data.splits import DataSet


class Inputs(NamedTuple):
    """What a run learns from: (channels, height, width) of its images, classes, steps of an epoch, images of val."""

    shape: tuple[int, int, int]
    classes: int
    steps: int
    val: int = 0


class Entry(NamedTuple):
    """One run of a comparison: the method's label, its resolved configuration, its folder, its point of a grid.

    `inputs` is known when the data were read (see `check`).
    """

    method: str
    config: ResolvedConfig
    folder: Path
    point: str = ""
    inputs: Inputs | None = None

    @property
    def name(self) -> str:
        """What it is called while it runs."""
        return f"{f'{self.point} ' if self.point else ''}{self.method} seed {self.config.seed}"


def entries(
    config: Config,
    methods: Sequence[tuple[str, Mapping[str, Any]]],
    seeds: Sequence[int],
    out: Path,
    grid: Grid = NO_GRID,
) -> list[Entry]:
    """Every method with every seed at every point of a grid, all of a seed before the next seed; nothing is written.

    Raises:
        ValueError: for names and parameters that do not exist, with the nearest, and for what is there twice.
    """
    from offramp.study.ledger import label

    if config.method_options:
        key, value = next(iter(config.method_options.items()))
        raise with_parameters(
            ValueError(
                f"method.{key} would apply to several methods: write it with its method, methods 'NAME({key}={value})'"
            ),
            f"method.{key}",
            "methods",
        )
    if not methods or not seeds:
        raise ParameterError(f"{'seeds' if methods else 'methods'} needs at least one", "methods", "seeds")
    if len(set(seeds)) < len(seeds):
        raise ParameterError(f"seeds {','.join(map(str, seeds))} names a seed twice", "seeds")
    chosen: dict[tuple[str, str], ResolvedConfig] = {}
    for point, variant in variants(config, grid).items():
        check_one_process(variant)
        for name, parameters in methods:
            resolved = resolve(dataclasses.replace(variant, method=name, method_options=parameters))
            labelled = label(flat(resolved))
            if (point, labelled) in chosen:
                raise ParameterError(f"methods names {labelled} twice", "methods")
            chosen[point, labelled] = resolved
    return [
        Entry(labelled, _seeded(resolved, seed), out / folder_name(labelled, seed, point), point)
        for seed in seeds
        for (point, labelled), resolved in chosen.items()
    ]


def check_one_process(config: Config | ResolvedConfig) -> None:
    """Refuse options of a single run that are not possible for one of several.

    Raises:
        ParameterError: naming the option.
    """
    if config.exits == "auto":
        message = "exits=auto is for train and info: name the places that they show (exits_at, exits_after)"
        raise ParameterError(message, "exits", "exits_at", "exits_after")
    if config.devices > 1:
        message = f"devices={config.devices} is for train: each of several runs trains in one process; omit it, "
        raise ParameterError(f"{message}jobs=N trains N runs at once", "devices", "jobs")


def shared_by(entries: Sequence[Entry], grid: Grid = NO_GRID) -> dict[str, Any]:
    """What all runs have in common: everything but method, seed, the axes of a grid, and what goes with them."""
    from offramp.study.ledger import common

    axes = {key.replace("_", "-") for key in grid}
    prefixes = tuple(f"{kind}." for kind in ("net", "branch", "data") if kind in axes)
    values = common(flat(entries[0].config))
    kept = {
        key: value for key, value in values.items() if key not in axes and not (prefixes and key.startswith(prefixes))
    }
    return kept | ({"grid": sorted(axes)} if axes else {})


def folder_name(method: str, seed: int, point: str = "") -> str:
    """The folder of a run: `joint-seed-0`, `muse-alpha=0.1-seed-0`, `net=resnet34,joint-seed-0` of a grid."""
    name = f"{point},{method}" if point else method
    return re.sub(r"[^\w.=,+-]", "_", name.replace("(", "-").replace(")", "")) + f"-seed-{seed}"


def _seeded(config: ResolvedConfig, seed: int) -> ResolvedConfig:
    return dataclasses.replace(config, seed=seed)


def check(entries: Sequence[Entry], progress: Progress = no_progress) -> tuple[list[Entry], tuple[str, ...]]:
    """Read the data and build every method's network once: what cannot be trained is refused before anything starts.

    Returns:
        The entries with what the data decide (`offramp.config.complete`), and notes for the user.
    Raises:
        ValueError: naming the method and why it cannot train this network on these data.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        check_one_process(entry.config)
        groups.setdefault(inputs_of(entry.config), []).append(entry)
    checked = [_check_group(group, progress) for group in groups.values()]
    by_folder = {entry.folder: entry for group, _ in checked for entry in group}
    notes = dict.fromkeys(note for _, messages in checked for note in messages)
    return [by_folder[entry.folder] for entry in entries], tuple(notes)


def inputs_of(config: ResolvedConfig) -> str:
    """The network and its weights, and what decides the images; runs that share them share what `complete` says."""
    keys = ("net", "weights", "data", "per-class", "holdout", "split-seed", "image-size", "streaming", "data-dir")
    values = flat(config)
    others = (config.skip_damaged, config.pretrained, config.data_options, config.net_options)
    return str([*(values[key] for key in keys), *others])


def _check_group(entries: Sequence[Entry], progress: Progress) -> tuple[list[Entry], list[str]]:
    """`check` for runs of one network on the same images."""
    from offramp.train.check import refuse

    first, data, completed = complete(entries[0].config, progress=progress)
    entries = [
        entry._replace(
            config=dataclasses.replace(entry.config, data_options=first.data_options, net_options=first.net_options),
            inputs=_read(data, entry.config.batch_size),
        )
        for entry in entries
    ]
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items())
    notes = [f"{entries[0].config.data}: {sizes}", *completed, *data.notes]
    for entry in {str({**flat(entry.config), "seed": 0}): entry for entry in reversed(entries)}.values():
        method = build_method(entry.config)
        try:
            net = build_net(entry.config, method, classes=len(data.classes), shape=data.shape)
            refuse(method, entry.config, net, data)
            messages = (*load_weights(entry.config, net, data.shape), *prepare_objective(method, net, data.shape))
            notes += [f"{entry.method}: {note}" for note in messages]
        except ValueError as error:
            raise with_parameters(ValueError(f"{entry.method}: {error}"), *getattr(error, "parameters", ())) from None
    return list(entries), notes


def _read(data: "DataSet", batch_size: int) -> Inputs:
    steps = -(-len(data.splits["train"]) // batch_size)
    return Inputs(data.shape, len(data.classes), steps, len(data.splits["val"]) if "val" in data.splits else 0)
