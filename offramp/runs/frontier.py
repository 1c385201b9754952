"""What a run's early exit is compared by: how its scores rank, a baseline, and the cost at any accuracy."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from offramp.early_exit.frontier import FrontierPoint
from offramp.lookup import with_parameters
from offramp.runs.baseline import Baseline, CostAtBaseline, costs_at, describe, traces_of
from offramp.runs.reporting import Reporter
from offramp.runs.run import LoadedRun, MultiNetRun
from offramp.runs.traces import arrays_of, trace_split

if TYPE_CHECKING:
    from offramp.data.splits import DataSet
    from offramp.early_exit.exit_scores import Rule
    from offramp.early_exit.score_tables import Costs
    from offramp.outputs import Trace


class Compared(NamedTuple):
    """The fields of `Evaluation` with the same names."""

    auroc: list[float | None]
    baseline: Baseline | None = None
    at_baseline: list[CostAtBaseline] | None = None
    frontier: list[FrontierPoint] | None = None
    budgeted_area: float | None = None
    images: dict[str, str] | None = None


def rule_of(loaded: LoadedRun | MultiNetRun) -> "Rule":
    """The rule of a run's policy; confidence without one."""
    from offramp.early_exit.exit_scores import Rule, rule_of_policy

    policy = loaded.policy if isinstance(loaded, LoadedRun) else None
    return rule_of_policy(policy) if policy else Rule()


def compare_run(
    loaded: LoadedRun | MultiNetRun,
    baseline: LoadedRun | None,
    test: "Trace",
    data: "DataSet",
    weights: str,
    data_dir: Path | str | None,
    batch_size: int,
    frontier: bool,
    reporter: Reporter,
) -> Compared:
    """Everything that `evaluate` returns besides accuracies and costs of single exits.

    Args:
        baseline: see `offramp.runs.baseline.open_baseline`.
        test: the trace of test; data: of the run.
        frontier: fit policies on cal even without a baseline.
    """
    from offramp.early_exit.failure_prediction import of_exits

    rule = rule_of(loaded)
    auroc = of_exits(*arrays_of(test), rule)
    if isinstance(loaded, MultiNetRun) or not (frontier or baseline):
        return Compared(auroc)
    splits: list[str] = [name for name in data.splits if name in ("cal", "test")]
    others = [name for name in splits if name != "test"]
    traces = {name: trace_split(loaded, data, name, reporter, weights) for name in others} | {"test": test}
    points = _points(loaded, traces, rule, batch_size, reporter) if "cal" in traces else None
    compared = Compared(auroc, frontier=points, budgeted_area=_area(loaded, traces), images=_digests(data, splits))
    if baseline is None:
        return compared
    baseline_traces = traces_of(baseline, loaded, traces, weights, data_dir, reporter, data)
    described = describe(baseline, loaded, baseline_traces, _plain_ms(baseline, batch_size))
    costs = costs_at(points, described.accuracy["cal"]) if points else None
    return compared._replace(baseline=described, at_baseline=costs)


def _points(
    loaded: LoadedRun, traces: dict[str, "Trace"], rule: "Rule", batch_size: int, reporter: Reporter
) -> list[FrontierPoint]:
    """Policies of the rule for a ladder of budgets, fitted on cal and reported on test."""
    from offramp.early_exit.calibrate import choices
    from offramp.early_exit.frontier import frontier
    from offramp.measure.cost import as_run
    from offramp.runs.latency import timed_pieces

    pieces = {
        "macs": loaded.pieces,
        "ms": timed_pieces(loaded, batch_size, rule),
    }
    costs: dict[str, Costs] = {
        unit: {enabled: as_run(each, enabled) for enabled in choices(loaded.net.exits)} for unit, each in pieces.items()
    }
    with reporter.working("fitting policies", 1) as advance:
        points = frontier(arrays_of(traces["cal"]), arrays_of(traces["test"]), costs, rule)
        advance(1)
    return points


def _area(loaded: LoadedRun, traces: dict[str, "Trace"]) -> float | None:
    """The area under the curve of budgeted batches; None without cal or without early exits."""
    from offramp.early_exit.curves import anytime, area, budgeted
    from offramp.measure import cost

    if "cal" not in traces or loaded.net.exits == 1:
        return None
    test = arrays_of(traces["test"])
    prices = cost.cumulative_of(loaded.pieces)
    ends = anytime(*test, prices)
    points = [ends[0], *budgeted(arrays_of(traces["cal"]), test, prices), ends[-1]]
    return area(points, cost.macs_of(loaded.pieces)[-1], 1 / len(loaded.about["classes"]))


def _plain_ms(baseline: LoadedRun, batch_size: int) -> float:
    """Milliseconds per image of a network without early exits."""
    from offramp.early_exit.exit_scores import Rule
    from offramp.measure.cost import as_run
    from offramp.runs.latency import timed_pieces

    (ms,) = as_run(timed_pieces(baseline, batch_size, Rule()))
    return float(ms)


def _digests(data: "DataSet", splits: list[str]) -> dict[str, str]:
    from offramp.data.split_record import content_digest

    return {name: content_digest(data.splits[name]) for name in splits}


def refuse_multi_net(loaded: LoadedRun | MultiNetRun) -> LoadedRun:
    """A run with exits; a baseline says nothing about networks that were trained side by side.

    Raises:
        ValueError: naming the run.
    """
    if isinstance(loaded, MultiNetRun):
        message = (
            f"baseline is for exits along one network; {loaded.folder} was trained with {loaded.config.method}, which "
            "trains networks side by side"
        )
        raise with_parameters(ValueError(message), "baseline")
    return loaded
