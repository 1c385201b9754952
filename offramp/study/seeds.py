"""Runs that differ only in their seed, put together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offramp.early_exit.curves import best_per_budget
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
        baseline: one point, of the plain network that was given to compare with; None unless every run has one.
    """

    name: str
    runs: list[str]
    seeds: list[int]
    anytime: list[dict[str, Any]]
    budgeted: list[dict[str, Any]]
    plain: dict[str, Any]
    baseline: dict[str, Any] | None = None


def group_places(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[int]]]:
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
            average = mean([one[key] for one in points])
            point |= {key: average.mean, deviation: average.deviation}
    return point


def group_curves(
    configs: Sequence[Mapping[str, Any]], runs: Sequence[str], curves: Sequence[Mapping[str, Any]]
) -> list[CurveGroup]:
    """Curves of runs (`anytime`, `budgeted`, `plain`, `baseline`) as one for each configuration."""
    groups = []
    for name, places in group_places(configs):
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
                baseline=together([one["baseline"] for one in members])
                if all(one.get("baseline") for one in members)
                else None,
            )
        )
    return groups


def _without_q(point: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in point.items() if key != "q"}


BUDGETS = 20
"""Budgets at which the best of several models is taken."""


def best_of_models(
    configs: Sequence[Mapping[str, Any]], runs: Sequence[str], curves: Sequence[Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The best model of every budget, for each method of which there are several models: mean over seeds.

    Args:
        configs, runs: flat configurations and folders of the runs.
        curves: with the points of budgeted batches (`budgeted`) of each run.
    Returns:
        By method, points with `budget`, mean `cost`, `accuracy` and `top5` on test with their deviations, and the
        folders of the `models`, which are chosen on held-out data.
    """
    methods: dict[str, dict[int, dict[str, Sequence[Mapping[str, Any]]]]] = {}
    for config, run, curve in zip(configs, runs, curves, strict=True):
        if curve["budgeted"]:
            methods.setdefault(label(config), {}).setdefault(int(config.get("seed", 0)), {})[run] = curve["budgeted"]
    costs = [point["held_out_cost"] for curve in curves for point in curve["budgeted"]]
    budgets = (
        [min(costs) + (max(costs) - min(costs)) * (step + 1) / BUDGETS for step in range(BUDGETS)] if costs else []
    )
    best = {}
    for method, seeds in methods.items():
        if max(map(len, seeds.values())) > 1:
            chosen = zip(*(best_per_budget(models, budgets) for models in seeds.values()), strict=True)
            best[method] = [
                {**_without_q(together(present)), "budget": budget, "models": [point["model"] for point in present]}
                for budget, points in zip(budgets, chosen, strict=True)
                if len(present := [point for point in points if point]) == len(points)
            ]
    return best
