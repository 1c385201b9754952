"""Trains what a ledger lacks of some trainings, by the machinery of `compare`; what fails is kept beside the runs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from offramp.config import resolve
from offramp.engine.choice import Engine
from offramp.files import read_json
from offramp.papers.catalog import Protocol, Training, config_of, folder_of, needs_run, training
from offramp.papers.figures import BY_EPOCH
from offramp.papers.lines import MeasuredLines
from offramp.papers.selection import figures
from offramp.runs.packing import Jobs
from offramp.runs.run import Device
from offramp.runs.run_entries import Entry, check_one_process
from offramp.runs.train_all import CompareReporter, train_all
from offramp.train.run_dir import RESULT, put

FAILURES = "failures.json"
"""Why runs of a folder failed, by training and seed."""


def train_missing(
    trainings: Sequence[Training],
    seeds: Sequence[int],
    protocol: Protocol,
    folder: Path,
    ledger: Path,
    measured: MeasuredLines,
    data_dir: Path | None,
    jobs: Jobs,
    reporter: CompareReporter,
    engine: Engine,
    device: Device,
) -> list[dict[str, str]]:
    """Train what the ledger lacks, all trainings of a seed before the next seed; those that need another run last."""

    def entry(one: Training, seed: int) -> Entry:
        logged = ("train", "test") if one.name in by_epoch else ()
        config = config_of(one, protocol, folder, device)
        config = dataclasses.replace(config, seed=seed, data_dir=data_dir, log_accuracy=logged)
        check_one_process(config)
        return Entry(one.name, resolve(config), folder / folder_of(one.name, seed))

    drawn = [figure for figure in figures().values() if figure.analysis == BY_EPOCH]
    by_epoch = {name for figure in drawn for name in figure.trainings(protocol)}
    missing = [(one, seed) for seed in seeds for one in trainings if seed not in measured.lines.get(one.name, {})]
    sources = {source for one, _ in missing if (source := needs_run(one))}
    first = [pair for pair in missing if needs_run(pair[0]) is None]
    first += [(training(name), seed) for name, seed in sorted(sources) if (name, seed) not in _names(first)]
    shared = {"protocol": protocol.name, "recipe": protocol.recipe}
    failed: list[dict[str, str]] = []
    for stage in (first, [pair for pair in missing if needs_run(pair[0]) is not None]):
        able, waiting = ready(stage, folder)
        failed += waiting
        if able:
            entries = [entry(one, seed) for one, seed in able]
            failed += train_all(entries, folder, jobs, ledger, reporter, shared=shared, engine=engine)[1]
    _keep_failures(folder, {f"{one.name} seed {seed}" for one, seed in missing}, failed)
    return failed


def _names(pairs: Sequence[tuple[Training, int]]) -> set[tuple[str, int]]:
    return {(one.name, seed) for one, seed in pairs}


def ready(
    pairs: Sequence[tuple[Training, int]], folder: Path
) -> tuple[list[tuple[Training, int]], list[dict[str, str]]]:
    """The runs whose source of loss weights has finished in this folder, and why the others wait."""
    able, waiting = [], []
    for one, seed in pairs:
        source = needs_run(one)
        if source is None or (folder / folder_of(*source) / RESULT).is_file():
            able.append((one, seed))
        else:
            reason = f"it takes the final loss weights of {source[0]} seed {source[1]}, whose run is not in {folder}"
            waiting.append({"run": f"{one.name} seed {seed}", "reason": reason})
    return able, waiting


def _keep_failures(folder: Path, tried: set[str], failed: Sequence[Mapping[str, str]]) -> None:
    """Write why runs failed beside the runs; those that were tried again have the reason of today, or none."""
    path = folder / FAILURES
    before = read_json(path, {str: str}) if path.is_file() else {}
    kept = {run: reason for run, reason in before.items() if run not in tried}
    kept |= {one["run"]: one["reason"] for one in failed}
    if kept != before:
        put(path, json.dumps(kept, indent=1) + "\n")


def failures(folder: Path) -> dict[str, str]:
    """Why trainings failed in a folder, in a few words, by name of the training."""
    path = folder / FAILURES
    reasons = read_json(path, {str: str}) if path.is_file() else {}
    return {run.rpartition(" seed ")[0]: _in_short(run, reason) for run, reason in reasons.items()}


def _in_short(run: str, reason: str) -> str:
    diverged = reason.startswith("the loss term")
    return f"seed {run.rpartition(' seed ')[2]} {'diverged' if diverged else 'failed'}: {reason.partition(';')[0]}"
