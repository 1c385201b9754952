"""offramp evaluate: accuracy and cost of every exit on test, and of leaving early beside the plain network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from offramp.cli import emit
from offramp.config import LoadedRun, load_run

if TYPE_CHECKING:
    from offramp.data.splits import DataSet


def evaluate(
    run: Path,
    *,
    weights: Literal["last", "best"] = "last",
    data_dir: Path | None = None,
    batch_size: int = 64,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Accuracy per exit and of the ensemble on test, costs, and the policy if there is one.

    Args:
        run: Folder of a trained run.
        weights: Those of the last epoch, or of the best one on val.
        data_dir: Where the data are, if not where they were.
        batch_size: Batch size of the measured times.
        json: Print one JSON object.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    loaded = load_run(run, weights)
    result = measure(loaded, weights, data_dir, batch_size, show=not json)
    if json:
        emit(result)
    else:
        show(result)


def measure(loaded: LoadedRun, weights: str, data_dir: Path | None, batch_size: int, show: bool) -> dict[str, Any]:
    """Everything that `evaluate` prints, as plain values in base units."""
    from offramp.cli._traces import trace_split
    from offramp.measure import cost
    from offramp.measure.accuracy import summary
    from offramp.measure.provenance import provenance
    from offramp.train.folder import read_config, read_result

    training = read_result(loaded.folder)
    data = load_data(loaded, data_dir, show)
    shape = data.shape
    traced = trace_split(loaded, data, "test", show, weights)
    result: dict[str, Any] = {
        "run": str(loaded.folder),
        "weights": weights,
        "epoch": loaded.about["epoch"],
        **summary(traced),
        "macs": cost.macs(loaded.net, shape),
        "macs_cumulative": cost.macs_cumulative(loaded.net, shape),
        "parameters": cost.parameters(loaded.net).total,
        "adaptive": adaptive(loaded, data, batch_size, show) if loaded.policy else None,
        "config": read_config(loaded.folder),  # as it was trained; `loaded.config` is for here
        "training": training,
        "provenance": provenance(),
    }
    return result


def load_data(loaded: LoadedRun, data_dir: Path | None, show: bool) -> "DataSet":
    """The data set of the run, from `data_dir` if given."""
    import dataclasses

    from offramp.config import build_data

    config = dataclasses.replace(loaded.config, data_dir=data_dir) if data_dir else loaded.config
    return build_data(config, progress=show)


def adaptive(loaded: LoadedRun, data: "DataSet", batch_size: int, show: bool) -> dict[str, Any]:
    """Leave early for real on test, in the precision that the run was trained in; see `leave_early`."""
    import torch

    from offramp.cli._show import working
    from offramp.data.loading import Loader
    from offramp.measure.adaptive import leave_early
    from offramp.train.device import make_fabric

    assert loaded.policy is not None
    fabric = make_fabric(loaded.config.recipe)
    net = loaded.net.eval().to(device=fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    split = data.splits["test"]
    loader = Loader(split, data, batch_size=batch_size, device=fabric.device, augment=False, seed=0, channels_last=True)
    with torch.inference_mode(), fabric.autocast(), working("leaving early", len(split), show) as advance:
        return leave_early(net, loaded.policy, loader.epoch(0), data.shape, batch_size, advance)


def show(result: dict[str, Any]) -> None:
    """The tables: every exit, then adaptive beside plain."""
    from offramp.cli._show import count, percent, stdout, table

    leaving = result["adaptive"]
    exits = len(result["accuracy"])
    rows = []
    for exit in range(exits):
        name = "final" if exit == exits - 1 else f"exit {exit + 1}"
        on = leaving is None or leaving["policy"]["enabled"][exit]
        share = "" if leaving is None else percent(leaving["shares"][exit]) if on else "off"
        relative = result["macs"][exit] / result["macs"][-1]
        rows.append([name, percent(result["accuracy"][exit]), count(result["macs"][exit]), f"{relative:.2f}", share])
    rows.append(["ensemble", percent(result["ensemble"]), "", "", ""])
    title = f"{result['run']}: test, {result['samples']:,} samples, epoch {result['epoch']} ({result['weights']})"
    stdout.print(table(title, ["exit", "accuracy %", "MACs", "of plain", "leave here %"], rows), soft_wrap=True)
    if leaving is None:
        stdout.print("no policy yet: `offramp calibrate` fits one", style="dim", highlight=False, soft_wrap=True)
        return
    rows = [
        [name, percent(side["accuracy"]), count(side["macs"]), "–" if side["ms"] is None else f"{side['ms']:.3f}"]
        for name, side in (("adaptive", leaving), ("plain", leaving["plain"]))
    ]
    title = f"leaving early, measured at batch {leaving['batch_size']}"
    stdout.print()
    stdout.print(table(title, ["", "accuracy %", "mean MACs", "ms per image"], rows), soft_wrap=True)
    if leaving["speedup"]:
        saved = leaving["plain"]["macs"] / leaving["macs"]
        stdout.print(
            f"{saved:.2f}x fewer operations, {leaving['speedup']:.2f}x faster on the clock (median of pairs)",
            highlight=False,
            soft_wrap=True,
        )
