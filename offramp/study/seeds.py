"""Runs that differ only in their seed, put together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offramp.study.ledger import common, label
from offramp.study.statistics import mean


@dataclass(frozen=True)
class CurveGroup:
    """Accuracy against cost, mean over runs that differ only in their seed.

    Attributes:
        name: the method with the parameters that are not its defaults.
        runs: their folders; seeds: of each.
        anytime: per exit `cost`, `accuracy`, `top5`, and `deviation` and `top5_deviation` (n - 1; None of one run).
        budgeted: the same with `q`, at the mean cost; empty unless every run has budgeted batches.
        plain: one point, of the network with its final exit alone.
    """

    name: str
    runs: list[str]
    seeds: list[int]
    anytime: list[dict[str, Any]]
    budgeted: list[dict[str, Any]]
    plain: dict[str, Any]


def alike(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[int]]]:
    """Groups of flat configurations that differ only in their seed: a name that is unique, and the places of each.

    Runs of the same seed are not put together.
    """
    sets: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        sets.setdefault(json.dumps([label(config), common(config)], sort_keys=True), []).append(place)
    groups: list[list[int]] = []
    for places in sets.values():
        seeds = {configs[place].get("seed") for place in places}
        groups += [places] if len(seeds) == len(places) else [[place] for place in places]
    names = [label(configs[places[0]]) for places in groups]
    return [
        (name if names.count(name) == 1 else f"{name} #{names[:number].count(name) + 1}", places)
        for number, (name, places) in enumerate(zip(names, groups, strict=True))
    ]


def together(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Points of several runs as one: mean `cost`, and mean and deviation of `accuracy` and, if all have it, `top5`."""
    point: dict[str, Any] = {"q": points[0]["q"]} if "q" in points[0] else {}
    point["cost"] = mean([float(one["cost"]) for one in points]).mean
    for key, deviation in (("accuracy", "deviation"), ("top5", "top5_deviation")):
        if all(key in one for one in points):
            over = mean([one[key] for one in points])
            point |= {key: over.mean, deviation: over.deviation}
    return point


def group_curves(
    configs: Sequence[Mapping[str, Any]], runs: Sequence[str], curves: Sequence[Mapping[str, Any]]
) -> list[CurveGroup]:
    """Curves of runs (`anytime`, `budgeted`, `plain`) as one for each configuration."""
    groups = []
    for name, places in alike(configs):
        members = [curves[place] for place in places]
        lines = {
            key: [together(points) for points in zip(*(one[key] for one in members), strict=True)]
            for key in ("anytime", "budgeted")
            if all(one[key] for one in members)
        }
        groups.append(
            CurveGroup(
                name=name,
                runs=[runs[place] for place in places],
                seeds=[configs[place].get("seed", 0) for place in places],
                anytime=lines["anytime"],
                budgeted=lines.get("budgeted", []),
                plain=together([one["plain"] for one in members]),
            )
        )
    return groups
