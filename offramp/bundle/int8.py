"""A bundle in float32 becomes one in int8, if its exits keep their accuracy on cal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from offramp.bundle.manifest import Manifest, SegmentSpec
from offramp.bundle.quantise import quantised, reference_segments
from offramp.bundle.read import Bundle, content, open_files
from offramp.bundle.recertify import exported_trace
from offramp.bundle.sessions import ArraySegment, open_segment
from offramp.data.splits import Split
from offramp.early_exit.certify import divide
from offramp.lookup import with_parameters
from offramp.measure.timing import medians, side_by_side
from offramp.measure.units import percent

MOST_IMAGES = 256
"""Calibration images for the ranges of activations."""
DROP = 0.005
"""Accuracy on cal that no exit may lose, by default: half a point."""
CERTAIN = 1.645
"""Standard errors by which a loss must exceed its bound, so that it does with a probability of 95 %."""
KERNELS = 0.1
"""Largest difference between a processor's integer kernels and the file's definition: root mean square of a segment's
logits, in units of that of the logits."""
COMPARED = 64
"""Images on which kernels are compared."""
BATCHES, ROUNDS = (1, 64), (20, 5)
"""Batch sizes at which float32 and int8 are timed in turn, and how often."""


class Converted(NamedTuple):
    """The quantised segments' files, their description in the manifest, and their logits and labels of cal."""

    models: list[bytes]
    about: dict[str, Any]
    logits: Float[np.ndarray, "E N C"]
    labels: Int[np.ndarray, "N"]


def convert(folder: Path, manifest: Manifest, cal: Split, drop: float, measured: Mapping[str, Any]) -> Converted:
    """Quantise the segments of a bundle that was written in float32.

    Ranges of activations come from that third of cal that no certificate is computed on.

    Args:
        drop: what no exit may lose of its accuracy on cal, a share; refused if the loss is larger beyond its noise.
        measured: of the float32 bundle on test, kept in `about`.
    Raises:
        ValueError: if an exit loses more, naming the segment whose quantisation costs it most; if this processor's
            integer kernels compute something else than the file says.
    """
    exact = open_files(folder, manifest, "onnx")
    tuning = cal.indices[divide(len(cal))[0]]
    rows = tuning[np.arange(min(MOST_IMAGES, len(tuning))) * len(tuning) // min(MOST_IMAGES, len(tuning))]
    inputs = manifest.preprocessing.normalise(cal.source.batch(rows))
    models = quantised([content(folder, manifest, spec.file) for spec in manifest.parts], manifest.parts, inputs)
    segments = tuple(open_segment(model, spec) for model, spec in zip(models, manifest.parts, strict=True))
    kernels = _kernels(models, manifest.parts, segments, inputs[:COMPARED])
    before, labels = exported_trace(exact, cal)
    after, _ = exported_trace(replace(exact, segments=segments), cal)
    exits = [spec.exit for spec in manifest.parts]
    right = {name: trace[exits].argmax(2) == labels for name, trace in (("float32", before), ("int8", after))}
    _refuse_loss(exact, segments, cal, right, drop)
    about = {
        "method": "static, per channel with compensated rounding, uint8 activations, min-max ranges",
        "range_images": len(rows),
        "split": "cal",
        "samples": len(labels),
        "exits": exits,
        "accuracy": {name: hits.mean(1).tolist() for name, hits in right.items()},
        "same_prediction": (before[exits].argmax(2) == after[exits].argmax(2)).mean(1).tolist(),
        "most_drop": drop,
        "kernels": {"largest_difference": kernels, "tolerance": KERNELS},
        "ms": _times({"float32": exact.segments, "int8": segments}, manifest.preprocessing.shape),
        "float32": dict(measured),
    }
    return Converted(models, about, after, labels)


def _kernels(
    models: Sequence[bytes], specs: Sequence[SegmentSpec], segments: Sequence[ArraySegment], inputs: np.ndarray
) -> float:
    """The largest difference of a segment as it runs from the definition in its file, each on the same states."""
    state: Any = inputs
    carry: Any = ()
    worst = 0.0
    for spec, segment, reference in zip(specs, segments, reference_segments(models, specs), strict=True):
        expected = reference(state, carry)[2]
        state, carry, logits = segment(state, carry)
        difference = float(np.sqrt(np.square(logits - expected).mean() / max(np.square(expected).mean(), 1e-12)))
        if not difference <= KERNELS:
            raise ValueError(
                f"{spec.file}: the integer kernels of this processor differ from the quantised model by "
                f"{difference:.2g} of its logits, more than {KERNELS:g}: sums in 16 bits overflow without VNNI "
                "instructions; export on a processor that has them, or in float32"
            )
        worst = max(worst, difference)
    return worst


def _refuse_loss(
    exact: Bundle, segments: Sequence[ArraySegment], cal: Split, right: Mapping[str, np.ndarray], drop: float
) -> None:
    """Refuse quantised segments with which an exit loses more than `drop`, beyond the noise of these images."""
    losses = [_loss(before, after) for before, after in zip(right["float32"], right["int8"], strict=True)]
    place = max(range(len(losses)), key=lambda place: losses[place][0] - CERTAIN * losses[place][1])
    lost, noise = losses[place]
    if lost - CERTAIN * noise <= drop:
        return
    alone = []
    for number, segment in enumerate(segments[: place + 1]):
        mixed = tuple(segment if other == number else each for other, each in enumerate(exact.segments))
        logits, labels = exported_trace(replace(exact, segments=mixed), cal)
        hits = logits[exact.manifest.parts[place].exit].argmax(1) == labels
        alone.append(_loss(right["float32"][place], hits)[0])
    most = int(np.argmax(alone))
    message = (
        f"exit {exact.manifest.parts[place].exit + 1} loses {percent(lost)} ± {percent(CERTAIN * noise)} points of "
        f"accuracy on {right['int8'].shape[1]:,} images of cal in int8, more than int8_drop={percent(drop)} points; "
        f"most of it in {exact.manifest.parts[most].file}, which alone costs it {percent(alone[most])}: export in "
        "float32, or allow a larger drop"
    )
    raise with_parameters(ValueError(message), "int8_drop")


def _loss(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The accuracy that is lost between paired results, and its standard error."""
    difference = before.astype(float) - after
    return float(difference.mean()), float(difference.std() / np.sqrt(len(difference)))


def _times(sides: Mapping[str, Sequence[ArraySegment]], shape: tuple[int, int, int]) -> dict[str, dict[str, float]]:
    """Milliseconds of a batch through all segments, by side and batch size, measured in turn."""
    times: dict[str, dict[str, float]] = {name: {} for name in sides}
    for size, rounds in zip(BATCHES, ROUNDS, strict=True):
        inputs = np.zeros((size, *shape), np.float32)
        runs: dict[str, Callable[[], object]] = {
            name: partial(_through, segments, inputs) for name, segments in sides.items()
        }
        for name, seconds in medians(side_by_side(runs, rounds)).items():
            times[name][str(size)] = 1000 * seconds
    return times


def _through(segments: Sequence[ArraySegment], inputs: np.ndarray) -> None:
    state: Any = inputs
    carry: Any = ()
    for segment in segments:
        state, carry, _ = segment(state, carry)


def segment_ms(bundle: Bundle, batch: int) -> list[float]:
    """Milliseconds per image of every segment of a bundle at a batch size."""
    state: Any = np.zeros((batch, *bundle.manifest.preprocessing.shape), np.float32)
    carry: Any = ()
    runs: dict[str, Callable[[], object]] = {}
    for spec, segment in zip(bundle.manifest.parts, bundle.segments, strict=True):
        runs[spec.file] = partial(segment, state, carry)
        state, carry, _ = segment(state, carry)
    seconds = medians(side_by_side(runs, ROUNDS[-1] if batch > 1 else ROUNDS[0]))
    return [1000 / batch * seconds[spec.file] for spec in bundle.manifest.parts]
