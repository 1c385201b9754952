"""The same optimizer step again and again on tensors that stay where they are: on a GPU one CUDA graph.

A small network's step is some five hundred kernels that a GPU computes faster than a processor can start them one by
one. A graph starts all of them at once. It can hold a step only if nothing in it waits for the GPU, and if everything
that changes from step to step is a tensor that is written before (batch, learning rate, and the keys of augmentation's
random numbers) or drawn on the GPU. Steps that differ in anything else (the last batch of an epoch, another phase) run
one by one, or are captured again.
"""

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from offramp.cuda_graphs import capture, waits
from offramp.methods._method import Method, Phase
from offramp.outputs import Batch
from offramp.protocols import Progress, Terms
from offramp.step import StepContext
from offramp.train.accumulation import accumulated
from offramp.train.graph_choice import GraphChoice, NotCaptured, capturing
from offramp.train.phases import take_step
from offramp.train.recipe import Recipe

WARM_UP = 3
"""Steps of a phase that run one by one before a capture: cuDNN measures, and the optimizer makes its buffers.

The last of them shows whether a step waits for the GPU, or draws random numbers on the CPU: constants are made in the
first one."""

Step = Callable[[Batch], Terms]
Transform = Callable[[Batch], Batch]


def why_not(method: Method, recipe: Recipe, phases: Sequence[Phase]) -> str:
    """Why a run cannot take its steps as one graph; nothing if it can.

    Args:
        phases: those of the run.
    """
    if recipe.devices > 1:
        return "several processes average their gradients between kernels"
    if all(_own_step(method, phase) for phase in phases):
        return "this method has steps of its own, which look at more than one batch"
    if recipe.precision == "16":
        return "in precision 16 every step waits to see whether its gradients are finite"
    return ""


def _own_step(method: Method, phase: Phase) -> bool:
    """Whether the steps of a phase are not the plain one, see `offramp.train.phases.take_step`."""
    return phase.step is not None or (phase.objective is None and method.step is not None)


def partly(method: Method, phases: Sequence[Phase]) -> str:
    """Which phases of a run cannot take their steps as a graph though others can; nothing if all can."""
    alone = [str(number) for number, phase in enumerate(phases, 1) if _own_step(method, phase)]
    return f"phase {', '.join(alone)} of {len(phases)} has steps of its own" if alone else ""


def usable(method: Method, recipe: Recipe, phases: Sequence[Phase], device: str, note: Callable[[str], None]) -> bool:
    """Whether steps may be recorded as CUDA graphs; `note` is called with what cannot, and why."""
    requested = device == "cuda" if recipe.graph is None else recipe.graph
    if not requested:
        return False
    unable = why_not(method, recipe, phases)
    if reason := unable or partly(method, phases):
        note(f"graph: {reason}; kernels are started one by one" + " there" * (not unable))
    return not unable


def captured_for_each_epoch(method: Method) -> bool:
    """Whether a step of one epoch differs from that of another in something that is no tensor."""
    return bool(method.scheduled or method.annealed) and not method.tensor_progress


class Steps:
    """The steps of a run: those of each phase on tensors that stay where they are, if they can be so.

    Args:
        method, context: of the run.
        static: samples of a batch that is taken so; others are not. None: no batch is.
        passes: how many passes a batch takes through the network.
        transform: makes the method's batch from the one that is passed, as a part of the step; default: no change.
        choice: whether a step on a GPU is taken as a graph; default: each is.
    """

    def __init__(
        self,
        method: Method,
        context: StepContext,
        static: int | None,
        passes: int = 1,
        transform: Transform | None = None,
        choice: GraphChoice | None = None,
    ) -> None:
        self.method, self.context, self.static, self.passes = method, context, static, passes
        self.transform, self.choice = transform, choice
        self.phase: Phase | None = None
        self.progress = 0.0
        self.tensor: Tensor | None = None  # the same, where a graph reads it
        self.step: StaticStep | None = None

    def __call__(self, phase: Phase, batch: Batch, progress: float) -> Terms:
        """Take a step on a batch; returns the terms, detached."""
        if refused := self.choice is not None and self.choice.result is False:
            self.step = None  # and the memory of a graph that was tried
        if refused or self.static is None or len(batch.ids) != self.static or _own_step(self.method, phase):
            return self._take(phase, batch, self._read(phase, progress))
        if self.step is None or phase is not self.phase:
            self.step, self.phase = StaticStep(self._again, self.context.fabric.device, self.choice), phase
        elif progress != self.progress and captured_for_each_epoch(self.method):
            self.step.forget()
        self._set_progress(progress)
        try:
            return self.step(batch)
        except NotCaptured as reason:
            if self.choice is None:
                raise
            self.choice.refuse(str(reason))
            self.context.optimizer.zero_grad(set_to_none=True)  # of the capture
        gc.collect()  # the error, which is gone here, and what the capture computed may hold each other
        return self(phase, batch, progress)

    def _read(self, phase: Phase, progress: float) -> Progress:
        """Progress as a compiled objective reads it: a tensor, because it is compiled again for every other number."""
        if self.context.compiled is None or phase.objective is not None:
            return progress
        self._set_progress(progress)
        return progress if self.tensor is None else self.tensor

    def _again(self, batch: Batch) -> Terms:
        assert self.phase is not None
        if self.tensor is None or self.phase.objective is not None:
            return self._take(self.phase, batch, self.progress)
        return self._take(self.phase, batch, self.tensor)

    def _set_progress(self, progress: float) -> None:
        self.progress = progress
        if self.method.tensor_progress:
            if self.tensor is None:
                self.tensor = torch.zeros((), dtype=torch.float64, device=self.context.fabric.device)
            self.tensor.fill_(progress)

    def _take(self, phase: Phase, batch: Batch, progress: Progress) -> Terms:
        def take(context: StepContext, part: Batch) -> Terms:
            return take_step(self.method, phase, context, part, progress)

        return accumulated(take, self.context, self.transform(batch) if self.transform else batch, self.passes)


class StaticStep:
    """One step of fixed shape: `step` on copies of its batches that never move.

    Args:
        step: takes an optimizer step on a batch, without waiting for the device; returns the terms, detached.
        device: on a GPU the step is captured once `WARM_UP` steps have run; on a CPU every step runs `step`.
        choice: whether the next step on a GPU is taken as a graph; default: each is.
    Raises:
        NotCaptured: when the step is to be captured, if that is impossible; nothing was computed.

    All batches have one shape.
    """

    def __init__(self, step: Step, device: torch.device, choice: GraphChoice | None = None) -> None:
        self.step, self.device, self.choice = step, device, choice
        self.taken = 0
        self.stream: torch.cuda.Stream | None = None  # of the steps before a capture
        self.reason = ""  # why the step cannot be captured
        self.batch: Batch | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.names: tuple[str, ...] = ()
        self.values: Tensor | None = None  # the terms, where the graph leaves them

    def __call__(self, batch: Batch) -> Terms:
        """Take the step on this batch; the terms are the caller's own."""
        if self.batch is None:
            self.batch = Batch(*(tensor.clone() for tensor in batch))
        for here, new in zip(self.batch, batch):
            here.copy_(new)
        if self.device.type != "cuda" or self.taken < WARM_UP:
            self.taken += 1
            return self._alone(self.batch)
        if self.reason:
            raise NotCaptured(f"the step cannot be captured ({self.reason})")
        if self.choice is not None and not self.choice.graph():
            return self.step(self.batch)
        if self.graph is None:
            self._capture(self.batch)
        assert self.graph is not None and self.values is not None
        self.graph.replay()
        return dict(zip(self.names, self.values.clone().unbind(), strict=True))

    def forget(self) -> None:
        """Capture again before the next step: something of it has changed that is no tensor, such as `progress`."""
        self.graph = self.values = None

    def _alone(self, batch: Batch) -> Terms:
        """The step, kernel by kernel; on a GPU in a stream of its own, as before a capture it must be."""
        if self.device.type != "cuda":
            return self.step(batch)
        if self.stream is None:  # one for all: memory of a stream is not that of another
            self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            terms = self._watched(batch) if self.taken == WARM_UP else self.step(batch)
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return terms

    def _watched(self, batch: Batch) -> Terms:
        """The step, and whether it does what a graph would not do again."""
        from offramp.split.random_state import random_state

        before = random_state()._replace(cuda=())  # a graph draws other numbers on the GPU in every step
        with waits() as places:
            terms = self.step(batch)
        if places:
            self.reason = f"it waits for the GPU at {places[0]}"
        elif random_state()._replace(cuda=()) != before:
            self.reason = "it draws random numbers on the CPU, which a graph would repeat"
        return terms

    def _capture(self, batch: Batch) -> None:
        """Record the step's kernels; nothing is computed yet.

        Raises:
            NotCaptured: if that is impossible.
        """
        gc.collect()  # memory of earlier runs in this process, which only cycles hold
        with capturing(), capture(self.device) as graph:
            terms = self.step(batch)
            self.names, self.values = tuple(terms), torch.stack(list(terms.values()))
        self.graph = graph
