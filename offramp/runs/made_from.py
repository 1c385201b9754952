"""What a policy, a figure or a page of a run was made from: digests that are stored in it."""

from typing import TYPE_CHECKING, Any

import numpy as np

from offramp import digests
from offramp.runs.run import LoadedRun

if TYPE_CHECKING:
    from offramp.outputs import Trace
    from offramp.runs.trace_data import TraceData


def made_from(loaded: LoadedRun, **traces: "Trace | TraceData | None") -> dict[str, Any]:
    """Digests of a run's configuration, weights and traces, and the version that read them.

    Args:
        traces: by split; they represent the images, their labels, the device and the precision.
    """
    from offramp import __version__
    from offramp.train.run_dir import CONFIG

    return {
        "config": digests.of_file(loaded.folder / CONFIG),
        "weights": loaded.about["digest"],
        **{split: None if trace is None else _of_trace(trace) for split, trace in traces.items()},
        "version": __version__,
    }


def _of_trace(trace: "Trace | TraceData") -> str:
    arrays = {"logits": trace.logits, "labels": trace.labels, "ids": trace.ids}
    return digests.of_arrays((name, np.asarray(array)) for name, array in arrays.items() if array is not None)
