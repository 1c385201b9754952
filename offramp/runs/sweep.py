"""What `offramp compare` trains: every method with every seed, checked and given its folder before anything starts."""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

from offramp.config import (
    Config,
    ResolvedConfig,
    build_data,
    build_method,
    build_net,
    flat,
    load_weights,
    prepare,
    resolve,
)
from offramp.lookup import NotUnderstood

COMPARISON = "comparison.yaml"


class Entry(NamedTuple):
    """One run of a comparison: the method's label, its resolved configuration, and where it lies."""

    method: str
    config: ResolvedConfig
    folder: Path

    @property
    def name(self) -> str:
        """What it is called while it runs."""
        return f"{self.method} seed {self.config.recipe.seed}"


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` as numbers.

    Raises:
        ValueError: if a part is no number from 0 on, or is there twice.
    """
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal()]
    if wrong:
        raise NotUnderstood(f"--seeds takes whole numbers from 0 on with commas between, such as 0,1,2, got {text!r}")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise NotUnderstood(f"--seeds {text} names a seed twice")
    return seeds


def parse_methods(text: str) -> list[tuple[str, dict[str, str]]]:
    """`joint,muse(alpha=0.1,temperature=4)` as names with parameters; a value may hold commas: `eed(teachers=0,-1)`.

    Raises:
        ValueError: if a parenthesis is not closed, or something in one is no KEY=VALUE.
    """
    found = []
    for word in re.split(r",(?![^()]*\))", text):
        matched = re.fullmatch(r"\s*([^()\s]+?)\s*(?:\(([^()]*)\))?\s*", word)
        if matched is None:
            raise NotUnderstood(
                f"--methods takes names such as joint,muse(alpha=0.1), got {word.strip()!r} in {text!r}"
            )
        given: dict[str, str] = {}
        for part in re.split(r",(?=[^,=]*=)", matched[2] or ""):
            key, equals, value = part.partition("=")
            if part.strip() and not (equals and key.strip() and value.strip()):
                raise NotUnderstood(
                    f"--methods {word.strip()}: {part.strip()!r} is no KEY=VALUE, as in muse(alpha=0.1)"
                )
            if part.strip():
                given[key.strip()] = value.strip()
        found.append((matched[1], given))
    return found


def entries(config: Config, methods: str, seeds: str, out: Path) -> list[Entry]:
    """Every method with every seed, all methods of a seed before the next seed; nothing is written.

    Raises:
        ValueError: for names and parameters that do not exist, with the nearest, and for what is there twice.
    """
    from offramp.study.ledger import label

    if config.method_options:
        key, value = next(iter(config.method_options.items()))
        raise ValueError(
            f"--method.{key} cannot serve several methods: write --methods 'NAME({key}={value})' for the one it is for"
        )
    if config.recipe.devices > 1:
        raise ValueError("compare trains every run in one process: leave --devices away, --jobs N runs N at once")
    chosen: dict[str, ResolvedConfig] = {}
    for name, given in parse_methods(methods):
        wanted = resolve(dataclasses.replace(config, method=name, method_options=given))
        called = label(flat(wanted))
        if called in chosen:
            raise NotUnderstood(f"--methods names {called} twice")
        chosen[called] = wanted
    numbers = parse_seeds(seeds)
    return [
        Entry(called, _seeded(wanted, seed), out / folder_name(called, seed))
        for seed in numbers
        for called, wanted in chosen.items()
    ]


def folder_name(method: str, seed: int) -> str:
    """The folder of a run: `joint-seed-0`, `muse-alpha=0.1-seed-0`."""
    return re.sub(r"[^\w.=,+-]", "_", method.replace("(", "-").replace(")", "")) + f"-seed-{seed}"


def _seeded(config: ResolvedConfig, seed: int) -> ResolvedConfig:
    return dataclasses.replace(config, seed=seed)


def claim(out: Path, found: list[Entry]) -> None:
    """Make the folder this comparison's own, or recognise it, and every run's folder within it.

    Raises:
        ValueError: if it holds another comparison, naming the option that differs, or something else.
    """
    import yaml

    from offramp.study.ledger import common
    from offramp.train import run_dir

    path = out / COMPARISON
    shared = common(flat(found[0].config))
    if path.is_file():
        there = run_dir.read_yaml(path)
        differing = [key for key in sorted({*there, *shared}) if there.get(key) != shared.get(key)]
        if differing:
            key = differing[0]
            more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
            raise ValueError(
                f"{out} holds a comparison of another configuration: its {key} is {there.get(key)!r}, not "
                f"{shared.get(key)!r}{more}; nothing was trained. Take another --out"
            )
    else:
        run_dir.put(path, yaml.safe_dump(shared, sort_keys=False))
    for entry in found:
        run_dir.claim(entry.folder, flat(entry.config), resume=True)


def check_folder(out: Path) -> None:
    """Refuse a folder that holds anything but a comparison.

    Raises:
        ValueError: naming the folder.
    """
    ours = {COMPARISON, f".part-{COMPARISON}", ".lock"}
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is no folder; take another --out")
    if out.is_dir() and not (out / COMPARISON).is_file() and any(entry.name not in ours for entry in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no comparison of offramp; take another --out")


def check(found: list[Entry], show: bool) -> tuple[str, ...]:
    """Read the data and build every method's network once: what cannot be trained is refused before anything starts.

    Returns:
        Notes for the user.
    Raises:
        ValueError: naming the method and why it cannot train this network on these data.
    """
    from offramp.train import phases
    from offramp.train.loop import refuse

    data = build_data(found[0].config, progress=show)
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items())
    notes = [f"{found[0].config.data}: {sizes}", *data.notes]
    for entry in {entry.method: entry for entry in reversed(found)}.values():
        method = build_method(entry.config)
        try:
            net = build_net(entry.config, method, classes=len(data.classes), shape=data.shape)
            phases.refuse_net(entry.config.recipe, method, net)
            refuse(method, entry.config.recipe, data)
            told = (*load_weights(entry.config, net), *prepare(method, net, data.shape))
            notes += [f"{entry.method}: {note}" for note in told]
        except ValueError as error:
            raise ValueError(f"{entry.method}: {error}") from None
    return tuple(notes)
