"""A bundle beside the network it was made of, on real images: logits, exits, accuracy and costs as they are."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from offramp.bundle.read import Bundle
from offramp.bundle.sessions import ArraySegment
from offramp.data.augment import normalise
from offramp.data.splits import DataSet
from offramp.early_exit.policy import ExitPolicy
from offramp.measure.cost import milliseconds, segment_macs
from offramp.net import MultiExitNet, segments

TOLERANCE = 1e-4
"""Largest difference of logits, in units of max(1, the largest logit), and of a score from its threshold at a tie."""
INT8_TOLERANCE = 0.01
"""The same of an int8 bundle against its own segments: a rounding in float32 may move a value to the next integer."""

ORDER = ("test", "cal", "val", "train")  # whose images are taken, until there are enough
SIZES = (1, 2, 7, 32)  # batches that are compared first; then the last size, again and again


class Difference(ValueError):
    """The bundle's results differ from the network's; the message says where."""


class Samples(NamedTuple):
    """A batch of images of one split: pixels (B, C, H, W), labels and ids (B,)."""

    split: str
    pixels: UInt8[np.ndarray, "B C H W"]
    labels: np.ndarray
    ids: np.ndarray


class Reference(NamedTuple):
    """What the network says: logits of every enabled exit (S, B, C), the predictions, their scores and exits."""

    logits: Tensor
    answers: Tensor
    scores: Tensor
    taken: Tensor


def images(data: DataSet, number: int) -> dict[str, np.ndarray]:
    """Rows of the splits to look at, evenly spread over each: of test as many as there are, then of the others."""
    chosen = {}
    for split in ORDER:
        if split in data.splits and number > 0:
            rows = data.splits[split].indices
            count = min(number, len(rows))
            chosen[split] = rows[np.arange(count) * len(rows) // count]
            number -= count
    return chosen


def batches(data: DataSet, chosen: dict[str, np.ndarray]) -> Iterator[Samples]:
    """The chosen images, in batches of different sizes."""
    sizes = iter(SIZES)
    for split, rows in chosen.items():
        begin = 0
        while begin < len(rows):
            ids = rows[begin : begin + next(sizes, SIZES[-1])]
            source = data.splits[split].source
            yield Samples(split, source.batch(ids), source.labels[ids], ids)
            begin += len(ids)


def verify(
    bundle: Bundle, net: MultiExitNet, data: DataSet, count: int, advance: Any = lambda samples: None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare a bundle with its network, and measure it.

    Every image goes through training's preprocessing and torch, and through the bundle's and its runtime; first all
    exits' logits are compared, then the answers of samples that leave early. An int8 bundle is compared with its own
    segments on batches that no sample leaves, after training's preprocessing.

    Args:
        net: in eval mode, float32, on the CPU.
        count: number of images, evenly spread over test, then cal, val and train; all if there are fewer.
        advance: called with the number of samples after each batch.
    Returns:
        (verified, measured) as the manifest holds them.
    Raises:
        Difference: naming exit, split and image, and how far they differ.
    """
    parts: Sequence[Any] = segments(net, bundle.policy.enabled)
    tolerance = TOLERANCE
    if bundle.manifest.quantised:
        parts, tolerance = [partial(_on_tensors, segment) for segment in bundle.segments], INT8_TOLERANCE
    worst, ties, right, plainly_right = 0.0, 0, 0, 0
    exits: list[int] = []
    selection = images(data, count)
    with torch.inference_mode():
        for samples in batches(data, selection):
            inputs = normalise(torch.from_numpy(samples.pixels), data.mean, data.std)
            expected = _reference(parts, bundle.policy, inputs)
            arrays = bundle.manifest.preprocessing.normalise(samples.pixels)
            worst = max(worst, _compare_logits(bundle, expected, arrays, samples, tolerance))
            answers = bundle.answer(arrays)
            ties += _compare_exits(bundle, expected, answers, samples, tolerance)
            if samples.split == "test":
                right += int((answers.logits.argmax(1) == samples.labels).sum())
                plainly_right += int((expected.logits[-1].argmax(1).numpy() == samples.labels).sum())
                exits += answers.exit.tolist()
            advance(len(samples.ids))
    counts = {split: len(rows) for split, rows in selection.items()}
    verified = {"images": counts, "largest_difference": worst, "tolerance": tolerance, "ties": ties}
    measured = _costs(bundle, net, data, exits)
    return verified, {"accuracy": right / len(exits), "plain_accuracy": plainly_right / len(exits), **measured}


def _reference(parts: Sequence[Any], policy: ExitPolicy, inputs: Tensor) -> Reference:
    """Every enabled exit of the network for all samples; none exits early, so nothing depends on the runtime's path."""
    state: Any = inputs
    carry: Any = ()
    policy_carry: dict[str, Any] = {}
    rows = []
    for exit, segment in zip([exit for exit, flag in enumerate(policy.enabled) if flag], parts, strict=True):
        state, carry, logits = segment(state, carry)
        policy_carry, answers, score, exits_here = policy.step(policy_carry, logits, exit)
        rows.append((logits, answers, score, exits_here))
    logits, answers, score, exits_here = (torch.stack(column) for column in zip(*rows, strict=True))
    return Reference(logits, answers, score, exits_here.int().argmax(0))


def _on_tensors(segment: ArraySegment, state: Any, carry: Any) -> Any:
    """A segment on arrays, that takes the first state as a tensor and returns its logits as one."""
    state, carry, logits = segment(state.numpy() if isinstance(state, Tensor) else state, carry)
    return state, carry, torch.from_numpy(logits)


def _compare_logits(
    bundle: Bundle, expected: Reference, arrays: np.ndarray, samples: Samples, tolerance: float
) -> float:
    """The largest difference of any exit's logits, in units of the tolerance's scale."""
    state: Any = arrays
    carry: Any = ()
    worst = 0.0
    for spec, segment, expected_logits in zip(
        bundle.manifest.parts, bundle.segments, expected.logits.numpy(), strict=True
    ):
        state, carry, logits = segment(state, carry)
        worst = max(worst, _near(logits, expected_logits, spec.file, spec.exit, samples, tolerance))
    return worst


def _near(
    actual: np.ndarray, expected: np.ndarray, what: str, exit: int, samples: Samples, tolerance: float = TOLERANCE
) -> float:
    if actual.shape != expected.shape:
        raise Difference(f"{what} returns {actual.shape} at exit {exit + 1}, but the network {expected.shape}")
    differences = np.abs(actual - expected).max(1) / max(1.0, float(np.abs(expected).max()))
    worst = int(differences.argmax())  # of NaN, the first
    if not differences[worst] <= tolerance:
        raise Difference(
            f"{what}: at exit {exit + 1} the logits of image {samples.ids[worst]} of {samples.split} (batch of "
            f"{len(samples.pixels)}) differ from the network's by {differences[worst]:.2g} of the largest, more than "
            f"{tolerance:g}"
        )
    return float(differences[worst])


def _compare_exits(bundle: Bundle, expected: Reference, answers: Any, samples: Samples, tolerance: float) -> int:
    """How many samples left elsewhere because their score lies at a threshold; every other difference is an error."""
    enabled = [spec.exit for spec in bundle.manifest.parts]
    ties = 0
    for row, exit in enumerate(answers.exit.tolist()):
        place, expected_place = enabled.index(exit), int(expected.taken[row])
        if place != expected_place:
            first = min(place, expected_place)
            if not _tie(bundle.policy, expected, enabled, first, row, tolerance):
                raise Difference(
                    f"image {samples.ids[row]} of {samples.split} takes exit {exit + 1} in the bundle, but "
                    f"exit {enabled[expected_place] + 1} in the network"
                )
            ties += 1
            continue
        answer = expected.answers[place, row : row + 1].numpy()
        one = samples._replace(ids=samples.ids[row : row + 1])
        _near(answers.logits[row : row + 1], answer, "leaving early", exit, one, tolerance)
    return ties


def _tie(
    policy: ExitPolicy,
    expected: Reference,
    enabled: Sequence[int],
    first: int,
    row: int,
    tolerance: float = TOLERANCE,
) -> bool:
    """Whether a sample's decision at the enabled exit number `first` hangs on less than the tolerance."""
    if policy.score != "patience":
        return bool(abs(expected.scores[first, row] - policy.thresholds[enabled[first]]) <= tolerance)
    best = expected.answers[: first + 1, row].topk(2).values
    scale = max(1.0, float(expected.answers[: first + 1, row].abs().max()))
    return bool((best[:, 0] - best[:, 1]).min() <= 2 * tolerance * scale)


def _spread(segment: ArraySegment, inputs: tuple[Any, Any]) -> Any:
    return segment(*inputs)


def _costs(bundle: Bundle, net: MultiExitNet, data: DataSet, exits: list[int]) -> dict[str, Any]:
    """Operations and measured times of every segment, and of the mean test image."""
    enabled = [spec.exit for spec in bundle.manifest.parts]
    macs = segment_macs(net, data.shape, bundle.policy.enabled)
    plain = segment_macs(net, data.shape, [False] * (net.exits - 1) + [True])[0]
    times = []
    state: Any = np.zeros((1, *data.shape), np.float32)
    carry: Any = ()
    for segment in bundle.segments:
        times.append(milliseconds(partial(_spread, segment), (state, carry)))
        state, carry, _ = segment(state, carry)
    reach = {name: dict(zip(enabled, accumulate(each), strict=True)) for name, each in (("macs", macs), ("ms", times))}
    return {
        "split": "test",
        "samples": len(exits),
        "shares": [exits.count(exit) / len(exits) for exit in range(net.exits)],
        "macs": sum(reach["macs"][exit] for exit in exits) / len(exits),
        "plain_macs": plain,
        "segment_macs": macs,
        "ms": sum(reach["ms"][exit] for exit in exits) / len(exits),
        "segment_ms": times,
        "ms_of": {"runtime": "onnxruntime", "precision": bundle.manifest.precision, "batch_size": 1},
    }
