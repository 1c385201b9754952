"""offramp compare: train several methods with several seeds on the same network, data and recipe, and compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from offramp.cli import emit_result
from offramp.cli._options import (
    Address,
    ConfigFile,
    Dotted,
    Engine,
    Fetch,
    Jobs,
    Json,
    OutputFiles,
    RecipeName,
    SharedOptions,
    config_of,
)
from offramp.cli._parse import parse_grid, parse_methods, parse_seeds, split_methods
from offramp.config import Config

if TYPE_CHECKING:
    from offramp.runs.compare import ComparisonResult
    from offramp.study.comparison import Comparison


def compare(
    config: SharedOptions = SharedOptions(),  # noqa: B008
    *,
    methods: str | None = None,
    seeds: str = "0",
    grid: Annotated[list[str] | None, Parameter(negative="", show_default=False)] = None,
    out: Path | None = None,
    jobs: Jobs = "auto",
    engine: Engine = "local",
    address: Address = None,
    fetch: Fetch = False,
    ledger: Path | None = None,
    baseline: str = "joint",
    show: Path | None = None,
    markdown: Path | None = None,
    metric: Literal["top1", "top5"] = "top1",
    write: OutputFiles = (),
    json: Json = False,
    option: Dotted = None,
    config_file: ConfigFile = None,
    recipe: RecipeName = None,
) -> None:
    """Train several methods with several seeds, and compare their accuracy on test.

    Takes the options of `offramp train` for all runs, except --method and --seed. The same command continues a stopped
    comparison; with more methods or seeds it trains the new ones.

    Args:
        methods: Comma-separated names, with parameters in parentheses: `joint,muse(alpha=0.1)`. Required unless --show
            is given.
        seeds: Seeds, comma-separated: each method is trained once with each of them.
        grid: Values of another option, as in `net=resnet18,resnet34`; repeat it for further options. All methods and
            seeds are trained with every combination, and compared within it.
        out: Folder of the comparison; each run is a folder in it. Required unless --show is given.
        ledger: File to add a line per run to; default: results.jsonl in --out. Runs that it contains are not trained
            again.
        baseline: A method: the others are compared with it, seed by seed. Or the path of a plain network (a run without
            early exits, or a file of weights): the tables show what early exit costs at the accuracy of this network.
            Unless a path is given, the plain network is the run of the method vanilla with the same seed if the ledger
            contains it, else the final exit of each network.
        show: Train nothing; compare the runs in this ledger (with --methods: only those).
        markdown: Also write the tables to this file; in an existing file, replace the part between its markers.
        metric: Top-1 or top-5 accuracy.
        write: Further files, comma-separated: .csv and .tex tables, .svg, .pdf and .png figures.
        json: Print the comparison as one JSON object.
    """
    from offramp.cli._compare_progress import CompareProgress
    from offramp.runs.compare import compare as run_comparison
    from offramp.study.comparison_files import MARKERS
    from offramp.study.comparison_files import markdown as markdown_of
    from offramp.study.marked_section import split_at_markers, write_section

    if markdown is not None:
        split_at_markers(markdown, MARKERS)  # refused before anything is trained, not after
    requested = config_of(config, option)
    if show is not None:
        options = {"--out": out, "--ledger": ledger, "--seeds": seeds != "0", "--jobs": jobs != "auto", "--grid": grid}
        options |= {"--engine": engine != "local", "--address": address is not None, "--fetch": fetch}
        _only_show([name for name, value in options.items() if value], requested != Config())
        result = _shown(show, methods, baseline, metric, write)
    elif methods is None or out is None:
        raise ValueError("compare needs --methods and --out, as in --methods joint,byot --out runs/compare; or --show")
    else:
        result = run_comparison(
            requested,
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
        write_section(markdown, "\n".join(map(markdown_of, result.comparisons)), MARKERS)
    if json:
        emit_result(result)
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
