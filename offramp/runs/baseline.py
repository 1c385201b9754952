"""The plain network that early exit is compared with: a run that was trained alone, or a checkpoint of one's own."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.early_exit.frontier import DROPS, FrontierPoint, at_accuracy
from offramp.lookup import with_parameters
from offramp.runs.reporting import Reporter
from offramp.runs.run import HasFolder, LoadedRun, RunLike, Weights, folder_of, load_run
from offramp.runs.run_data import load_data

if TYPE_CHECKING:
    from torch import Tensor

    from offramp.data.splits import DataSet
    from offramp.outputs import Trace

BaselineLike = RunLike
"""A run of a network without early exits, or a file of weights of the run's own network."""


@dataclass(frozen=True)
class Baseline:
    """The plain network, trained alone, beside early exit.

    Attributes:
        source: folder of its run, or file of its weights.
        epoch: that the weights are of, counted from 1; None for a file.
        weights_digest: of the weights.
        accuracy: by split (`cal`, `test`), in [0, 1].
        macs: multiply-adds per image.
        ms: milliseconds per image; None if they were not measured.
    """

    source: str
    epoch: int | None
    weights_digest: str
    accuracy: dict[str, float]
    macs: int
    ms: float | None = None


@dataclass(frozen=True)
class CostAtBaseline:
    """What early exit costs where it is as accurate as the baseline, or nearly; thresholds fitted on cal.

    Attributes:
        drop: share of all images by which accuracy on cal may be lower than the baseline's.
        accuracy: on test, in [0, 1]; None if no policy is that accurate on cal.
        macs, ms: mean per image on test; None likewise, ms also if it was not measured.
    """

    drop: float
    accuracy: int | float | None
    macs: int | float | None
    ms: int | float | None


def costs_at(points: Sequence[FrontierPoint], accuracy: float) -> list[CostAtBaseline]:
    """The cost at a baseline's accuracy on cal and at `DROPS` below it, from the policies of a frontier."""
    costs = []
    for drop in DROPS:
        reached = at_accuracy(points, accuracy - drop)
        if reached is None:
            costs.append(CostAtBaseline(drop, None, None, None))
        else:
            costs.append(CostAtBaseline(drop, reached.accuracy, reached.costs.get("macs"), reached.costs.get("ms")))
    return costs


def open_baseline(source: BaselineLike, run: LoadedRun, weights: Weights = "last") -> LoadedRun:
    """The network that a run is compared with.

    Args:
        source: folder of a run without early exits, or file of weights for the network of `run` without its exits.
        weights: of a run, `last` or `best`.
    Raises:
        ValueError: if there is neither, it has early exits, or other classes or inputs than the run.
    """
    if not isinstance(source, HasFolder) and Path(source).is_file():
        return _of_file(Path(source), run)
    folder = folder_of(source)
    if not folder.is_dir():
        raise _refused(f"baseline {folder} is neither the folder of a run nor a file of weights")
    baseline = load_run(folder, weights, with_policy=False, device=run.config.device)
    if baseline.net.exits > 1:
        raise _refused(
            f"baseline {folder} has {baseline.net.exits} exits: name a network that was trained without early exits "
            "(method=vanilla), or a file of its weights"
        )
    _check_like(baseline, run)
    return baseline


def _refused(message: str) -> Exception:
    return with_parameters(ValueError(message), "baseline", "method")


def _check_like(baseline: LoadedRun, run: LoadedRun) -> None:
    """Refuse a baseline with other classes or inputs."""
    run_classes, baseline_classes = list(run.about["classes"]), list(baseline.about["classes"])
    if run_classes != baseline_classes:
        pairs = zip((*baseline_classes, None), (*run_classes, None), strict=False)
        number, (baseline_name, run_name) = next(
            (place, pair) for place, pair in enumerate(pairs) if pair[0] != pair[1]
        )
        baseline_name, run_name = (
            "no such class" if name is None else repr(name) for name in (baseline_name, run_name)
        )
        raise _refused(
            f"baseline {baseline.folder} was trained on other classes than {run.folder}: class {number} is "
            f"{baseline_name}, not {run_name}"
        )
    if tuple(run.about["shape"]) != tuple(baseline.about["shape"]):
        from offramp.meta_device import written

        raise _refused(
            f"baseline {baseline.folder} was trained on images of {written(tuple(baseline.about['shape']))}, "
            f"{run.folder} on {written(tuple(run.about['shape']))}"
        )


def _of_file(path: Path, run: LoadedRun) -> LoadedRun:
    """The network of a run without its exits, with these weights; its traces are kept in the folder of the run."""
    from offramp import digests
    from offramp.config import build_method, build_net
    from offramp.net import MultiExitNet
    from offramp.split import weights

    config = dataclasses.replace(
        run.config, method="vanilla", method_options={}, exits_at=(), tap="method", weights=path
    )
    classes, shape = run.about["classes"], tuple(run.about["shape"])
    net = build_net(config, build_method(config), classes=len(classes), shape=shape, check=False)
    assert isinstance(net, MultiExitNet)
    try:
        fresh = weights.load_state(net, weights.read(path, "baseline"), f"the weights of baseline={path}", classes=True)
    except ValueError as error:
        raise _refused(str(error)) from None
    if fresh:
        raise _refused(f"baseline {path} has other classes than {run.folder} ({', '.join(fresh)} of another shape)")
    about = {"classes": classes, "shape": list(shape), "epoch": None, "digest": digests.of_file(path)}
    return LoadedRun(run.folder, config, net.eval(), about, None, {})


def source_of(baseline: LoadedRun, run: LoadedRun) -> str:
    """What to call a baseline: its folder, or the file of its weights."""
    return str(baseline.config.weights) if baseline.folder == run.folder else str(baseline.folder)


def traces_of(
    baseline: LoadedRun,
    run: LoadedRun,
    traces: Mapping[str, "Trace"],
    weights: str,
    data_dir: Path | str | None,
    reporter: Reporter,
    data: "DataSet | None" = None,
) -> dict[str, "Trace"]:
    """The baseline's logits of the splits that the run's `traces` are of; computed once, kept like other traces.

    Args:
        weights: of a run, `last` or `best`.
        data: of the run, if they are open already.
    Raises:
        ValueError: if the baseline's images of a split are others than those of the run.
    """
    from offramp.runs.traces import split_traces

    if baseline.folder == run.folder:
        return split_traces(baseline, [*traces], f"baseline-{baseline.about['digest'][:12]}", data_dir, reporter, data)
    run_data = data if data is not None else _readable(run, data_dir, reporter)
    baseline_data = _readable(baseline, data_dir, reporter)
    if run_data is not None and baseline_data is not None:
        _check_images(baseline, run, traces, run_data, baseline_data)
    computed = split_traces(baseline, [*traces], weights, data_dir, reporter, baseline_data)
    for name, trace in computed.items():
        if not (_equal(trace.ids, traces[name].ids) and _equal(_labels(trace), _labels(traces[name]))):
            raise _other_images(baseline, run, name)
    return computed


def _equal(first: "Tensor", second: "Tensor") -> bool:
    return len(first) == len(second) and bool((first == second).all())


def _readable(run: LoadedRun, data_dir: Path | str | None, reporter: Reporter) -> "DataSet | None":
    """The data set of a run; None if it cannot be read, so that only stored traces are left."""
    try:
        return load_data(run, data_dir, reporter)
    except OSError:
        return None


def _check_images(
    baseline: LoadedRun, run: LoadedRun, splits: Iterable[str], run_data: "DataSet", baseline_data: "DataSet"
) -> None:
    from offramp.data.split_record import content_digest

    for name in splits:
        if name not in baseline_data.splits or content_digest(baseline_data.splits[name]) != content_digest(
            run_data.splits[name]
        ):
            raise _other_images(baseline, run, name)


def _other_images(baseline: LoadedRun, run: LoadedRun, split: str) -> Exception:
    return with_parameters(
        ValueError(
            f"baseline {baseline.folder} has other {split} images than {run.folder}: train it on the same data with "
            "the same holdout and split_seed, and images prepared alike"
        ),
        *("baseline", "holdout", "split_seed"),
    )


def describe(baseline: LoadedRun, run: LoadedRun, traces: Mapping[str, "Trace"], ms: float | None = None) -> Baseline:
    """The baseline's numbers.

    Args:
        traces: of the baseline, by split.
        ms: milliseconds per image, if they were measured.
    """
    from offramp.measure import cost
    from offramp.measure.accuracy import top_k

    accuracy = {name: top_k(trace.logits[-1:], _labels(trace))[0] for name, trace in traces.items()}
    (macs,) = cost.macs(baseline.inference_net, tuple(baseline.about["shape"]))
    epoch, digest = baseline.about["epoch"], baseline.about["digest"]
    return Baseline(source_of(baseline, run), epoch, digest, accuracy, macs, ms)


def _labels(trace: "Trace") -> "Tensor":
    assert trace.labels is not None
    return trace.labels
