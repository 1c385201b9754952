"""offramp compare: several methods with several seeds on the same network, data and recipe, and what differs."""

import json as reader
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.cli import emit
from offramp.cli._options import ConfigFile, ConfigOptions, Dotted, Json, config_of
from offramp.config import Config, flat
from offramp.lookup import NotUnderstood, nearest

if TYPE_CHECKING:
    from offramp.engine.local import Job
    from offramp.runs.sweep import Entry
    from offramp.study.comparison import Comparison

LEDGER = "results.jsonl"
PATIENCE = 20.0
"""Seconds to wait for runs of a comparison that was killed and are still saving."""


def compare(
    config: ConfigOptions = ConfigOptions(),  # noqa: B008
    *,
    methods: str | None = None,
    seeds: str = "0",
    out: Path | None = None,
    jobs: int = 1,
    ledger: Path | None = None,
    baseline: str = "joint",
    show: Path | None = None,
    markdown: Path | None = None,
    json: Json = False,
    option: Dotted = None,
    config_file: ConfigFile = None,
) -> None:
    """Train several methods with several seeds alike, and compare them on test at the last epoch.

    Takes the options of `offramp train`, which every run shares; its method and seed give way to --methods and --seeds.
    The same command goes on where it was stopped or killed; with more methods or seeds it trains those that are new.

    Args:
        methods: Names with commas between, parameters in parentheses: `joint,muse(alpha=0.1)`.
        seeds: Numbers with commas between.
        out: Folder of the comparison; every run is a folder in it.
        jobs: How many runs at once, each with its share of the cores.
        ledger: File to add a line per run to; else results.jsonl in --out. What has its line there is
            not trained again.
        baseline: The method that the others are compared with, seed by seed.
        show: Train nothing; show what this ledger holds.
        markdown: Also write the tables into this file, between the markers of an existing one.
        json: Print the comparison as one JSON object.
    """
    if jobs < 1:
        raise NotUnderstood(f"--jobs must be at least 1, got {jobs}")
    if markdown is not None:
        _check_markdown(markdown)
    if show is not None:
        given = {"--methods": methods, "--out": out, "--ledger": ledger, "--seeds": seeds != "0", "--jobs": jobs != 1}
        words = [name for name, value in given.items() if value]
        if words or config_of(config, option) != Config():
            what = " and ".join(words) or "options of training"
            raise ValueError(f"--show trains nothing, it shows all that its ledger holds: leave {what} away")
        _report(_comparisons(show, baseline), markdown, json, show, [])
        return
    if methods is None or out is None:
        raise ValueError("compare needs --methods and --out, as in --methods joint,byot --out runs/compare; or --show")
    kept = ledger or out / LEDGER
    common, failed = run(config_of(config, option), methods, seeds, out, jobs, kept, show=not json)
    found = [one for one in _comparisons(kept, baseline) if one.common == common] if kept.is_file() else []
    _report(found, markdown, json, kept, failed)


def run(
    config: Config, methods: str, seeds: str, out: Path, jobs: int, ledger: Path, show: bool
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Train and evaluate what is not yet in the ledger; answers what the runs share, and which failed and why."""
    from offramp.cli._compare_progress import CompareProgress
    from offramp.engine import local
    from offramp.runs import sweep
    from offramp.study.ledger import common

    if ledger.exists() and not ledger.is_file():
        raise ValueError(f"--ledger {ledger} is no file")
    place = next(path for path in (ledger, *ledger.parents) if path.exists())
    if not os.access(place, os.W_OK):
        raise ValueError(f"{ledger} cannot be written: there is no permission for {place}")
    found = sweep.entries(config, methods, seeds, out)
    sweep.check_folder(out)
    progress = CompareProgress(show)
    for note in sweep.check(found, show):
        progress.note(note)
    out.mkdir(parents=True, exist_ok=True)
    with local.alone(out / ".lock", PATIENCE, progress.note) as lock:
        sweep.claim(out, found)
        todo = [job for entry in found if (job := _job(entry, out, ledger, progress.note))]
        progress.begin(len(found), len(found) - len(todo), config.recipe.epochs)
        try:
            whole = local.run(todo, jobs, progress, lock.fileno())
        finally:
            progress.stop()
    if not whole:
        progress.note(f"saved in {out}; the same command goes on")
        raise KeyboardInterrupt
    failed = [{"run": job.name, "reason": job.failure} for job in todo if job.failure]
    return common(flat(found[0].config)), failed


def _job(entry: "Entry", out: Path, ledger: Path, note: Callable[[str], None]) -> "Job | None":
    """What is left to do for a run: train, evaluate, add its line to the ledger; None where nothing is."""
    from offramp.engine.local import Job
    from offramp.study.ledger import append, holds, lists
    from offramp.train.run_dir import CONFIG, begun, read_result

    config, folder = entry.config, entry.folder
    result = read_result(folder)
    if result is not None and holds(ledger, flat(config), result):
        return None
    if not begun(folder) and lists(ledger, flat(config)):
        note(f"{entry.name}: has its line in {ledger}; to train it again, take another --ledger")
        return None
    place = ["--data-dir", str(config.data_dir)] if config.data_dir else []
    train = ["train", "--config", str(folder / CONFIG), "--out", str(folder), "--resume", *place]
    train += ["--checkpoint-every", str(config.recipe.checkpoint_every)]
    train += ["--tensorboard" if config.recipe.tensorboard else "--no-tensorboard"]
    evaluate = ["evaluate", str(folder), *place, "--json"]
    logs = out / "logs"
    answer = logs / f"{folder.name}.json"

    def done() -> None:
        append(ledger, reader.loads(answer.read_text()))

    commands = [evaluate] if result is not None else [train, evaluate]
    return Job(entry.name, commands, logs / f"{folder.name}.log", answer, done)


def _check_markdown(path: Path) -> None:
    """Refuse a document that the tables cannot go into before anything is trained, not after."""
    from offramp.study.comparison import around

    around(path)


def _comparisons(ledger: Path, baseline: str) -> list["Comparison"]:
    from offramp.study.comparison import compare
    from offramp.study.ledger import read

    lines = read(ledger)
    labels = list(dict.fromkeys(line.method for line in lines))
    if baseline != "joint" and baseline not in labels:
        raise NotUnderstood(f"--baseline {baseline} is not in {ledger}: {nearest(baseline, labels)}")
    return compare(lines, baseline)


def _report(
    found: list["Comparison"], markdown: Path | None, json: bool, ledger: Path, failed: list[dict[str, str]]
) -> None:
    """Print the tables, write them as Markdown, name what failed; exit status 1 if something did."""
    from offramp.cli._console import stderr
    from offramp.study import comparison

    if markdown is not None and found:
        comparison.write_block(markdown, "\n".join(map(comparison.markdown, found)))
    if json:
        emit({"ledger": str(ledger), "comparisons": [comparison.values(one) for one in found], "failed": failed})
    else:
        for number, one in enumerate(found):
            _print(one, number)
    for run in failed if not json else ():
        stderr.print(f"{run['run']} failed: {run['reason']}", highlight=False, markup=False, soft_wrap=True)
    if failed:
        raise SystemExit(1)


def _print(found: "Comparison", number: int) -> None:
    from offramp.cli._console import stdout, table
    from offramp.study.comparison import counted, difference_cell, mean_cell, title

    if number:
        stdout.print()
    stdout.print(title(found), style="bold", highlight=False, markup=False)
    names, legend = _names([row.method for row in found.rows])
    rows = [[names[row.method], counted(row.seeds), *map(mean_cell, row.means)] for row in found.rows]
    head = "accuracy %, mean ± standard deviation over seeds"
    stdout.print(table(head, ["", "n", *found.columns], rows), soft_wrap=True)
    others = [row for row in found.rows if row.differences]
    rows = [
        [names[row.method], counted(row.pairs), *(difference_cell(one, brackets=False) for one in row.differences)]
        for row in others
    ]
    if rows:
        stdout.print()
        head = f"less {found.baseline} on the same seeds, points ± half of the 95 % interval"
        stdout.print(table(head, ["", "n", *found.columns], rows), soft_wrap=True)
    elif len(found.rows) > 1:
        said = f"no differences: nothing has a seed in common with {found.baseline} (--baseline NAME)"
        stdout.print(f"\n{said}", highlight=False, soft_wrap=True)
    if legend:
        stdout.print("\n" + "\n".join(legend), highlight=False, markup=False, soft_wrap=True)


def _names(methods: list[str]) -> tuple[dict[str, str], list[str]]:
    """What each method is called in a narrow table, and what the numbers in these names stand for."""
    long = [method for method in methods if len(method) > WIDEST]
    short = {method: f"{method.partition('(')[0]} ({number})" for number, method in enumerate(long, 1)}
    return {method: short.get(method, method) for method in methods}, [f"{short[one]}: {one}" for one in long]


WIDEST = 11
"""Columns that a table of five exits leaves for a method's name in a terminal of 80."""
