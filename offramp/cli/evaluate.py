"""offramp evaluate: accuracy and cost of every exit on test, and of leaving early beside the plain network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from offramp.cli import emit
from offramp.lookup import NotUnderstood
from offramp.measure.units import count, percent
from offramp.runs import LoadedRun, SeveralRun, load_data, open_run

if TYPE_CHECKING:
    from offramp.data.splits import DataSet
    from offramp.measure.cost import Image
    from offramp.outputs import Trace


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
        raise NotUnderstood(f"--batch-size must be at least 1, got {batch_size}")
    loaded = open_run(run, weights)
    result = measure(loaded, weights, data_dir, batch_size, show=not json)
    if json:
        emit(result)
    elif isinstance(loaded, SeveralRun):
        show_several(result)
    else:
        show(result)


def measure(
    loaded: LoadedRun | SeveralRun, weights: str, data_dir: Path | None, batch_size: int, show: bool
) -> dict[str, Any]:
    """Everything that `evaluate` prints, as plain values in base units."""
    from offramp.cli._console import warn_of_stale
    from offramp.measure.provenance import provenance
    from offramp.runs.traces import trace_split
    from offramp.train.run_dir import read_config, read_result

    training = read_result(loaded.folder)
    if isinstance(loaded, LoadedRun):
        warn_of_stale(loaded, weights)
    data = load_data(loaded, data_dir, show)
    traced = trace_split(loaded, data, "test", show, weights)
    return {
        "run": str(loaded.folder),
        "weights": weights,
        "epoch": loaded.about["epoch"],
        **answers_and_costs(loaded, traced, data.shape),
        "adaptive": adaptive(loaded, data, batch_size, show)
        if isinstance(loaded, LoadedRun) and loaded.policy
        else None,
        "config": read_config(loaded.folder),  # as it was trained; `loaded.config` is for here
        "training": training,
        "provenance": provenance(),
    }


def answers_and_costs(loaded: LoadedRun | SeveralRun, traced: "Trace", shape: "Image") -> dict[str, Any]:
    """Accuracy and operations of every exit, or of every network."""
    from offramp.measure import cost, multi_net
    from offramp.measure.accuracy import summary

    if isinstance(loaded, SeveralRun):
        return {
            **multi_net.answers(loaded.net, traced),
            "outputs": loaded.net.names,
            "macs": multi_net.macs(loaded.net, shape),
            "macs_cumulative": multi_net.macs_cumulative(loaded.net, shape),
            "parameters": multi_net.training_cost(loaded.net, shape)["parameters"],
        }
    return {
        **summary(traced),
        "macs": cost.macs(loaded.net, shape),
        "macs_cumulative": cost.macs_cumulative(loaded.net, shape),
        "parameters": cost.parameters(loaded.net).total,
    }


def adaptive(loaded: LoadedRun, data: "DataSet", batch_size: int, show: bool) -> dict[str, Any]:
    """Leave early for real on test, in the precision that the run was trained in; see `leave_early`."""
    import torch

    from offramp.cli._console import working
    from offramp.data.loading import Loader
    from offramp.measure.early_exit_eval import leave_early
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
    from offramp.cli._console import stdout, table

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
    stdout.print(table(title, ["", "accuracy %", "mean MACs as run", "ms per image"], rows), soft_wrap=True)
    if leaving["speedup"]:
        stdout.print(gain(leaving), highlight=False, soft_wrap=True)


def gain(leaving: dict[str, Any]) -> str:
    """What leaving early saves in operations and on the clock, or what it costs."""
    saved, faster = leaving["plain"]["macs"] / leaving["macs"], leaving["speedup"]
    operations = f"{saved:.2f}x fewer operations" if saved >= 1 else f"{1 / saved:.2f}x more operations"
    if f"{faster:.2f}" == "1.00":
        clock = "as fast as plain on the clock"
    else:
        clock = f"{faster:.2f}x faster on the clock" if faster > 1 else f"{1 / faster:.2f}x slower on the clock"
    return f"{operations}, {clock} (median of pairs)"


def show_several(result: dict[str, Any]) -> None:
    """The table of networks that were trained together, and what all of them cost."""
    from offramp.cli._console import stdout, table

    rows = [
        [name, percent(accuracy), count(macs)]
        for name, accuracy, macs in zip(result["outputs"], result["accuracy"], result["macs"], strict=True)
    ]
    trained = result["macs_cumulative"][-1]
    if "ensemble" not in result["outputs"][-1]:
        rows.append(["ensemble", percent(result["ensemble"]), count(trained)])
    title = f"{result['run']}: test, {result['samples']:,} samples, epoch {result['epoch']} ({result['weights']})"
    stdout.print(table(title, ["", "accuracy %", "MACs"], rows), soft_wrap=True)
    for line in (
        f"trained: {count(trained)} MACs per image (forward), {count(result['parameters'])} parameters",
        f"`offramp deploy {result['run']} --keep 1 --out DIR` makes a plain run of one of them",
    ):
        stdout.print(line, highlight=False, soft_wrap=True)
