"""The trace of a run as numpy arrays, for analyses of one's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from numpy import ndarray

from offramp.argument_types import check_arguments
from offramp.lookup import ParameterError, nearest
from offramp.progress import Progress
from offramp.runs.reporting import SILENT, Reporter
from offramp.runs.run import Device, LoadedRun, MultiNetRun, RunLike, Weights, folder_of, open_run
from offramp.runs.run_data import load_data
from offramp.runs.traces import loader_of, trace_split

if TYPE_CHECKING:
    from offramp.data.splits import DataSet


@dataclass(frozen=True, eq=False)
class TraceData:
    """The logits of all exits for all samples of a split, as numpy arrays; E exits, N samples, C classes.

    Attributes:
        split: train, val, cal or test.
        logits: (E, N, C) float32, shallow to deep, the final exit last.
        labels: (N,) class indices.
        ids: (N,) indices of the samples within their data set.
        classes: names of the C classes.
        outputs: names of the E exits (`exit1`, `exit2`, ..., `final`: counted from 1), or of networks trained together.
        features: for each exit the features that enter its classifier, (N, D) float32; None unless requested.
    """

    split: str
    logits: Float[ndarray, "E N C"]
    labels: Int[ndarray, "N"]
    ids: Int[ndarray, "N"]
    classes: tuple[str, ...]
    outputs: tuple[str, ...]
    features: tuple[Float[ndarray, "N _"], ...] | None = None

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with one row per sample: `id`, `label`, and the class and confidence of every exit.

        Columns of an exit are `NAME_class` (its most probable class) and `NAME_confidence` (that class's probability).

        Raises:
            ImportError: if pandas is not installed.
        """
        import numpy as np

        try:
            import pandas  # type: ignore[import-untyped, unused-ignore]
        except ImportError:
            raise ImportError(
                "to_dataframe needs pandas, which is not installed: pip install 'offramp[dataframe]'"
            ) from None
        names = np.asarray(self.classes)
        columns: dict[str, Any] = {"id": self.ids, "label": names[self.labels]}
        for name, logits in zip(self.outputs, self.logits, strict=True):
            exponentials = np.exp(logits - logits.max(1, keepdims=True))
            columns[f"{name}_class"] = names[logits.argmax(1)]
            columns[f"{name}_confidence"] = exponentials.max(1) / exponentials.sum(1)
        return pandas.DataFrame(columns)


@check_arguments
def load_trace(
    run: RunLike,
    split: str = "test",
    *,
    weights: Weights = "last",
    features: bool = False,
    data_dir: Path | str | None = None,
    device: Device = "auto",
    reporter: Reporter | None = None,
) -> TraceData:
    """The logits of every exit on a split; computed once for each weights, and stored in the folder of the run.

    Args:
        run: folder of a trained run, or an object that has one.
        split: `train`, `val`, `cal` or `test`; images are not augmented.
        weights: those of the last epoch, or of the best one on val.
        features: also return the pooled features that enter each classifier; they are not stored, but computed again.
        data_dir: data directory, if it has moved since training.
        device: what to compute on; `auto` is a GPU if there is one.
        reporter: called with the progress of the work; by default nothing is shown.
    Raises:
        ParameterError: if the run's data have no such split.
        ValueError: if the folder is not a run with these weights, or was trained on other data.
    """
    import numpy as np

    reporter = reporter or SILENT
    loaded = open_run(folder_of(run), weights, with_policy=False, device=device)
    data = load_data(loaded, data_dir, reporter)
    if split not in data.splits:
        raise ParameterError(
            f"split must be one of those of {loaded.folder}, got {split!r}; {nearest(split, data.splits)}",
            "split",
        )
    trace = trace_split(loaded, data, split, reporter, weights)
    assert trace.labels is not None
    return TraceData(
        split=split,
        logits=np.asarray(trace.logits),
        labels=np.asarray(trace.labels),
        ids=np.asarray(trace.ids),
        classes=tuple(data.classes),
        outputs=_outputs(loaded),
        features=_features(loaded, data, split, reporter.working) if features else None,
    )


def _outputs(loaded: LoadedRun | MultiNetRun) -> tuple[str, ...]:
    if isinstance(loaded, MultiNetRun):
        return tuple(loaded.net.names)
    return (*(f"exit{exit + 1}" for exit in range(loaded.net.exits - 1)), "final")


def _features(
    loaded: LoadedRun | MultiNetRun, data: "DataSet", split: str, progress: Progress
) -> tuple[Float[ndarray, "N _"], ...]:
    """What enters each exit's classifier, in the precision that the run was trained in, as float32."""
    import torch

    from offramp.train.numerics import computing

    net, batches = loader_of(loaded, data, split)
    parts: list[tuple[torch.Tensor, ...]] = []
    settings = computing(loaded.config, batches.device)
    with settings, torch.inference_mode(), progress(f"features of {split}", len(data.splits[split])) as advance:
        for batch in batches.epoch(0):
            parts.append(tuple(feature.float().cpu() for feature in net(batch.inputs).features))
            advance(len(batch.ids))
    return tuple(torch.cat(exit).numpy() for exit in zip(*parts, strict=True))
