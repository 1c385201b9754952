"""Terminal output: progress of tasks, tables, lists of names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from textwrap import fill
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Span, Text

from offramp.cli._errors import dashed
from offramp.measure.text_table import WIDTH
from offramp.text import printable

NOTED = ("data_dir", "method.adapt")
"""Parameters that notes of the library name: the command line writes them as options, as it does `method.alpha=.1`."""
_ASSIGNED = r"(?<![\w.\-])(?:(?:net|branch|method|data)\.\w+|weights)(?==)"


def console(**options: Any) -> Console:
    """A console that prints texts literally: no markup or emoji codes, control characters escaped."""
    result = Console(markup=False, emoji=False, **options)
    render = result.render_str
    result.render_str = lambda text, **more: render(printable(text, lines=True), **more)  # type: ignore[method-assign]
    return result


stdout = console()
stderr = console(stderr=True)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table: the first column left, numbers right, at most 80 columns."""
    table = Table(
        title=printable(title), title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
    )
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(printable, row))
    return table


def list_offers(offers: Mapping[str, str]) -> None:
    """One entry per line of text: its name before it, or above it the names of all that share it."""
    groups: dict[str, list[str]] = {}
    for name, line in offers.items():
        groups.setdefault(line, []).append(name)
    apart = len(groups) < len(offers)
    width = 2 if apart else max(map(len, offers), default=0)
    for line, names in groups.items():
        head = "" if apart else names[0]
        if apart:
            stdout.print(fill(" ".join(names), WIDTH, break_on_hyphens=False), style="bold", highlight=False)
        text = fill(
            line,
            WIDTH,
            initial_indent=f"{head:<{width}}  ",
            subsequent_indent=" " * (width + 2),
            break_on_hyphens=False,
        )
        stdout.print(Text(text) if apart else Text(text, spans=[Span(0, width, "bold")]), soft_wrap=True)


class ConsoleReporter:
    """Shows progress on stderr: for training a bar with ETA and losses, and a line per epoch with every exit."""

    def __init__(self, show: bool) -> None:
        self.show = show and stderr.is_terminal
        self.quiet = not show
        self.epochs = self.steps = 0
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=10),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}", style="dim", markup=False),
            console=stderr,
            transient=True,
        )
        self.task: TaskID | None = None

    def start(self, epochs: int, steps: int, epoch: int, step: int) -> None:
        """Show the bar from here on."""
        self.epochs, self.steps = epochs, steps
        if epoch or step:
            self.note(f"continuing at epoch {epoch + 1} of {epochs}, step {step + 1} of {steps}")
        if self.show and epoch < epochs:
            done = epoch * steps + step
            self.task = self.bar.add_task(
                "", total=epochs * steps, completed=done, epoch=f"{epoch + 1}/{epochs}", loss=""
            )
            self.bar.start()

    def stepped(self, epoch: int, step: int, terms: dict[str, float]) -> None:
        """Move the bar."""
        if self.task is not None:
            text = _terms(terms, 3)
            self.bar.update(
                self.task, completed=epoch * self.steps + step, epoch=f"{epoch + 1}/{self.epochs}", loss=text
            )

    def epoch_done(self, record: dict[str, Any]) -> None:
        """One line: losses and the accuracy of every exit on val."""
        exits = " ".join(f"{100 * share:.1f}" for share in record["val_accuracy"] or ())
        self.note(f"{record['epoch'] + 1:3d}/{self.epochs}  {_terms(record['train'], None)} | val % {exits or '–'}")

    def note(self, text: str) -> None:
        """One line beside the bar."""
        if not self.quiet:
            text = dashed(text, (*NOTED, *re.findall(_ASSIGNED, text)))
            (self.bar.console if self.show else stderr).print(text, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Remove the bar."""
        if self.task is not None:
            self.bar.stop()

    def warn(self, text: str) -> None:
        """One line, even if nothing else is shown."""
        stderr.print(f"offramp: {text}", highlight=False, markup=False, soft_wrap=True)

    def working(self, text: str, total: int) -> AbstractContextManager[Any]:
        """A bar for work that counts samples."""
        return working(text, total, self.show)


def _terms(terms: dict[str, float], most: int | None) -> str:
    """The loss and its first terms, or all of them, which sum to it."""
    return " ".join(f"{name} {value:.3f}" for name, value in list(terms.items())[:most])


@contextmanager
def working(text: str, total: int, show: bool) -> Iterator[Any]:
    """A bar for work that counts samples; gives the function to call with how many are done."""
    if not (show and stderr.is_terminal):
        yield lambda samples: None
        return
    with Progress(
        TextColumn(text, markup=False), BarColumn(bar_width=30), TimeRemainingColumn(), console=stderr, transient=True
    ) as bar:
        task = bar.add_task(text, total=total)
        yield lambda samples: bar.advance(task, samples)
