"""The meaning of a name: a table, a figure, a claim, a paper, or all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from offramp.lookup import ParameterError, unknown
from offramp.papers import catalog
from offramp.papers.catalog import Protocol, Training, training
from offramp.papers.claims import Claim, claims
from offramp.papers.tables import Row, Table, chosen, tables

PAPERS = ("muse", "msd", "eed", "beed", "hdkd")
ALL, CLAIMS = "all", "claims"


@dataclass(frozen=True)
class PaperFigure:
    """A figure: the analysis that draws it, and the trainings it needs in full and in a reduced protocol."""

    name: str
    title: str
    analysis: str
    full: tuple[str, ...]
    reduced: tuple[str, ...]

    def trainings(self, protocol: Protocol) -> tuple[str, ...]:
        """Names of the trainings it needs in this protocol."""
        return self.reduced if protocol.reduced else self.full


@dataclass(frozen=True)
class Selection:
    """Tables with the rows that were asked for, figures and claims."""

    tables: tuple[tuple[Table, tuple[Row, ...]], ...] = ()
    figures: tuple[PaperFigure, ...] = ()
    claims: tuple[Claim, ...] = ()

    def trainings(self, protocol: Protocol) -> list[Training]:
        """Every training that it needs, once; operations need none."""
        names = [row.training for table, rows in self.tables if table.metric != "gflops" for row in rows]
        names += [name for figure in self.figures for name in figure.trainings(protocol)]
        names += [name for claim in self.claims for name in claim.trainings]
        return [training(name) for name in dict.fromkeys(names)]


@cache
def figures() -> dict[str, PaperFigure]:
    """All figures by name."""
    return {
        name: PaperFigure(
            name=name,
            title=entry["title"],
            analysis=entry["analysis"],
            full=tuple(training(one).name for one in entry["trainings"]),
            reduced=tuple(training(one).name for one in entry.get("reduced", entry["trainings"])),
        )
        for name, entry in catalog.load("figures.yaml")["figures"].items()
    }


def names() -> list[str]:
    """Everything that can be asked for."""
    return [*tables(), *figures(), *claims(), *PAPERS, CLAIMS, ALL]


def select(name: str, rows: Sequence[str] = ()) -> Selection:
    """The meaning of a name. A table includes its claims, unless only some of its rows are selected.

    Args:
        rows: words that choose rows of one table, see `offramp.papers.tables.chosen`.
    Raises:
        ParameterError: naming the nearest name or row.
    """
    if name not in names():
        raise unknown("table, figure or claim", name, names(), listing="offramp reproduce")
    if rows and name not in tables():
        raise ParameterError(f"rows selects rows of one table, but {name} is not a table", "rows")
    if name in tables():
        table = tables()[name]
        shown_claims = () if rows else tuple(claim for claim in claims().values() if claim.table == name)
        return Selection(tables=((table, chosen(table, rows)),), claims=shown_claims)
    if name in figures():
        return Selection(figures=(figures()[name],))
    if name in claims():
        return Selection(claims=(claims()[name],))
    if name == CLAIMS:
        return Selection(claims=tuple(claims().values()))
    return _of_paper(None if name == ALL else name)


def _of_paper(paper: str | None) -> Selection:
    whole = tuple((table, table.rows) for table in tables().values() if paper in (None, table.paper))
    kept = {table.name for table, _ in whole}
    drawn = tuple(figure for figure in figures().values() if paper is None or figure.name.startswith(f"{paper}-"))
    return Selection(whole, drawn, tuple(claim for claim in claims().values() if claim.table in kept))
