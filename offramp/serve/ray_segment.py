"""One segment of a bundle as a deployment of Ray Serve, which batches, places and scales it. Runs without torch."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve

from offramp import __version__
from offramp.bundle.read import content, read_manifest
from offramp.bundle.sessions import open_segment
from offramp.early_exit.policy_file import parse
from offramp.early_exit.runtime import Stepper
from offramp.serve.rows import SampleRow, SegmentInput, gather, run_segment

INLINE = 1 << 16
"""Bytes of a batch's remaining samples that are sent within messages; more go through Ray's object store."""


class RequestInput(NamedTuple):
    """What a segment takes of one request: a batch, or a reference to one in the object store, and the rows of it."""

    state: Any
    places: list[int] | None = None


class BatchTime(NamedTuple):
    """How many samples a batch had, and how many seconds it took."""

    samples: int
    seconds: float


class Passed(NamedTuple):
    """What a segment says of one request of B samples.

    Attributes:
        logits: (B, C), as the policy gives them.
        score: (B,).
        exit: that was passed, counted from 0.
        alive: which of the samples continue.
        onward: what the next segment takes of these.
        batch: in which it was.
        first: whether this is the batch's first request, which is where the batch is counted.
    """

    logits: NDArray[np.float32]
    score: NDArray[Any]
    exit: int
    alive: list[int]
    onward: RequestInput | None
    batch: BatchTime
    first: bool


class Broken(NamedTuple):
    """A segment failed on a batch; why."""

    reason: str


def samples(requests: Sequence[SegmentInput]) -> int:
    """How many samples these requests have: what Serve counts as the size of a batch."""
    return sum(map(len, requests))


class SegmentReplica:
    """A replica of segment `index` (counted from 0) of the bundle in `folder`, under a policy (JSON).

    Args:
        threads: of the runtime.
        version: of offramp where the deployment was made.
        inline: bytes of a batch's remaining samples that are still sent within messages.
    Raises:
        ValueError: if offramp has another version here, or the bundle cannot be opened.
    """

    def __init__(
        self,
        folder: str,
        policy: str,
        index: int,
        *,
        runtime: str,
        max_batch: int,
        threads: int,
        version: str,
        inline: int,
    ) -> None:
        if version != __version__:
            raise ValueError(f"this node has offramp {__version__}, the server {version}")
        path = Path(folder)
        manifest = read_manifest(path)
        part = manifest.parts[index]
        model = content(path, manifest, part.file)
        self.segment = open_segment(model, part, runtime, threads, len(manifest.classes))
        self.inline = inline
        self.policy, self.index = parse(policy.encode(), f"the policy of {folder}"), index
        self.batch.set_max_batch_size(max_batch)

    async def __call__(self, part: RequestInput) -> Passed | Broken:
        """Run the segment on one request, in a batch with others."""
        entering = part.state if isinstance(part.state, SegmentInput) else await part.state
        result: Passed | Broken = await self.batch(entering if part.places is None else entering.rows(part.places))
        return result

    # It computes in the event loop's thread: meanwhile requests gather, and Serve takes all of them for the next batch.
    @serve.batch(batch_wait_timeout_s=0, batch_size_fn=samples)  # type: ignore[untyped-decorator]
    async def batch(self, requests: list[SegmentInput]) -> list[Passed | Broken]:
        """Run the segment on all requests of a batch."""
        return self.compute(requests)

    def compute(self, requests: Sequence[SegmentInput]) -> list[Passed | Broken]:
        """The answer to every request of a batch."""
        began = perf_counter()
        try:
            whole = gather([SampleRow(entering, place) for entering in requests for place in range(len(entering))])
            stepper, onward = run_segment(self.policy, self.segment, self.index, whole)
        except Exception as error:  # whatever a runtime raises: this batch has failed, the replica keeps running
            return [Broken(str(error) or type(error).__name__)] * len(requests)
        batch = BatchTime(len(whole), perf_counter() - began)
        shared = self._shared(onward) if len(stepper.alive) else None
        ends = list(accumulate(map(len, requests)))
        return [_passed(stepper, onward, shared, slice(*rows), batch) for rows in zip([0, *ends], ends)]

    def _shared(self, onward: SegmentInput) -> Any:
        """A reference to the remaining samples of a batch, if they are too large for messages."""
        state = onward.state if isinstance(onward.state, tuple) else (onward.state,)
        size = sum(array.nbytes for array in (*state, *onward.carry, *onward.policy_carry.values()))
        return ray.put(onward) if size > self.inline else None


def _passed(stepper: Stepper, onward: SegmentInput, shared: Any, rows: slice, batch: BatchTime) -> Passed:
    """The answer to the request that has these rows of a batch."""
    answer, alive = stepper.answer, stepper.alive
    assert answer is not None
    low, high = np.searchsorted(alive, (rows.start, rows.stop)).tolist()
    part = _part(onward, shared, list(range(low, high))) if high > low else None
    staying = (alive[low:high] - rows.start).tolist()
    return Passed(
        answer.logits[rows], answer.score[rows], int(answer.exit[0]), staying, part, batch, first=rows.start == 0
    )


def _part(onward: SegmentInput, shared: Any, places: list[int]) -> RequestInput:
    return RequestInput(onward.rows(places)) if shared is None else RequestInput(shared, places)
