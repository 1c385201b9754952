"""offramp reproduce: the papers' tables, figures and claims, printed beside measured values."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from offramp.cli import emit, emit_result
from offramp.cli._options import Address, Device, Engine, Fetch, Jobs, Json
from offramp.cli._parse import parse_seeds
from offramp.lookup import ParameterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from offramp.papers.reproduce import Available, Reproduction

Format = Literal["text", "markdown", "latex", "csv", "json"]


def reproduce(
    name: str | None = None,
    /,
    *,
    quick: Annotated[bool, Parameter(negative="")] = False,
    protocol: str | None = None,
    seeds: str = "0",
    rows: str | None = None,
    plan: Annotated[bool, Parameter(negative="")] = False,
    show: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    ledger: Path | None = None,
    data_dir: Annotated[Path | None, Parameter(help="Folder of the data sets; default: $OFFRAMP_DATA.")] = None,
    device: Device = "auto",
    jobs: Jobs = "auto",
    engine: Engine = "local",
    address: Address = None,
    fetch: Fetch = False,
    format: Format = "text",
    document: Path | None = None,
    json: Json = False,
) -> None:
    """Reproduce a table, figure or claim of the papers: train the missing runs, and show published and measured values.

    Without NAME, list everything that can be reproduced, and how many of its runs the ledger contains. The same
    command continues after an interruption.

    Args:
        name: A table, figure or claim; a paper (muse, msd, eed, beed, hdkd); `claims`, or `all`.
        quick: Train by the reduced protocol (recipe quick-cifar100-resnet18): narrow networks, few epochs, for CPUs.
        protocol: Train by another reduced protocol: a recipe's name or a YAML file.
        seeds: Seeds, comma-separated: every training is run once with each of them.
        rows: Only the rows of a table whose names contain one of these comma-separated words; its claims are omitted.
        plan: Train nothing; print the missing runs and their cost, estimated from steps measured on this machine.
        show: Train nothing; print what the ledger contains.
        out: Folder of the runs; default: runs/reproduce, followed by the name of a reduced protocol.
        ledger: File to add a line per run to; default: results.jsonl in --out. Runs that it contains are not trained
            again.
        format: How the result is printed.
        document: Also write the whole result into this Markdown file; in an existing file, replace the part between
            its markers.
        json: The same as --format json.
    """
    from offramp.cli._compare_progress import CompareProgress
    from offramp.papers.reproduce import overview
    from offramp.papers.reproduce import reproduce as run_reproduction

    format = "json" if json else format
    if name is None:
        _check_without_name(seeds=seeds != "0", rows=rows, plan=plan, show=show, document=document)
        entries = overview(quick=quick, protocol=protocol, out=out, ledger=ledger)
        _print_overview(entries, format)
        return
    if document is not None:
        from offramp.papers.document import check_document

        check_document(document)  # refused before anything is trained, not after
    result = run_reproduction(
        name,
        quick=quick,
        protocol=protocol,
        seeds=parse_seeds(seeds),
        rows=[word.strip() for word in rows.split(",") if word.strip()] if rows else (),
        plan=plan,
        show=show,
        out=out,
        ledger=ledger,
        data_dir=data_dir,
        device=device,
        jobs=jobs,
        engine=engine,
        address=address,
        fetch=fetch,
        reporter=CompareProgress(format != "json"),
    )
    if document is not None:
        from offramp.papers.document import write_document

        write_document(result, document)
    _print(result, format)
    if result.failed:
        raise SystemExit(1)


def _check_without_name(**options: object) -> None:
    """Refuse options that are about one table, figure or claim.

    Raises:
        ParameterError: naming the first option that was given.
    """
    for option, value in options.items():
        if value:
            raise ParameterError(f"{option} needs the name of a table, figure or claim", option)


def _print(result: "Reproduction", format: Format) -> None:
    from offramp.cli._console import stderr, stdout
    from offramp.papers import render

    if format == "json":
        emit_result(result)
    else:
        written = {
            "text": render.as_text,
            "markdown": render.as_markdown,
            "latex": render.as_latex,
            "csv": render.as_csv,
        }[format](result)
        stdout.print(written, highlight=False, markup=False, soft_wrap=True, end="" if written.endswith("\n") else "\n")
    for run in result.failed:
        stderr.print(f"{run['run']} failed: {run['reason']}", highlight=False, markup=False, soft_wrap=True)


def _print_overview(entries: "Sequence[Available]", format: Format) -> None:
    from offramp.cli._console import stdout
    from offramp.papers.render import overview_text
    from offramp.study.tables import markdown_text

    if format == "json":
        emit({"available": [dataclasses.asdict(one) for one in entries]})
        return
    if format not in ("text", "markdown"):
        raise ParameterError("format of the list must be text, markdown or json", "format")
    text = overview_text(entries)
    if format == "markdown":
        rows = [[one.name, one.kind, f"{one.measured}/{one.trainings}", str(one.runs), one.title] for one in entries]
        text = markdown_text(["name", "kind", "trainings", "runs", "title"], rows)
    stdout.print(text, highlight=False, markup=False, soft_wrap=True)
