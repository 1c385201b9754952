"""Early exit on a GPU with segment, policy and the removal of samples in one CUDA graph: one number is read per exit.

Where a sample stands in the batch, and whether it has exited, stay on the GPU: samples that continue are moved to the
front, and only how many they are is read, to choose the next graph. Results equal those of `runtime.answer`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from offramp.early_exit.graphed_segment import buffer, captured
from offramp.early_exit.policy import PolicyCarry
from offramp.early_exit.runtime import Answer, StepPolicy

Entering = tuple[Any, tuple[Tensor, ...], PolicyCarry]
"""State, carry and what the policy carries, as they come to a segment."""


class _Results(NamedTuple):
    """What samples are answered, by place in the batch; the last row takes what is written for no sample."""

    logits: Tensor
    exit: Tensor
    score: Tensor


class GraphedStep:
    """A segment and the policy's decision for up to `size` samples, on tensors that stay where they are.

    Args:
        segment: (state, carry) -> (state, carry, logits), on the device.
        policy: enables the exit; exit: of the segment, from 0.
        like: a batch as it comes to the segment, of any size.
        size: most samples.
        results: where answers are written; its last row is no sample's.
        device: on a CPU nothing is captured.
    """

    def __init__(
        self,
        segment: Any,
        policy: StepPolicy,
        exit: int,
        like: Entering,
        size: int,
        results: _Results,
        device: torch.device,
    ) -> None:
        self.segment, self.policy, self.exit, self.results, self.size = segment, policy, exit, results, size
        self.inputs = _map(lambda tensor: buffer(tensor, size), like)
        self.places = torch.zeros(size, dtype=torch.int64, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.numbers = torch.arange(size, device=device)
        self.run = captured(self._compute, device)

    def __call__(self, entering: Entering, places: Tensor, samples: int) -> tuple[Entering, Tensor, Tensor]:
        """Answer the first `samples` of a batch.

        Args:
            places: of every sample in `results`.
        Returns:
            The batch and its places with the samples that continue in front, and how many they are, on the device. They
            hold until the next call.
        """
        rows = min(self.size, len(places))
        for here, new in zip(_tensors(self.inputs), _tensors(entering), strict=True):
            here[:rows].copy_(new[:rows])
        self.places[:rows].copy_(places[:rows])
        self.count.fill_(samples)
        return self.run()

    def _compute(self) -> tuple[Entering, Tensor, Tensor]:
        state, carry, policy_carry = self.inputs
        state, carry, logits = self.segment(state, carry)
        policy_carry, logits, score, leaves = self.policy.step(policy_carry, logits, self.exit)
        there = self.numbers < self.count
        places = torch.where(there, self.places, len(self.results.exit) - 1)
        self.results.logits.index_copy_(0, places, logits)
        self.results.score.index_copy_(0, places, score)
        self.results.exit.index_fill_(0, places, self.exit)
        staying = there & ~leaves
        order = (~staying).to(torch.uint8).argsort(stable=True)
        onward = _map(lambda tensor: tensor.index_select(0, order), (state, carry, policy_carry))
        return onward, self.places.index_select(0, order), staying.sum()


class GraphedExits:
    """Early exit for batches of any size: (inputs) -> `Answer`; call it in inference mode.

    Args:
        segments: one per enabled exit, on the device.
        policy: which exits are enabled and when a sample exits.
        device: on a CPU nothing is captured.
    Raises:
        ValueError: if there is not one segment per enabled exit.
    """

    def __init__(self, segments: Sequence[Any], policy: StepPolicy, device: torch.device) -> None:
        self.exits = [exit for exit, on in enumerate(policy.enabled) if on]
        if len(segments) != len(self.exits):
            raise ValueError(f"the policy enables {len(self.exits)} exits, but there are {len(segments)} segments")
        self.segments, self.policy, self.device = segments, policy, device
        self.like: list[Entering] = []
        self.results: dict[int, _Results] = {}
        self.steps: dict[tuple[int, int, int], GraphedStep] = {}

    def __call__(self, inputs: Tensor) -> Answer:
        """Predict every sample at the first enabled exit whose score reaches its threshold."""
        samples = len(inputs)
        capacity = power_of_two(samples)
        entering: Entering = (inputs, (), {})
        places, left = torch.arange(samples, device=self.device), samples
        for place in range(len(self.exits)):
            step = self.step(place, left, capacity, inputs)
            entering, places, staying = step(entering, places, left)
            if place == len(self.exits) - 1:
                break
            left = int(staying)  # the only number that is read
            if not left:
                break
        return Answer(*(tensor[:samples].clone() for tensor in self.results[capacity]))

    def prepare(self, inputs: Tensor) -> None:
        """Capture every step that batches of this size can need.

        Args:
            inputs: a batch.
        """
        capacity = power_of_two(len(inputs))
        for place in range(len(self.exits)):
            for power in range(capacity.bit_length()) if place else (capacity.bit_length() - 1,):
                self.step(place, 1 << power, capacity, inputs)

    def alone(self, place: int, samples: int, inputs: Tensor) -> Callable[[], int]:
        """One segment's step, to be timed: it copies the batch in and returns how many samples continue.

        Args:
            place: of the segment.
            samples: how many it computes; their values are what its input tensors contain.
            inputs: a batch of the size of the whole.
        """
        step = self.step(place, samples, power_of_two(len(inputs)), inputs)
        entering = _map(lambda tensor: tensor[:samples].clone(), step.inputs)
        places = step.places[:samples].clone()
        return lambda: int(step(entering, places, samples)[2])

    def step(self, place: int, samples: int, capacity: int, inputs: Tensor) -> GraphedStep:
        """The step of a segment for this many samples, captured if it is needed for the first time.

        Args:
            place: of the segment.
            capacity: power of two, at least the samples of the whole batch.
            inputs: a batch.
        """
        if not self.like:
            self.like = entering_each(self.segments, self.policy, inputs[:2])
        if capacity not in self.results:
            self.results[capacity] = results_for(capacity, self.segments, self.like[-1], self.device)
        key = (capacity, place, power_of_two(samples))
        if key not in self.steps:
            segment, like, results = self.segments[place], self.like[place], self.results[capacity]
            built = GraphedStep(segment, self.policy, self.exits[place], like, key[2], results, self.device)
            self.steps[key] = built
        return self.steps[key]


def entering_each(segments: Sequence[Any], policy: StepPolicy, inputs: Tensor) -> list[Entering]:
    """What comes to every segment if no sample exits."""
    exits = [exit for exit, on in enumerate(policy.enabled) if on]
    entering: Entering = (inputs, (), {})
    each = []
    for segment, exit in zip(segments, exits, strict=True):
        each.append(entering)
        state, carry, logits = segment(*entering[:2])
        entering = (state, carry, policy.step(entering[2], logits, exit)[0])
    return each


def results_for(capacity: int, segments: Sequence[Any], like: Entering, device: torch.device) -> _Results:
    """Memory for the answers of this many samples, and one unused row.

    Args:
        like: what comes to the last segment.
    """
    classes = segments[-1](*like[:2])[2].shape[1]
    logits = torch.zeros(capacity + 1, classes, device=device)
    return _Results(logits, torch.zeros(capacity + 1, dtype=torch.int64, device=device), logits[:, 0].clone())


def power_of_two(samples: int) -> int:
    """The next power of two."""
    return 1 << (samples - 1).bit_length()


def _map(change: Callable[[Tensor], Tensor], entering: Entering) -> Entering:
    state, carry, policy_carry = entering
    changed = tuple(map(change, state)) if isinstance(state, tuple) else change(state)
    return changed, tuple(map(change, carry)), {name: change(value) for name, value in policy_carry.items()}


def _tensors(entering: Entering) -> list[Tensor]:
    state, carry, policy_carry = entering
    return [
        *(state if isinstance(state, tuple) else (state,)),
        *carry,
        *(value for _, value in sorted(policy_carry.items())),
    ]
