"""The points of a run's curves, and of the plain network beside them, from traces."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.runs.baseline import BaselineLike, describe, open_baseline, traces_of
from offramp.runs.reporting import Reporter
from offramp.runs.run import LoadedRun, Weights
from offramp.runs.traces import arrays_of

if TYPE_CHECKING:
    from offramp.outputs import Trace


def baseline_point(
    loaded: LoadedRun,
    baseline: BaselineLike,
    test: "Trace",
    weights: Weights,
    data_dir: Path | str | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """The baseline as a point of the chart: `source`, `accuracy`, `top5` and `cost` on test."""
    from offramp.measure.accuracy import top_k

    other = open_baseline(baseline, loaded, weights)
    traces = traces_of(other, loaded, {"test": test}, weights, data_dir, reporter)
    described = describe(other, loaded, traces)
    assert test.labels is not None
    (top5,) = top_k(traces["test"].logits[-1:], test.labels, 5)
    values = {"accuracy": described.accuracy["test"], "cost": described.macs, "top5": top5}
    return {"source": described.source, **values}


def both_curves(loaded: LoadedRun, held_out: "Trace | None", test: "Trace", cost: str) -> dict[str, Any]:
    """Both curves and the plain network's point; no budgeted batches if nothing was held out to fit them on."""
    from offramp.early_exit.curves import anytime, budgeted
    from offramp.measure import cost as costs
    from offramp.measure.accuracy import in_top_k

    if cost == "macs_cumulative":
        prices = costs.cumulative_of(loaded.pieces)
    else:
        prices = costs.msdnet_ops(loaded.net, tuple(loaded.about["shape"]))
    cal, evaluated = arrays_of(held_out) if held_out else None, arrays_of(test)
    assert test.labels is not None
    top5 = in_top_k(test.logits, test.labels, 5).numpy()
    shares = [float(hits.mean()) for hits in top5]
    points = anytime(*evaluated, prices)
    return {
        "cost": cost,
        "samples": {"cal": len(cal[1]) if cal else 0, "test": len(evaluated[1])},
        "anytime": [point | {"top5": share} for point, share in zip(points, shares, strict=True)],
        "budgeted": budgeted(cal, evaluated, prices, hits={"top5": top5}) if cal else [],
        "plain": {
            "accuracy": float((evaluated[0][-1].argmax(1) == evaluated[1]).mean()),
            "cost": costs.macs_of(loaded.pieces)[-1],
            "top5": shares[-1],
        },
    }
