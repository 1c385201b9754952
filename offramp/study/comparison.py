"""Methods compared over seeds: means, deviations and paired differences per exit."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from offramp.early_exit.frontier import FrontierPoint
from offramp.study.figures import exit_name
from offramp.study.ledger import Line
from offramp.study.plain_costs import (
    MethodCosts,
    method_costs,
    plain_networks,
)
from offramp.study.statistics import Mean, PairedDifference, mean, paired

METRICS = {"top1": "accuracy", "top5": "top-5 accuracy"}
Values = tuple[float | None, ...]


@dataclass(frozen=True)
class MethodRow:
    """One method: its seeds, and per column (exits shallow to deep, then the ensemble) shares in [0, 1].

    A network with fewer exits than others has None for the shallow ones; `deviation` (n - 1) and `interval95` are None
    if one seed cannot tell. `difference` and `interval95` compare with the baseline on the seeds `pairs`, which both
    have; all three are empty if there are none. `macs` holds the multiply-adds per image up to each of its own exits,
    empty if the ledger lacks them.
    """

    method: str
    seeds: list[int]
    mean: list[float | None]
    deviation: list[float | None]
    pairs: list[int]
    difference: list[float | None]
    interval95: list[list[float] | None]
    macs: list[int]


@dataclass(frozen=True)
class Comparison:
    """Methods that were trained alike: what they share, the columns' names, and a row each, the baseline first.

    `costs` has a row per method too: what early exit costs at the accuracy of the plain network, which `plain` names.
    `metric` is `top1` or `top5`, the share of samples whose label is among the five largest logits (exits only).
    `apart` holds the options that tell it from other comparisons of the ledger, but for those that every title names.
    `devices` are what its figures were computed on.
    """

    common: dict[str, Any]
    columns: list[str]
    baseline: str
    methods: list[MethodRow]
    metric: str = "top1"
    apart: dict[str, Any] = field(default_factory=dict)
    plain: str = ""
    costs: list[MethodCosts] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)


def compare(
    lines: Iterable[Line],
    baseline: str = "joint",
    metric: str = "top1",
    plain: tuple[str, FrontierPoint] | None = None,
) -> list[Comparison]:
    """One comparison for each set of runs that differ in nothing but method and seed, in the ledger's order.

    Args:
        metric: `top1` or `top5`, which every line must have then.
        plain: the plain network that all runs are compared with, see `offramp.study.plain_costs.plain_networks`.
    """
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(json.dumps(line.common, sort_keys=True), []).append(line)
    return _told_apart([_compared(group, baseline, metric, plain) for group in groups.values()])


TITLE = ("net", "net.width", "width", "branch", "data", "per-class", "epochs", "evaluated")
"""Options that every title names."""


def _told_apart(comparisons: list[Comparison]) -> list[Comparison]:
    """The comparisons, each with the options in which they differ; a network's own options go with its name."""
    keys = list(dict.fromkeys(key for one in comparisons for key in one.common))
    differing = [key for key in keys if len({json.dumps(one.common.get(key)) for one in comparisons}) > 1]
    prefixes = tuple(f"{kind}." for kind in ("net", "branch", "data") if kind in differing)
    kept = [key for key in differing if key not in TITLE and not (prefixes and key.startswith(prefixes))]
    return [replace(one, apart={key: one.common.get(key) for key in kept if key in one.common}) for one in comparisons]


def _compared(
    lines: Sequence[Line], baseline: str, metric: str, plain_network: tuple[str, FrontierPoint] | None
) -> Comparison:
    exits = max(len(line.accuracy) for line in lines)
    runs: dict[str, dict[int, Values]] = {baseline: {}}
    macs: dict[str, list[int]] = {}
    for line in lines:
        missing = (None,) * (exits - len(line.accuracy))
        measured = (*line.accuracy, line.ensemble) if metric == "top1" else line.top5 or ()
        runs.setdefault(line.method, {})[line.seed] = (*missing, *measured)
        macs[line.method] = list(line.macs or ())
    columns = [*(exit_name(exit, exits) for exit in range(exits)), *(["ensemble"] if metric == "top1" else [])]
    rows = [
        _row(method, by_seed, {} if method == baseline else runs[baseline], macs[method])
        for method, by_seed in runs.items()
        if by_seed
    ]
    plain = plain_networks(lines, plain_network)
    lines_by_method = {row.method: [line for line in lines if line.method == row.method] for row in rows}
    costs = [method_costs(method, members, plain) for method, members in lines_by_method.items()]
    devices = sorted({line.device for line in lines if line.device})
    about: dict[str, Any] = {"plain": plain.name, "costs": costs, "devices": devices}
    return Comparison(lines[0].common, columns, baseline, rows, metric, **about)


def _row(method: str, runs: dict[int, Values], others: dict[int, Values], macs: list[int]) -> MethodRow:
    seeds = sorted(runs)
    shared = [seed for seed in seeds if seed in others]
    means = [_mean([runs[seed][column] for seed in seeds]) for column in range(len(runs[seeds[0]]))]
    differences = [
        _difference([(runs[seed][column], others[seed][column]) for seed in shared])
        for column in range(len(means) if shared else 0)
    ]
    return MethodRow(
        method=method,
        seeds=seeds,
        mean=[one.mean if one else None for one in means],
        deviation=[one.deviation if one else None for one in means],
        pairs=shared,
        difference=[one.mean if one else None for one in differences],
        interval95=[_interval(one) for one in differences],
        macs=macs,
    )


def _interval(difference: PairedDifference | None) -> list[float] | None:
    if difference is None or difference.low is None or difference.high is None:
        return None
    return [difference.low, difference.high]


def _mean(values: Sequence[float | None]) -> Mean | None:
    present = [value for value in values if value is not None]
    return mean(present) if present else None


def _difference(pairs: Sequence[tuple[float | None, float | None]]) -> PairedDifference | None:
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    return paired([a for a, _ in both], [b for _, b in both]) if both else None
