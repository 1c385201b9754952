"""The traces of a run: computed once for each split, weights and data, kept in its folder, used by every task."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.lookup import with_parameters
from offramp.runs.reporting import Reporter
from offramp.runs.run import LoadedRun, MultiNetRun
from offramp.runs.run_data import load_data

if TYPE_CHECKING:
    from numpy import ndarray

    from offramp.data.loading import Loader
    from offramp.data.splits import DataSet
    from offramp.outputs import Trace

TRACES = "traces"
AnyRun = LoadedRun | MultiNetRun


def split_traces(
    loaded: AnyRun,
    splits: Sequence[str],
    weights: str,
    data_dir: Path | str | None,
    reporter: Reporter,
    data: "DataSet | None" = None,
) -> dict[str, "Trace"]:
    """The traces of these splits; the data are opened to see whether those that are stored are of these images.

    If the data cannot be read and no `data_dir` is given, stored traces are used, with a note.

    Args:
        data: of the run, if they are open already.
    Raises:
        OSError: if the data cannot be read and there are no stored traces.
        ValueError: if the data are not those of the run, there is no such split, or logits are not finite.
    """
    try:
        data = data or load_data(loaded, data_dir, reporter)
    except OSError:
        stored = {split: _stored(loaded, split, weights, None, reporter) for split in splits}
        if data_dir is not None or None in stored.values():
            raise
        reporter.note(f"the data of {loaded.folder} cannot be read: its stored traces are used")
        return {split: trace for split, trace in stored.items() if trace is not None}
    if "cal" in splits and "cal" not in data.splits:
        raise ValueError(f"{loaded.folder} has no split to calibrate on: nothing was held out for it")
    return {split: trace_split(loaded, data, split, reporter, weights) for split in splits}


def trace_split(loaded: AnyRun, data: "DataSet", split: str, reporter: Reporter, weights: str = "last") -> "Trace":
    """All exits' logits of a split, in the precision that the run was trained in; computed only if not stored yet."""
    from offramp.data.split_record import content_digest

    digest = content_digest(data.splits[split])
    trace = _stored(loaded, split, weights, digest, reporter)
    return trace if trace is not None else _compute(loaded, data, split, digest, weights, reporter)


def calibration_trace(loaded: LoadedRun, weights: str, data_dir: Path | str | None, reporter: Reporter) -> "Trace":
    """The trace of the split `cal`; see `split_traces` and `check_held_out`."""
    check_held_out(loaded)
    return split_traces(loaded, ("cal",), weights, data_dir, reporter)["cal"]


def both_traces(
    loaded: AnyRun, weights: str, data_dir: Path | str | None, reporter: Reporter, data: "DataSet | None" = None
) -> "tuple[Trace | None, Trace]":
    """The traces of cal, if there is one, and test; warns if they differ too much. See `split_traces`."""
    names = ("cal", "test") if loaded.config.holdout else ("test",)
    traces = split_traces(loaded, names, weights, data_dir, reporter, data)
    if "cal" in traces:
        warn_if_apart(traces["cal"], traces["test"], reporter)
    return traces.get("cal"), traces["test"]


def arrays_of(trace: "Trace") -> "tuple[ndarray, ndarray]":
    """Logits (E, N, C) and labels (N,) of a trace as numpy arrays that share its memory."""
    assert trace.labels is not None
    return trace.logits.numpy(), trace.labels.numpy()


def check_held_out(loaded: AnyRun) -> None:
    """Refuse a run that was trained on everything.

    Raises:
        ValueError: naming the run.
    """
    if loaded.config.holdout == 0:
        message = f"{loaded.folder} was trained on everything (holdout 0): there is no split to calibrate on"
        raise with_parameters(ValueError(f"{message}; train it with holdout=0.1"), "holdout")


def warn_if_apart(cal: "Trace", test: "Trace", reporter: Reporter) -> None:
    """Warn if the plain network's accuracies on cal and test differ by more than chance allows."""
    from offramp.measure.accuracy import top_k
    from offramp.measure.two_samples import warning

    assert cal.labels is not None and test.labels is not None
    on_cal, on_test = top_k(cal.logits[-1:], cal.labels)[0], top_k(test.logits[-1:], test.labels)[0]
    if text := warning(on_cal, len(cal.labels), on_test, len(test.labels)):
        reporter.warn(text)


def _stored(loaded: AnyRun, split: str, weights: str, data: str | None, reporter: Reporter) -> "Trace | None":
    """The trace in the run's folder, if it is of these weights, this configuration, precision and data (None: any)."""
    from offramp.measure.trace_file import Damaged, load

    ignored = () if data else ("data",)
    try:
        return load(_place(loaded, split, weights), _depends(loaded, data), ignored)
    except Damaged as error:
        reporter.note(f"{error}: it is computed again")
        return None


def _compute(loaded: AnyRun, data: "DataSet", split: str, digest: str, weights: str, reporter: Reporter) -> "Trace":
    from offramp import finite
    from offramp.measure.trace import trace
    from offramp.measure.trace_file import store
    from offramp.train.numerics import computing
    from offramp.train.run_lock import InUse, writing

    net, loader = loader_of(loaded, data, split)
    if loader.note:
        reporter.note(loader.note)
    rows, settings = data.splits[split], computing(loaded.config, loader.device)
    with settings, reporter.working(f"evaluating {split}", len(rows)) as advance:
        if os.access(loaded.folder, os.W_OK):  # somebody else's run can be read, but nothing be left in it
            try:
                with writing(loaded.folder):
                    path, about = _place(loaded, split, weights), _depends(loaded, digest)
                    return store(path, net, loader.epoch(0), len(rows), split, about, advance)
            except (InUse, OSError) as error:  # the answer matters more than keeping it: a full disk is no reason
                reporter.note(f"{error}; the trace of {split} is not stored")
        computed = trace(net, loader.epoch(0), split, advance)
        finite.check([(f"the logits of {split}", computed.logits)], "the network")
        return computed


def loader_of(loaded: AnyRun, data: "DataSet", split: str) -> tuple[Any, "Loader"]:
    """The network in the precision that the run was trained in, and the batches of a split on its device."""
    from offramp.data.loading import Loader
    from offramp.train.device import make_fabric

    fabric = make_fabric(loaded.config)
    net, rows = fabric.setup_module(loaded.net), data.splits[split]
    return net, Loader(rows, data, batch_size=256, device=fabric.device, augment=False, seed=0, channels_last=True)


def _place(loaded: AnyRun, split: str, weights: str) -> Path:
    return loaded.folder / TRACES / f"{weights}-{split}.safetensors"


def _depends(loaded: AnyRun, data: str | None) -> dict[str, Any]:
    """Everything that a trace is computed from."""
    from offramp import __version__
    from offramp.digests import of_file
    from offramp.train.device import device_of, precision_of
    from offramp.train.run_dir import CONFIG

    device = device_of(loaded.config.device)
    return {
        "weights": loaded.about["digest"],
        "config": of_file(loaded.folder / CONFIG),
        "data": data,
        "device": device,
        "precision": precision_of(loaded.config.precision, device),
        "version": __version__,
    }
