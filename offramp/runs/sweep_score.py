"""The metric that a sweep maximises: of a run after an epoch, on val."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from offramp.config import build_method, build_net
from offramp.lookup import ParameterError
from offramp.runs.run_entries import Entry


@dataclass(frozen=True)
class RunScore:
    """The metric of an epoch of the run at a point, from its record.

    Attributes:
        costs: multiply-adds up to every exit, by point; for `frontier` alone.
    """

    metric: str
    costs: dict[str, list[int]]

    def __call__(self, point: str, record: dict[str, Any]) -> float:
        """The metric of the run at this point, from the record of an epoch in its metrics.jsonl."""
        accuracy = [share or 0.0 for share in record["val_accuracy"]]
        if self.metric == "final":
            return accuracy[-1]
        if self.metric == "frontier":
            return frontier_area(accuracy, self.costs[point], max(costs[-1] for costs in self.costs.values()))
        return sum(accuracy) / len(accuracy)


def frontier_area(accuracy: Sequence[float], costs: Sequence[int], largest: int) -> float:
    """Mean over budgets from 0 to `largest` of the accuracy that exits reach within the budget.

    Between two exits the share of samples that goes to each is free, so accuracy is linear in cost; a later exit that
    is worse is not used.

    Args:
        accuracy: of E exits; costs: of E exits, rising.
    """
    reached = [max(accuracy[: place + 1]) for place in range(len(accuracy))]
    steps = zip(pairwise(costs), pairwise(reached), strict=True)
    area = sum((after - before) * (low + high) / 2 for (before, after), (low, high) in steps)
    return (area + (largest - costs[-1]) * reached[-1]) / largest


def costs_of(entries: Sequence[Entry]) -> dict[str, list[int]]:
    """Multiply-adds up to every exit, by point."""
    from offramp.measure.cost import macs
    from offramp.net import MultiExitNet

    costs = {}
    for entry in entries:
        assert entry.inputs is not None
        method = build_method(entry.config)
        net = build_net(entry.config, method, classes=entry.inputs.classes, shape=entry.inputs.shape)
        if not isinstance(net, MultiExitNet):
            raise ParameterError(f"metric=frontier needs exits, which {entry.name} has not", "metric")
        costs[entry.point] = macs(net, entry.inputs.shape)
    return costs
