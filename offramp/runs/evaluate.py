"""Accuracy and cost of every exit on test, and of exiting early beside the plain network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.argument_types import check_arguments
from offramp.lookup import ParameterError
from offramp.progress import Progress
from offramp.runs.baseline import Baseline, BaselineLike, open_baseline
from offramp.runs.comparison_folder import runs_of
from offramp.runs.evaluation import EarlyExits, Evaluation, Evaluations, Performance
from offramp.runs.frontier import compare_run, refuse_multi_net
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.run import (
    Device,
    LoadedRun,
    MultiNetRun,
    RunLike,
    Weights,
    folder_of,
    open_run,
    warn_if_stale,
)
from offramp.runs.run_data import load_data

if TYPE_CHECKING:
    from offramp.data.splits import DataSet
    from offramp.measure.cost import ImageShape
    from offramp.outputs import Trace


@check_arguments
def evaluate_comparison(
    folder: Path | str,
    *,
    weights: Weights = "last",
    data_dir: Path | str | None = None,
    batch_size: int = 64,
    device: Device = "auto",
    baseline: BaselineLike | None = None,
    frontier: bool = False,
    reporter: Reporter | None = None,
) -> Evaluations:
    """Evaluate all finished runs of a comparison, by name; arguments as in `evaluate`.

    Raises:
        ValueError: if no run has finished yet, and as `evaluate`.
    """
    return Evaluations(
        [
            evaluate(
                run,
                weights=weights,
                data_dir=data_dir,
                batch_size=batch_size,
                device=device,
                baseline=baseline,
                frontier=frontier,
                reporter=reporter,
            )
            for run in runs_of([folder])
        ]
    )


@check_arguments
def evaluate(
    run: RunLike,
    *,
    weights: Weights = "last",
    data_dir: Path | str | None = None,
    batch_size: int = 64,
    device: Device = "auto",
    baseline: BaselineLike | None = None,
    frontier: bool = False,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Accuracy of every exit and of the ensemble on test, and costs; with a policy, those of early exit too.

    Args:
        run: folder of a trained run, or an object that has one.
        weights: those of the last epoch, or of the best one on val.
        data_dir: data directory, if it has moved since training.
        device: what to compute on; `auto` is a GPU if there is one.
        batch_size: batch size at which times are measured.
        baseline: the plain network to compare with: folder of a run without early exits that was trained on the same
            images, or file of weights of this network; by default the final exit of this network.
        frontier: also fit policies on cal for ten budgets, which takes some seconds and gives the cost of early exit at
            any accuracy. With a baseline they are always fitted.
        reporter: called with the progress of the work; by default nothing is shown.
    Raises:
        ValueError: if the folder is not a run with these weights or was trained on other data, or if the baseline has
            early exits, other classes or other images.
    """
    from offramp.measure.provenance import provenance
    from offramp.runs.traces import trace_split
    from offramp.train.run_dir import read_config, read_result

    if batch_size < 1:
        raise ParameterError(f"batch_size must be at least 1, got {batch_size}", "batch_size")
    reporter = reporter or SILENT
    loaded = open_run(folder_of(run), weights, device=device)
    training = read_result(loaded.folder)
    warn_if_stale(loaded, weights, reporter)
    data = load_data(loaded, data_dir, reporter)
    other = None if baseline is None else open_baseline(baseline, refuse_multi_net(loaded), weights)
    traced = trace_split(loaded, data, "test", reporter, weights)
    _compare_with_cal(loaded, traced, reporter)
    compared = compare_run(loaded, other, traced, data, weights, data_dir, batch_size, frontier, reporter)
    return Evaluation(
        run=str(loaded.folder),
        weights=weights,
        epoch=loaded.about["epoch"],
        **_accuracies_and_costs(loaded, traced, data.shape),
        adaptive=_exit_early(loaded, data, batch_size, other, compared.baseline, reporter.working),
        config=read_config(loaded.folder),  # as it was trained; `loaded.config` is for this machine
        training=training,
        provenance=provenance(loaded.config.device),
        **compared._asdict(),
    )


def _compare_with_cal(loaded: LoadedRun | MultiNetRun, test: "Trace", reporter: Reporter) -> None:
    """Warn if the plain network is right more, or less, often on test than where its policy was fitted."""
    from offramp.measure.accuracy import top_k
    from offramp.measure.two_samples import warning

    fitted = loaded.fitted if isinstance(loaded, LoadedRun) else {}
    if fitted.get("weights_digest") != loaded.about["digest"] or not {"plain", "samples"} <= {*fitted}:
        return
    assert test.labels is not None
    samples = (fitted.get("certificate") or fitted)["samples"]
    accuracy = top_k(test.logits[-1:], test.labels)[0]
    if text := warning(fitted["plain"].get("accuracy", accuracy), samples, accuracy, len(test.labels)):
        reporter.warn(text)


def _accuracies_and_costs(loaded: LoadedRun | MultiNetRun, traced: "Trace", shape: "ImageShape") -> dict[str, Any]:
    """Accuracy and operations of every exit, or of every network."""
    from offramp.measure import cost, multi_net
    from offramp.measure.accuracy import summary

    if isinstance(loaded, MultiNetRun):
        return {
            **multi_net.accuracies(loaded.net, traced),
            "outputs": list(loaded.net.names),
            "macs": multi_net.macs(loaded.net, shape),
            "macs_cumulative": multi_net.macs_cumulative(loaded.net, shape),
            "parameters": multi_net.training_cost(loaded.net, shape)["parameters"],
        }
    return {
        **summary(traced),
        "macs": cost.macs_of(loaded.pieces),
        "macs_cumulative": cost.cumulative_of(loaded.pieces),
        "parameters": cost.parameters(loaded.net).total,
    }


def _exit_early(
    loaded: LoadedRun | MultiNetRun,
    data: "DataSet",
    batch_size: int,
    other: LoadedRun | None,
    baseline: Baseline | None,
    progress: Progress,
) -> EarlyExits | None:
    """Exit early for real on test, in the precision that the run was trained in; None if there is no policy."""
    if isinstance(loaded, MultiNetRun) or loaded.policy is None:
        return None
    import torch

    from offramp.data.loading import Loader
    from offramp.measure.early_exit_eval import leave_early
    from offramp.train.device import make_fabric
    from offramp.train.numerics import computing

    fabric = make_fabric(loaded.config)
    net, rival = (
        run.inference_net.to(device=fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for run in (loaded, other or loaded)
    )
    split = data.splits["test"]
    loader = Loader(split, data, batch_size=batch_size, device=fabric.device, augment=False, seed=0, channels_last=True)
    settings, timed = computing(loaded.config, fabric.device), rival if other else None
    with settings, torch.inference_mode(), fabric.autocast(), progress("early exit", len(split)) as advance:
        values = leave_early(net, loaded.policy, loader.epoch(0), data.shape, batch_size, advance, timed)
    ms = values.pop("baseline_ms", None)
    sides = {"plain": Performance(**values["plain"])}
    if baseline is not None:
        sides["baseline"] = Performance(baseline.accuracy["test"], baseline.macs, ms)
    return EarlyExits(**{**values, **sides}, device=fabric.device.type)
