"""What a bundle does on labelled images: accuracy of every exit, and its policy beside all images to the last exit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from offramp.argument_types import check_arguments
from offramp.lookup import ParameterError
from offramp.measure.text_table import text_table
from offramp.measure.units import count, percent
from offramp.runs.evaluation import Performance, gain, performance_row
from offramp.runs.reporting import SILENT, Reporter

if TYPE_CHECKING:
    from offramp.bundle.manifest import Manifest
    from offramp.bundle.predict_files import Runtime
    from offramp.bundle.read import Bundle
    from offramp.runs.bundle_data import LabelledImages

TIMED, ROUNDS = 30, 3
"""Whole batches that are timed, the first ones, and how often each."""


@dataclass(frozen=True)
class BundleEvaluation:
    """Accuracy and cost of a bundle on labelled images; `print` shows it as tables.

    Attributes:
        bundle: its folder.
        digest: digest of its manifest.
        precision: `float32` or `int8`.
        runtime: runtime that computed it.
        data: name of the data set.
        split: `test`, `val`, or `all` if the data set is not divided.
        samples: number of images.
        batch_size: images per batch, also in the measured times.
        accuracy: (E,) accuracy of every exit on all images, in [0, 1]; None for disabled exits.
        top5: the same for the five largest logits.
        macs: (E,) multiply-adds of an image that exits at each exit, with the branches of earlier exits; None for
            disabled exits.
        shares: (E,) share of the images that exit at each exit.
        early_exit: accuracy and cost with the bundle's policy.
        last_exit: accuracy and cost if every image runs through all segments and gets the prediction of the final exit.
        plain_macs: multiply-adds per image of the network without early exits.
        speedup: median over batches of the ratio of the time to the final exit to that of early exit; None if there was
            no full batch.
        provenance: command, versions, hardware and commit.
    """

    bundle: str
    digest: str
    precision: str
    runtime: str
    data: str
    split: str
    samples: int
    batch_size: int
    accuracy: list[float | None]
    top5: list[float | None]
    macs: list[int | None]
    shares: list[float]
    early_exit: Performance
    last_exit: Performance
    plain_macs: int
    speedup: float | None
    provenance: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Folder of the bundle."""
        return Path(self.bundle)

    def __str__(self) -> str:
        title = f"{self.bundle} ({self.precision}): {self.split} of {self.data}, {self.samples:,} images"
        head = ["exit", "accuracy %", "top-5 %", "MACs", "of plain", "exits here %"]
        other, macs = "all to the last exit", self.early_exit.macs
        sides = [performance_row("early exit", self.early_exit), performance_row(other, self.last_exit)]
        timed = f"measured at batch size {self.batch_size} with {self.runtime} on {self.provenance['device']}"
        untimed = "no times: there is no full batch of this size; take a smaller batch size"
        faster = gain(self.last_exit.macs / macs, self.speedup, other, " than to the last exit")
        plain = f"plain network, without early exits: {count(self.plain_macs)} MACs"
        return "\n".join(
            (
                text_table(title, head, [self._exit(exit) for exit in range(len(self.shares))]),
                "",
                text_table(timed, ["", "accuracy %", "mean MACs as run", "ms per image"], sides),
                faster if self.speedup else untimed,
                f"{plain}, {self.plain_macs / macs:.2f}x those of early exit",
            )
        )

    def _exit(self, exit: int) -> list[str]:
        """The row of an exit."""
        name, macs = "final" if exit == len(self.shares) - 1 else f"exit {exit + 1}", self.macs[exit]
        if macs is None:
            return [name, "–", "–", "–", "–", "off"]
        accuracies = percent(self.accuracy[exit]), percent(self.top5[exit])
        return [name, *accuracies, count(macs), f"{macs / self.plain_macs:.2f}", percent(self.shares[exit])]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows


@check_arguments
def evaluate_bundle(
    bundle: Path | str,
    data: str | None = None,
    *,
    data_options: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    runtime: "Runtime" = "onnx",
    batch_size: int = 64,
    reporter: Reporter | None = None,
) -> BundleEvaluation:
    """Accuracy, exits and operations of a bundle on labelled images, as it runs: in its runtime and its precision.

    Args:
        bundle: folder that `export` wrote.
        data: name of a data set, such as `folder:PATH`, with classes of the bundle; its test split is used, else val,
            or, if it is not divided, all images. Default: the test split of the data set of the bundle's run.
        data_options: options of the source of `data`.
        data_dir: data directory.
        runtime: `onnx` or `openvino` on the CPU; `onnx-cuda` or `onnx-tensorrt` on a GPU.
        batch_size: images per batch.
        reporter: called with the progress of the work; by default nothing is shown.
    Raises:
        ValueError: if the bundle is damaged; if the data are missing, have no labels, or classes that the bundle does
            not know.
    """
    from offramp.bundle.predict import check_batch
    from offramp.bundle.read import open_bundle
    from offramp.measure.provenance import provenance
    from offramp.runs.bundle_data import labelled_images

    if batch_size < 1:
        raise ParameterError(f"batch_size must be at least 1, got {batch_size}", "batch_size")
    folder, reporter = Path(bundle), reporter or SILENT
    opened = open_bundle(folder, runtime)
    check_batch(opened, batch_size)
    costs, plain_macs = _costs(opened.manifest)
    place = None if data_dir is None else Path(data_dir)
    images = labelled_images(folder, opened.manifest, data, data_options or {}, place, reporter)
    with reporter.working("evaluating", len(images.labels)) as advance:
        counted = _run(opened, images, batch_size, advance)
    exits, samples = opened.manifest.exits, len(images.labels)
    macs = [costs.get(exit) for exit in range(exits)]
    shares = (counted.left / samples).tolist()
    mean = sum(share * (cost or 0) for share, cost in zip(shares, macs, strict=True))
    ms, speedup = _times(counted.seconds, batch_size)
    on = [exit in costs for exit in range(exits)]
    accuracy, top5 = (
        [float(hits) / samples if here else None for hits, here in zip(each, on, strict=True)]
        for each in (counted.right, counted.among_five)
    )
    return BundleEvaluation(
        bundle=str(folder),
        digest=opened.manifest.digest,
        precision=opened.manifest.precision,
        runtime=runtime,
        data=images.data,
        split=images.split,
        samples=samples,
        batch_size=batch_size,
        accuracy=accuracy,
        top5=top5,
        macs=macs,
        shares=shares,
        early_exit=Performance(counted.right_early / samples, mean, ms["early"]),
        last_exit=Performance(float(counted.right[-1]) / samples, costs[exits - 1], ms["last"]),
        plain_macs=plain_macs,
        speedup=speedup,
        provenance=provenance("cuda" if runtime in ("onnx-cuda", "onnx-tensorrt") else "cpu"),
    )


def _costs(manifest: "Manifest") -> tuple[dict[int, int], int]:
    """Multiply-adds up to every exit that is on, and of the plain network, as they were counted for the manifest.

    Raises:
        ValueError: if they are not there.
    """
    measured = manifest.measured
    values = [measured.get("plain_macs"), *(measured.get("segment_macs") or [])]
    if len(values) != len(manifest.parts) + 1 or not all(type(each) is int and each > 0 for each in values):
        raise ValueError("manifest.json does not say how many operations its segments have: export the bundle again")
    plain, *each = values
    return dict(zip((spec.exit for spec in manifest.parts), accumulate(each), strict=True)), plain


class Counted(NamedTuple):
    """Counts over all images: right answers of every exit (E,), labels among the five largest logits (E,), images that
    left at each exit (E,), right answers of early exit; and the seconds of timed batches by side.
    """

    right: np.ndarray
    among_five: np.ndarray
    left: np.ndarray
    right_early: int
    seconds: list[dict[str, float]]


def _run(bundle: "Bundle", images: "LabelledImages", batch_size: int, advance: Callable[[int], None]) -> Counted:
    """Run all images with the policy and to the last exit; the first whole batches are timed in turn."""
    from offramp import finite
    from offramp.measure.timing import medians, side_by_side

    exits = bundle.manifest.exits
    right, among_five, left = (np.zeros(exits, np.int64) for _ in range(3))
    right_early, seconds = 0, list[dict[str, float]]()
    for start in range(0, len(images.labels), batch_size):
        labels = images.labels[start : start + batch_size]
        inputs = bundle.manifest.preprocessing.normalise(images.pixels(np.arange(start, start + len(labels))))
        answer = bundle.answer(inputs)
        right_early += int((answer.logits.argmax(1) == labels).sum())
        left += np.bincount(answer.exit, minlength=exits)
        for exit, logits in _every_exit(bundle, inputs).items():
            finite.check([("the logits", logits)], f"{bundle.folder} on {images.data}")
            right[exit] += int((logits.argmax(1) == labels).sum())
            five = np.argpartition(-logits, min(5, logits.shape[1]) - 1, axis=1)[:, :5]
            among_five[exit] += int((five == labels[:, None]).any(1).sum())
        if len(seconds) < TIMED and len(labels) == batch_size:
            sides: dict[str, Callable[[], object]] = {
                "last": partial(_every_exit, bundle, inputs),
                "early": partial(bundle.answer, inputs),
            }
            seconds.append(medians(side_by_side(sides, ROUNDS, warm_up=1)))
        advance(len(labels))
    return Counted(right, among_five, left, right_early, seconds)


def _every_exit(bundle: "Bundle", inputs: np.ndarray) -> dict[int, np.ndarray]:
    """The logits (B, C) of every exit that is on, by exit."""
    state: Any = inputs
    carry: Any = ()
    logits = {}
    for spec, segment in zip(bundle.manifest.parts, bundle.segments_for(len(inputs)), strict=True):
        state, carry, logits[spec.exit] = segment(state, carry)
    return logits


def _times(seconds: list[dict[str, float]], batch_size: int) -> tuple[dict[str, float | None], float | None]:
    """Milliseconds per image of both sides and the median ratio; None without timed batches."""
    if not seconds:
        return {"early": None, "last": None}, None
    ms = {side: 1000 * median(batch[side] for batch in seconds) / batch_size for side in ("early", "last")}
    return {**ms}, median(batch["last"] / batch["early"] for batch in seconds)
