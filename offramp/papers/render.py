"""A reproduction as text, Markdown, LaTeX and CSV: published, measured and difference, for each exit."""

from collections.abc import Iterable, Sequence
from textwrap import fill

from offramp.measure.text_table import text_table
from offramp.papers.claims import ClaimResult, ContrastResult
from offramp.papers.figures import FigureResult
from offramp.papers.plan import PlannedTraining
from offramp.papers.reproduce import Available, Reproduction
from offramp.papers.values import CellResult, RowResult, TableResult
from offramp.study.tables import TableValue, csv_text, latex_text, markdown_text

NOTHING = "–"
WIDTH = 79
"""Columns of the sentences of a text; tables are as wide as their numbers."""
UNITS = {"top1": "top-1 accuracy, percent", "top5": "top-5 accuracy, percent", "gflops": "GFLOPs"}


def protocol_line(result: Reproduction) -> str:
    """Under which protocol the values were measured."""
    if not result.recipe:
        return "Protocol full: the papers' own recipes."
    options = ", ".join(f"{key} {value}" for key, value in result.recipe.items())
    return (
        f"Protocol {result.protocol}: REDUCED ({options}). It shows whether an ordering holds under these conditions, "
        "not whether a published number is reproduced."
    )


def _head(result: Reproduction) -> str:
    """The protocol, and the processors or GPUs that the runs were trained on."""
    trained = f" Trained on {' and '.join(result.hardware)}." if result.hardware else ""
    return protocol_line(result) + trained


def as_text(result: Reproduction) -> str:
    """For a terminal."""
    parts = [_filled(text) for text in (_head(result), *_left_out(result))]
    for table in result.tables:
        parts.append(text_table(_filled(f"{table.title} ({UNITS[table.metric]})"), *table_grid(table)))
        parts += map(_filled, table_notes(table))
    for figure in result.figures:
        head = _filled(f"{figure.name}: {figure.title}")
        parts.append(text_table(head, *figure_grid(figure)) if figure.rows else f"{head}\n  {figure.state}")
    parts += [_claim_text(one) for one in result.claims]
    parts += [_plan_text(result.plan)] if result.plan else []
    return "\n\n".join(parts)


def as_markdown(result: Reproduction) -> str:
    """For a document."""
    parts = [_head(result), *_left_out(result)]
    for table in result.tables:
        parts += [f"### {table.name}", f"{table.title}; {UNITS[table.metric]}.", markdown_text(*table_grid(table))]
        parts += table_notes(table)
    for figure in result.figures:
        parts += [f"### {figure.name}", *figure_markdown(figure)]
    if result.claims:
        parts += ["### Claims", claims_markdown(result.claims)]
    if result.plan:
        parts += ["### Plan", markdown_text(*_plan_grid(result.plan)), _total(result.plan)]
    return "\n\n".join(parts) + "\n"


def as_latex(result: Reproduction) -> str:
    """One `table` of booktabs for each table and each figure that has values, and one of the claims."""
    parts = [
        latex_text(f"{table.title} ({UNITS[table.metric]}). {_head(result)}", *table_grid(table))
        for table in result.tables
    ]
    parts += [latex_text(f"{one.title}. {_head(result)}", *figure_grid(one)) for one in result.figures if one.rows]
    if result.claims:
        rows = [[one.text, one.verdict] for one in result.claims]
        parts.append(latex_text(f"Claims. {_head(result)}", ["claim", "verdict"], rows))
    return "\n".join(parts)


CSV_HEAD = [
    *("protocol", "table", "data", "network", "method", "variant", "training", "metric", "exit", "published"),
    *("measured", "deviation", "runs", "difference", "hardware", "state"),
]


def as_csv(result: Reproduction) -> str:
    """A line per cell of a table, per value of a figure (`metric` says which), and per contrast of a claim.

    `table` is the name of the table, figure or claim; `hardware` is what the measured runs were trained on; of a claim,
    `state` is the verdict.
    """
    return csv_text(CSV_HEAD, [*_cell_lines(result), *_figure_lines(result), *_contrast_lines(result)])


def _cell_lines(result: Reproduction) -> Iterable[Sequence[TableValue]]:
    for table in result.tables:
        for row in table.rows:
            head = (result.protocol, table.name, row.data, row.network, row.method, row.variant, row.training)
            for cell in row.cells:
                values = (cell.published, cell.measured, cell.deviation, cell.runs, cell.difference)
                yield (*head, table.metric, cell.exit, *values, _hardware(result, row.seeds, row.training), row.state)


def _figure_lines(result: Reproduction) -> Iterable[Sequence[TableValue]]:
    for figure in result.figures:
        for row in figure.rows:
            head = (result.protocol, figure.name, "", "", "", "", row.training)
            for column, mean, deviation in zip(figure.columns, row.means, row.deviations, strict=True):
                where = _hardware(result, row.seeds, row.training)
                yield (*head, column, row.exit, None, mean, deviation, len(row.seeds), None, where, figure.state)


def _contrast_lines(result: Reproduction) -> Iterable[Sequence[TableValue]]:
    for claim in result.claims:
        for one in claim.contrasts:
            half = None if one.interval95 is None else (one.interval95[1] - one.interval95[0]) / 2
            head = (result.protocol, claim.name, "", "", "", one.contrast, "", "points ± half of the 95 % interval")
            where = _hardware(result, one.seeds, *(term.partition("@")[0] for term in one.contrast.split()))
            yield (*head, "", None, one.difference, half, len(one.seeds), None, where, one.verdict)


def _hardware(result: Reproduction, seeds: Sequence[int], *trainings: str) -> str:
    """What the measured runs of trainings were trained on; nothing without seeds."""
    places = {place for training in trainings for place in result.trained_on.get(training, ())}
    return " and ".join(sorted(places)) if seeds else ""


def overview_text(entries: Sequence[Available]) -> str:
    """Every table, figure and claim, with how many of its trainings are measured."""
    head = "Trainings (configurations) in the ledger / needed, and runs (trainings times seeds) in the ledger:"
    parts = [_filled(head)]
    for kind in dict.fromkeys(one.kind for one in entries):
        lines = [f"{kind}s"]
        for one in entries:
            if one.kind == kind:
                have = f"{one.measured}/{one.trainings}" if one.trainings else "computed"
                runs = f", {one.runs} run{'s' * (one.runs != 1)}" if one.runs else ""
                lines += [f"  {one.name:30}  {have}{runs}", _filled(one.title, 6)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def table_grid(table: TableResult) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the published values, the measured ones, and the difference, below each other."""
    columns = [f"exit {exit}" if isinstance(exit, int) else exit for exit in table.columns]
    rows = [line for row in table.rows for line in _lines(table, row)]
    return ["", "", *columns], rows


def _lines(table: TableResult, row: RowResult) -> Iterable[list[str]]:
    cells = {cell.exit: cell for cell in row.cells}

    def line(head: str, what: str, written: dict[int | str, str]) -> list[str]:
        return [head, what, *(written.get(exit, "") for exit in table.columns)]

    measured = any(cell.measured is not None for cell in row.cells)
    published = "published" if measured else f"published; {row.state}"
    yield line(label(table, row), published, {exit: f"{cell.published:.2f}" for exit, cell in cells.items()})
    if not measured:
        return
    runs = f" ({len(row.seeds)} seed{'s' * (len(row.seeds) != 1)})" if row.seeds else ""
    yield line("", f"{row.state}{runs}", {exit: _measured(cell) for exit, cell in cells.items()})
    yield line("", "difference", {exit: _signed(cell.difference) for exit, cell in cells.items()})


def table_notes(table: TableResult) -> list[str]:
    """What has to be known of a table, and of single rows of it; one paragraph."""
    rows: dict[str, list[str]] = {}
    for row in table.rows:
        for note in dict.fromkeys(cell.note for cell in row.cells if cell.note):
            rows.setdefault(note, []).append(label(table, row))
    notes = [f"{', '.join(labels)}: {note}." for note, labels in rows.items()]
    return [" ".join([*([table.note] if table.note else []), *notes])] if table.note or notes else []


def figure_grid(figure: FigureResult) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a figure: training, exit, number of seeds, and its columns."""
    rows = []
    for row in figure.rows:
        values = [_with_deviation(*pair) for pair in zip(row.means, row.deviations, strict=True)]
        rows.append([row.training, row.exit, str(len(row.seeds)), *values])
    return ["training", "exit", "seeds", *figure.columns], rows


def figure_markdown(figure: FigureResult) -> list[str]:
    """A figure's title, and its table or why there is none."""
    if not figure.rows:
        return [f"{figure.title}: {figure.state}."]
    state = "" if figure.state == "measured" else f" ({figure.state})"
    return [f"{figure.title}{state}.", markdown_text(*figure_grid(figure))]


def _with_deviation(value: float | None, deviation: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def label(table: TableResult, row: RowResult) -> str:
    """How a row is called: data and network only if they differ within the table."""
    several = {name: len({getattr(one, name) for one in table.rows}) > 1 for name in ("data", "network")}
    parts = [row.data if several["data"] else "", row.network if several["network"] else "", row.method, row.variant]
    return " ".join(filter(None, parts))


def _measured(cell: CellResult) -> str:
    return _with_deviation(cell.measured, cell.deviation)


def _signed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.2f}"


def contrast_cell(one: ContrastResult) -> str:
    """Points: `+0.42 [-0.10, +0.94]`, n seeds."""
    if one.difference is None:
        return "not run"
    interval = "" if one.interval95 is None else f" [{one.interval95[0]:+.2f}, {one.interval95[1]:+.2f}]"
    return f"{one.difference:+.2f}{interval} (n = {len(one.seeds)})"


def _claim_text(claim: ClaimResult) -> str:
    lines = [_filled(f"{claim.name}: {claim.text}"), f"  {claim.verdict.upper()}"]
    lines += [
        _filled(f"{one.contrast}: {contrast_cell(one)}", 2, 4) for one in claim.contrasts if one.difference is not None
    ]
    return "\n".join(lines)


def claims_markdown(claims: Sequence[ClaimResult]) -> str:
    """A table of claims with their verdicts, and the differences behind them."""
    rows = []
    for claim in claims:
        measured = [contrast_cell(one) for one in claim.contrasts if one.difference is not None]
        rows.append([claim.text, claim.verdict, "; ".join(measured) or NOTHING])
    head = ["claim", "verdict", "differences in points [95 % confidence interval] (seeds)"]
    return markdown_text(head, rows)


def _filled(text: str, indent: int = 0, further: int | None = None) -> str:
    """Lines of at most `WIDTH` columns, the first indented by some, the others by `further` if that is given."""
    others = indent if further is None else further
    return fill(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * others, break_on_hyphens=False)


def _left_out(result: Reproduction) -> list[str]:
    return [f"{count} lines of {result.ledger} are not used: {reason}" for reason, count in result.left_out.items()]


def _plan_grid(plan: Sequence[PlannedTraining]) -> tuple[list[str], list[list[str]]]:
    head = ["training", "seeds done", "seeds to train", "epochs", "s per step", "hours", "needs"]
    rows = []
    for one in plan:
        seeds = [",".join(map(str, some)) or NOTHING for some in (one.present, one.missing)]
        step = NOTHING if one.step_seconds is None else f"{one.step_seconds:.3g}"
        hours = NOTHING if one.hours is None else f"{one.hours:.3g}"
        rows.append([one.training, *seeds, str(one.epochs), step, hours, one.needs])
    return head, rows


def _plan_text(plan: Sequence[PlannedTraining]) -> str:
    return f"{text_table('what is left to train', *_plan_grid(plan))}\n{_total(plan)}"


def _total(plan: Sequence[PlannedTraining]) -> str:
    hours = sum(one.hours or 0.0 for one in plan)
    runs = sum(len(one.missing) for one in plan)
    return _filled(
        f"{runs} run{'s' * (runs != 1)}, {hours:.3g} hours one after the other on this machine as it is now: steps "
        "measured here, without evaluation"
    )
