"""One runtime's versions of a network, as the benchmarks run them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from offramp.early_exit.runtime import Answer


@runtime_checkable
class GraphedRun(Protocol):
    """Early exit with the policy in the segments' graphs: `offramp.early_exit.graphed_policy.GraphedExits`."""

    def __call__(self, inputs: Any) -> Answer:
        """Early exit of a batch."""

    def prepare(self, inputs: Any) -> None:
        """Capture what batches of this size need."""

    def alone(self, place: int, samples: int, inputs: Any) -> Callable[[], int]:
        """One segment's step."""


@dataclass(frozen=True)
class Runner:
    """One runtime's versions of a network, all with the same weights.

    Attributes:
        name: of the runtime and its precision.
        to_inputs: pixels (B, channels, height, width) as uint8 -> inputs as the segments take them.
        plain: the network with its final exit only, as one segment.
        everything: one segment per exit of the network.
        segments: one segment per exit that the policy enables.
        scope: entered around everything that is timed, but not timed itself (inference mode, autocast).
        wait: returns when the device has finished.
        rivals: other plain networks for the same inputs, each as one segment.
        device: what computes, `cpu` or `cuda`.
        graphed: early exit with the policy in the segments' graphs, if that is how this runtime exits early.
    """

    name: str
    to_inputs: Callable[[np.ndarray], Any]
    plain: Any
    everything: Sequence[Any]
    segments: Sequence[Any]
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    wait: Callable[[], None] = lambda: None
    rivals: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    graphed: GraphedRun | None = None
