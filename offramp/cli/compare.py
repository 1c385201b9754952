"""offramp compare: train several methods with several seeds on the same network, data and recipe, and compare."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from offramp.cli import emit
from offramp.cli._options import ConfigFile, ConfigOptions, Dotted, Files, Json, RecipeName, config_of
from offramp.config import Config
from offramp.lookup import ParameterError

if TYPE_CHECKING:
    from offramp.runs.compare import ComparisonResult
    from offramp.study.comparison import Comparison


def compare(
    config: ConfigOptions = ConfigOptions(),  # noqa: B008
    *,
    methods: str | None = None,
    seeds: str = "0",
    grid: Annotated[list[str] | None, Parameter(negative="", show_default=False)] = None,
    out: Path | None = None,
    jobs: int | Literal["auto"] = "auto",
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    fetch: Annotated[bool, Parameter(negative="")] = False,
    ledger: Path | None = None,
    baseline: str = "joint",
    show: Path | None = None,
    markdown: Path | None = None,
    metric: Literal["top1", "top5"] = "top1",
    write: Files = (),
    json: Json = False,
    option: Dotted = None,
    config_file: ConfigFile = None,
    recipe: RecipeName = None,
) -> None:
    """Train several methods with several seeds, and compare their accuracy on test.

    Takes the options of `offramp train` for all runs, except --method and --seed. The same command continues a stopped
    comparison; with more methods or seeds it trains the new ones.

    Args:
        methods: Comma-separated names with parameters in parentheses: `joint,muse(alpha=0.1)`.
        seeds: Comma-separated numbers.
        grid: Values of another option, as in `net=resnet18,resnet34`; repeat it for further options. All methods and
            seeds are trained with every combination, and compared within it.
        out: Folder of the comparison; each run is a folder in it.
        jobs: Number of runs at a time (with Ray: on each node), each with an equal share of the cores. `auto` measures
            a few steps and takes what finishes all soonest; with Ray, it is 1.
        engine: `ray` trains on the nodes of a Ray cluster, which all see --out; `local` in processes of this machine.
        address: HOST:PORT of the Ray cluster's head; default: $RAY_ADDRESS, a cluster of this machine, or a new one.
        fetch: The nodes of the Ray cluster do not see --out: each run is trained in a temporary folder of its node, and
            fetched when it ends or is stopped.
        ledger: File to add a line per run to; default: results.jsonl in --out. Runs that it contains are not trained
            again.
        baseline: Method that the others are compared with, seed by seed; or the plain network at whose accuracy costs
            are compared, a run without early exits or a file of weights. Default for the latter: the method vanilla
            with the same seed if the ledger has it, else the final exit of each network.
        show: Train nothing; compare the runs of this ledger, all or those of --methods.
        markdown: Also write the tables to this file; in an existing file, between its markers.
        metric: Top-1 or top-5 accuracy.
        write: Further files, comma-separated: .csv and .tex tables, .svg, .pdf and .png figures.
        json: Print the comparison as one JSON object.
    """
    from offramp.cli._compare_progress import CompareProgress
    from offramp.runs.compare import compare as run_comparison
    from offramp.study.comparison_files import MARKERS
    from offramp.study.comparison_files import markdown as markdown_of
    from offramp.study.marked_block import around, write_block

    if markdown is not None:
        around(markdown, MARKERS)  # refused before anything is trained, not after
    if show is not None:
        options = {"--out": out, "--ledger": ledger, "--seeds": seeds != "0", "--jobs": jobs != "auto", "--grid": grid}
        options |= {"--engine": engine != "local", "--address": address is not None, "--fetch": fetch}
        _only_show([name for name, value in options.items() if value], config_of(config, option) != Config())
        result = _shown(show, methods, baseline, metric, write)
    elif methods is None or out is None:
        raise ValueError("compare needs --methods and --out, as in --methods joint,byot --out runs/compare; or --show")
    else:
        result = run_comparison(
            config_of(config, option),
            parse_methods(methods),
            out,
            seeds=parse_seeds(seeds),
            jobs=jobs,
            engine=engine,
            address=address,
            fetch=fetch,
            ledger=ledger,
            grid=parse_grid(grid or []),
            baseline=baseline,
            metric=metric,
            write=write,
            reporter=CompareProgress(not json),
        )
    if markdown is not None and result.comparisons:
        write_block(markdown, "\n".join(map(markdown_of, result.comparisons)), MARKERS)
    if json:
        emit(dataclasses.asdict(result))
    else:
        _print_result(result)
    if result.failed:
        raise SystemExit(1)


def _only_show(words: list[str], trains: bool) -> None:
    if words or trains:
        what = " and ".join(words) or "options of training"
        raise ValueError(f"--show trains nothing and shows runs of the ledger: omit {what}")


def _shown(
    ledger: Path, methods: str | None, baseline: str, metric: str, write: tuple[Path, ...]
) -> "ComparisonResult":
    from offramp.runs.compare import compare_ledger

    labels = split_methods(methods) if methods else ()
    return compare_ledger(ledger, methods=labels, baseline=baseline, metric=metric, write=write)


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` as numbers.

    Raises:
        ValueError: if a part is no number from 0 on.
    """
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal()]
    if wrong:
        raise ParameterError(f"--seeds takes comma-separated whole numbers from 0, such as 0,1,2, got {text!r}")
    return [int(part) for part in parts]


def parse_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """`["net=resnet18,resnet34", "lr=0.1,0.05"]` as values by option.

    Raises:
        ValueError: if a word is not OPTION=VALUE,VALUE, or an option is there twice.
    """
    grid: dict[str, list[str]] = {}
    for word in words:
        key, equals, values = word.removeprefix("--").partition("=")
        if not (key and equals and values):
            raise ParameterError(f"--grid takes an option with its values, such as net=resnet18,resnet34, got {word!r}")
        if key in grid:
            raise ParameterError(f"--grid names {key} twice: write all its values behind one another")
        grid[key] = [value.strip() for value in values.split(",")]
    return grid


def split_methods(text: str) -> list[str]:
    """The comma-separated methods, each with its parentheses: `joint,eed(teachers=0,-1)`."""
    return [word.strip() for word in re.split(r",(?![^()]*\))", text)]


def parse_methods(text: str) -> list[tuple[str, dict[str, str]]]:
    """`joint,muse(alpha=0.1,temperature=4)` as names with parameters; a value may contain commas: `eed(teachers=0,-1)`.

    Raises:
        ValueError: if a parenthesis is not closed, or its content is not KEY=VALUE.
    """
    methods = []
    for word in split_methods(text):
        matched = re.fullmatch(r"([^()\s]+?)\s*(?:\(([^()]*)\))?", word)
        if matched is None:
            raise ParameterError(f"--methods takes names such as joint,muse(alpha=0.1), got {word!r} in {text!r}")
        parameters: dict[str, str] = {}
        for part in re.split(r",(?=[^,=]*=)", matched[2] or ""):
            key, equals, value = part.partition("=")
            if part.strip() and not (equals and key.strip() and value.strip()):
                raise ParameterError(
                    f"--methods {word.strip()}: {part.strip()!r} is not KEY=VALUE, as in muse(alpha=0.1)"
                )
            if part.strip():
                parameters[key.strip()] = value.strip()
        methods.append((matched[1], parameters))
    return methods


def _print_result(result: "ComparisonResult") -> None:
    from offramp.cli._console import stderr

    for number, comparison in enumerate(result.comparisons):
        _print(comparison, number)
    for file in result.files:
        stderr.print(f"wrote {file}", highlight=False, markup=False, soft_wrap=True)
    for run in result.failed:
        stderr.print(f"{run['run']} failed: {run['reason']}", highlight=False, markup=False, soft_wrap=True)


def _print(comparison: "Comparison", number: int) -> None:
    """As `comparison_text` writes it, with cells that fold where the terminal is narrow."""
    from offramp.cli._console import stdout, table
    from offramp.study.comparison_labels import title
    from offramp.study.comparison_text import comparison_parts

    if number:
        stdout.print()
    stdout.print(title(comparison), style="bold", highlight=False, markup=False)
    for place, part in enumerate(comparison_parts(comparison)):
        if place:
            stdout.print()
        text = part if isinstance(part, str) else table(*part)
        stdout.print(text, highlight=False, soft_wrap=True)
