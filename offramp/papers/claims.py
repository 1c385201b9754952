"""Claims of the papers as contrasts between trainings, and what paired seeds say of them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from offramp.papers import catalog
from offramp.papers.values import at_exit
from offramp.study.ledger import Line
from offramp.study.statistics import paired

Verdict = Literal["holds", "does not hold", "undecided", "not run"]


@dataclass(frozen=True)
class Term:
    """One summand of a contrast: the accuracy of a training at an exit, added (1) or subtracted (-1)."""

    sign: int
    training: str
    exit: int | str


@dataclass(frozen=True)
class Claim:
    """What a paper says, as contrasts that are above zero, or within `margin` points of it."""

    name: str
    table: str
    text: str
    metric: str
    margin: float | None
    contrasts: tuple[tuple[Term, ...], ...]

    @property
    def trainings(self) -> list[str]:
        """The trainings that it needs."""
        return list(dict.fromkeys(term.training for contrast in self.contrasts for term in contrast))


@dataclass(frozen=True)
class ContrastResult:
    """A contrast over the seeds that all its trainings have values of: its mean and 95 % interval, in points.

    `difference` is None without a common seed, `interval95` with fewer than two.
    """

    contrast: str
    seeds: list[int]
    difference: float | None
    interval95: list[float] | None
    verdict: Verdict


@dataclass(frozen=True)
class ClaimResult:
    """A claim with its verdict: it holds if every contrast does, and does not if one of them does not."""

    name: str
    text: str
    table: str
    verdict: Verdict
    contrasts: list[ContrastResult]


@cache
def claims() -> dict[str, Claim]:
    """All claims by name."""
    return {name: _claim(name, entry) for name, entry in catalog.load("claims.yaml")["claims"].items()}


def _claim(name: str, entry: Mapping[str, Any]) -> Claim:
    texts = [
        text.replace("@*", f"@{exit}") if "@*" in text else text
        for text in entry["contrasts"]
        for exit in (entry["at"] if "@*" in text else [""])
    ]
    return Claim(
        name=name,
        table=entry["table"],
        text=" ".join(entry["text"].split()),
        metric=entry.get("metric", "top1"),
        margin=entry.get("margin"),
        contrasts=tuple(tuple(_terms(text)) for text in texts),
    )


def _terms(text: str) -> Iterable[Term]:
    for sign, training, exit in re.findall(r"([+-]?) ?(\S+)@(\w+)", text):
        yield Term(-1 if sign == "-" else 1, catalog.training(training).name, int(exit) if exit.isdecimal() else exit)


def decided(claim: Claim, lines: Mapping[str, Mapping[int, Line]]) -> ClaimResult:
    """What the lines of a ledger, by training and seed, say of a claim."""
    contrasts = [_contrast(terms, claim, lines) for terms in claim.contrasts]
    verdicts = {one.verdict for one in contrasts}
    order: tuple[Verdict, ...] = ("does not hold", "not run", "undecided", "holds")
    verdict = next(one for one in order if one in verdicts)
    return ClaimResult(claim.name, claim.text, claim.table, verdict, contrasts)


def _contrast(terms: tuple[Term, ...], claim: Claim, lines: Mapping[str, Mapping[int, Line]]) -> ContrastResult:
    text = " ".join(f"{'-' if term.sign < 0 else '+'} {term.training}@{term.exit}" for term in terms)
    text = text.removeprefix("+ ")
    shares = [_shares(term, claim.metric, lines.get(term.training, {})) for term in terms]
    seeds = sorted(set.intersection(*map(set, shares)))
    if not seeds:
        return ContrastResult(text, [], None, None, "not run")

    def totals(sign: int) -> list[float]:
        summands = [by_seed for term, by_seed in zip(terms, shares, strict=True) if term.sign == sign]
        return [100 * sum(by_seed[seed] for by_seed in summands) for seed in seeds]

    result = paired(totals(1), totals(-1))
    if result.low is None or result.high is None:
        return ContrastResult(text, seeds, result.mean, None, "undecided")
    return ContrastResult(
        text, seeds, result.mean, [result.low, result.high], _verdict(result.low, result.high, claim.margin)
    )


def _shares(term: Term, metric: str, lines: Mapping[int, Line]) -> dict[int, float]:
    """What the term's exit got right, by seed; without the lines that lack this exit or metric."""
    shares = {seed: at_exit(line, term.exit, metric) for seed, line in lines.items()}
    return {seed: share for seed, share in shares.items() if share is not None}


def _verdict(low: float, high: float, margin: float | None) -> Verdict:
    if margin is None:
        return "holds" if low > 0 else "does not hold" if high < 0 else "undecided"
    if -margin < low and high < margin:
        return "holds"
    return "does not hold" if low > margin or high < -margin else "undecided"
