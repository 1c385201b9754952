"""offramp curves: accuracy against cost on test, anytime and for budgeted batches, as JSON and as a picture."""

import json as writer
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from offramp.cli import emit
from offramp.measure.units import count, percent, unit_of
from offramp.runs import LoadedRun, load_data, load_run

if TYPE_CHECKING:
    from offramp.outputs import Trace


def curves(
    run: Path,
    *,
    cost: Literal["macs_cumulative", "msdnet_ops"] = "macs_cumulative",
    weights: Literal["last", "best"] = "last",
    data_dir: Path | None = None,
    out: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """The two curves of the field: every exit on all of test, and the 39 points of budgeted batches.

    Thresholds are fitted on cal by MSDNet's geometric rule, and reported on test. Writes curves.json and curves.svg.

    Args:
        run: Folder of a trained run.
        cost: How operations are counted, with the branches of all earlier exits.
        weights: Those of the last epoch, or of the best one on val.
        data_dir: Where the data are, if not where they were.
        out: Folder to write into, else the run's own.
        json: Print one JSON object.
    """
    from offramp.train.run_dir import put

    folder = out or run
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file: name the folder that the curves are written into")
    result = trace_curves(run, cost, weights, data_dir, show=not json)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("curves.json", writer.dumps(result, indent=2) + "\n"), ("curves.svg", picture(result))):
        put(folder / name, text)
    if json:
        emit({**result, "picture": str(folder / "curves.svg")})
    else:
        _show(result, folder)


def trace_curves(run: Path, cost: str, weights: str, data_dir: Path | None, show: bool) -> dict[str, Any]:
    """Both curves, from the stored traces where there are some, as plain values."""
    from offramp.measure.provenance import provenance
    from offramp.runs.traces import calibration_trace, stored_trace, trace_split

    loaded = load_run(run, weights, with_policy=False)
    held_out = calibration_trace(loaded, weights, data_dir, show)
    test = stored_trace(loaded, "test", weights)
    if test is None:
        test = trace_split(loaded, load_data(loaded, data_dir, show), "test", show, weights)
    return {
        "run": str(run),
        "weights": weights,
        "epoch": loaded.about["epoch"],
        **both_curves(loaded, held_out, test, cost),
        "provenance": provenance(),
    }


def both_curves(loaded: LoadedRun, held_out: "Trace | None", test: "Trace", cost: str) -> dict[str, Any]:
    """Both curves and the plain network's point; no budgeted batches where nothing was held out to fit them on."""
    from offramp.early_exit.curves import anytime, budgeted
    from offramp.measure import cost as costs

    shape = tuple(loaded.about["shape"])
    prices = (costs.macs_cumulative if cost == "macs_cumulative" else costs.msdnet_ops)(loaded.net, shape)
    fitted, seen = (_arrays(trace) if trace else None for trace in (held_out, test))
    assert seen is not None
    return {
        "cost": cost,
        "samples": {"cal": len(fitted[1]) if fitted else 0, "test": len(seen[1])},
        "anytime": anytime(*seen, prices),
        "budgeted": budgeted(fitted, seen, prices) if fitted else [],
        "plain": {
            "accuracy": float((seen[0][-1].argmax(1) == seen[1]).mean()),
            "cost": costs.macs(loaded.net, shape)[-1],
        },
    }


def _arrays(trace: "Trace") -> tuple[Any, Any]:
    assert trace.labels is not None
    return trace.logits.numpy(), trace.labels.numpy()


def picture(result: dict[str, Any]) -> str:
    """The curves as SVG."""
    from offramp.measure.chart import chart

    plain = [result["plain"]] if result["cost"] == "macs_cumulative" else []
    unit, name = unit_of(max(point["cost"] for point in result["anytime"]))
    lines = {
        "budgeted batch": sorted(result["budgeted"], key=lambda point: point["cost"]),
        "anytime": result["anytime"],
        **({"plain network": plain} if plain else {}),
    }
    drawn = {key: [(point["cost"] / unit, 100 * point["accuracy"]) for point in line] for key, line in lines.items()}
    title = f"{Path(result['run']).name}: test, {result['samples']['test']:,} samples"
    return chart(title, drawn, f"mean {result['cost']} per image, {name}".rstrip(", "), "accuracy, %")


def _show(result: dict[str, Any], folder: Path) -> None:
    from offramp.cli._console import stdout, table

    rows = [
        [f"{point['q']:.2f}", percent(point["accuracy"]), count(point["cost"])]
        for point in result["budgeted"]
        if round(point["q"] * 20) % 4 == 0
    ]
    title = f"{result['run']}: budgeted batch on test, {result['samples']['test']:,} samples"
    stdout.print(table(title, ["q", "accuracy %", result["cost"]], rows), soft_wrap=True)
    stdout.print("q: how many times as many leave at each exit as at the one before", highlight=False, soft_wrap=True)
    stdout.print(f"all 39 points: {folder / 'curves.json'}, {folder / 'curves.svg'}", highlight=False, soft_wrap=True)
