"""What `offramp compare` trains: every method with every seed, checked and given its folder before anything starts."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from offramp.config import (
    Config,
    ResolvedConfig,
    build_method,
    build_net,
    complete,
    flat,
    load_weights,
    prepare,
    resolve,
)
from offramp.files import read_yaml
from offramp.lookup import ParameterError, with_parameters
from offramp.progress import Progress, no_progress
from offramp.train.run_dir import RESULT

COMPARISON = "comparison.yaml"


class Entry(NamedTuple):
    """One run of a comparison: the method's label, its resolved configuration, and where it lies."""

    method: str
    config: ResolvedConfig
    folder: Path

    @property
    def name(self) -> str:
        """What it is called while it runs."""
        return f"{self.method} seed {self.config.seed}"


def entries(
    config: Config, methods: Sequence[tuple[str, Mapping[str, Any]]], seeds: Sequence[int], out: Path
) -> list[Entry]:
    """Every method with every seed, all methods of a seed before the next seed; nothing is written.

    Raises:
        ValueError: for names and parameters that do not exist, with the nearest, and for what is there twice.
    """
    from offramp.study.ledger import label

    if config.method_options:
        key, value = next(iter(config.method_options.items()))
        raise with_parameters(
            ValueError(
                f"method.{key} cannot serve several methods: write methods 'NAME({key}={value})' for the one it is for"
            ),
            f"method.{key}",
            "methods",
        )
    if config.devices > 1:
        raise with_parameters(
            ValueError("compare trains every run in one process: omit devices, jobs=N runs N at once"),
            "devices",
            "jobs",
        )
    chosen: dict[str, ResolvedConfig] = {}
    for name, parameters in methods:
        resolved = resolve(dataclasses.replace(config, method=name, method_options=parameters))
        labelled = label(flat(resolved))
        if labelled in chosen:
            raise ParameterError(f"methods names {labelled} twice", "methods")
        chosen[labelled] = resolved
    if not methods or not seeds:
        raise ParameterError(f"{'seeds' if methods else 'methods'} needs at least one", "methods", "seeds")
    if len(set(seeds)) < len(seeds):
        raise ParameterError(f"seeds {','.join(map(str, seeds))} names a seed twice", "seeds")
    return [
        Entry(labelled, _seeded(resolved, seed), out / folder_name(labelled, seed))
        for seed in seeds
        for labelled, resolved in chosen.items()
    ]


def folder_name(method: str, seed: int) -> str:
    """The folder of a run: `joint-seed-0`, `muse-alpha=0.1-seed-0`."""
    return re.sub(r"[^\w.=,+-]", "_", method.replace("(", "-").replace(")", "")) + f"-seed-{seed}"


def _seeded(config: ResolvedConfig, seed: int) -> ResolvedConfig:
    return dataclasses.replace(config, seed=seed)


def claim(out: Path, entries: Sequence[Entry]) -> None:
    """Make the folder this comparison's own, or recognise it, and every run's folder within it.

    Raises:
        ValueError: if it holds another comparison, naming the option that differs, or something else.
    """
    import yaml

    from offramp.study.ledger import common
    from offramp.train import run_dir

    path = out / COMPARISON
    shared = common(flat(entries[0].config))
    if path.is_file():
        there = read_yaml(path)
        differing = [key for key in sorted({*there, *shared}) if there.get(key) != shared.get(key)]
        if differing:
            key = differing[0]
            more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
            raise with_parameters(
                ValueError(
                    f"{out} holds a comparison of another configuration: its {key} is {there.get(key)!r}, not "
                    f"{shared.get(key)!r}{more}; nothing was trained. Choose another out"
                ),
                "out",
            )
    else:
        run_dir.put(path, yaml.safe_dump(shared, sort_keys=False))
    for entry in entries:
        run_dir.claim(entry.folder, flat(entry.config), resume=True)


def check_folder(out: Path) -> None:
    """Refuse a folder that holds anything but a comparison.

    Raises:
        ValueError: naming the folder.
    """
    ours = {COMPARISON, f".part-{COMPARISON}", ".lock"}
    if out.exists() and not out.is_dir():
        raise with_parameters(ValueError(f"{out} is not a folder; choose another out"), "out")
    if out.is_dir() and not (out / COMPARISON).is_file() and any(entry.name not in ours for entry in out.iterdir()):
        raise with_parameters(
            ValueError(f"{out} is not empty and does not contain an offramp comparison; choose another out"), "out"
        )


def check(entries: Sequence[Entry], progress: Progress = no_progress) -> tuple[list[Entry], tuple[str, ...]]:
    """Read the data and build every method's network once: what cannot be trained is refused before anything starts.

    Returns:
        The entries with what the data decide (`offramp.config.complete`), and notes for the user.
    Raises:
        ValueError: naming the method and why it cannot train this network on these data.
    """
    from offramp.train.check import refuse

    first, data, completed = complete(entries[0].config, progress=progress)
    entries = [
        entry._replace(
            config=dataclasses.replace(entry.config, data_options=first.data_options, net_options=first.net_options)
        )
        for entry in entries
    ]
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items())
    notes = [f"{entries[0].config.data}: {sizes}", *completed, *data.notes]
    for entry in {entry.method: entry for entry in reversed(entries)}.values():
        method = build_method(entry.config)
        try:
            net = build_net(entry.config, method, classes=len(data.classes), shape=data.shape)
            refuse(method, entry.config, net, data)
            told = (*load_weights(entry.config, net, data.shape), *prepare(method, net, data.shape))
            notes += [f"{entry.method}: {note}" for note in told]
        except ValueError as error:
            raise with_parameters(ValueError(f"{entry.method}: {error}"), *getattr(error, "parameters", ())) from None
    return list(entries), tuple(notes)


def runs_of(folders: Sequence[Path | str]) -> list[Path]:
    """The folders, with all finished runs of a comparison in place of its folder, by name.

    Raises:
        ValueError: if a comparison has no finished run yet.
    """
    runs: list[Path] = []
    for folder in map(Path, folders):
        if not (folder / COMPARISON).is_file():
            runs.append(folder)
            continue
        finished = sorted(path.parent for path in folder.glob(f"*/{RESULT}"))
        if not finished:
            raise ValueError(
                f"{folder} is a comparison without a finished run yet: the same `offramp compare` continues"
            )
        runs += finished
    return runs
