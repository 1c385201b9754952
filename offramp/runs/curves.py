"""Accuracy against cost on test: every exit on all samples (anytime), and budgeted batches."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.lookup import with_parameters
from offramp.measure.units import unit_of
from offramp.runs.run import LoadedRun, load_data, load_run

if TYPE_CHECKING:
    from offramp.outputs import Trace


@dataclass(frozen=True)
class Curves:
    """Accuracy in [0, 1] against mean cost per image in operations.

    Attributes:
        cost: how operations are counted, `macs_cumulative` or `msdnet_ops`.
        samples: how many of cal and test.
        anytime: every exit on all of test: `accuracy` and `cost`.
        budgeted: 39 points of MSDNet's budgeted batches; empty if nothing was held out to fit thresholds on.
        plain: the network with its final exit alone.
        picture: the SVG file.
    """

    run: str
    weights: str
    epoch: int
    cost: str
    samples: dict[str, int]
    anytime: list[dict[str, Any]]
    budgeted: list[dict[str, Any]]
    plain: dict[str, Any]
    provenance: dict[str, Any]
    picture: str


def curves(
    run: Path | str,
    *,
    cost: str = "macs_cumulative",
    weights: str = "last",
    data_dir: Path | None = None,
    out: Path | None = None,
    show: bool = False,
) -> Curves:
    """Both curves of a run; thresholds are fitted on cal by MSDNet's geometric rule, and reported on test.

    Writes curves.json and curves.svg.

    Args:
        run: folder of a trained run.
        cost: how operations are counted, with the branches of all earlier exits.
        weights: `last` or `best` (on val).
        data_dir: data directory, if it has moved since training.
        out: folder to write into; default the run's own.
    Raises:
        ValueError: if `out` is a file, or the run was trained on everything.
    """
    from offramp.measure.provenance import provenance
    from offramp.runs.traces import calibration_trace, stored_trace, trace_split
    from offramp.train.run_dir import put

    folder = Path(out or run)
    if folder.exists() and not folder.is_dir():
        message = f"out {folder} is a file: name the folder that the curves are written into"
        raise with_parameters(ValueError(message), "out")
    loaded = load_run(run, weights, with_policy=False)
    held_out = calibration_trace(loaded, weights, data_dir, show)
    test = stored_trace(loaded, "test", weights)
    if test is None:
        test = trace_split(loaded, load_data(loaded, data_dir, show), "test", show, weights)
    points = both_curves(loaded, held_out, test, cost)
    result = Curves(
        run=str(run),
        weights=weights,
        epoch=loaded.about["epoch"],
        **points,
        provenance=provenance(),
        picture=str(folder / "curves.svg"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    stored = {key: value for key, value in asdict(result).items() if key != "picture"}
    put(folder / "curves.json", json.dumps(stored, indent=2) + "\n")
    put(folder / "curves.svg", _picture(result))
    return result


def both_curves(loaded: LoadedRun, held_out: "Trace | None", test: "Trace", cost: str) -> dict[str, Any]:
    """Both curves and the plain network's point; no budgeted batches if nothing was held out to fit them on."""
    from offramp.early_exit.curves import anytime, budgeted
    from offramp.measure import cost as costs

    shape = tuple(loaded.about["shape"])
    prices = (costs.macs_cumulative if cost == "macs_cumulative" else costs.msdnet_ops)(loaded.net, shape)
    cal, evaluated = _arrays(held_out) if held_out else None, _arrays(test)
    return {
        "cost": cost,
        "samples": {"cal": len(cal[1]) if cal else 0, "test": len(evaluated[1])},
        "anytime": anytime(*evaluated, prices),
        "budgeted": budgeted(cal, evaluated, prices) if cal else [],
        "plain": {
            "accuracy": float((evaluated[0][-1].argmax(1) == evaluated[1]).mean()),
            "cost": costs.macs(loaded.net, shape)[-1],
        },
    }


def _arrays(trace: "Trace") -> tuple[Any, Any]:
    assert trace.labels is not None
    return trace.logits.numpy(), trace.labels.numpy()


def _picture(result: Curves) -> str:
    """The curves as SVG."""
    from offramp.measure.chart import chart

    plain = [result.plain] if result.cost == "macs_cumulative" else []
    unit, name = unit_of(max(point["cost"] for point in result.anytime))
    lines = {
        "budgeted batch": sorted(result.budgeted, key=lambda point: point["cost"]),
        "anytime": result.anytime,
        **({"plain network": plain} if plain else {}),
    }
    drawn = {key: [(point["cost"] / unit, 100 * point["accuracy"]) for point in line] for key, line in lines.items()}
    title = f"{Path(result.run).name}: test, {result.samples['test']:,} samples"
    return chart(title, drawn, f"mean {result.cost} per image, {name}".rstrip(", "), "accuracy, %")
